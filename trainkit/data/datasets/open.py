"""Opens a split of a dataset: class folders, folders of masks, lists, parquet files, or the Hub."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.data.dataset_info import ClassDataset
from trainkit.data.datasets.class_source import ClassSource
from trainkit.data.datasets.divided import DividedMasks
from trainkit.data.datasets.folder import MaskFolder
from trainkit.data.datasets.mask_source import MaskSource

if TYPE_CHECKING:  # `datasets` takes a second to import
    from trainkit.data.datasets.hub import HubMasks


def class_images(
    source: str | Path,
    split: str,
    transform: Callable[[Any], Any] | None = None,
    classes: Sequence[str] | None = None,
    *columns: Any,
    **settings: Any,
) -> ClassDataset:
    """Open one split of class images, see `ClassSource`, which divides data once for both.

    Args:
        source: see `ClassSource`.
        split: see `ClassSource.open`.
        transform: of the image.
        classes: see `ClassSource.open`.
        *columns: what else `ClassSource` takes, in its order.
        **settings: the same by name.

    Raises:
        MissingFileError: there is no such split; the message says where it looked.
        UserError: it has other classes than `classes`, or cannot be divided.
    """
    return ClassSource(source, *columns, **settings).open(split, transform, classes)


def label_maps(
    source: str | Path,
    split: str,
    classes: int | Sequence[str],
    transform: Callable[..., Any] | None = None,
    *settings: Any,
    **more: Any,
) -> "MaskFolder | DividedMasks | HubMasks":
    """Open one split of images with masks, see `MaskSource`, which divides data once for both.

    Args:
        source: see `MaskSource`.
        split: as in `class_images`.
        classes: how many, or their names.
        transform: of image and mask.
        *settings: what else `MaskSource` takes, in its order.
        **more: the same by name.

    Raises:
        MissingFileError: there is no such split; the message says where it looked.
        UserError: an argument does not fit the data, or it cannot be divided.
    """
    return MaskSource(source, classes, *settings, **more).open(split, transform)
