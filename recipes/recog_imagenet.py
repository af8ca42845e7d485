"""ResNet-50 on ImageNet-1k with the bag of tricks.

Source: He et al., Bag of Tricks for Image Classification, CVPR 2019, as PyTorch-Encoding trains it:
SGD 0.2 for 512 images, cosine over 120 epochs after 5 of warm-up, label smoothing 0.1, mixup 0.2,
no decay on norms and biases, last gamma of each residual block from 0.

Launch: trainkit recog_imagenet --data /path/to/imagenet

On several processes: accelerate launch -m trainkit recog_imagenet ...

Hardware and time: not yet measured; the paper used eight V100 GPUs.

Expected: not yet measured with this code; the paper has top1 79.29 % with these tricks and a
ResNet-50-D.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal

from torchvision.transforms import InterpolationMode

from trainkit import Recipe
from trainkit.data.dataset_info import ClassDataset, LazyDataset, SizedDataset
from trainkit.data.datasets import synthetic as generated
from trainkit.data.datasets.class_names import read_class_names
from trainkit.data.datasets.class_source import ClassSource
from trainkit.data.datasets.repeated import Repeated
from trainkit.data.datasets.staged import Stages, sizes_by_epoch
from trainkit.data.mixup import by_turns
from trainkit.data.transforms.recognition import eval_transform, train_transform
from trainkit.errors import UserError
from trainkit.losses.class_weights import recorded_weights, resolved_weights
from trainkit.losses.pixelwise import BinaryCrossEntropy
from trainkit.models.recognition import classifier, fine_tuned, published_input
from trainkit.settings import (
    ClassSettings,
    OptimizerSettings,
    OrientationSettings,
    ScheduleSettings,
)
from trainkit.tasks.recognition import Recognition

# What --sample changes; a setting given beside it still wins.
SAMPLE = {"model": "small", "epochs": 6, "lr": 0.05, "batch_size": 32, "warmup_epochs": 1,
          "size": 56}  # fmt: skip


def _training_images(
    source: str | Path,
    augment: dict[int, Callable],
    names: Sequence[str] | None,
    stream: int | None,
    repeats: int,
) -> ClassDataset:
    """Opened when a training begins; an evaluation needs none."""
    images = ClassSource(source, stream=stream).open("train", augment[0], names)
    return Repeated(images if len(augment) == 1 else Stages(images, augment), repeats)


def _task(
    names: Sequence[str],
    loss: str,
    label_smoothing: float,
    bce_threshold: float | None,
    class_weights: Sequence[float] | None,
    metrics: Sequence[str],
) -> Recognition:
    if loss == "cross_entropy":
        if bce_threshold is not None:
            raise UserError(
                f"bce_threshold is {bce_threshold}, and loss is {loss}: give --loss bce"
            )
        return Recognition(names, label_smoothing, metrics, class_weights=class_weights)
    bce = BinaryCrossEntropy(bce_threshold, label_smoothing)
    return Recognition(names, extra_metrics=metrics, loss=bce, class_weights=class_weights)


def recipe(
    data: str = "data/imagenet",
    model: str = "resnet50",
    model_args: tuple[str, ...] = (),
    pretrained: bool = False,
    batch_size: int = 512,
    optimizer: OptimizerSettings = OptimizerSettings(lr=0.2),
    schedule: ScheduleSettings = ScheduleSettings(epochs=120, warmup_epochs=5),
    per_class: ClassSettings = ClassSettings(),
    loss: Literal["cross_entropy", "bce"] = "cross_entropy",
    bce_threshold: float | None = None,
    label_smoothing: float = 0.1,
    mixup: float | None = 0.2,
    cutmix: float | None = None,
    rand_augment: tuple[int, int] | None = None,
    trivial_augment: bool = False,
    auto_augment: str | None = None,
    jitter: tuple[float, ...] | None = None,
    lighting: float | None = None,
    erase: float | None = None,
    erase_with: Literal["mean", "noise"] = "mean",
    orientation: OrientationSettings = OrientationSettings(),
    repeats: int = 1,
    stochastic_depth: float | None = None,
    drop_block: float | None = None,
    size: int = 224,
    image_sizes: str | None = None,
    eval_size: int | None = None,
    crop_fraction: float | None = None,
    crop_mode: Literal["center", "squash"] | None = None,
    ten_crop: bool = False,
    interpolation: Literal["bilinear", "bicubic"] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    smallest_crop: float = 0.08,
    stream: int | None = None,
    classes: tuple[str, ...] | None = None,
    sample: bool = False,
) -> Recipe:
    """ImageNet-1k from scratch.

    Args:
        data: folder with train/<class>/ and val/<class>/, or with parquet files, or a name on the
            Hub
        model: a network of torchvision, such as convnext_tiny, "timm:" and a name of timm, or "hf:"
            and a type, folder or name on the Hub of transformers; small trains on a laptop
        model_args: of transformers' networks: arguments of their configuration, such as
            hidden_size=384
        pretrained: start from published weights but for the last layer, which small has not
        lr: peak learning rate, for 512 images a batch
        batch_size: images of one step, over all processes
        weight_decay: of all parameters but biases and those of normalisation layers
        loss: cross_entropy, or bce: binary cross-entropy of every class
        bce_threshold: of bce: targets above it, after smoothing, become 1 and others 0, so that
            both images of a mixup are wholly present, such as 0.2; None leaves them
        label_smoothing: share of the target spread over all classes
        mixup: alpha of mixup; None for none
        cutmix: alpha of cutmix; mixup or cutmix is chosen per batch where both are given; None for
            none
        rand_augment: number and magnitude of RandAugment, such as 2 9
        trivial_augment: use TrivialAugment instead of RandAugment
        auto_augment: AutoAugment's policy, found on imagenet, cifar10 or svhn, in place of both; or
            a policy of timm's, such as rand-m9-mstd0.5-inc1, or 3a, the 3-Augment of DeiT III
        jitter: strengths of colour jitter: brightness, contrast, saturation and hue, such as 0.4
            0.4 0.4
        lighting: strength of PCA lighting, such as 0.1
        erase: probability of random erasing
        erase_with: mean, which is ImageNet's colour, or noise of each pixel
        repeats: repeated augmentation: copies of an image in its batch; divide epochs by it
        stochastic_depth: rate at which the last block is left out, the others less often; None: as
            published
        drop_block: probability of DropBlock after the last two stages of a ResNet, such as 0.1
        size: side of the crop in training
        image_sizes: progressive resizing: crop sides and the epochs in which they begin, such as
            128:0,192:30,224:60
        eval_size: side of the crop in evaluation; None: the same as size
        crop_fraction: of the short side, that the crop of an evaluation takes; None: timm's of its
            network, or 0.875
        crop_mode: center, or squash: an evaluation resizes both sides alike; None: timm's of its
            network, or center
        ten_crop: ten-crop evaluation: corners, centre, and all of them flipped
        interpolation: of pixels, in training and in evaluation; None: timm's of its network, or
            bicubic
        mean: of each channel in [0, 1]; None: timm's of its network, or ImageNet's
        std: of each channel; None: likewise
        smallest_crop: smallest area of a training crop, as a share of the image's area
        stream: stream parquet files, so many row groups interleaved, such as 16; None: download
            them first
        classes: names by id, or a text file with one a line; None: of the training images,
            evaluated: of the run
        sample: train the small network on generated images in the same layout, in under a minute
    """
    source = generated.class_folder() if sample else data
    asked = {"crop_fraction": crop_fraction, "crop_mode": crop_mode, "mean": mean, "std": std}
    own = published_input(model, "bicubic", interpolation=interpolation, **asked)
    resize, extras = (
        InterpolationMode(own["interpolation"]),
        (rand_augment, trivial_augment, jitter, lighting, erase, auto_augment),
    )
    sizes = {0: size} if image_sizes is None else sizes_by_epoch(image_sizes)
    augment = {
        epoch: train_transform(
            side,
            (smallest_crop, 1.0),
            resize,
            *extras,
            **asdict(orientation),
            erase_with=erase_with,
        )
        for epoch, side in sizes.items()
    }
    names: Sequence[str] | None = read_class_names(classes)
    training = partial(_training_images, source, augment, names, stream, repeats)
    train_data: SizedDataset = LazyDataset(training)
    if names is None:
        opened = training()
        train_data, names = opened, opened.classes
    look = eval_transform(
        eval_size or size, own["crop_fraction"], resize, ten_crop, own["crop_mode"]
    )
    val_data = ClassSource(source, stream=stream).open("val", look, names)
    num_classes = len(names)
    sides = [*sizes.values(), eval_size or size]
    if pretrained and model != "small":
        if drop_block is not None:
            raise UserError(f"drop_block is {drop_block}, and a pretrained network has none")
        network = fine_tuned(
            model, num_classes, True, sides, 3, model_args, stochastic_depth=stochastic_depth
        )
    else:
        network = classifier(
            model, num_classes, stochastic_depth, drop_block, sides, model_args=model_args
        )
    weights = resolved_weights(per_class.class_weights, train_data, num_classes)
    return Recipe(
        task=_task(names, loss, label_smoothing, bce_threshold, weights, per_class.metrics),
        model=network,
        train_data=train_data,
        mix=by_turns(num_classes, mixup, cutmix),
        val_data=val_data,
        **optimizer.build(network, decay_vectors=False),
        **schedule.build(),
        batch_size=batch_size,
        eval_batch_size=32,
        **{name: own[name] for name in ("mean", "std")},
        sampler=per_class.sampler,
        input={**own, **recorded_weights(per_class.class_weights, weights)},
        note=f"generated data, not ImageNet: shapes of {num_classes} looks in {source}"
        if sample
        else None,
    )
