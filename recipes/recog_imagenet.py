"""ResNet-50 on ImageNet-1k with the bag of tricks.

Source: He et al., Bag of Tricks for Image Classification, CVPR 2019, as PyTorch-Encoding trains it: SGD 0.2 for
512 images, cosine over 120 epochs after 5 of warm-up, label smoothing 0.1, mixup 0.2, no decay on norms and
biases, last gamma of each residual block from 0.

Launch: accelerate launch -m trainkit recipes/recog_imagenet.py --data /path/to/imagenet

Hardware and time: not yet measured.

Expected: not yet measured with this code; the paper has top1 79.29 % with these tricks and a ResNet-50-D.
"""

from typing import Literal

from torch.optim import SGD
from torchvision.models import resnet50, resnet101
from torchvision.transforms import InterpolationMode

from trainkit import Recipe
from trainkit.data import sample as generated
from trainkit.data.source import class_images
from trainkit.mixing import Mixup
from trainkit.models.small import SmallClassifier, SmallResNet
from trainkit.optim import param_groups
from trainkit.recognition import Recognition, eval_transform, train_transform
from trainkit.schedules import cos

# What --sample changes; a setting given beside it still wins.
SAMPLE = {"model": "small", "epochs": 6, "lr": 0.05, "batch_size": 32, "warmup_epochs": 1, "size": 56}


def recipe(
    data: str = "data/imagenet",
    model: Literal["resnet50", "resnet101", "small"] = "resnet50",
    epochs: float = 120,
    lr: float = 0.2,
    batch_size: int = 512,
    weight_decay: float = 1e-4,
    warmup_epochs: float = 5,
    label_smoothing: float = 0.1,
    mixup: float | None = 0.2,
    rand_augment: tuple[int, int] | None = None,
    ema: float | None = None,
    size: int = 224,
    smallest_crop: float = 0.08,
    sample: bool = False,
) -> Recipe:
    """ImageNet-1k from scratch.

    Args:
        data: folder with train/<class>/ and val/<class>/, or with parquet files, or a name on the Hub
        model: the network; small trains on a laptop
        epochs: passes over the training images
        lr: learning rate at its highest, for 512 images a batch
        batch_size: images of one step, over all processes
        weight_decay: of every parameter but norms and biases
        warmup_epochs: of linear warm-up from 0
        label_smoothing: share of the target spread over all classes
        mixup: alpha of mixup; None for none
        rand_augment: number and magnitude of RandAugment, such as 2 9
        ema: decay of a moving average of the weights, such as 0.9999; None for none
        size: side of the crop in training and in evaluation
        smallest_crop: share of the image's area that a training crop has at least
        sample: train the small network on generated images in the same layout, in under a minute
    """
    source = generated.class_folder() if sample else data
    bicubic = InterpolationMode.BICUBIC
    train_data = class_images(source, "train", train_transform(size, (smallest_crop, 1.0), bicubic, rand_augment))
    val_data = class_images(source, "val", eval_transform(size, interpolation=bicubic), train_data.classes)
    num_classes = len(train_data.classes)
    if model == "small":
        network = SmallClassifier(num_classes, SmallResNet((32, 64, 128, 256), (2, 2, 2), (1, 1, 1)))
    else:
        network = {"resnet50": resnet50, "resnet101": resnet101}[model](
            num_classes=num_classes, zero_init_residual=True
        )
    return Recipe(
        task=Recognition(train_data.classes, label_smoothing),
        model=network,
        train_data=train_data,
        val_data=val_data,
        optimizer=SGD(param_groups(network, lr, weight_decay, decay_vectors=False), lr=lr, momentum=0.9, fused=True),
        schedule=cos(warmup_epochs=warmup_epochs),
        mix=Mixup(mixup, num_classes) if mixup is not None else None,
        ema=ema,
        epochs=epochs,
        batch_size=batch_size,
        eval_batch_size=32,
        note=f"generated data, not ImageNet: shapes of {num_classes} looks in {source}" if sample else None,
    )
