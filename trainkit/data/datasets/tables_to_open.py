"""What is checked before a split is opened, and which split of parquet files is divided."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from trainkit.data.bands import PixelSettings
from trainkit.data.datasets.divided import SPLITS
from trainkit.data.datasets.folder import ClassFiles
from trainkit.data.datasets.held_out import SplitSettings
from trainkit.data.datasets.inventory import some
from trainkit.data.datasets.layouts import HOLD_OUT, mask_folders, near_name
from trainkit.data.datasets.mask_files import MaskFiles
from trainkit.data.datasets.split_files import ALL, all_parquet_files, parquet_files
from trainkit.data.file_names import extension, is_image
from trainkit.errors import MissingFileError, UserError

Files = TypeVar("Files", bound=ClassFiles | MaskFiles)


def is_hub_name(source: str | Path) -> bool:
    """Whether `source` may be a dataset's name on the Hub, such as owner/name."""
    text = str(source)
    return (
        text.count("/") == 1
        and not Path(source).is_absolute()
        and not text.startswith((".", "data/"))
    )


def require_hub_name(source: str | Path, layout: str) -> None:
    """Check that `source`, which is no folder, may be a name on the Hub.

    Args:
        source: what was given as the data.
        layout: of a folder, in words.

    Raises:
        MissingFileError: it may not.
    """
    if not is_hub_name(source):
        raise MissingFileError(
            f"no folder {Path(source).resolve()}: give one with {layout} or with parquet files, or"
            " a dataset's name on the Hub (owner/name) with --data; or try --sample"
        )


def named_splits(folder: Path) -> list[str]:
    """The splits that parquet files in a folder are named after."""
    return [
        name for names in SPLITS.values() for name in names if parquet_files(folder, name).files
    ]


def split_to_divide(source: str | Path) -> str | None:
    """The only split of parquet files in a folder, or that of a dataset on the Hub.

    Files that are named after no split are one. A dataset on the Hub may have further splits that
    are not for validation.

    Returns:
        None where `source` has no parquet files, and is no name on the Hub.

    Raises:
        UserError: there are several splits, or none that is known.
    """
    folder = Path(source)
    if folder.is_dir():
        named = named_splits(folder)
        if not named:
            return ALL if all_parquet_files(folder).files else None
        return _only(source, named)
    if folder.exists() or not is_hub_name(source) or near_name(folder) is not None:
        return None
    # `datasets` takes a second to import
    from trainkit.data.datasets.hub_tables import hub_splits

    return _only(source, hub_splits(str(source)))


def _only(source: str | Path, there: Sequence[str]) -> str:
    if len(there) == 1:
        return there[0]
    if any(name in there for name in SPLITS["val"]):
        raise UserError(
            f"{source} is divided already, it has {' and '.join(there)}: leave --val-share and"
            " --fold out, or give with --data what is not divided"
        )
    train = [name for name in SPLITS["train"] if name in there]
    if len(train) != 1:
        raise UserError(
            f"{source} has the splits {', '.join(there)}: nothing says which is to be divided; give"
            f" a folder with the parquet files of one"
        )
    return train[0]


def require_divisible_rows(
    source: str | Path, settings: SplitSettings, stream: int | None, pixels: PixelSettings
) -> None:
    """Check that rows of parquet files can be divided as they are to be read.

    Raises:
        UserError: they are streamed, or are to have other channels than RGB.
    """
    if stream is not None:
        raise UserError(
            f"stream is {stream} and {settings.words} is given: which rows of {source} are held out"
            " is known of downloaded files alone, so leave --stream out, or give files of train and"
            " of val"
        )
    require_usual(source, pixels)


def with_pixels(data: Files, pixels: PixelSettings) -> Files:
    """The same, read with these channels and bits."""
    data.pixels = pixels
    return data


def require_usual(source: str | Path, pixels: PixelSettings) -> None:
    """Raise UserError where parquet files are to be read as other than RGB of 8 bits."""
    if not pixels.usual:
        raise UserError(
            f"channels is {pixels.channels} and bits {pixels.bits}, and {source} has no files of"
            " images: parquet files are read as RGB of 8 bits, leave --channels and --bits out"
        )


def require_no_stream(where: str | Path, stream: int | None) -> None:
    """Raise UserError where files of images are to be streamed."""
    if stream is not None:
        raise UserError(f"{where} has files of images: stream is for parquet files, leave it out")


def what_to_do(folder: Path, found: Sequence[str]) -> str:
    """How a folder that lacks a split could be divided, as the end of a message."""
    train = next((name for name in SPLITS["train"] if name in found), None)
    if train is not None or mask_folders(folder, SPLITS["train"]) is not None:
        return f". It has images of train: {HOLD_OUT}"
    if (folder / "images").is_dir():
        return f". It has images/: {HOLD_OUT}"
    tables = named_splits(folder)
    if len(tables) == 1:
        return f". It has parquet files of {tables[0]}: {HOLD_OUT}"
    if found:
        return f". Its folders are {some(found)}: where these are classes, {HOLD_OUT}"
    number = sum(is_image(extension(each.name)) for each in folder.iterdir())
    if number:
        return f". {number} images lie in it, and nothing says what is on them"
    return ""


def tables_beside(folder: Path, split: str) -> list[str]:
    """A line about parquet files of a split that is taken from folders of images."""
    tables = parquet_files(folder, split).files
    if not tables:
        return []
    named = some(str(table.relative_to(folder)) for table in tables)
    return [
        f"{folder} has both folders of images and parquet files of {split}; the folders are taken,"
        f" and not {named}"
    ]
