"""ResNeSt-50 on ImageNet-1k, 270 epochs: a variant of recog_imagenet.py.

Source: Zhang et al., ResNeSt: Split-Attention Networks, 2020, as PyTorch-Encoding trains it on 32 GPUs: SGD 0.8 for
2048 images, cosine over 270 epochs after 5 of warm-up, label smoothing 0.1, mixup 0.2, RandAugment, no decay on norms
and biases, last gamma of each block from 0. Takes timm: pip install ".[timm]".

Launch: accelerate launch -m trainkit recipes/recog_imagenet_resnest.py --data /path/to/imagenet

Hardware and time: not yet measured; the authors used 32 GPUs.

Expected: not yet measured with this code; PyTorch-Encoding publishes top1 81.03 %.
"""

from typing import Literal

from recog_imagenet import SAMPLE as SAMPLE
from recog_imagenet import recipe as bag_of_tricks

from trainkit import Recipe


def recipe(
    data: str = "data/imagenet",
    model: str = "timm:resnest50d",
    epochs: float = 270,
    lr: float = 0.8,
    batch_size: int = 2048,
    warmup_epochs: float = 5,
    mixup: float | None = 0.2,
    rand_augment: tuple[int, int] | None = (2, 12),
    size: int = 224,
    crop_fraction: float | None = None,
    crop_mode: Literal["center", "squash"] | None = None,
    interpolation: Literal["bilinear", "bicubic"] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    stream: int | None = None,
    classes: tuple[str, ...] | None = None,
    sample: bool = False,
) -> Recipe:
    """ResNeSt on ImageNet-1k from scratch.

    Args:
        data: folder with train/<class>/ and val/<class>/, or with parquet files, or a name on the Hub
        model: the network, see recog_imagenet.py
        epochs: passes over the training images
        lr: learning rate at its highest, for 2048 images a batch
        batch_size: images of one step, over all processes
        warmup_epochs: of linear warm-up from 0
        mixup: alpha of mixup; None for none
        rand_augment: number and magnitude of RandAugment
        size: side of the crop in training and in evaluation; the authors take 256 for 101 layers, 320 for 200
        crop_fraction: of the short side, that the crop of an evaluation takes; None: timm's of its network, or 0.875
        crop_mode: center, or squash: an evaluation resizes both sides alike; None: timm's of its network, or center
        interpolation: of pixels, in training and in evaluation; None: timm's of its network, or bicubic
        mean: of each channel in [0, 1]; None: timm's of its network, or ImageNet's
        std: of each channel; None: likewise
        stream: read parquet files where they lie, so many row groups at a time, such as 16; None: download them first
        classes: their names in the order of their ids, or a text file with one a line; None: those of the training
            images. An evaluation takes those of the run, and needs no training images then
        sample: train the small network on generated images in the same layout, in under a minute
    """
    return bag_of_tricks(
        data,
        model,
        epochs,
        lr,
        batch_size,
        warmup_epochs=warmup_epochs,
        mixup=mixup,
        rand_augment=rand_augment,
        size=size,
        crop_fraction=crop_fraction,
        crop_mode=crop_mode,
        interpolation=interpolation,
        mean=mean,
        std=std,
        stream=stream,
        classes=classes,
        sample=sample,
    )
