"""Opens the splits of images of classes: class folders, lists, parquet files, or from the Hub."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.data.bands import USUAL, PixelSettings
from trainkit.data.dataset_info import ClassDataset
from trainkit.data.datasets.divided import SPLITS, DividedClasses, Division
from trainkit.data.datasets.folder import ClassFolder
from trainkit.data.datasets.held_out import NO_SPLIT, SplitSettings
from trainkit.data.datasets.label_sets import several_labels
from trainkit.data.datasets.layouts import (
    class_folders,
    nothing_to_divide,
    require_no_masks,
    undivided_classes,
)
from trainkit.data.datasets.listing import image_files
from trainkit.data.datasets.lists import ImageList, read_list
from trainkit.data.datasets.packed import PackedImages, require_plain
from trainkit.data.datasets.packed_format import is_packed
from trainkit.data.datasets.split_files import parquet_files
from trainkit.data.datasets.tables_to_open import (
    require_divisible_rows,
    require_hub_name,
    require_no_stream,
    require_usual,
    split_to_divide,
    tables_beside,
    what_to_do,
    with_pixels,
)
from trainkit.data.datasets.undivided import of_class_folders, of_lists
from trainkit.data.file_names import leftover
from trainkit.errors import MissingFileError, UserError

if TYPE_CHECKING:  # `datasets` takes a second to import
    from trainkit.data.datasets.hub import HubImages


@dataclass(eq=False)
class ClassSource:
    """Images of classes, whose splits are opened one by one; data without splits is divided once.

    Args:
        source: a folder with <split>/<class>/<image>, one with <class>/<image> or a list of paths
            and labels, of which `held_out` says what is "val", a folder with such lists (train.csv,
            val.csv), a folder with parquet files (`parquet_files` says how they are named), or a
            dataset's name on the Hub; of these two `held_out` divides the only split. Or a folder
            that `trainkit pack` wrote.
        image_column: see `HubImages`; class folders have none.
        label_column: see `HubImages`; class folders have none.
        stream: see `HubImages`; class folders have none.
        held_out: which images are held out for validation.
        pixels: channels and bits of the images, of files alone.
    """

    source: str | Path
    image_column: str | None = None
    label_column: str | None = None
    stream: int | None = None
    held_out: SplitSettings = NO_SPLIT
    pixels: PixelSettings = USUAL
    _rows: "HubImages | None" = field(default=None, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """What a worker needs: how the data was divided is with the datasets that are open."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return own | {"_rows": None}

    def open(
        self,
        split: str,
        transform: Callable[[Any], Any] | None = None,
        classes: Sequence[str] | None = None,
    ) -> ClassDataset:
        """Open one split: index -> (uint8 image (3, H, W), class id), with `.classes`.

        Args:
            split: "train", or "val": the first of val, validation, valid and test that there is.
            transform: of the image.
            classes: names in the order of class ids, which "val" gets from "train".

        Raises:
            MissingFileError: there is no such split; the message says where it looked.
            UserError: it has other classes than `classes`, or cannot be divided.
        """
        folder, names = Path(self.source), SPLITS[split]
        if is_packed(folder):
            return self._packed(split, transform, classes)
        if self.held_out.is_asked or not _has_folder(folder, names):
            if self._divided_files is not None:
                require_no_stream(self.source, self.stream)
                divided = DividedClasses(self._divided_files, split, transform, classes)
                return with_pixels(divided, self.pixels)
            if self.held_out.is_asked:
                return self._all_rows(classes).part(self._divided_rows, split, transform)
        columns = self.image_column, self.label_column, self.stream, classes
        if folder.is_dir():
            for name in names:
                if (folder / name).is_dir() and _has_classes(folder / name):
                    require_no_stream(folder / name, self.stream)
                    data = ClassFolder(folder / name, transform, classes)
                    data.used_warnings += tables_beside(folder, name)
                    return with_pixels(data, self.pixels)
                if parquet_files(folder, name).files:
                    require_usual(self.source, self.pixels)
                    return _from_datasets(self.source, name, transform, *columns)
            what = what_to_do(folder, class_folders(folder))
            raise MissingFileError(
                f"no {split} images in {folder.resolve()}: looked for"
                f" {', '.join(f'{n}/<class>/' for n in names)},"
                f" {', '.join(f'{n}*.parquet' for n in names)} and {names[0]}.csv or .jsonl{what}"
            )
        require_hub_name(self.source, "train/<class>/ and val/<class>/")
        require_usual(self.source, self.pixels)
        return _from_datasets(self.source, names, transform, *columns)

    def _packed(
        self,
        split: str,
        transform: Callable[[Any], Any] | None,
        classes: Sequence[str] | None,
    ) -> PackedImages:
        """One split of what `trainkit pack` wrote."""
        columns = {"image_column": self.image_column, "label_column": self.label_column}
        require_plain(self.source, **columns, **self.held_out.given, **self.pixels.given)
        return PackedImages(self.source, split, transform, classes, self.stream)

    @cached_property
    def _divided_files(self) -> Division | None:
        """Files of images that are divided here; None where there are none."""
        folder = Path(self.source)
        whole = of_lists(
            self.source,
            self.held_out,
            image_column=self.image_column,
            target_column=self.label_column,
            read=_read_one_label if self.label_column is None else read_list,
        )
        if whole is None and self.held_out.is_asked:
            require_no_masks(folder)
            there = folder.is_dir() and class_folders(folder)
            if not there and self._split_to_divide is not None:
                return None
            root = undivided_classes(folder) if folder.is_dir() else None
            if root is None:
                raise nothing_to_divide(self.source, self.held_out.words, "class folders")
            whole = of_class_folders(root, self.held_out)
        return None if whole is None else whole.divided(self.held_out)

    @cached_property
    def _split_to_divide(self) -> str | None:
        return split_to_divide(self.source)

    def _all_rows(self, classes: Sequence[str] | None) -> "HubImages":
        """The rows of the split that is divided, opened again only for other classes."""
        if self._rows is None or (classes is not None and list(classes) != self._rows.classes):
            require_divisible_rows(self.source, self.held_out, self.stream, self.pixels)
            columns = self.image_column, self.label_column, None, classes, self.held_out.group_by
            assert self._split_to_divide is not None  # else there are files
            self._rows = _from_datasets(self.source, self._split_to_divide, None, *columns)
        return self._rows

    @cached_property
    def _divided_rows(self) -> Division:
        return self._all_rows(None).whole().divided(self.held_out)


def _read_one_label(file: Path) -> ImageList:
    """A list with one label for each image. Raises UserError where there may be several."""
    rows = read_list(file, keep_lists=True)
    several = several_labels(rows)
    if several is not None:
        raise UserError(
            f"{file} gives its images {several}: recog_multilabel trains on it. Where each image is"
            " of one class alone, name the column of classes with --label-column"
        )
    return rows


def _has_folder(folder: Path, names: Sequence[str]) -> bool:
    """Whether a split has class folders, which go before lists."""
    return any((folder / name).is_dir() and class_folders(folder / name) for name in names)


def _has_classes(folder: Path) -> bool:
    """Whether a split's folder has class folders, with an image in one if parquet is beside it."""
    if not any(folder.glob("*.parquet")):
        return True
    return any(
        image_files(each) for each in folder.iterdir() if each.is_dir() and not leftover(each.name)
    )


def _from_datasets(
    source: str | Path,
    split: str | Sequence[str],
    transform: Callable[[Any], Any] | None,
    *how: Any,
) -> "HubImages":
    # `datasets` takes a second to import
    from trainkit.data.datasets.hub import HubImages
    from trainkit.data.datasets.hub_tables import choose_split

    name = split if isinstance(split, str) else choose_split(str(source), split)
    return HubImages(source, name, transform, *how)
