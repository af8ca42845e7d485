"""Datasets that are divided into train and val here: by a list, by its column, or by a share."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainkit.data.datasets.cache import short_hash
from trainkit.data.datasets.folder import ClassFiles, FileList
from trainkit.data.datasets.held_out import SplitSettings, held_out, portable, without_mount
from trainkit.data.datasets.inventory import Inventory, images_of, no_image, some
from trainkit.data.datasets.lists import (
    written,
)
from trainkit.data.datasets.mask_files import MaskFiles
from trainkit.data.file_names import composed, extension
from trainkit.errors import UserError

SIDES = ("train", "val")
ROWS = ", rows "  # before the hash of their content, in a fingerprint
SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid", "test")}


@dataclass(frozen=True)
class Whole:
    """All images of a dataset.

    Attributes:
        root: the folder that names are relative to.
        names: of the images.
        targets: of each image the name of its class, or its mask's file.
        classes: of each image, what `held_out` goes by.
        header: of the lists; without the second name they hold names alone.
        groups: of each image, where they are known.
        sides: "train" or "val" of each, where the data says it.
        content: a hash of what the names do not say, of rows that have numbers alone.
        empty: folders beside those of the classes that hold no image, and are no classes.
    """

    root: Path
    names: Sequence[str]
    targets: Sequence[str]
    header: tuple[str, ...]
    classes: Sequence[str]
    groups: Sequence[str] | None = None
    sides: np.ndarray | None = None
    inventory: Inventory = field(default_factory=Inventory)
    content: str = ""
    empty: Sequence[str] = ()

    def divided(self, settings: SplitSettings) -> "Division":
        """Train and val, by `sides` or by what is asked for."""
        sides = self.sides
        if sides is None:
            is_val = held_out(self.names, self.classes, settings, self.groups)
            sides = np.where(is_val, "val", "train")
        lists = _lists(self.header, self.names, self.targets, sides)
        words = settings.words if self.sides is None else ""
        return Division(self, sides, lists, words)


@dataclass(frozen=True)
class Division:
    """A dataset in two.

    Attributes:
        lists: the content of train.csv and val.csv.
        words: how it was divided.
    """

    whole: Whole
    sides: np.ndarray
    lists: Mapping[str, bytes]
    words: str

    @property
    def fingerprint(self) -> str:
        """A hash of both lists, and how long they are.

        Of absolute paths counts what lies below their common folder, as in `held_out`: data that
        were moved are the same.
        """
        counts = Counter(self.sides.tolist())
        whole, lists = self.whole, self.lists
        if any(map(os.path.isabs, whole.names)) or any(map(os.path.isabs, self._masks)):
            names = without_mount(whole.names, set(map(os.path.dirname, whole.names)))
            targets = without_mount(self._masks, set(map(os.path.dirname, self._masks)))
            lists = _lists(whole.header, names, targets or whole.targets, self.sides)
        of = short_hash(b"".join(lists[f"{side}.csv"] for side in SIDES))
        rows = f"{ROWS}{whole.content}" if whole.content else ""
        return f"lists {of} of {counts['train']} train and {counts['val']} val images{rows}"

    @property
    def _masks(self) -> Sequence[str]:
        """The files of masks; none where images have labels."""
        return self.whole.targets if "mask" in self.whole.header else ()

    def side(self, split: str) -> tuple[list[str], list[str]]:
        """Names and targets of "train" or "val"."""
        chosen = np.flatnonzero(self.sides == split).tolist()
        whole = self.whole
        return [whole.names[at] for at in chosen], [whole.targets[at] for at in chosen]

    def used(self, names: Sequence[str], classes: int) -> str:
        """What a side holds, in words."""
        formats = Counter(extension(name).lstrip(".") for name in names)
        inventory = Inventory()
        inventory.taken.update(formats)
        found = images_of(len(names), classes)
        if self.words:
            of = images_of(len(self.sides), classes)
            found = f"{len(names):,} of {of} by {self.words}"
        return f"{found} ({inventory.formats}){self.whole.inventory.left_out_words}"

    def mark(self, data: Any, split: str, names: Sequence[str], classes: int) -> None:
        """Give a dataset of one side the attributes that tell of the division."""
        data.split, data.fingerprint, data.lists = split, self.fingerprint, self.lists
        data.used, data.used_warnings = self.used(names, classes), self.whole.inventory.warnings
        if split == "train" and self.whole.empty:
            data.used_warnings = [*data.used_warnings, _no_classes(self.whole)]


class DividedClasses(ClassFiles):
    """One side of a `Division` by class names: index -> (uint8 image (3, H, W), class id).

    Args:
        division: the division.
        split: "train" or "val".
        transform: of the image.
        classes: names in the order of their ids; None: those of both sides, in alphabetical order,
            or by number where all are numbers. Where none of them is a number, the labels may be
            class ids, if those of both sides are.

    Raises:
        UserError: an image is of another class.
    """

    split: str
    used_warnings: list[str]

    def __init__(
        self,
        division: Division,
        split: str,
        transform: Callable[[Any], Any] | None = None,
        classes: Sequence[str] | None = None,
    ):
        names, labels = division.side(split)
        labels = [composed(label) for label in labels]
        found = {composed(label) for label in division.whole.targets}
        known = in_order(found) if classes is None else list(classes)
        ids = {composed(name): target for target, name in enumerate(known)}
        numbers = {str(target): target for target in range(len(known))}
        if found <= numbers.keys() and not any(name.isdecimal() for name in ids):
            ids = numbers  # the list holds class ids
        unknown = sorted(set(labels) - ids.keys())
        if unknown:
            raise UserError(
                f"the {split} images in {division.whole.root} are of classes {some(unknown)}, which"
                " are not among those of the training images or of --classes; rename them or"
                " take them out"
            )
        files = FileList(division.whole.root, names)
        super().__init__(files, [ids[label] for label in labels], known, transform)
        division.mark(self, split, names, len(known))
        self._root = division.whole.root
        self.used_warnings = [*self.without_images(), *self.used_warnings]

    def without_images(self) -> list[str]:
        """A line where classes have no image."""
        where = f"{self.split} of {self._root}"
        return no_image(self.classes, set(self.targets.tolist()), where)


def _no_classes(whole: Whole) -> str:
    if len(whole.empty) == 1:
        return f"{whole.root / whole.empty[0]} has no image, and is no class"
    return (
        f"{len(whole.empty)} folders in {whole.root} have no image, and are no classes:"
        f" {some(whole.empty)}"
    )


class DividedMasks(MaskFiles):
    """One side of a `Division` of images with masks.

    Args:
        division: the division.
        split: "train" or "val".
        num_classes: how many classes there are.
        transform: of image and mask.
        **settings: as of `MaskDataset`.
    """

    def __init__(
        self,
        division: Division,
        split: str,
        num_classes: int,
        transform: Callable[..., Any] | None = None,
        **settings: Any,
    ):
        names, masks = division.side(split)
        root = division.whole.root
        files = FileList(root, names), FileList(root, masks)
        super().__init__(*files, num_classes, transform, **settings)
        division.mark(self, split, names, num_classes)


def _lists(
    header: tuple[str, ...], names: Sequence[str], targets: Sequence[str], sides: np.ndarray
) -> dict[str, bytes]:
    """The content of train.csv and val.csv."""
    spelt = portable if "mask" in header else composed
    rows = sorted(
        (portable(name), spelt(target), side)
        for name, target, side in zip(names, targets, sides.tolist())
    )
    return {
        f"{side}.csv": written(header, [row[: len(header)] for row in rows if row[2] == side])
        for side in SIDES
    }


def in_order(names: set[str]) -> list[str]:
    """Names in alphabetical order, or by number where all are numbers."""
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def with_sides(whole: Whole, sides: Sequence[str]) -> Whole:
    """The same images, each on the side that is given."""
    return Whole(
        whole.root, whole.names, whole.targets, whole.header, whole.classes, sides=np.array(sides)
    )


def require_one_side(
    names: Sequence[str], sides: Sequence[str], where: Callable[[int], str]
) -> None:
    """Check that no image is in both train and val.

    Args:
        names: of the images, each in one spelling.
        sides: of each.
        where: words for the image at a place, and where it is listed.

    Raises:
        UserError: one is.
    """
    found: dict[str, int] = {}
    for place, (name, side) in enumerate(zip(names, sides)):
        if side not in SIDES:
            continue
        before = found.setdefault(name, place)
        if sides[before] != side:
            raise UserError(
                f"one image is in both {sides[before]} and {side}, and would be evaluated after it"
                f" was trained on: {where(before)}, and {where(place)}; remove one"
            )
