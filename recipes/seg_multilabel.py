"""Overlapping classes, a mask of its own for each, on your own images.

The layout is images/{train,val} and masks/{train,val}, with a folder for each class in which masks
are named as their images, or files <image>_<class>.png, or one .npz, .npy or TIFF of as many bands
as classes; or files of COCO's kind, whose polygons may overlap. One class alone will do.

Source: settings of recipes/seg_folder.py; loss of nnU-Net for regions that overlap (Isensee et al.,
nnU-Net, 2021): binary cross-entropy and Dice.

Launch: trainkit seg_multilabel --data my_images --classes liver,tumour

On several processes: accelerate launch -m trainkit seg_multilabel ...

Hardware and time: those of seg_folder with as many images.

Expected: depends on your images; not yet measured on a public set.
"""

from dataclasses import asdict, replace
from functools import partial

from trainkit import Recipe
from trainkit.data.bands import PixelSettings
from trainkit.data.dataset_info import LazyDataset
from trainkit.data.datasets.class_mask_source import ClassMaskSource
from trainkit.data.datasets.class_names import read_classes
from trainkit.data.datasets.composed import composed
from trainkit.data.datasets.held_out import SplitSettings
from trainkit.data.datasets.multi_hot import IGNORED
from trainkit.data.datasets.pixel_statistics import mean_and_std
from trainkit.data.datasets.synthetic_class_masks import CLASSES, class_mask_folder
from trainkit.data.to_device import MEAN, STD
from trainkit.data.transforms.segmentation import eval_transform, train_transform
from trainkit.errors import UserError
from trainkit.inference import Inference
from trainkit.models.outputs import check_only_size
from trainkit.models.pretrained import has_published_weights
from trainkit.models.segmentation import segmenter
from trainkit.settings import OptimizerSettings, OrientationSettings, ScheduleSettings
from trainkit.tasks.multilabel_segmentation import (
    MultiLabelSegmentation,
    OverlappingLoss,
    named_losses,
)

# What --sample changes; a setting given beside it still wins.
SAMPLE = {
    "model": "lraspp",
    "backbone": "small",
    "lr": 0.05,
    "pretrained": False,
    "epochs": 6,
    "batch_size": 8,
    "long_side": 112,
    "crop": 88,
    "sync_batch_norm": False,
}


def recipe(
    data: str = "data/my_images",
    classes: str = "",
    ignore: int | None = None,
    image_column: str | None = None,
    mask_column: str | None = None,
    split: SplitSettings = SplitSettings(),
    pixels: PixelSettings = PixelSettings(),
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    model: str = "deeplabv3",
    backbone: str = "resnet50",
    pretrained: bool = True,
    batch_size: int = 16,
    optimizer: OptimizerSettings = OptimizerSettings(lr=0.01, head_lr_mult=10.0),
    schedule: ScheduleSettings = ScheduleSettings(epochs=60, schedule="poly"),
    loss: tuple[OverlappingLoss, ...] = ("bce", "dice"),
    pos_weight: tuple[float, ...] | None = None,
    mask_threshold: float = 0.5,
    metrics: tuple[str, ...] = (),
    long_side: int = 520,
    crop: int = 480,
    photometric: bool = False,
    mosaic: float = 0.0,
    copy_paste: float = 0.0,
    orientation: OrientationSettings = OrientationSettings(),
    sync_batch_norm: bool = True,
    eval_window: tuple[int, int] | None = None,
    eval_flip: bool = False,
    sample: bool = False,
) -> Recipe:
    """Own images with masks of classes that overlap.

    Args:
        data: folder with images/train, images/val, masks/train, masks/val, or with files of COCO's
            kind; with val_share one with images/ and masks/, such a file, or a CSV or JSONL list of
            path and mask
        classes: their names with commas between, or a text file with one name a line; empty: those
            of the folders of masks, or of the categories
        ignore: value in the masks of what is not known, such as 128; all others but 0 are of the
            class
        image_column: of paths, in a list
        mask_column: of the masks' paths, in a list
        mean: of each channel in [0, 1]; None: ImageNet's, or of other channels or 16 bits that of
            the training images
        std: of each channel; None: likewise
        model: the network, see seg_folder; on a laptop: --model lraspp --backbone small
        backbone: see seg_folder
        pretrained: start the backbone from published ImageNet weights
        lr: learning rate of the backbone
        head_lr_mult: factor of the learning rate outside the backbone, when it is pretrained
        batch_size: images of one step, over all processes
        loss: bce, dice, tversky, focal, asl, boundary, or several of them
        pos_weight: of bce, weight of the pixels of each class
        mask_threshold: probability above which a pixel is of a class
        metrics: further ones: boundary_iou, and of torchmetrics, such as
            torchmetrics:HammingDistance
        long_side: long side of an image before the random scale of 0.5 to 2, and in evaluation
        crop: side of the crops in training
        photometric: distort brightness, contrast, saturation and hue of the crops
        mosaic: probability that a training image is put together from four crops, such as 0.5
        copy_paste: probability that half of the classes of another training image are pasted into
            one, such as 0.5
        sync_batch_norm: on several GPUs, BatchNorm statistics over the whole batch (SyncBN)
        eval_window: side and stride of windows in evaluation, such as 480 320; None: whole images
        eval_flip: also predict the flipped image in evaluation, and average
        sample: train a small network on generated scenes in the same layout, in under a minute
    """
    pixels.require_each(mean=mean, std=std)
    if photometric and not pixels.usual:
        raise UserError(
            f"photometric is for RGB of 8 bits, and channels is {pixels.channels}, bits"
            f" {pixels.bits}: leave --photometric out"
        )
    source = class_mask_folder() if sample else data
    asked = list(CLASSES) if sample else read_classes(classes) if classes else None
    if isinstance(asked, int):
        raise UserError(
            f"classes is {asked}: give their names, by which their masks are found (--classes)"
        )
    masks = ClassMaskSource(source, asked, image_column, mask_column, ignore, split, pixels)
    names = masks.names
    train = train_transform(
        long_side, crop, ignore=IGNORED, photometric=photometric, **asdict(orientation)
    )
    train_data = LazyDataset(partial(masks.open, "train", train))
    given: dict = {}
    if not pixels.usual:
        mean, std = mean_and_std(train_data.inner, mean, std)
        given = {"mean": mean, "std": std, **asdict(pixels)}
    elif (mean, std) != (None, None):
        given = {"mean": mean or MEAN, "std": std or STD}
    pretrained = pretrained and has_published_weights(model, backbone)
    network = segmenter(
        model,
        len(names),
        backbone,
        pretrained,
        aux=False,
        se=False,
        image_channels=pixels.channels,
        image_size=crop,
    )
    check_only_size(network, crop, eval_window[0] if eval_window else None)
    optimizer = optimizer if pretrained else replace(optimizer, head_lr_mult=1.0)
    inference = Inference.windows(eval_window)
    if eval_flip:
        inference = replace(inference or Inference(), flip=True)
    return Recipe(
        task=MultiLabelSegmentation(
            names, named_losses(loss, pos_weight), mask_threshold, extra_metrics=metrics
        ),
        model=network,
        train_data=composed(train_data, mosaic, copy_paste),
        val_data=masks.open("val", eval_transform(long_side)),
        **optimizer.build(network),
        **schedule.build(),
        batch_size=batch_size,
        inference=inference,
        sync_batch_norm=sync_batch_norm,
        drop_last=True,
        input=given,
        mean=mean or MEAN,
        std=std or STD,
        note=f"generated data: scenes with {len(names)} classes that overlap in {source}"
        if sample
        else None,
    )
