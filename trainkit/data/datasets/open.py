"""Opens a dataset from class folders, folders of masks, parquet files, or a name on the Hub."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from trainkit.data.datasets.folder import ClassFolder, MaskFolder
from trainkit.data.datasets.inventory import some
from trainkit.data.datasets.listing import image_files
from trainkit.data.datasets.segmentation import IGNORED
from trainkit.data.datasets.split_files import parquet_files
from trainkit.data.file_names import leftover
from trainkit.data.palette import MaskColors
from trainkit.errors import MissingFileError, UserError

SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid", "test")}


def class_images(
    source: str | Path,
    split: str,
    transform: Callable[[Any], Any] | None = None,
    classes: Sequence[str] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    stream: int | None = None,
) -> Dataset:
    """One split, "train" or "val", of `source`.

    Index -> (uint8 image (3, H, W), class id), with `.classes`.

    source: a folder with <split>/<class>/<image>, a folder with parquet files (`parquet_files` says
    how they are named), or a dataset's name on the Hub. "val" is the first of val, validation,
    valid and test that there is. classes: names whose places class ids are, which "val" gets from
    "train". image_column, label_column, stream: see `HubImages`; class folders have none. Raises
    MissingFileError that says where it looked, ValueError for other classes than `classes`.
    """
    folder, names, how = Path(source), SPLITS[split], (image_column, label_column, stream, classes)
    if folder.is_dir():
        for name in names:
            if (folder / name).is_dir() and _has_classes(folder / name):
                if stream is not None:
                    raise UserError(
                        f"{folder / name} has class folders: stream is for parquet files, leave"
                        " it out"
                    )
                data = ClassFolder(folder / name, transform, classes)
                data.used_warnings += _tables_beside(folder, name)
                return data
            if parquet_files(folder, name).files:
                return _from_datasets(source, name, transform, *how)
        raise MissingFileError(
            f"no {split} images in {folder.resolve()}: looked for"
            f" {', '.join(f'{n}/<class>/' for n in names)} and"
            f" {', '.join(f'{n}*.parquet' for n in names)}"
        )
    _require_hub_name(source, "train/<class>/ and val/<class>/")
    return _from_datasets(source, names, transform, *how)


def label_maps(
    source: str | Path,
    split: str,
    classes: int | Sequence[str],
    transform: Callable[..., Any] | None = None,
    ignore: Sequence[int] = (IGNORED,),
    label_shift: int = 0,
    stream: int | None = None,
    *,
    image_column: str | None = None,
    mask_column: str | None = None,
    mask_values: Sequence[int] | None = None,
    mask_colors: MaskColors | None = None,
) -> Dataset:
    """One split, "train" or "val", of images with masks.

    Index -> (image, mask), as `MaskFolder` gives them.

    source: a folder with images/<split>/ and annotations/<split>/, a folder with parquet files as
    in `class_images`, or a dataset's name on the Hub, of which a column of images and one of masks
    are taken, `image_column` and `mask_column` where they are given. "val" is as in `class_images`.
    ignore, label_shift, mask_values, mask_colors: see `MaskDataset`. Raises MissingFileError that
    says where it looked.
    """
    how: dict[str, Any] = {
        "ignore": ignore,
        "label_shift": label_shift,
        "mask_values": mask_values,
        "mask_colors": mask_colors,
    }
    folder, names = Path(source), SPLITS[split]
    columns = {"image_column": image_column, "mask_column": mask_column}
    if folder.is_dir():
        for name in names:
            if (folder / "images" / name).is_dir():
                if stream is not None:
                    raise UserError(
                        f"{folder} has images/{name}: stream is for parquet files, leave it out"
                    )
                num_classes = classes if isinstance(classes, int) else len(classes)
                images, masks = folder / "images" / name, folder / "annotations" / name
                data = MaskFolder(images, masks, num_classes, transform, **how)
                data.used_warnings += _tables_beside(folder, name)
                return data
            if parquet_files(folder, name).files:
                return _masks_from_datasets(
                    source, name, classes, transform, stream=stream, **columns, **how
                )
        raise MissingFileError(
            f"no {split} images in {folder.resolve()}: looked for"
            f" {', '.join(f'images/{n}/' for n in names)} and"
            f" {', '.join(f'{n}*.parquet' for n in names)}"
        )
    _require_hub_name(source, "images/train, images/val, annotations/train and annotations/val")
    return _masks_from_datasets(source, names, classes, transform, stream=stream, **columns, **how)


def _has_classes(folder: Path) -> bool:
    """Whether a split's folder has class folders.

    With an image in one, where parquet files lie beside them.
    """
    if not any(folder.glob("*.parquet")):
        return True
    return any(
        image_files(each) for each in folder.iterdir() if each.is_dir() and not leftover(each.name)
    )


def _tables_beside(folder: Path, split: str) -> list[str]:
    """A line about parquet files of a split that is taken from folders of images."""
    tables = parquet_files(folder, split).files
    if not tables:
        return []
    named = some(str(table.relative_to(folder)) for table in tables)
    return [
        f"{folder} has both folders of images and parquet files of {split}; the folders are taken,"
        f" and not {named}"
    ]


def _require_hub_name(source: str | Path, layout: str) -> None:
    if (
        str(source).count("/") != 1
        or Path(source).is_absolute()
        or str(source).startswith((".", "data/"))
    ):
        raise MissingFileError(
            f"no folder {Path(source).resolve()}: give one with {layout} or with parquet files, or"
            " a dataset's name on the Hub (owner/name) with --data; or try --sample"
        )


def _masks_from_datasets(
    source: str | Path, split: str | Sequence[str], *how: Any, **more: Any
) -> Dataset:
    # `datasets` takes a second to import
    from trainkit.data.datasets.hub import HubMasks, choose_split

    name = split if isinstance(split, str) else choose_split(str(source), split)
    return HubMasks(source, name, *how, **more)


def _from_datasets(
    source: str | Path,
    split: str | Sequence[str],
    transform: Callable[[Any], Any] | None,
    *how: Any,
) -> Dataset:
    # `datasets` takes a second to import
    from trainkit.data.datasets.hub import HubImages, choose_split

    name = split if isinstance(split, str) else choose_split(str(source), split)
    return HubImages(source, name, transform, *how)
