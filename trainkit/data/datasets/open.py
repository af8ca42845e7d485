"""Opens a dataset from class folders, folders of masks, parquet files, or a name on the Hub."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from trainkit.data.bands import USUAL, PixelSettings
from trainkit.data.dataset_info import ClassDataset
from trainkit.data.datasets.coco_style import drawn_labels, of_coco
from trainkit.data.datasets.divided import SPLITS, DividedClasses, DividedMasks
from trainkit.data.datasets.folder import ClassFiles, ClassFolder, MaskFolder
from trainkit.data.datasets.held_out import SplitSettings
from trainkit.data.datasets.inventory import some
from trainkit.data.datasets.label_tables import IGNORED
from trainkit.data.datasets.labelme import background_id
from trainkit.data.datasets.layouts import (
    HOLD_OUT,
    class_folders,
    has_mask_folders,
    mask_folders,
    nothing_to_divide,
    require_no_masks,
    undivided_classes,
    undivided_masks,
)
from trainkit.data.datasets.listing import image_files
from trainkit.data.datasets.segmentation import MaskFiles
from trainkit.data.datasets.split_files import parquet_files
from trainkit.data.datasets.undivided import of_class_folders, of_lists, of_mask_folders
from trainkit.data.file_names import leftover
from trainkit.data.palette import MaskColors
from trainkit.errors import MissingFileError, UserError

if TYPE_CHECKING:  # `datasets` takes a second to import
    from trainkit.data.datasets.hub import HubMasks

NO_SPLIT = SplitSettings()
Files = TypeVar("Files", bound=ClassFiles | MaskFiles)
FilesOfMasks = TypeVar("FilesOfMasks", bound=MaskFiles)


def class_images(
    source: str | Path,
    split: str,
    transform: Callable[[Any], Any] | None = None,
    classes: Sequence[str] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    stream: int | None = None,
    held_out: SplitSettings = NO_SPLIT,
    pixels: PixelSettings = USUAL,
) -> ClassDataset:
    """Open one split of class images: index -> (uint8 image (3, H, W), class id), with `.classes`.

    Args:
        source: a folder with <split>/<class>/<image>, one with <class>/<image> or a list of paths
            and labels, of which `held_out` says what is "val", a folder with such lists (train.csv,
            val.csv), a folder with parquet files (`parquet_files` says how they are named), or a
            dataset's name on the Hub.
        split: "train", or "val": the first of val, validation, valid and test that there is.
        transform: of the image.
        classes: names in the order of class ids, which "val" gets from "train".
        image_column: see `HubImages`; class folders have none.
        label_column: see `HubImages`; class folders have none.
        stream: see `HubImages`; class folders have none.
        held_out: which images are held out for validation.
        pixels: channels and bits of the images, of files alone.

    Raises:
        MissingFileError: there is no such split; the message says where it looked.
        UserError: it has other classes than `classes`, or cannot be divided.
    """
    folder, names, how = Path(source), SPLITS[split], (image_column, label_column, stream, classes)
    whole = None
    if not _has_folder(folder, names):
        whole = of_lists(source, held_out, image_column=image_column, target_column=label_column)
    if whole is None and held_out.is_asked:
        require_no_masks(folder)
        root = undivided_classes(folder) if folder.is_dir() else None
        if root is None:
            raise nothing_to_divide(source, held_out.words, "class folders")
        whole = of_class_folders(root, held_out)
    if whole is not None:
        _require_no_stream(source, stream)
        return _with_pixels(
            DividedClasses(whole.divided(held_out), split, transform, classes), pixels
        )
    if folder.is_dir():
        for name in names:
            if (folder / name).is_dir() and _has_classes(folder / name):
                _require_no_stream(folder / name, stream)
                data = _with_pixels(ClassFolder(folder / name, transform, classes), pixels)
                data.used_warnings += _tables_beside(folder, name)
                return data
            if parquet_files(folder, name).files:
                _require_usual(source, pixels)
                return _from_datasets(source, name, transform, *how)
        what = _what_to_do(folder, class_folders(folder))
        raise MissingFileError(
            f"no {split} images in {folder.resolve()}: looked for"
            f" {', '.join(f'{n}/<class>/' for n in names)},"
            f" {', '.join(f'{n}*.parquet' for n in names)} and {names[0]}.csv or .jsonl{what}"
        )
    _require_hub_name(source, "train/<class>/ and val/<class>/")
    _require_usual(source, pixels)
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
    held_out: SplitSettings = NO_SPLIT,
    pixels: PixelSettings = USUAL,
) -> "MaskFolder | DividedMasks | HubMasks":
    """Open one split of images with masks: index -> (image, mask), as `MaskFolder` gives them.

    Args:
        source: a folder with images and masks as `mask_folders` finds them, or with a file of
            COCO's kind (`coco_files`), one with images/ and
            masks/ or a list of paths and masks, of which `held_out` says what is "val", a folder
            with such lists, a folder with parquet files as in `class_images`, or a dataset's name
            on the Hub.
        split: as in `class_images`.
        classes: how many, or their names.
        transform: of image and mask.
        ignore: see `MaskDataset`.
        label_shift: see `MaskDataset`.
        stream: see `HubImages`.
        image_column: see `HubMasks`.
        mask_column: see `HubMasks`.
        mask_values: see `MaskDataset`.
        mask_colors: see `MaskDataset`.
        held_out: which images are held out for validation.
        pixels: channels and bits of the images, of files alone.

    Raises:
        MissingFileError: there is no such split; the message says where it looked.
        UserError: an argument does not fit the data, or it cannot be divided.
    """
    how: dict[str, Any] = {
        "ignore": ignore,
        "label_shift": label_shift,
        "mask_values": mask_values,
        "mask_colors": mask_colors,
    }
    folder, names = Path(source), SPLITS[split]
    columns = {"image_column": image_column, "mask_column": mask_column}
    num_classes = classes if isinstance(classes, int) else len(classes)
    whole = None if has_mask_folders(folder) else of_coco(folder, held_out)
    there = mask_folders(folder, names) if whole is None and folder.is_dir() else None
    if whole is None and there is None:
        listed = {"image_column": image_column, "target_column": mask_column}
        whole = of_lists(source, held_out, **listed, masks=True)
    if whole is None and held_out.is_asked:
        pair = undivided_masks(folder) if folder.is_dir() else None
        if pair is None:
            raise nothing_to_divide(source, held_out.words, "images/ and masks/")
        whole = of_mask_folders(folder, *pair, held_out)
    drawing = None if isinstance(classes, int) else partial(drawn_labels, names=list(classes))
    if whole is not None:
        _require_no_stream(source, stream)
        divided = whole.divided(held_out)
        masks = DividedMasks(divided, split, num_classes, transform, draw=drawing, **how)
        return _with_pixels(_names_known(masks), pixels)
    if there is not None:
        _require_no_stream(folder / there[1], stream)
        images, annotations = folder / there[1], folder / there[2]
        data = MaskFolder(images, annotations, num_classes, transform, draw=drawing, **how)
        data = _with_pixels(_names_known(data), pixels)
        data.split = there[0]
        data.used_warnings += _tables_beside(folder, there[0])
        return data
    if folder.is_dir():
        for name in names:
            if parquet_files(folder, name).files:
                _require_usual(source, pixels)
                return _masks_from_datasets(
                    source, name, classes, transform, stream=stream, **columns, **how
                )
        what = _what_to_do(folder, [])
        raise MissingFileError(
            f"no {split} images in {folder.resolve()}: looked for"
            f" {', '.join(f'images/{n}/' for n in names)},"
            f" {', '.join(f'{n}/images/' for n in names)},"
            f" {', '.join(f'{n}*.parquet' for n in names)} and {names[0]}.csv or .jsonl{what}"
        )
    _require_hub_name(source, "images/train, images/val, annotations/train and annotations/val")
    _require_usual(source, pixels)
    return _masks_from_datasets(source, names, classes, transform, stream=stream, **columns, **how)


def _with_pixels(data: Files, pixels: PixelSettings) -> Files:
    data.pixels = pixels
    return data


def _require_usual(source: str | Path, pixels: PixelSettings) -> None:
    if not pixels.usual:
        raise UserError(
            f"channels is {pixels.channels} and bits {pixels.bits}, and {source} has no files of"
            " images: parquet files are read as RGB of 8 bits, leave --channels and --bits out"
        )


def _names_known(data: FilesOfMasks) -> FilesOfMasks:
    """The same. Raises UserError where masks are drawn from JSON files with other settings."""
    drawn = next((file for file in data.masks if file.suffix.startswith(".json")), None)
    if drawn is None:
        return data
    if data.draw is None:
        raise UserError(
            f"classes is {data.num_classes}, and {drawn} has classes by their names: name them in"
            " --classes, background first where pixels outside of all polygons are a class"
        )
    if data.label_values is not None or data.label_shift or data.ignore != (IGNORED,):
        raise UserError(
            f"{drawn} has classes by their names: leave --mask-values, --mask-colors, --label-shift"
            " and --ignore out"
        )
    if background_id(data.draw.keywords["names"]) == IGNORED:
        data.used_warnings = [
            *data.used_warnings,
            "pixels outside of all polygons count nowhere: name a class background in --classes"
            " where they are to be learned",
        ]
    return data


def _what_to_do(folder: Path, found: Sequence[str]) -> str:
    """How a folder that lacks a split could be divided, as the end of a message."""
    train = next((name for name in SPLITS["train"] if name in found), None)
    if train is not None or mask_folders(folder, SPLITS["train"]) is not None:
        return f". It has images of train: {HOLD_OUT}"
    if (folder / "images").is_dir():
        return f". It has images/: {HOLD_OUT}"
    if found:
        return f". Its folders are {some(found)}: where these are classes, {HOLD_OUT}"
    return ""


def _has_folder(folder: Path, names: Sequence[str]) -> bool:
    """Whether a split has class folders, which go before lists."""
    return any((folder / name).is_dir() and class_folders(folder / name) for name in names)


def _require_no_stream(where: str | Path, stream: int | None) -> None:
    if stream is not None:
        raise UserError(f"{where} has files of images: stream is for parquet files, leave it out")


def _has_classes(folder: Path) -> bool:
    """Whether a split's folder has class folders, with an image in one if parquet is beside it."""
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
) -> "HubMasks":
    # `datasets` takes a second to import
    from trainkit.data.datasets.hub import HubMasks
    from trainkit.data.datasets.hub_tables import choose_split

    name = split if isinstance(split, str) else choose_split(str(source), split)
    return HubMasks(source, name, *how, **more)


def _from_datasets(
    source: str | Path,
    split: str | Sequence[str],
    transform: Callable[[Any], Any] | None,
    *how: Any,
) -> ClassDataset:
    # `datasets` takes a second to import
    from trainkit.data.datasets.hub import HubImages
    from trainkit.data.datasets.hub_tables import choose_split

    name = split if isinstance(split, str) else choose_split(str(source), split)
    return HubImages(source, name, transform, *how)
