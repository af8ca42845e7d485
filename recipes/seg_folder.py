"""DeepLabV3, FCN and others on your own images with masks.

The layout is images/{train,val} and annotations/{train,val}, masks named as their images.

Masks are grey or palette PNGs that hold class ids from 0; ids given as ignored count nowhere. Other
ids, such as 0 and 255, are given by --mask-values 0,255, and colours by --mask-colors. Parquet
files, or a name on the Hub, with a column of images and one of masks, do as well.

Source: settings of recipes/seg_ade20k.py, for images of any kind.

Launch: trainkit seg_folder --data my_images --classes road,car,sky

On several processes: accelerate launch -m trainkit seg_folder ...

Hardware and time: `--model lraspp --backbone small` for 80 epochs of CamVid at 240x180: 16 minutes
on 2 CPU cores.

Expected: depends on your images; CamVid as above: mIoU 0.585 (docs/results.md has the command).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from seg_ade20k import Opened, segmentation

from trainkit import Recipe
from trainkit.data.bands import PixelSettings
from trainkit.data.dataset_info import LazyDataset
from trainkit.data.datasets import synthetic as generated
from trainkit.data.datasets.class_names import read_classes
from trainkit.data.datasets.held_out import SplitSettings
from trainkit.data.datasets.label_tables import IGNORED
from trainkit.data.datasets.mask_colors import read_mask_colors
from trainkit.data.datasets.mask_source import MaskSource
from trainkit.data.datasets.packed_format import is_packed, read_manifest
from trainkit.data.datasets.pixel_statistics import mean_and_std
from trainkit.data.datasets.segmentation import read_mask_values
from trainkit.data.to_device import MEAN, STD
from trainkit.errors import UserError
from trainkit.models.pretrained import has_published_weights
from trainkit.settings.variants import variant

# What --sample changes; a setting given beside it still wins.
SAMPLE = {"model": "lraspp", "backbone": "small", "pretrained": False, "epochs": 6, "lr": 0.05,
          "batch_size": 8,
          "long_side": 112, "crop": 88, "head_lr_mult": 1.0, "sync_batch_norm": False}  # fmt: skip


@variant(segmentation, model="deeplabv3", epochs=60)
def recipe(
    data: str = "data/my_images",
    classes: str = "",
    ignore: tuple[int, ...] = (IGNORED,),
    label_shift: int = 0,
    mask_values: str | None = None,
    mask_colors: str | None = None,
    image_column: str | None = None,
    mask_column: str | None = None,
    stream: int | None = None,
    split: SplitSettings = SplitSettings(),
    pixels: PixelSettings = PixelSettings(),
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    pretrained: bool = True,
    **settings: Any,
) -> Recipe:
    """Own images with masks.

    Args:
        data: folder with images/train, images/val, annotations/train, annotations/val, or with
            parquet files, or a name on the Hub; with val_share one with images/ and masks/, a CSV
            or JSONL list of path and mask, or parquet files of one split
        classes: how many, their names with commas between, or a text file with one name a line
        ignore: ids in the masks that count nowhere
        label_shift: added to the ids in the masks; -1 where they begin at 1 and 0 is to be ignored
        mask_values: the id of each class in the masks, in the order of the classes, such as 0,255;
            None: 0, 1, 2, ...
        mask_colors: of colour-coded masks: a text file with one `R G B name` a line, or voc or
            cityscapes; it says the classes too
        image_column: the column of images, in parquet files with several, or of paths in a list
        mask_column: the column of masks, in parquet files with several, or of their paths in a list
        stream: stream parquet files, so many row groups interleaved, such as 16; None: download
            them first
        mean: of each channel in [0, 1]; None: ImageNet's, or of other channels or 16 bits that of
            the training images
        std: of each channel; None: likewise
        model: the network; on a laptop: --model lraspp --backbone small
        backbone: of torchvision's ResNets, "timm:" and a name of timm's, mobilenet_v3_large (with
            lraspp), or "small", which has no published weights and trains on a laptop; of
            segmentation_models_pytorch's networks one of its encoders or "timm:" and a name of
            timm's
        lr: learning rate of the backbone
        long_side: long side of an image before the random scale of 0.5 to 2, and in evaluation
        head_lr_mult: factor of the learning rate outside the backbone, when it is pretrained
        sample: train a small network on generated scenes in the same layout, in under a minute
    """

    def open_data(data: str, sample: bool, train: Callable, evaluation: Callable) -> Opened:
        colors = None if mask_colors is None else read_mask_colors(mask_colors)
        values = None if mask_values is None else read_mask_values(mask_values)
        packed = is_packed(data) and not sample
        source: str | Path
        names: int | Sequence[str]
        if sample:
            source, names = generated.mask_folder()
        elif packed and not classes and colors is None:
            source, names = data, read_manifest(data).classes
        else:
            source, names = data, read_classes(classes, colors)
        maps = MaskSource(
            source, names, ignore, label_shift, stream, image_column, mask_column, values, colors,
            split, pixels,
        )  # fmt: skip
        val_data = maps.open("val", evaluation)
        palette = val_data.palette if packed or colors is not None else None
        about = SimpleNamespace(classes=names, palette=palette, raw_ids=val_data.raw_ids)
        num_classes = names if isinstance(names, int) else len(names)
        note = f"generated data: scenes of {num_classes} classes in {source}" if sample else None
        train_data = LazyDataset(partial(maps.open, "train", train))
        used: dict[str, Any] = {"mean": mean or MEAN, "std": std or STD}
        if not pixels.usual:
            if mean is None or std is None:
                used["mean"], used["std"] = mean_and_std(train_data.inner, mean, std)
            used |= asdict(pixels)
        own = {} if (mean, std) == (None, None) and pixels.usual else used
        return Opened(about, train_data, val_data, note, used["mean"], used["std"], own)

    pixels.require_each(mean=mean, std=std)
    if settings["photometric"] and not pixels.usual:
        raise UserError(
            f"photometric is for RGB of 8 bits, and channels is {pixels.channels}, bits"
            f" {pixels.bits}: leave --photometric out"
        )
    pretrained = pretrained and has_published_weights(settings["model"], settings["backbone"])
    if not pretrained:
        settings["optimizer"] = replace(settings["optimizer"], head_lr_mult=1.0)
    # `open_data` takes a name on the Hub too
    settings["data"] = data
    return segmentation(open_data, pretrained=pretrained, **settings, lateral=False)
