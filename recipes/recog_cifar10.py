"""ResNet-18 for 32x32 images, or a small network, on CIFAR-10.

Source: He et al., Deep Residual Learning, CVPR 2016, section 4.2 (SGD, batch 128, crop from 4
pixels of padding, flip), with a cosine schedule over 200 epochs and the ResNet-18 with a 3x3 stem
that is in common use for CIFAR.

Launch: trainkit recog_cifar10 --data /path/to/parquet/files

On several processes: accelerate launch -m trainkit recog_cifar10 ...

CIFAR-100: --data uoft-cs/cifar100 --label-column fine_label

Hardware and time: resnet18 not yet measured; `--model small --epochs 8` takes 12 minutes on 2 CPU
cores.

Expected: resnet18 not yet measured with this code; published for this network: top1 93.02 %
(kuangliu/pytorch-cifar, the rate in steps), 95.27 % (K. Jordan, mean of five, 150 epochs at batches
of 512). small with `--epochs 8 --warmup-epochs 1`: top1 82.27 %, on images stored as JPEG.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from torch import nn
from torchvision.models import resnet18

from trainkit import Recipe
from trainkit.data.dataset_info import ClassDataset, LazyDataset, SizedDataset
from trainkit.data.datasets import synthetic as generated
from trainkit.data.datasets.class_names import read_class_names
from trainkit.data.datasets.hub import HubImages
from trainkit.data.datasets.packed import PackedImages, require_plain
from trainkit.data.datasets.packed_format import is_packed
from trainkit.data.mixup import Mixup
from trainkit.data.on_device import Flip, OnDevice, PadCrop
from trainkit.losses.class_weights import recorded_weights, resolved_weights
from trainkit.models.small import SmallClassifier, SmallResNet
from trainkit.settings import ClassSettings, OptimizerSettings, ScheduleSettings
from trainkit.settings.rebuildable import rebuildable
from trainkit.tasks.recognition import Recognition

# What --sample changes; a setting given beside it still wins.
SAMPLE = {"model": "small", "epochs": 6, "batch_size": 32, "lr": 0.05, "warmup_epochs": 1}


@rebuildable
def network(num_classes: int, model: str) -> nn.Module:
    """The network by the setting `model`, for images (N, 3, 32, 32)."""
    if model == "small":
        widths = (32, 64, 128, 256)
        backbone = SmallResNet(widths, strides=(2, 2, 2), dilations=(1, 1, 1), stem_stride=1)
        return SmallClassifier(num_classes, backbone)
    net = resnet18(num_classes=num_classes)
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    return net


def augmented(images: SizedDataset) -> OnDevice:
    """Training images, held on the device and augmented there."""
    return OnDevice(images, [PadCrop(4), Flip()])


def recipe(
    data: str = "uoft-cs/cifar10",
    label_column: str | None = None,
    model: Literal["resnet18", "small"] = "resnet18",
    batch_size: int = 128,
    optimizer: OptimizerSettings = OptimizerSettings(
        lr=0.1, weight_decay=5e-4, optimizer="nesterov"
    ),
    schedule: ScheduleSettings = ScheduleSettings(epochs=200),
    per_class: ClassSettings = ClassSettings(),
    label_smoothing: float = 0.0,
    mixup: float | None = None,
    classes: tuple[str, ...] | None = None,
    sample: bool = False,
) -> Recipe:
    """CIFAR-10, or another set of small images of one size, held on the device and augmented there.

    Args:
        data: a folder with train*.parquet and test*.parquet, or a name on the Hub
        label_column: the column of class ids where there are several: fine_label in
            uoft-cs/cifar100
        model: the network; small has 1.2 million weights and trains on a laptop
        batch_size: images of one step, over all processes
        weight_decay: of all parameters but biases and those of normalisation layers
        label_smoothing: share of the target spread over all classes
        mixup: alpha of mixup; 0.2 is usual
        classes: names by id, or a text file with one a line; None: of the training images,
            evaluated: of the run
        sample: train the small network on generated images in the same layout, in under a minute
    """
    source = generated.parquet() if sample else data
    names: Sequence[str] | None = read_class_names(classes)
    images: Callable[..., ClassDataset]
    images = partial(HubImages, source, label_column=label_column)
    if is_packed(source):
        require_plain(source, label_column=label_column)
        images = partial(PackedImages, source)
    train_data: SizedDataset = LazyDataset(lambda: augmented(images("train", classes=names)))
    if names is None:
        train_images = images("train")
        train_data, names = augmented(train_images), train_images.classes
    test_images = images("test", classes=names)
    num_classes = len(names)

    net = network(num_classes, model)
    weights = resolved_weights(per_class.class_weights, train_data, num_classes)
    return Recipe(
        task=Recognition(names, label_smoothing, per_class.metrics, class_weights=weights),
        model=net,
        train_data=train_data,
        val_data=OnDevice(test_images),
        **optimizer.build(net, decay_vectors=False),
        **schedule.build(),
        mix=Mixup(mixup, num_classes) if mixup is not None else None,
        sampler=per_class.sampler,
        input=recorded_weights(per_class.class_weights, weights),
        batch_size=batch_size,
        eval_batch_size=256,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        note=f"generated data, not CIFAR-10: shapes of {num_classes} looks in {source}"
        if sample
        else None,
    )
