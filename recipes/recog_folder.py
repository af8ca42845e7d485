"""Classifiers, fine-tuned, on your own images, one folder per class: train/<class>/, val/<class>/.

Source: common practice for fine-tuning: SGD at a tenth of the rate of training from scratch, head
x10, cosine.

Launch: trainkit recog_folder --data my_images

On several processes: accelerate launch -m trainkit recog_folder ...

Hardware and time: depends on your images.

Expected: depends on your images; not yet measured on a public set.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Literal

from torchvision.transforms import InterpolationMode

from trainkit import Recipe
from trainkit.data.bands import PixelSettings
from trainkit.data.dataset_info import LazyDataset, SizedDataset
from trainkit.data.datasets import synthetic as generated
from trainkit.data.datasets.class_names import read_class_names
from trainkit.data.datasets.class_source import ClassSource
from trainkit.data.datasets.held_out import SplitSettings
from trainkit.data.datasets.pixel_statistics import mean_and_std
from trainkit.data.transforms.recognition import eval_transform, train_transform
from trainkit.errors import UserError
from trainkit.losses.class_weights import recorded_weights, resolved_weights
from trainkit.models.recognition import classifier, fine_tuned, published_input
from trainkit.settings import (
    ClassSettings,
    OptimizerSettings,
    OrientationSettings,
    ScheduleSettings,
)
from trainkit.tasks.recognition import Recognition

# What --sample changes; a setting given beside it still wins.
SAMPLE = {
    "pretrained": False,
    "model": "small",
    "epochs": 6,
    "lr": 0.05,
    "batch_size": 32,
    "size": 56,
}


def recipe(
    data: str = "data/my_images",
    classes: tuple[str, ...] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    stream: int | None = None,
    split: SplitSettings = SplitSettings(),
    pixels: PixelSettings = PixelSettings(),
    model: str = "resnet50",
    model_args: tuple[str, ...] = (),
    pretrained: bool = True,
    batch_size: int = 64,
    optimizer: OptimizerSettings = OptimizerSettings(lr=0.01, head_lr_mult=10.0),
    schedule: ScheduleSettings = ScheduleSettings(epochs=20, warmup_epochs=1),
    per_class: ClassSettings = ClassSettings(),
    label_smoothing: float = 0.1,
    lora: int | None = None,
    size: int = 224,
    crop_fraction: float | None = None,
    crop_mode: Literal["center", "squash"] | None = None,
    interpolation: Literal["bilinear", "bicubic"] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    orientation: OrientationSettings = OrientationSettings(),
    sample: bool = False,
) -> Recipe:
    """Your own images, one folder per class.

    Args:
        data: folder with train/<class>/ and val/<class>/, or with parquet files, or a name on the
            Hub; with val_share one with <class>/, a CSV or JSONL list of path and label, or parquet
            files of one split
        classes: their names in the order of their ids, or a text file with one a line; None: those
            of the training images. An evaluation takes those of the run, and needs no training
            images then
        image_column: the column of images, in parquet files with several, or of paths in a list
        label_column: the column of class ids, in parquet files with several, or of labels in a list
        stream: stream parquet files, so many row groups interleaved, such as 16; None: download
            them first
        model: a network of torchvision, such as convnext_tiny, "timm:" and a name of timm, or "hf:"
            and a type, folder or name on the Hub of transformers; on a laptop: --model small
        model_args: of transformers' networks: arguments of their configuration, such as
            hidden_size=384
        pretrained: start from published ImageNet weights, which small has not
        lr: peak learning rate of the backbone
        batch_size: images of one step, over all processes
        weight_decay: of all parameters but biases and those of normalisation layers
        label_smoothing: share of the target spread over all classes
        lora: rank of low-rank adapters (LoRA), such as 16, that are trained with the last layer,
            while the rest is frozen; None: all is trained
        head_lr_mult: factor of the last layer's learning rate, when the rest is pretrained
        size: side of the crop in training and in evaluation
        crop_fraction: of the short side, that the crop of an evaluation takes; None: timm's of its
            network, or 0.875
        crop_mode: center, or squash: an evaluation resizes both sides alike; None: timm's of its
            network, or center
        interpolation: of pixels, in training and in evaluation; None: timm's of its network, or
            bilinear
        mean: of each channel in [0, 1]; None: timm's of its network, or ImageNet's; of other
            channels or 16 bits, that of the training images
        std: of each channel; None: likewise
        sample: train the small network on generated images in the same layout, in under a minute
    """
    source = generated.class_folder() if sample else data
    images = ClassSource(source, image_column, label_column, stream, split, pixels)
    names: Sequence[str] | None = read_class_names(classes)
    pixels.require_each(mean=mean, std=std)
    if not pixels.usual and (mean is None or std is None):
        mean, std = mean_and_std(images.open("train", None, names), mean, std)
    asked = {"crop_fraction": crop_fraction, "crop_mode": crop_mode, "mean": mean, "std": std}
    own = published_input(model, "bilinear", interpolation=interpolation, **asked)
    if not pixels.usual:
        own |= asdict(pixels)
    resize = InterpolationMode(own["interpolation"])
    augment = train_transform(size, (0.25, 1.0), resize, **asdict(orientation))
    look = eval_transform(size, own["crop_fraction"], resize, crop_mode=own["crop_mode"])
    training = partial(images.open, "train", augment, names)
    train_data: SizedDataset = LazyDataset(training)
    if names is None:
        opened = training()
        train_data, names = opened, opened.classes
    val_data = images.open("val", look, names)
    num_classes = len(names)
    pretrained = pretrained and model != "small"
    small = model == "small"
    if small and lora is not None:
        raise UserError(f"lora is {lora}, and model small takes no adapters: leave it out")
    network = (
        classifier(model, num_classes, image_channels=pixels.channels, model_args=model_args)
        if small
        else fine_tuned(
            model, num_classes, pretrained, [size], pixels.channels, model_args, lora=lora
        )
    )
    optimizer = optimizer if pretrained else replace(optimizer, head_lr_mult=1.0)
    weights = resolved_weights(per_class.class_weights, train_data, num_classes)
    return Recipe(
        task=Recognition(names, label_smoothing, per_class.metrics, class_weights=weights),
        model=network,
        train_data=train_data,
        val_data=val_data,
        **optimizer.build(network, decay_vectors=False),
        **schedule.build(),
        batch_size=batch_size,
        eval_batch_size=32,
        mean=own["mean"],
        std=own["std"],
        sampler=per_class.sampler,
        input={**own, **recorded_weights(per_class.class_weights, weights)},
        note=f"generated data: shapes of {num_classes} looks in {source}" if sample else None,
    )
