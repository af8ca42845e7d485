"""Opens the splits of images with masks: folders, COCO's files, lists, parquet files, the Hub."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from trainkit.data.bands import USUAL, PixelSettings
from trainkit.data.datasets.coco_style import drawn_labels, of_coco
from trainkit.data.datasets.divided import SPLITS, DividedMasks, Division, Whole
from trainkit.data.datasets.folder import MaskFolder
from trainkit.data.datasets.held_out import NO_SPLIT, SplitSettings
from trainkit.data.datasets.label_tables import IGNORED
from trainkit.data.datasets.labelme import background_id
from trainkit.data.datasets.layouts import (
    has_mask_folders,
    mask_folders,
    nothing_to_divide,
    undivided_masks,
)
from trainkit.data.datasets.mask_files import MaskFiles
from trainkit.data.datasets.packed import PackedMasks, require_plain
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
from trainkit.data.datasets.undivided import of_lists, of_mask_folders
from trainkit.data.palette import MaskColors
from trainkit.errors import MissingFileError, UserError

if TYPE_CHECKING:  # `datasets` takes a second to import
    from trainkit.data.datasets.hub import HubMasks

FilesOfMasks = TypeVar("FilesOfMasks", bound=MaskFiles)


@dataclass(eq=False)
class MaskSource:
    """Images with masks, whose splits are opened one by one; data without splits is divided once.

    Args:
        source: a folder with images and masks as `mask_folders` finds them, or with a file of
            COCO's kind (`coco_files`), one with images/ and
            masks/ or a list of paths and masks, of which `held_out` says what is "val", a folder
            with such lists, a folder with parquet files as in `ClassSource`, a dataset's name
            on the Hub, or a folder that `trainkit pack` wrote.
        classes: how many, or their names.
        ignore: see `MaskDataset`.
        label_shift: see `MaskDataset`.
        stream: see `HubImages`.
        image_column: see `HubMasks`.
        mask_column: see `HubMasks`.
        mask_values: see `MaskDataset`.
        mask_colors: see `MaskDataset`.
        held_out: which images are held out for validation.
        pixels: channels and bits of the images, of files alone.
    """

    source: str | Path
    classes: int | Sequence[str]
    ignore: Sequence[int] = (IGNORED,)
    label_shift: int = 0
    stream: int | None = None
    image_column: str | None = None
    mask_column: str | None = None
    mask_values: Sequence[int] | None = None
    mask_colors: MaskColors | None = None
    held_out: SplitSettings = NO_SPLIT
    pixels: PixelSettings = USUAL

    def __getstate__(self) -> dict[str, Any]:
        """What a worker needs: how the data was divided is with the datasets that are open."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def open(
        self, split: str, transform: Callable[..., Any] | None = None
    ) -> "MaskFolder | DividedMasks | HubMasks | PackedMasks":
        """Open one split: index -> (image, mask), as `MaskFolder` gives them.

        Args:
            split: as in `ClassSource.open`.
            transform: of image and mask.

        Raises:
            MissingFileError: there is no such split; the message says where it looked.
            UserError: a setting does not fit the data, or it cannot be divided.
        """
        folder, names = Path(self.source), SPLITS[split]
        if is_packed(folder):
            return self._packed(split, transform)
        there = self._own_split(names)
        if there is None:
            if self._divided_files is not None:
                require_no_stream(self.source, self.stream)
                sides = self._divided_files, split, self._num_classes, transform
                masks = DividedMasks(*sides, draw=self._drawing, **self._labels)
                return with_pixels(_names_known(masks), self.pixels)
            if self.held_out.is_asked:
                rows, division = self._divided_rows
                return rows.part(division, split, transform)
        else:
            require_no_stream(folder / there[1], self.stream)
            files = folder / there[1], folder / there[2], self._num_classes, transform
            data = MaskFolder(*files, draw=self._drawing, **self._labels)
            data = with_pixels(_names_known(data), self.pixels)
            data.split = there[0]
            data.used_warnings += tables_beside(folder, there[0])
            return data
        if folder.is_dir():
            for name in names:
                if parquet_files(folder, name).files:
                    require_usual(self.source, self.pixels)
                    return self._from_datasets(name, transform)
            what = what_to_do(folder, [])
            raise MissingFileError(
                f"no {split} images in {folder.resolve()}: looked for"
                f" {', '.join(f'images/{n}/' for n in names)},"
                f" {', '.join(f'{n}/images/' for n in names)},"
                f" {', '.join(f'{n}*.parquet' for n in names)} and {names[0]}.csv or .jsonl{what}"
            )
        layout = "images/train, images/val, annotations/train and annotations/val"
        require_hub_name(self.source, layout)
        require_usual(self.source, self.pixels)
        return self._from_datasets(names, transform)

    def _packed(self, split: str, transform: Callable[..., Any] | None) -> PackedMasks:
        """One split of what `trainkit pack` wrote, whose masks hold train ids."""
        require_plain(
            self.source,
            image_column=self.image_column,
            mask_column=self.mask_column,
            mask_values=self.mask_values,
            mask_colors=self.mask_colors,
            ignore=None if tuple(self.ignore) == (IGNORED,) else self.ignore,
            label_shift=self.label_shift or None,
            **self.held_out.given,
            **self.pixels.given,
        )
        return PackedMasks(self.source, split, transform, self.classes, self.stream)

    @property
    def _num_classes(self) -> int:
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    @property
    def _drawing(self) -> "partial[Any] | None":
        if isinstance(self.classes, int):
            return None
        return partial(drawn_labels, names=list(self.classes))

    @property
    def _labels(self) -> dict[str, Any]:
        names = "ignore", "label_shift", "mask_values", "mask_colors"
        return {name: getattr(self, name) for name in names}

    @cached_property
    def _of_coco(self) -> Whole | None:
        folder = Path(self.source)
        return None if has_mask_folders(folder) else of_coco(folder, self.held_out)

    def _own_split(self, names: Sequence[str]) -> tuple[str, str, str] | None:
        """The folders of a split that is there, where it is not to be divided."""
        folder = Path(self.source)
        if self.held_out.is_asked or self._of_coco is not None or not folder.is_dir():
            return None
        return mask_folders(folder, names)

    @cached_property
    def _divided_files(self) -> Division | None:
        """Files of images that are divided here; None where there are none."""
        folder = Path(self.source)
        whole = self._of_coco
        if whole is None:
            whole = of_lists(
                self.source,
                self.held_out,
                image_column=self.image_column,
                target_column=self.mask_column,
                masks=True,
            )
        if whole is None and self.held_out.is_asked:
            pair = undivided_masks(folder) if folder.is_dir() else None
            if pair is None and self._split_to_divide is not None:
                return None
            if pair is None:
                raise nothing_to_divide(self.source, self.held_out.words, "images/ and masks/")
            whole = of_mask_folders(folder, *pair, self.held_out)
        return None if whole is None else whole.divided(self.held_out)

    @cached_property
    def _split_to_divide(self) -> str | None:
        return split_to_divide(self.source)

    @cached_property
    def _divided_rows(self) -> "tuple[HubMasks, Division]":
        """The rows of the split that is divided, and how it is."""
        require_divisible_rows(self.source, self.held_out, self.stream, self.pixels)
        assert self._split_to_divide is not None  # else there are files
        rows = self._from_datasets(self._split_to_divide, None, group_by=self.held_out.group_by)
        return rows, rows.whole().divided(self.held_out)

    def _from_datasets(
        self, split: str | Sequence[str], transform: Callable[..., Any] | None, **more: Any
    ) -> "HubMasks":
        # `datasets` takes a second to import
        from trainkit.data.datasets.hub import HubMasks
        from trainkit.data.datasets.hub_tables import choose_split

        name = split if isinstance(split, str) else choose_split(str(self.source), split)
        columns = {"image_column": self.image_column, "mask_column": self.mask_column}
        how = {"stream": self.stream, **columns, **self._labels, **more}
        return HubMasks(self.source, name, self.classes, transform, **how)


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
