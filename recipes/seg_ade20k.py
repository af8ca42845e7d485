"""FCN or DeepLabV3 with a dilated ResNet on ADE20K, 150 classes.

Source: PyTorch-Encoding's FCN baseline (Zhang et al., Context Encoding for Semantic Segmentation,
CVPR 2018): SGD 0.01 per 16 images, head x10, poly 0.9, 120 epochs, auxiliary loss 0.2, long side
520 x 0.5 to 2, crop 480.

Launch: trainkit seg_ade20k --data /path/to/ADEChallengeData2016

On several processes: accelerate launch -m trainkit seg_ade20k ...

Hardware and time: not yet measured, the authors used four GPUs; with --sample under a minute on 2
CPU cores.

Expected: not yet measured with this code; PyTorch-Encoding publishes pixAcc 78.7 %, mIoU 38.5 % for
FCN with a ResNet-50 with a deep stem, evaluated at scales 0.5 to 1.75, flipped too, and for
DeepLabV3 none with a ResNet (81.2 %, 45.1 % with ResNeSt-50).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from trainkit import Recipe
from trainkit.data.dataset_info import LazyDataset, SizedDataset
from trainkit.data.datasets import synthetic as generated
from trainkit.data.datasets.ade20k import ADE20K
from trainkit.data.datasets.composed import composed
from trainkit.data.datasets.packed import PackedMasks
from trainkit.data.datasets.packed_format import is_packed
from trainkit.data.mixup import masks_by_turns
from trainkit.data.to_device import MEAN, STD
from trainkit.data.transforms.segmentation import eval_transform, train_transform
from trainkit.errors import UserError
from trainkit.inference import Inference
from trainkit.losses.class_weights import recorded_weights, resolved_weights
from trainkit.models.mask_networks import segments_by_masks
from trainkit.models.outputs import check_only_size
from trainkit.models.segmentation import (
    Segmenter,
    auxiliary_weight,
    encoding_weight,
    has_aux,
    published_pixels,
    segmenter,
)
from trainkit.settings import (
    ClassSettings,
    OptimizerSettings,
    OrientationSettings,
    ScheduleSettings,
)
from trainkit.settings.variants import variant
from trainkit.tasks.mask_classification import MaskClassification
from trainkit.tasks.segmentation import Loss, Segmentation, named_losses

# What --sample changes; a setting given beside it still wins.
SAMPLE = {"backbone": "small", "pretrained": False, "epochs": 5, "lr": 0.05, "head_lr_mult": 1.0,
          "batch_size": 8,
          "long_side": 128, "crop": 96, "head_channels": 64, "sync_batch_norm": False}  # fmt: skip


class Opened(NamedTuple):
    """A dataset as `segmentation` trains on it."""

    about: Any  # with classes, palette and raw_ids
    train: SizedDataset
    val: SizedDataset
    note: str | None = None
    mean: Sequence[float] = MEAN  # of each channel of the images
    std: Sequence[float] = STD
    input: Mapping[str, Any] = MappingProxyType({})  # what a run keeps of how they are read


def segmentation(
    open_data: Callable[[Any, bool, Callable, Callable], Opened],
    *,
    lateral: bool,
    data: Path = Path("data/ADEChallengeData2016"),
    model: Segmenter | str = "fcn",
    model_args: tuple[str, ...] = (),
    backbone: str = "resnet50",
    pretrained: bool = True,
    batch_size: int = 16,
    optimizer: OptimizerSettings = OptimizerSettings(lr=0.01, head_lr_mult=10.0),
    schedule: ScheduleSettings = ScheduleSettings(epochs=120, schedule="poly"),
    per_class: ClassSettings = ClassSettings(),
    long_side: int = 520,
    crop: int = 480,
    crop_width: int | None = None,
    aux_weight: float = 0.2,
    se_weight: float | None = None,
    lora: int | None = None,
    out_indices: tuple[int, ...] | None = None,
    stochastic_depth: float | None = None,
    map_norms: bool = False,
    decay_vectors: bool = True,
    head_channels: int = 512,
    loss: tuple[Loss, ...] = ("cross_entropy",),
    photometric: bool = False,
    cat_max_ratio: float | None = None,
    mosaic: float = 0.0,
    copy_paste: float = 0.0,
    mixup: float | None = None,
    cutmix: float | None = None,
    orientation: OrientationSettings = OrientationSettings(),
    sync_batch_norm: bool = True,
    eval_window: tuple[int, int] | None = None,
    eval_window_width: int | None = None,
    eval_crop: int | None = None,
    eval_batch_size: int = 4,
    sample: bool = False,
) -> Recipe:
    """What the recipes for segmentation have in common.

    `open_data` and the defaults are what they differ in.

    open_data: from `data`, `sample` and the transforms of training and evaluation to the dataset.
    lateral: of EncNet.

    Args:
        data: the unpacked ADEChallengeData2016.zip
        model: the network; unet and those after it are segmentation_models_pytorch's, "hf:" and a
            type, folder or name on the Hub are transformers', such as hf:segformer_b0 to b5, and
            hf:mask2former, hf:eomt and hf:eomt_dinov3, which segment by masks
        model_args: of transformers' networks: arguments of their configuration, such as
            depths=3,4,6,3
        backbone: of torchvision's ResNets, "timm:" and a name of timm's, or "small", which trains
            on a laptop; of segmentation_models_pytorch's networks one of its encoders or
            "timm:" and a name of timm's; transformers' have their own, but for EoMT, which takes a
            DINOv2 or DINOv3 of timm
        pretrained: start the backbone from published ImageNet weights; transformers' networks from
            the weights of their name or folder
        lr: learning rate of the backbone, for 16 images a batch
        batch_size: images of one step, over all processes
        long_side: long side of an image before the random scale, and in evaluation
        crop: side of the training crop
        crop_width: width of the training crop, whose height crop is; None: a square
        head_lr_mult: factor of the learning rate outside the backbone
        aux_weight: factor of the auxiliary head's loss, where the network has one; 0 for no such
            head; transformers' networks have the factor of their configuration
        se_weight: factor of the semantic-encoding loss of EncNet; None: 0.2 as published; 0 for no
            such head
        lora: rank of low-rank adapters (LoRA), such as 16, that are trained with the heads, while
            the rest is frozen; None: all is trained
        out_indices: of linear, upernet and dpt on a vision transformer of timm: its blocks whose
            maps the head takes, such as -4 -3 -2 -1, which linear concatenates; None: the last one
            for linear, four evenly spaced ones for the others
        stochastic_depth: of a backbone of timm: rate at which its last block is left out (drop
            path), the others in proportion; None: as timm has it
        map_norms: of upernet on a pyramid of timm: a layer norm of each map, as Swin and ConvNeXt
            have it
        decay_vectors: whether norms and biases decay too
        head_channels: width of the head; torchvision's fcn, deeplabv3 and lraspp ignore it, and
            networks of segmentation_models_pytorch and transformers
        loss: cross_entropy, focal, ohem, dice, tversky, lovasz, boundary (beside others, such
            as dice boundary), or several of them
        photometric: photometric distortion of training crops: brightness, contrast, saturation and
            hue
        cat_max_ratio: largest share of one class in a training crop, which is else drawn again,
            such as 0.75; None: any
        mosaic: probability that a training image is put together from four crops, such as 0.5
        copy_paste: probability that half of the classes of another training image are pasted into
            one, such as 0.5
        mixup: alpha of mixup, each image with another and the losses of both masks, such as 0.4;
            None: none
        cutmix: alpha of cutmix, a box of another image and its mask; 1 is usual; None: none
        sync_batch_norm: on several GPUs, BatchNorm statistics over the whole batch (SyncBN)
        eval_window: sliding-window evaluation: side and stride of the windows, such as 480 320
        eval_window_width: width of the windows, whose height the side is; None: squares
        eval_crop: evaluate centre crops of this side, as older code does; None for both: whole
            images
        eval_batch_size: images of one size in a forward pass of an evaluation, per process
        sample: train a small network on generated scenes, in under a minute
    """
    train = train_transform(
        long_side,
        crop,
        photometric=photometric,
        cat_max_ratio=cat_max_ratio,
        crop_width=crop_width,
        **asdict(orientation),
    )
    opened = open_data(data, sample, train, eval_transform(long_side, eval_crop))
    classes = opened.about.classes
    num_classes = classes if isinstance(classes, int) else len(classes)
    se_weight = encoding_weight(model, se_weight)
    aux_weight = aux_weight if has_aux(model) else 0.0
    network = segmenter(
        model,
        num_classes,
        backbone,
        pretrained,
        aux=aux_weight > 0,
        se=se_weight > 0,
        lateral=lateral,
        channels=head_channels,
        image_channels=len(opened.mean),
        model_args=model_args,
        lora=lora,
        out_indices=out_indices,
        image_size=crop,
        stochastic_depth=stochastic_depth,
        map_norms=map_norms,
    )
    inference = Inference.windows(eval_window, eval_window_width)
    seen = eval_crop if inference is None else inference.sides
    check_only_size(network, (crop, crop if crop_width is None else crop_width), seen)
    aux_weight = auxiliary_weight(network, aux_weight)
    pixels = {} if "mean" in opened.input else published_pixels(network)
    weights = resolved_weights(per_class.class_weights, opened.train, num_classes, dense=True)
    if segments_by_masks(network):
        if loss != ("cross_entropy",) or weights is not None:
            raise UserError(
                f"model {model} has losses of its own: leave loss and class_weights out"
            )
        if mixup is not None:
            raise UserError(
                f"mixup is {mixup}, and model {model} segments by masks of one image: leave mixup"
                " out, or take cutmix"
            )
        task: Segmentation = MaskClassification.for_network(
            network, opened.about, extra_metrics=per_class.metrics
        )
    else:
        task = Segmentation.of(
            opened.about,
            loss=named_losses(loss, weights),
            aux_weight=aux_weight,
            se_weight=se_weight,
            extra_metrics=per_class.metrics,
        )
    return Recipe(
        task=task,
        model=network,
        train_data=composed(opened.train, mosaic, copy_paste),
        val_data=opened.val,
        mix=masks_by_turns(mixup, cutmix),
        **optimizer.build(network, decay_vectors=decay_vectors),
        **schedule.build(),
        batch_size=batch_size,
        inference=inference,
        eval_batch_size=eval_batch_size,
        sync_batch_norm=sync_batch_norm,
        drop_last=True,
        sampler=per_class.sampler,
        input={**opened.input, **pixels, **recorded_weights(per_class.class_weights, weights)},
        note=opened.note,
        mean=pixels.get("mean", opened.mean),
        std=pixels.get("std", opened.std),
    )


def ade20k(data: Path, sample: bool, train: Callable, evaluation: Callable) -> Opened:
    """ADE20K, or generated scenes in its layout."""
    if is_packed(data) and not sample:
        return packed(ADE20K, data, train, evaluation)
    data = generated.ade20k() if sample else data
    val_data = ADE20K(data, "validation", evaluation)
    note = f"generated data, not ADE20K: scenes of 16 of the 150 classes in {data}"
    train_data = LazyDataset(partial(ADE20K, data, "training", train))
    return Opened(ADE20K, train_data, val_data, note if sample else None)


def packed(dataset: Any, data: Path, train: Callable, evaluation: Callable) -> Opened:
    """What `trainkit pack` wrote of a dataset."""
    train_data = LazyDataset(partial(PackedMasks, data, "train", train, dataset.classes))
    return Opened(dataset, train_data, PackedMasks(data, "val", evaluation, dataset.classes))


def opener(
    dataset: Any, title: str, train_class: Any = None, split: str = "train", **train_settings: Any
) -> Callable[..., Opened]:
    """How `segmentation` opens a dataset of another name, `title`.

    --sample: generated scenes with its classes.

    train_class: of the training images, where it is not `dataset`; they are its `split`, with
    `train_settings`.
    """

    def open_data(data: Path, sample: bool, train: Callable, evaluation: Callable) -> Opened:
        if sample:
            pair = generated.masks(len(dataset.classes), train, evaluation)
            return Opened(dataset, *pair, f"generated data, not {title}: scenes of 16 classes")
        if is_packed(data):
            return packed(dataset, data, train, evaluation)
        train_data = partial(train_class or dataset, data, split, train, **train_settings)
        return Opened(dataset, LazyDataset(train_data), dataset(data, "val", evaluation))

    return open_data


@variant(segmentation)
def recipe(**settings: Any) -> Recipe:
    """FCN or DeepLabV3 on ADE20K.

    Args:
        sample: train a small network on generated scenes in ADE20K's layout, in under a minute
    """
    return segmentation(ade20k, **settings, lateral=False)
