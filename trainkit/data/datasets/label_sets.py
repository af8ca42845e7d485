"""Images with any number of labels: in lists, or in class folders that share images."""

import ast
import filecmp
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainkit.data.datasets.divided import SIDES, SPLITS, Whole, with_sides
from trainkit.data.datasets.held_out import SplitSettings
from trainkit.data.datasets.inventory import some
from trainkit.data.datasets.layouts import class_folders, undivided_classes
from trainkit.data.datasets.listing import class_files
from trainkit.data.datasets.lists import (
    IMAGE,
    LABEL,
    LABEL_SETS,
    SPLIT,
    ImageList,
    read_list,
)
from trainkit.data.datasets.undivided import groups_of_folders
from trainkit.data.file_names import composed
from trainkit.errors import UserError

# Names of the column of labels that are looked for, in this order.
LABELS = (
    "labels", "label", "classes", "class", "categories", "category", "tags", "targets", "target",
    "labelname",
)  # fmt: skip
SEPARATORS = (";", "|", ",")
NOT_KNOWN = "?"  # before the name of a class of which nothing is known
NUMBERS = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0, "-1": -1, "-1.0": -1}
Labels = tuple[set[str], set[str]]  # names of the classes of an image, and of those not known


def encoded(present: Iterable[str], ignored: Iterable[str] = ()) -> str:
    """Labels of an image as one text, such as "cat;dog;?horse", or as JSON where names have ";".

    Raises:
        UserError: a name begins with "?".
    """
    names = sorted({composed(name) for name in present})
    unknown = sorted({composed(name) for name in ignored} - set(names))
    wrong = [name for name in (*names, *unknown) if name.startswith(NOT_KNOWN)]
    if wrong:
        raise UserError(
            f"the class {wrong[0]!r} begins with {NOT_KNOWN}, which says that nothing is known of"
            " the class behind it: rename it"
        )
    words = [*names, *(NOT_KNOWN + name for name in unknown)]
    if any(";" in word or word.startswith("[") for word in words):
        return json.dumps(words, ensure_ascii=False)
    return ";".join(words)


def decoded(text: str) -> Labels:
    """Read what `encoded` wrote."""
    words = json.loads(text) if text.startswith("[") else text.split(";") if text else []
    return _sorted_out(words)


def _sorted_out(words: Iterable[str]) -> Labels:
    words = [composed(word.strip()) for word in words]
    ignored = {word[1:].strip() for word in words if word.startswith(NOT_KNOWN)}
    return {word for word in words if word and not word.startswith(NOT_KNOWN)}, ignored


class LabelLists:
    """Reads lists with any number of labels for each image, given in one column or one per class.

    One column: names (or class ids) with a separator between them, or a list of JSON lines; nothing
    for an image of no class; "?cat" where it is not known whether it is of the class cat. One
    column per class: 1, 0, or -1 where it is not known. Rows of one image are put together.

    Args:
        image_column: the column of paths; None: one of `lists.IMAGE`.
        label_column: the column of labels; None: one of `LABELS`, else there is one per class.
        separator: between labels; None: ";", "|" or ",", the first of them that occurs.
        classes: names of the columns, where there is one per class; None: all that hold 1, 0 and
            -1 alone.
        group_by: a column that is no class.

    Attributes:
        columns: the classes of the lists read so far, where there is one column per class.
        warnings: lines on what was read.
    """

    def __init__(
        self,
        image_column: str | None = None,
        label_column: str | None = None,
        separator: str | None = None,
        classes: Sequence[str] | None = None,
        group_by: str | None = None,
    ):
        self.image_column, self.label_column = image_column, label_column
        self.separator, self.classes, self.group_by = separator, classes, group_by
        self.columns: list[str] | None = None
        self.warnings: list[str] = []

    def __call__(self, file: Path) -> ImageList:
        """The list with a row for each image, and its labels, `encoded`, in a column of their own.

        Raises:
            UserError: it has no labels, or what is no label.
        """
        rows = read_list(file, keep_lists=True)
        paths = rows.column(IMAGE, self.image_column, "--image-column")
        _require_certain(rows)
        by_name = {name.strip().lower(): name for name in rows.columns}
        column = self.label_column or next((by_name[n] for n in LABELS if n in by_name), None)
        if column is not None and column not in rows.columns:
            raise UserError(
                f"{file} has no column {column}; its first line names"
                f" {some(map(repr, rows.columns))}. Name the column with --label-column"
            )
        labels = self._of_columns(rows, paths) if column is None else self._of_one(rows, column)
        return _one_row_each(rows, paths, labels)

    def _of_one(self, rows: ImageList, column: str) -> list[Labels]:
        cells = rows.columns[column]
        plain = [cell for cell in cells if not cell.startswith("[")]
        known = (each for each in SEPARATORS if any(each in cell for cell in plain))
        separator = self.separator or next(known, SEPARATORS[0])
        is_json = rows.file.suffix.lower() not in (".csv", ".tsv")
        found = []
        for line, cell in zip(rows.lines, cells):
            if cell.startswith("["):
                found.append(_sorted_out(_listed(cell, f"{rows.file}, line {line}")))
            elif is_json and not cell:
                raise UserError(
                    f"{rows.file}, line {line}: nothing as {column}; [] says that the image is of"
                    " no class"
                )
            else:
                found.append(_sorted_out(cell.split(separator)))
        return found

    def _of_columns(self, rows: ImageList, paths: Sequence[str]) -> list[Labels]:
        columns = self._class_columns(rows, paths)
        if self.columns is not None and self.columns != columns:
            raise UserError(
                f"{rows.file} has the classes {some(columns)}, and the list before it"
                f" {some(self.columns)}: give both the same columns, or name them with --classes"
            )
        self.columns = columns
        found: list[Labels] = [(set(), set()) for _ in rows.lines]
        for name in columns:
            for (present, ignored), line, cell in zip(found, rows.lines, rows.columns[name]):
                value = NUMBERS.get(cell.lower())
                if value is None:
                    raise UserError(
                        f"{rows.file}, line {line}: {cell!r} in the column {name}; it is 1 for an"
                        " image of the class, 0 for others, -1 where that is not known"
                    )
                if value:
                    (present if value > 0 else ignored).add(composed(name))
        return found

    def _class_columns(self, rows: ImageList, paths: Sequence[str]) -> list[str]:
        if self.classes is not None:
            lacking = [name for name in self.classes if name not in rows.columns]
            if lacking:
                raise UserError(
                    f"{rows.file} has no column {some(LABELS[:2])}, and none called"
                    f" {some(map(repr, lacking))}, as classes are: name the column of labels with"
                    " --label-column, or the columns of classes with --classes"
                )
            return list(self.classes)
        others = [
            name
            for name, cells in rows.columns.items()
            if name.strip().lower() not in SPLIT and name != self.group_by and cells is not paths
        ]
        columns = [
            name for name in others if {cell.lower() for cell in rows.columns[name]} <= set(NUMBERS)
        ]
        if not columns:
            raise UserError(
                f"{rows.file} has no labels: no column {' or '.join(LABELS[:2])}, and none that"
                f" holds 1, 0 and -1 alone; its first line names {some(map(repr, rows.columns))}."
                " Name the column of labels with --label-column"
            )
        left = [name for name in others if name not in columns]
        if left:
            self.warnings.append(
                f"{rows.file}: the classes are the columns {some(columns)}; no classes, as they"
                f" hold more than 1, 0 and -1: {some(left)}"
            )
        return columns


def several_labels(rows: ImageList) -> str | None:
    """In which form a list gives its images any number of labels, in words; None where it does not.

    A comma separates labels where the parts are fewer than the wholes: it may be in a name.

    Args:
        rows: read with `keep_lists`.
    """
    by_name = {name.strip().lower(): name for name in rows.columns}
    column = next((by_name[name] for name in LABELS if name in by_name), None)
    if column is not None:
        cells = rows.columns[column]
        wholes = set(cells)
        parts = {part.strip() for cell in wholes for part in cell.split(",")}
        marked = any(cell.startswith("[") or ";" in cell or "|" in cell for cell in cells)
        if marked or column.strip().lower() not in LABEL or len(parts) < len(wholes):
            return "any number of labels each"
        return None
    others = {name for name in by_name if name not in (*IMAGE, *SPLIT)}
    columns = [name for name in others if set(rows.columns[by_name[name]]) <= set(NUMBERS)]
    return f"a column for each of {len(columns)} classes" if columns else None


def _require_certain(rows: ImageList) -> None:
    """Raise UserError for labels with a confidence below 1, as Open Images has them."""
    for name, cells in rows.columns.items():
        if name.strip().lower() == "confidence":
            at = next((at for at, cell in enumerate(cells) if NUMBERS.get(cell) != 1), None)
            if at is not None:
                raise UserError(
                    f"{rows.file}, line {rows.lines[at]}: the column {name} holds {cells[at]!r},"
                    " and only labels of confidence 1 say that an image is of a class: leave the"
                    " others out, or give a column for each class with 1, 0 and -1"
                )


def _listed(cell: str, where: str) -> list[str]:
    """Names in a list as JSON or Python writes it."""
    try:
        value = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    plain = isinstance(value, list) and all(type(each) in (str, int) for each in value)
    if not isinstance(value, list) or not plain:
        raise UserError(f'{where}: {cell[:60]} is no list of labels such as ["cat", "dog"]')
    return [str(each) for each in value]


def _one_row_each(rows: ImageList, paths: Sequence[str], labels: Sequence[Labels]) -> ImageList:
    """Put the rows of one image, on one side of the split, together."""
    sides = rows.sides() or [""] * len(paths)
    first: dict[tuple[str, str], int] = {}
    merged: dict[int, Labels] = {}
    for at, key in enumerate(zip(paths, sides)):
        place = first.setdefault(key, at)
        present, ignored = merged.setdefault(place, (set(), set()))
        present |= labels[at][0]
        ignored |= labels[at][1]
    kept = list(merged)
    columns = {name: [cells[at] for at in kept] for name, cells in rows.columns.items()}
    columns[LABEL_SETS] = [encoded(*merged[at]) for at in kept]
    return ImageList(rows.file, columns, [rows.lines[at] for at in kept])


def of_shared_folders(folder: Path, settings: SplitSettings) -> Whole | None:
    """Images in class folders, of which one may lie in several; None where there are none.

    An image is what has one name, relative to its class folders, and one content.

    Raises:
        UserError: two different images have one name, or there is a split already.
    """
    if settings.is_asked:
        root = undivided_classes(folder)
        return None if root is None else _shared(root, root, settings)
    parts: dict[str, Whole] = {}
    for side in SIDES:
        there = [name for name in SPLITS[side] if (folder / name).is_dir()]
        split = next((name for name in there if class_folders(folder / name)), None)
        if split is not None:
            parts[side] = _shared(folder / split, folder, settings)
    if not parts:
        return None
    names, targets = (
        [each for part in parts.values() for each in getattr(part, what)]
        for what in ("names", "targets")
    )
    sides = [side for side, part in parts.items() for _ in part.names]
    inventory = next(iter(parts.values())).inventory
    for part in list(parts.values())[1:]:
        inventory.left_out.update(part.inventory.left_out)
    whole = Whole(folder, names, targets, ("path", "label"), [""] * len(names), inventory=inventory)
    classes = names_in(targets)
    empty = [name for part in parts.values() for name in part.empty]
    empty = [name for name in empty if composed(os.path.basename(name)) not in classes]
    return replace(with_sides(whole, sides), empty=empty)


def share_images(root: Path) -> bool:
    """Whether class folders hold an image twice: one name, and one content."""
    found, counts, files, _ = class_files(root)
    first: dict[str, str] = {}
    labels = [label for label, count in zip(found, counts.tolist()) for _ in range(count)]
    for label, name in zip(labels, files):
        other = first.setdefault(name[len(label) + 1 :], name)
        if other is not name and filecmp.cmp(root / other, root / name, shallow=False):
            return True
    return False


def _shared(root: Path, relative_to: Path, settings: SplitSettings) -> Whole:
    """The class folders in `root`, with names relative to another folder."""
    found, counts, files, inventory = class_files(root)
    labels = [label for label, count in zip(found, counts.tolist()) for _ in range(count)]
    places: dict[str, list[tuple[str, str]]] = {}
    for label, name in zip(labels, files):
        below = composed(name[len(label) + 1 :])
        places.setdefault(below, []).append((label, name))
    for (_, name), *others in places.values():
        for _, other in others:
            if not filecmp.cmp(root / name, root / other, shallow=False):
                raise UserError(
                    f"{root / name} and {root / other} have one name and are two images: an image"
                    f" of several classes lies in the folder of each under its name. Rename one, or"
                    f" say by a list (path,label) which classes each has; of images of one class"
                    " each trains recog_folder"
                )
    before = "" if root == relative_to else f"{os.path.relpath(root, relative_to)}{os.sep}"
    return Whole(
        relative_to,
        [before + copies[0][1] for copies in places.values()],
        [encoded(label for label, _ in copies) for copies in places.values()],
        ("path", "label"),
        [""] * len(places),
        groups_of_folders(settings, list(places), root),
        inventory=inventory,
        empty=[before + label for label, count in zip(found, counts) if not count],
    )


def names_in(texts: Iterable[str]) -> set[str]:
    """All classes that the texts, `encoded`, name."""
    return {name for text in texts for names in decoded(text) for name in names}


def as_ids(names: set[str], ids: Mapping[str, int]) -> Mapping[str, int]:
    """Ids of the classes by name; by number where all names are ids, and no class is a number."""
    numbers: dict[str, Any] = {str(target): target for target in range(len(ids))}
    if names <= numbers.keys() and not any(name.isdecimal() for name in ids):
        return numbers
    return ids
