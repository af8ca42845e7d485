"""Finds all images of a dataset: of class folders, of images with masks, or of lists."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from trainkit.data.datasets.divided import SIDES, SPLITS, Whole, require_one_side, with_sides
from trainkit.data.datasets.folder import paired, require_different
from trainkit.data.datasets.held_out import FOLDER, SplitSettings, portable
from trainkit.data.datasets.inventory import some
from trainkit.data.datasets.listing import class_files
from trainkit.data.datasets.lists import (
    IMAGE,
    LABEL,
    LABEL_SETS,
    MASK,
    ImageList,
    is_list,
    list_in,
    read_list,
)
from trainkit.data.file_names import composed, stem
from trainkit.errors import UserError


def of_class_folders(root: Path, settings: SplitSettings) -> Whole:
    """The class folders in `root`, which are not divided.

    A folder without an image is no class. With --group-by folder a group is what lies in folders of
    one name below the class folders.
    """
    found, counts, files, inventory = class_files(root)
    require_different(root, found)
    names = list(files)
    labels = np.repeat(np.array(found, dtype=object), counts).tolist()
    below = [name.removeprefix(label)[1:] for name, label in zip(names, labels)]
    groups = groups_of_folders(settings, below, root)
    empty = [name for name, count in zip(found, counts) if not count]
    header = "path", "label"
    return Whole(root, names, labels, header, labels, groups, inventory=inventory, empty=empty)


def of_mask_folders(root: Path, images: str, masks: str, settings: SplitSettings) -> Whole:
    """The images and masks in two folders in `root`, which are not divided."""
    names, with_mask, inventory = paired(root / images, root / masks)
    groups = groups_of_folders(settings, names, root / images)
    if len(with_mask) > len(names):
        inventory.left_out["unpaired", ""] += len(with_mask) - len(names)
    return Whole(
        root,
        [str(Path(images, name)) for name in names],
        [str(Path(masks, with_mask[stem(name)])) for name in names],
        ("path", "mask"),
        [""] * len(names),
        groups,
        inventory=inventory,
    )


def groups_of_folders(
    settings: SplitSettings, names: Sequence[str], where: Path
) -> list[str] | None:
    """The group of each image, its folder, where that is asked for; None where nothing is.

    Raises UserError for a group by a column, which only a list has.
    """
    if settings.group_by is None:
        return None
    if settings.group_by != FOLDER:
        raise UserError(
            f"group_by is {settings.group_by}, a column of a list, and {where} has none: give"
            " --group-by folder, or a list with that column"
        )
    return folders_of(names, where)


def of_lists(
    source: str | Path,
    settings: SplitSettings,
    *,
    image_column: str | None = None,
    target_column: str | None = None,
    masks: bool = False,
    read: Callable[[Path], ImageList] = read_list,
    known_targets: Sequence[str] | None = None,
) -> Whole | None:
    """What a list names, or those of the splits in a folder; None where `source` is neither.

    Args:
        source: a list with a column `split` or to be divided, or a folder with train.csv, val.csv.
        settings: what is held out, of a list that is not divided yet.
        image_column: the column of paths; None: one of `lists.IMAGE`.
        target_column: the column of labels or masks; None: one of `lists.LABEL` or `lists.MASK`.
        masks: targets are masks' paths, and not labels.
        read: reads a list; of one that `label_sets.LabelLists` reads, targets are sets of labels.
        known_targets: names of the column of targets, in place of `lists.LABEL` or `lists.MASK`.

    Raises:
        UserError: a list is no list, is to be divided a second time, or is not divided at all; an
            image is on both sides.
    """
    source = Path(source)
    if known_targets is None:
        known_targets = MASK if masks else LABEL
    columns = (IMAGE, image_column), (known_targets, target_column), masks
    if is_list(source):
        rows = read(source)
        sides = rows.sides()
        if sides is None and not settings.is_asked:
            raise UserError(
                f"{source} has no column split that says train or val for each row: hold out a"
                " part of it with --val-share 0.2, or give a folder with train.csv and val.csv"
            )
        if sides is not None and settings.is_asked:
            raise UserError(
                f"{source} has a column split: leave {settings.words} out, or remove the column"
            )
        whole = _whole(rows, settings, *columns)
        if sides is None:
            return whole
        sides = _sides(rows, sides)
        spelt = rows.column(*columns[0], "--image-column")
        require_one_side(whole.names, sides, lambda row: _place(rows, spelt, row))
        return with_sides(whole, sides)
    found = {} if not source.is_dir() else _lists_in(source)
    if not found:
        return None
    if settings.is_asked:
        raise UserError(
            f"{source} has {some(file.name for file in found.values())}, lists of its splits:"
            f" leave {settings.words} out, or give one list with --data"
        )
    lists = {side: read(file) for side, file in found.items()}
    parts = {side: _whole(rows, settings, *columns) for side, rows in lists.items()}
    sides = [side for side, part in parts.items() for _ in part.names]
    first = next(iter(parts.values()))
    names, targets, classes = (
        [each for part in parts.values() for each in getattr(part, what)]
        for what in ("names", "targets", "classes")
    )
    places = [
        (rows, rows.column(*columns[0], "--image-column"), row)
        for rows in lists.values()
        for row in range(len(rows.lines))
    ]
    require_one_side(names, sides, lambda place: _place(*places[place]))
    return with_sides(Whole(source, names, targets, first.header, classes), sides)


def _lists_in(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for side in SIDES:
        for split in SPLITS[side]:
            file = list_in(folder, split)
            if file is not None:
                found.setdefault(side, file)
    return found


def _sides(rows: ImageList, words: Sequence[str]) -> list[str]:
    """The side of each row: train, val, or "test" where others are val."""
    val = next((word for word in SPLITS["val"] if word in words), None)
    side_of = dict.fromkeys(SPLITS["val"], "test") | dict.fromkeys(SPLITS["train"], "train")
    if val is not None:
        side_of[val] = "val"
    for line, word in zip(rows.lines, words):
        if word not in side_of:
            known = ", ".join(word for words in SPLITS.values() for word in words)
            raise UserError(f"{rows.file}, line {line}: split is {word!r}; it is one of {known}")
    return [side_of[word] for word in words]


def _whole(
    rows: ImageList,
    settings: SplitSettings,
    image: tuple[Sequence[str], str | None],
    target: tuple[Sequence[str], str | None],
    masks: bool,
) -> Whole:
    names = rows.files(rows.column(*image, "--image-column"))
    several = LABEL_SETS in rows.columns
    if several:
        targets = rows.columns[LABEL_SETS]
    else:
        targets = rows.column(*target, "--mask-column" if masks else "--label-column")
    if masks:
        targets = rows.files(targets)
    _require_one_target(rows, names, targets)
    groups: Sequence[str] | None = None
    if settings.group_by == FOLDER:
        groups = folders_of(names, rows.file)
    elif settings.group_by is not None:
        groups = rows.column((), settings.group_by, "--group-by")
    header = ("path", "mask" if masks else "label")
    classes: Sequence[str] = [""] * len(names) if masks or several else targets
    return Whole(rows.root, names, targets, header, classes, groups)


def _require_one_target(rows: ImageList, names: Sequence[str], targets: Sequence[str]) -> None:
    """Raises UserError for an image that is listed with two labels or masks."""
    found: dict[str, tuple[str, int]] = {}
    for name, target, line in zip(names, targets, rows.lines):
        before, at = found.setdefault(name, (target, line))
        if composed(before) != composed(target):
            raise UserError(
                f"{rows.file}: {name} is {before} in line {at} and {target} in line {line}; remove"
                " one"
            )


def _place(rows: ImageList, spelt: Sequence[str], row: int) -> str:
    """Where an image stands, and how it is written there."""
    return f"{spelt[row]} in {rows.file}, line {rows.lines[row]}"


def folders_of(names: Sequence[str], where: Path) -> list[str]:
    """The folder of each image, which is its group.

    Raises:
        UserError: an image has none.
    """
    groups = [portable(name).rpartition("/")[0] for name in names]
    without = [name for name, group in zip(names, groups) if not group]
    if without:
        raise UserError(
            f"--group-by folder: {len(without)} of {len(names)} images of {where} lie in no folder"
            f" of their group, such as {without[0]}; put those of one group (a patient, a scene)"
            " into a folder of its own"
        )
    return groups
