"""Opens the splits of images with any number of classes: lists, or class folders."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from trainkit.data.bands import USUAL, PixelSettings, as_stored
from trainkit.data.datasets.divided import Division, in_order
from trainkit.data.datasets.folder import FileList, require_different
from trainkit.data.datasets.held_out import NO_SPLIT, SplitSettings
from trainkit.data.datasets.inventory import no_image, some
from trainkit.data.datasets.label_sets import (
    LabelLists,
    as_ids,
    decoded,
    names_in,
    of_shared_folders,
)
from trainkit.data.datasets.layouts import HOLD_OUT, require_no_masks
from trainkit.data.datasets.lists import is_list
from trainkit.data.datasets.multi_hot import IGNORED
from trainkit.data.datasets.undivided import of_lists
from trainkit.data.file_names import composed
from trainkit.data.first_crop import read_transformed
from trainkit.display.wording import counted
from trainkit.errors import MissingFileError, UserError


class LabelSets(Dataset):
    """Images of one side of a division: index -> (uint8 image (3, H, W), int8 (C,)).

    The target is 1 for classes that the image is of, 0 for others, -1 where that is not known. All
    of them are in memory, a byte for each image and class.

    Args:
        division: the division; its targets are `label_sets.encoded`.
        split: "train" or "val".
        transform: of the image.
        classes: names in the order of their ids; None: those of both sides, in alphabetical order,
            or by number where all are numbers.
        pixels: channels and bits of the images.

    Raises:
        UserError: an image is of another class.
    """

    def __init__(
        self,
        division: Division,
        split: str,
        transform: Callable[[Any], Any] | None = None,
        classes: Sequence[str] | None = None,
        pixels: PixelSettings = USUAL,
    ):
        names, texts = division.side(split)
        found = names_in(division.whole.targets)
        self.classes = in_order(found) if classes is None else list(classes)
        require_different(division.whole.root, self.classes)
        ids = as_ids(found, {composed(name): at for at, name in enumerate(self.classes)})
        unknown = sorted(names_in(texts) - ids.keys())
        if unknown:
            raise UserError(
                f"the {split} images in {division.whole.root} are of classes {some(unknown)}, which"
                " are not among those of the training images or of --classes; rename them or"
                " take them out"
            )
        self.targets = torch.zeros(len(names), len(self.classes), dtype=torch.int8)
        for row, text in zip(self.targets, texts):
            present, ignored = decoded(text)
            for label in present:
                row[ids[label]] = 1
            for label in ignored - present:
                row[ids[label]] = IGNORED
        self.files = FileList(division.whole.root, names)
        self.transform, self.pixels = transform, pixels
        self.split: str
        self.used: str
        self.used_warnings: list[str]
        division.mark(self, split, names, len(self.classes))
        self._root = division.whole.root
        none = int((self.targets <= 0).all(1).sum())
        labels = counted(int((self.targets > 0).sum()), "label")
        self.used += f"; {labels}, {counted(none, 'image')} without one"
        self.used_warnings = [*self.without_images(), *self.used_warnings]

    def without_images(self) -> list[str]:
        """A line where classes have no image."""
        there = set((self.targets > 0).any(0).nonzero()[:, 0].tolist())
        return no_image(self.classes, there, f"{self.split} of {self._root}")

    def name_of(self, index: int) -> Path:
        """The image's file."""
        return self.files[index]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = read_transformed(self.files.path(index), self.pixels, self.transform)
        return as_stored(image, self.pixels).as_subclass(Tensor), self.targets[index]


@dataclass(eq=False)
class LabelSetSource:
    """Images with any number of classes, whose splits are opened one by one.

    Args:
        source: a list with a column `split`, or to be divided; a folder with lists of its splits
            (train.csv, val.csv); or one with <split>/<class>/<image> or <class>/<image>, in which
            an image of several classes lies in the folder of each.
        image_column: see `label_sets.LabelLists`.
        label_column: likewise.
        separator: likewise.
        held_out: which images are held out for validation.
        pixels: channels and bits of the images.
        classes: names in the order of their ids; None: those of the data.
    """

    source: str | Path
    image_column: str | None = None
    label_column: str | None = None
    separator: str | None = None
    held_out: SplitSettings = NO_SPLIT
    pixels: PixelSettings = USUAL
    classes: Sequence[str] | None = None

    def open(
        self,
        split: str,
        transform: Callable[[Any], Any] | None = None,
        classes: Sequence[str] | None = None,
    ) -> LabelSets:
        """Open one split, "train" or "val".

        Args:
            split: which one.
            transform: of the image.
            classes: names in the order of class ids; None: those of the source.

        Raises:
            MissingFileError: there is no such split.
            UserError: it has other classes, or cannot be divided.
        """
        division, columns, warnings = self._divided
        if classes is None:
            classes = columns if self.classes is None else self.classes
        if not division.side(split)[0]:
            raise MissingFileError(
                f"no {split} images in {Path(self.source).resolve()}: {HOLD_OUT}"
            )
        data = LabelSets(division, split, transform, classes, self.pixels)
        data.used_warnings += warnings
        return data

    @cached_property
    def _divided(self) -> tuple[Division, list[str] | None, list[str]]:
        """Both sides, the classes where the lists have a column for each, and warnings."""
        source = Path(self.source)
        if source.is_dir():
            require_no_masks(source)
        elif not (is_list(source) and source.exists()):
            raise MissingFileError(
                f"no folder or list {source.resolve()}: give a list (.csv, .jsonl) of paths and"
                " labels, or a folder with train.csv and val.csv, or with a folder per class, with"
                " --data; or try --sample"
            )
        reader = LabelLists(
            self.image_column,
            self.label_column,
            self.separator,
            self.classes,
            self.held_out.group_by,
        )
        whole = of_lists(
            source, self.held_out, image_column=self.image_column, masks=False, read=reader
        )
        if whole is None:
            whole = of_shared_folders(source, self.held_out)
        if whole is None:
            raise MissingFileError(
                f"no images with labels in {source.resolve()}: looked for lists (train.csv,"
                " val.csv, or .jsonl) and for folders of classes, train/<class>/ and val/<class>/,"
                " or <class>/ with --val-share 0.2"
            )
        return whole.divided(self.held_out), reader.columns, reader.warnings
