"""Deep-TEN on MINC-2500, 23 materials.

Source: Zhang et al., Deep TEN: Texture Encoding Network, CVPR 2017, with ResNet-50, as
PyTorch-Encoding trains it: SGD 0.004 for 512 images over 80 epochs, a tenth of it after 60, weight
decay 5e-4, head x10, 32 codewords on 128 features, crops of 224; colours are changed until the rate
drops.

Launch: trainkit recog_minc --data /path/to/minc-2500

On several processes: accelerate launch -m trainkit recog_minc ...

Hardware and time: not yet measured; the authors used four GPUs.

Expected: not yet measured with this code; PyTorch-Encoding publishes top1 81.04 % on the first
split, one crop of 224.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import nn

from trainkit import Recipe
from trainkit.data.dataset_info import ClassDataset, LazyDataset
from trainkit.data.datasets import synthetic as generated
from trainkit.data.datasets.class_source import ClassSource
from trainkit.data.datasets.minc import MINC
from trainkit.data.datasets.packed import PackedImages
from trainkit.data.datasets.packed_format import is_packed
from trainkit.data.datasets.staged import Stages
from trainkit.data.transforms.recognition import eval_transform, train_transform
from trainkit.losses.class_weights import recorded_weights, resolved_weights
from trainkit.models.backbones import backbone as named_backbone
from trainkit.models.deepten import DeepTEN
from trainkit.settings import ClassSettings, OptimizerSettings, ScheduleSettings
from trainkit.settings.rebuildable import rebuildable
from trainkit.tasks.recognition import Recognition

# What --sample changes; a setting given beside it still wins.
SAMPLE = {
    "backbone": "small",
    "pretrained": False,
    "head_lr_mult": 1.0,
    "lr": 0.5,
    "batch_size": 32,
    "size": 56,
}
SAMPLE |= {"epochs": 6, "drop": 5, "smallest_crop": 0.25}


@rebuildable
def network(num_classes: int, backbone: str, pretrained: bool, codewords: int) -> nn.Module:
    """Deep-TEN on a backbone by name, at stride 32."""
    body = named_backbone(backbone, pretrained, 32)
    return DeepTEN(body, num_classes, num_codewords=codewords)


def recipe(
    data: Path = Path("data/minc-2500"),
    split: int = 1,
    backbone: str = "resnet50",
    pretrained: bool = True,
    drop: int = 60,
    batch_size: int = 512,
    optimizer: OptimizerSettings = OptimizerSettings(
        lr=0.004, weight_decay=5e-4, head_lr_mult=10.0
    ),
    schedule: ScheduleSettings = ScheduleSettings(epochs=80, schedule="multistep"),
    per_class: ClassSettings = ClassSettings(),
    size: int = 224,
    smallest_crop: float = 0.08,
    jitter: tuple[float, ...] | None = (0.4, 0.4, 0.4),
    lighting: float | None = 0.1,
    codewords: int = 32,
    sample: bool = False,
) -> Recipe:
    """Deep-TEN on MINC-2500.

    Args:
        data: the unpacked minc-2500.tar.gz
        split: which of the five published ones, 1 to 5; the paper has their mean
        backbone: of torchvision's ResNets, "timm:" and a name of timm's, or "small", which trains
            on a laptop
        pretrained: start the backbone from published ImageNet weights
        drop: epochs after which the learning rate becomes a tenth, and colours are left as they are
        lr: initial learning rate of the backbone, for 512 images a batch
        batch_size: images of one step, over all processes
        head_lr_mult: factor of the learning rate outside the backbone
        size: side of the crop in training and in evaluation
        smallest_crop: smallest area of a training crop, as a share of the image's area
        jitter: strengths of colour jitter: brightness, contrast, saturation and hue
        lighting: strength of PCA lighting
        codewords: of the encoding layer
        sample: train a small network on generated images, in under a minute
    """
    area, evaluation = (smallest_crop, 1.0), eval_transform(size)
    coloured = train_transform(size, area, jitter=jitter, lighting=lighting)
    stages = {0: coloured, drop: train_transform(size, area)}
    open_training: Callable[[], ClassDataset]
    val_data: ClassDataset
    if sample:
        source = generated.class_folder()
        open_training = partial(ClassSource(source).open, "train")
        val_data = ClassSource(source).open("val", evaluation)
    elif is_packed(data):
        open_training = partial(PackedImages, data, "train")
        val_data = PackedImages(data, "test", evaluation)
    else:
        open_training = partial(MINC, data, "train", split)
        val_data = MINC(data, "test", split, evaluation)
    train_data = LazyDataset(lambda: Stages(open_training(), stages))
    names = val_data.classes
    net = network(len(names), backbone, pretrained, codewords)
    weights = resolved_weights(per_class.class_weights, train_data, len(names))
    return Recipe(
        task=Recognition(names, extra_metrics=per_class.metrics, class_weights=weights),
        model=net,
        train_data=train_data,
        val_data=val_data,
        **optimizer.build(net),
        **schedule.build(milestones=[drop]),
        batch_size=batch_size,
        sampler=per_class.sampler,
        input=recorded_weights(per_class.class_weights, weights),
        eval_batch_size=32,
        note=f"generated data, not MINC: shapes of {len(names)} looks in {source}"
        if sample
        else None,
    )
