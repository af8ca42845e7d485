"""Any number of classes per image, fine-tuned, on your own images: a list of paths and labels.

Source: Ridnik et al., Asymmetric Loss For Multi-Label Classification, ICCV 2021, for the loss;
common practice for fine-tuning else: SGD at a tenth of the rate of training from scratch, head
x10, cosine.

Launch: trainkit recog_multilabel --data my_images/all.csv --val-share 0.2

On several processes: accelerate launch -m trainkit recog_multilabel ...

Hardware and time: those of recog_folder with as many images.

Expected: mAP depends on your images; not yet measured on a public set.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Literal

from torchvision.transforms import InterpolationMode

from trainkit import Recipe
from trainkit.data.bands import PixelSettings
from trainkit.data.dataset_info import LazyDataset, SizedDataset
from trainkit.data.datasets import synthetic as generated
from trainkit.data.datasets.class_names import read_class_names
from trainkit.data.datasets.held_out import SplitSettings
from trainkit.data.datasets.label_set_source import LabelSets, LabelSetSource
from trainkit.data.datasets.pixel_statistics import mean_and_std
from trainkit.data.mixup import by_turns
from trainkit.data.transforms.recognition import eval_transform, train_transform
from trainkit.errors import UserError
from trainkit.losses.base import Criterion
from trainkit.losses.class_weights import positive_weights
from trainkit.losses.multilabel import AsymmetricLoss, BCEWithLogits, SigmoidFocal
from trainkit.models.recognition import classifier, fine_tuned, published_input
from trainkit.settings import OptimizerSettings, OrientationSettings, ScheduleSettings
from trainkit.tasks.multilabel import MultiLabel

# What --sample changes; a setting given beside it still wins.
SAMPLE = {
    "pretrained": False,
    "model": "small",
    "epochs": 8,
    "lr": 0.2,
    "batch_size": 32,
    "size": 80,
}


def _loss(
    name: str,
    weights: tuple[float, ...] | None,
    label_smoothing: float,
    gamma_neg: float,
    gamma_pos: float,
    clip: float,
) -> Criterion:
    """The loss by its name; only bce takes weights and smoothing."""
    if name == "bce":
        return BCEWithLogits(weights, label_smoothing)
    if weights is not None or label_smoothing:
        raise UserError(
            f"loss is {name}, and pos_weight and label_smoothing are of bce: leave them out"
        )
    if name == "focal":
        return SigmoidFocal()
    return AsymmetricLoss(gamma_neg, gamma_pos, clip)


def recipe(
    data: str = "data/my_images/all.csv",
    classes: tuple[str, ...] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    label_separator: str | None = None,
    split: SplitSettings = SplitSettings(),
    pixels: PixelSettings = PixelSettings(),
    model: str = "resnet50",
    pretrained: bool = True,
    batch_size: int = 64,
    optimizer: OptimizerSettings = OptimizerSettings(lr=0.1, head_lr_mult=10.0),
    schedule: ScheduleSettings = ScheduleSettings(epochs=20, warmup_epochs=1),
    loss: Literal["bce", "focal", "asl"] = "bce",
    pos_weight: Literal["auto"] | tuple[float, ...] | None = None,
    label_smoothing: float = 0.0,
    gamma_neg: float = 4.0,
    gamma_pos: float = 0.0,
    clip: float = 0.05,
    mixup: float | None = None,
    cutmix: float | None = None,
    lora: int | None = None,
    metrics: tuple[str, ...] = (),
    sampler: Literal["shuffle", "balanced"] = "shuffle",
    size: int = 224,
    smallest_crop: float = 0.5,
    interpolation: Literal["bilinear", "bicubic"] | None = None,
    crop_fraction: float | None = None,
    crop_mode: Literal["center", "squash"] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    orientation: OrientationSettings = OrientationSettings(),
    sample: bool = False,
) -> Recipe:
    """Your own images, each of any number of classes.

    Args:
        data: a CSV or JSONL list of paths and labels, a folder with train.csv and val.csv, or one
            with train/<class>/ and val/<class>/, or <class>/ with val_share, in which an image of
            several classes lies in the folder of each
        classes: their names in the order of their ids, or a text file with one a line; None: those
            of the data
        image_column: of paths in a list
        label_column: of labels in a list; None: labels, label or the like, else one column per
            class with 1, 0 and -1
        label_separator: between the labels of an image; None: ";", "|" or ",", the first that
            occurs
        model: a network of torchvision, such as convnext_tiny, or "timm:" and a name of timm; on a
            laptop: --model small
        pretrained: start from published ImageNet weights, which small has not
        lr: peak learning rate of the backbone; larger than that of cross-entropy, for the loss is
            the mean over all pairs of image and class
        batch_size: images of one step, over all processes
        weight_decay: of all parameters but biases and those of normalisation layers
        loss: bce: binary cross-entropy; focal, with a sigmoid; asl: the asymmetric loss
        pos_weight: of bce, weight of the positives of each class; auto: negatives / positives of
            the training images; None: all 1
        label_smoothing: of bce: share of the target that becomes 0.5
        gamma_neg: of asl: focus on hard negatives
        gamma_pos: of asl: focus on hard positives
        clip: of asl: probability below which a negative adds nothing
        mixup: alpha of mixup; None for none
        cutmix: alpha of cutmix; mixup or cutmix is chosen per batch where both are given; None for
            none
        lora: rank of low-rank adapters (LoRA), such as 16, that are trained with the last layer,
            while the rest is frozen; None: all is trained
        metrics: further ones of torchmetrics, such as torchmetrics:HammingDistance
        sampler: shuffle: each training image once an epoch; balanced: as many draws with
            replacement, of a class, all alike, and then of one of its images: rare labels are seen
            more often, and images without a label never
        head_lr_mult: factor of the last layer's learning rate, when the rest is pretrained
        size: side of the crop in training and in evaluation
        smallest_crop: share of the image that a training crop has at least: small ones lack what
            their labels say
        interpolation: of pixels, in training and in evaluation; None: timm's of its network, or
            bilinear
        crop_fraction: of the sides, that the crop of an evaluation takes; None: 1, for labels may
            be of things at the border
        crop_mode: center, or squash: an evaluation resizes both sides alike; None: squash
        mean: of each channel in [0, 1]; None: timm's of its network, or ImageNet's; of other
            channels or 16 bits, that of the training images
        std: of each channel; None: likewise
        sample: train the small network on generated images in the same layout, in under a minute
    """
    source = generated.label_list() if sample else data
    names: Sequence[str] | None = read_class_names(classes)
    images = LabelSetSource(
        source, image_column, label_column, label_separator, split, pixels, names
    )
    pixels.require_each(mean=mean, std=std)
    if not pixels.usual and (mean is None or std is None):
        mean, std = mean_and_std(images.open("train"), mean, std)
    own = published_input(
        model,
        "bilinear",
        interpolation=interpolation,
        crop_fraction=1.0 if crop_fraction is None else crop_fraction,
        crop_mode=crop_mode or "squash",
        mean=mean,
        std=std,
    )
    if not pixels.usual:
        own |= dataclasses.asdict(pixels)
    resize = InterpolationMode(own["interpolation"])
    augment = train_transform(size, (smallest_crop, 1.0), resize, **dataclasses.asdict(orientation))
    look = eval_transform(size, own["crop_fraction"], resize, crop_mode=own["crop_mode"])
    training = partial(images.open, "train", augment, names)
    train_data: SizedDataset = LazyDataset(training)
    weights = pos_weight if pos_weight != "auto" else None
    if names is None or pos_weight == "auto":
        opened: LabelSets = training()
        train_data, names = opened, opened.classes
        weights = positive_weights(opened.targets) if pos_weight == "auto" else weights
    val_data = images.open("val", look, names)
    num_classes = len(names)
    pretrained = pretrained and model != "small"
    if model == "small" and lora is not None:
        raise UserError(f"lora is {lora}, and model small takes no adapters: leave it out")
    network = (
        classifier(model, num_classes, image_channels=pixels.channels)
        if model == "small"
        else fine_tuned(model, num_classes, pretrained, [size], pixels.channels, lora=lora)
    )
    optimizer = optimizer if pretrained else dataclasses.replace(optimizer, head_lr_mult=1.0)
    criterion = _loss(loss, weights, label_smoothing, gamma_neg, gamma_pos, clip)
    return Recipe(
        task=MultiLabel(names, criterion, extra_metrics=metrics),
        model=network,
        train_data=train_data,
        val_data=val_data,
        batch_size=batch_size,
        sampler=sampler,
        eval_batch_size=32,
        **optimizer.build(network, decay_vectors=False),
        **schedule.build(),
        mix=by_turns(num_classes, mixup, cutmix),
        mean=own["mean"],
        std=own["std"],
        input={**own, **({"pos_weight": weights} if pos_weight == "auto" else {})},
        note=f"generated data: scenes with things of {num_classes} classes in {source}"
        if sample
        else None,
    )
