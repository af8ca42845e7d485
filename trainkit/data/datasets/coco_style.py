"""Images with masks drawn from a JSON file of COCO's kind, of any categories."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainkit.data.datasets.cache import cached
from trainkit.data.datasets.coco_index import elements, masks_of, name_of, open_index
from trainkit.data.datasets.divided import SIDES, SPLITS, Whole, require_one_side, with_sides
from trainkit.data.datasets.held_out import SplitSettings
from trainkit.data.datasets.labelme import BACKGROUND, IGNORED, background_id, labelme_labels
from trainkit.data.datasets.lists import existing
from trainkit.data.datasets.undivided import groups_of_folders
from trainkit.data.text_files import read_text
from trainkit.errors import MissingFileError, UserError

# Names of files, of a split and of data without one.
OF_SPLIT = (
    "annotations/instances_{0}.json",
    "annotations/instances_{0}2017.json",
    "annotations/{0}.json",
    "{0}.json",
    "{0}/_annotations.coco.json",
    "{0}/annotations.json",
)
UNDIVIDED = (
    "annotations/instances_default.json",
    "annotations/instances.json",
    "annotations/annotations.json",
    "annotations.json",
    "_annotations.coco.json",
    "result.json",
)
IMAGES = ("", "images/{0}", "{0}", "{0}2017", "images")
MARK = "#"  # between a file and the number of the image in it


def coco_files(source: Path) -> dict[str, Path]:
    """The files of train and val in a folder, or under "" the one of all images; none: no such."""
    if source.suffix == ".json" and source.is_file():
        return {"": source}
    found = {}
    for side in SIDES:
        tried = [source / each.format(split) for split in SPLITS[side] for each in OF_SPLIT]
        there = next((file for file in tried if file.is_file()), None)
        if there is not None:
            found[side] = there
    if not found:
        there = next((source / each for each in UNDIVIDED if (source / each).is_file()), None)
        found = {} if there is None else {"": there}
    return found


def of_coco(source: Path, settings: SplitSettings) -> Whole | None:
    """All images of the files that `coco_files` finds; None where it finds none.

    Targets are masks by file and number, for `coco_labels`.

    Raises:
        MissingFileError: an image is not there.
        UserError: a file is not of COCO's kind; the data is divided already, or not yet; an image
            is in both train and val.
    """
    found = coco_files(source)
    if not found:
        return None
    if settings.is_asked and "val" in found:
        raise UserError(
            f"{source} is divided already, into {' and '.join(map(str, found.values()))}: leave"
            f" {settings.words} out, or give one of the files with --data"
        )
    parts = {side: _of_file(source, file, side, settings) for side, file in found.items()}
    if settings.is_asked:
        (whole,) = parts.values()
        return whole
    if "" in parts:
        raise UserError(
            f"{found['']} has all images: hold out a part of them for validation with --val-share"
            " 0.2"
        )
    sides = [side for side, part in parts.items() for _ in part.names]
    names, targets, classes = (
        [each for part in parts.values() for each in getattr(part, what)]
        for what in ("names", "targets", "classes")
    )
    first = next(iter(parts.values()))
    require_one_side(names, sides, lambda place: f"{names[place]} in {found[sides[place]]}")
    return with_sides(Whole(first.root, names, targets, first.header, classes), sides)


def categories_of(annotations: Path) -> dict[int, str]:
    """Id and name of each category in a file. Raises UserError where it has none."""
    array = cached(
        "coco-categories-v1", [annotations], lambda: {"json": _read_categories(annotations)}
    )["json"]
    return {int(id_): name for id_, name in json.loads(array.tobytes()).items()}


def coco_labels(mask: Path, names: Sequence[str]) -> Tensor:
    """Draw the objects of an image as train ids, uint8 (H, W).

    The first object of the file wins where several overlap. Categories that are none of the classes
    count nowhere, nor do pixels outside of all objects where no class is called background.

    Args:
        mask: the file, MARK and the number of the image in it.
        names: of the classes, in the order of their ids.

    Raises:
        UserError: a class is none of the categories, or an object has a box alone.
    """
    file, _, number = str(mask).rpartition(MARK)
    index, table = _opened(Path(file), tuple(names))
    image = int(number)
    size = int(index["heights"][image]), int(index["widths"][image])
    labels = np.full(size, background_id(names), dtype=np.uint8)
    taken = np.zeros(size, dtype=bool)
    try:
        for place, _, drawn in masks_of(index, image):
            labels[drawn & ~taken] = table[place]
            taken |= drawn
    except UserError as error:
        raise UserError(f"{name_of(index, image)} in {file}: {error}") from error
    return torch.from_numpy(labels)


def coco_class_masks(mask: Path, names: Sequence[str]) -> Tensor:
    """Draw the objects of an image as a mask of each class, which may overlap: int8 (C, H, W).

    Args:
        mask: the file, MARK and the number of the image in it.
        names: of the classes, in the order of their ids; objects of other categories are left out.

    Raises:
        UserError: a class is none of the categories, or an object has a box alone.
    """
    file, _, number = str(mask).rpartition(MARK)
    index, table = _opened(Path(file), tuple(names))
    image = int(number)
    masks = np.zeros((len(names), index["heights"][image], index["widths"][image]), dtype=np.int8)
    try:
        for place, _, drawn in masks_of(index, image):
            if table[place] != IGNORED:
                masks[table[place]] |= drawn
    except UserError as error:
        raise UserError(f"{name_of(index, image)} in {file}: {error}") from error
    return torch.from_numpy(masks)


def drawn_labels(mask: Path, names: Sequence[str]) -> Tensor:
    """Draw a mask as train ids, uint8 (H, W): an image of COCO's kind, or a file of LabelMe."""
    return coco_labels(mask, names) if is_of_coco(mask) else labelme_labels(mask, names)


def is_of_coco(mask: Path) -> bool:
    """Whether a mask is one that `coco_labels` draws."""
    return f".json{MARK}" in mask.name


@lru_cache(maxsize=16)
def _opened(file: Path, names: tuple[str, ...]) -> tuple[Mapping[str, np.ndarray], np.ndarray]:
    """The index of a file, and the train id of each of its classes 1, 2, ..."""
    categories = categories_of(file)
    known = set(categories.values()) | set(BACKGROUND)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(
            f"{file} has no category {', '.join(unknown)}; it has"
            f" {', '.join(list(categories.values())[:20])}: correct --classes"
        )
    index = open_index(file, sorted(categories))
    ids = {name: place for place, name in enumerate(names)}
    table = [ids.get(categories[id_], IGNORED) for id_ in sorted(categories)]
    return index, np.array([IGNORED, *table], dtype=np.uint8)


def _of_file(source: Path, file: Path, side: str, settings: SplitSettings) -> Whole:
    index = open_index(file, sorted(categories_of(file)))
    _require_outlines(index, file)
    root = source if source.is_dir() else source.parent
    names = [name_of(index, image) for image in range(len(index["names_ends"]))]
    words = SPLITS.get(side, ("",))
    tried = [root / each.format(word) for word in words for each in IMAGES]
    folders = dict.fromkeys([file.parent, *tried])
    within = next((folder for folder in folders if names and (folder / names[0]).is_file()), None)
    if within is None:
        looked = ", ".join(str(folder) for folder in folders)
        raise MissingFileError(f"{names[0]} of {file} is in none of {looked}")
    prefix = Path(within).relative_to(root) if Path(within).is_relative_to(root) else within
    paths = existing(root, [str(prefix / name) for name in names], file)
    mask = file.relative_to(root) if file.is_relative_to(root) else file.resolve()
    targets = [f"{mask}{MARK}{image}" for image in range(len(names))]
    groups = groups_of_folders(settings, names, file)
    return Whole(root, paths, targets, ("path", "mask"), [""] * len(names), groups)


def _require_outlines(index: Mapping[str, np.ndarray], file: Path) -> None:
    """Raises UserError where objects have a box alone."""
    begins = np.concatenate([[0], index["parts"][:-1]]) if len(index["parts"]) else index["parts"]
    without = int((index["parts"] == begins).sum())
    if without:
        raise UserError(
            f"{without} of {len(begins)} objects in {file} have no outline (segmentation), as where"
            " boxes were drawn: a mask needs polygons or run lengths"
        )


def _read_categories(file: Path) -> np.ndarray:
    try:
        found = {
            element["id"]: element["name"]
            for key, element, _ in elements(read_text(file))
            if key == "categories"
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} is not a file of COCO's instances: {error}; get it anew"
        ) from error
    if not found:
        raise UserError(f"{file} is not a file of COCO's instances: it has no categories")
    return np.frombuffer(json.dumps(found).encode(), dtype=np.uint8)
