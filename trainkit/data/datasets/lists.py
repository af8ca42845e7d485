"""Lists of images: CSV and JSON lines with a path and a label, or a path and a mask, a row each."""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from trainkit.data.datasets.inventory import some
from trainkit.data.file_names import composed
from trainkit.data.text_files import read_text
from trainkit.errors import MissingFileError, UserError

EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson")
# Names of columns that are looked for where none is given, in this order.
IMAGE = ("path", "image", "image_path", "file_name", "filename", "file", "img", "img_path")
LABEL = ("label", "class", "class_name", "category", "target")
MASK = ("mask", "mask_path", "annotation", "segmentation", "label", "label_path")
SPLIT = ("split", "subset")
LABEL_SETS = "labels of each image"  # the column that `label_sets.LabelLists` adds
DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True)
class ImageList:
    """The rows of a list; `lines` are where in the file each stands."""

    file: Path
    columns: Mapping[str, Sequence[str]]
    lines: Sequence[int]

    @cached_property
    def root(self) -> Path:
        """The folder that its paths are relative to."""
        return self.file.parent

    def column(self, known: Sequence[str], asked: str | None, flag: str) -> Sequence[str]:
        """The values of the column that is `asked` for, else of the first of `known` that it has.

        Raises:
            UserError: there is no such column, or a row has nothing in it.
        """
        by_name = {name.strip().lower(): name for name in self.columns}
        name = asked if asked is not None else next((by_name[n] for n in known if n in by_name), "")
        if name not in self.columns:
            looked = asked if asked is not None else " or ".join(known)
            raise UserError(
                f"{self.file} has no column {looked}; its first line names"
                f" {some(map(repr, self.columns)) or 'none'}. Name the column with {flag}, or put a"
                " line of names above the rows"
            )
        values = self.columns[name]
        empty = next((line for line, value in zip(self.lines, values) if not value), None)
        if empty is not None:
            raise UserError(f"{self.file}, line {empty}: nothing in the column {name}; fill it in")
        return values

    def sides(self) -> Sequence[str] | None:
        """The column `split`; None where there is none."""
        by_name = {name.strip().lower(): name for name in self.columns}
        name = next((by_name[each] for each in SPLIT if each in by_name), None)
        return None if name is None else [value.lower() for value in self.columns[name]]

    def files(self, paths: Sequence[str]) -> list[str]:
        """The paths as the files are spelt, each in one way, see `existing`.

        Raises:
            MissingFileError: some are missing; the message counts and names them.
        """
        return existing(self.root, paths, self.file)


def is_list(source: str | Path) -> bool:
    """Whether `source` is a list, by its name."""
    return Path(source).suffix.lower() in EXTENSIONS


def list_in(folder: Path, split: str) -> Path | None:
    """The list of a split in a folder, such as train.csv; None where there is none.

    Raises:
        UserError: there are several.
    """
    found = [folder / f"{split}{suffix}" for suffix in EXTENSIONS]
    found = [file for file in found if file.is_file()]
    if len(found) > 1:
        raise UserError(
            f"{folder} has {some(file.name for file in found)}: nothing says which is the list of"
            f" {split}; remove one"
        )
    return found[0] if found else None


def read_list(file: Path, keep_lists: bool = False) -> ImageList:
    """The list in a CSV file with a line of names, or in one of JSON lines.

    Values are text, without blanks at their ends; numbers of JSON are written as they are. A CSV's
    columns are separated by commas, semicolons or tabs, whichever its first line has most of.

    Args:
        file: the list.
        keep_lists: lists in JSON lines are kept as JSON; else there is nothing in their place.

    Raises:
        MissingFileError: it is not there.
        UserError: it is empty, or a line is not of that kind.
    """
    file = Path(file)
    if not file.is_file():
        raise MissingFileError(f"no list {file.resolve()}")
    text = read_text(file)
    rows = (
        _csv_rows(file, text)
        if file.suffix.lower() in (".csv", ".tsv")
        else _json(file, text, keep_lists)
    )
    rows = list(rows)
    if not rows:
        raise UserError(f"{file} names no images: put a row for each, such as path,label")
    names = dict.fromkeys(name for _, row in rows for name in row)
    columns = {name: [row.get(name, "") for _, row in rows] for name in names}
    return ImageList(file, columns, [line for line, _ in rows])


def written(header: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    """A list as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode(errors="surrogateescape")


def paths_in(content: bytes) -> list[str]:
    """The first column of a list that `written` made, without its name."""
    text = content.decode(errors="surrogateescape")
    return [row[0] for row in csv.reader(io.StringIO(text, newline=""))][1:]


def _csv_rows(file: Path, text: str) -> Iterable[tuple[int, dict[str, str]]]:
    first = text.split("\n", 1)[0]
    delimiter = max(DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"{file} names the column {twice[0]!r} twice: rename one")
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(names):
                raise UserError(
                    f"{file}, line {reader.line_num}: {len(row)} values, and the first line names"
                    f" {len(names)} columns; put a value with {delimiter!r} in it into quotes"
                )
            yield reader.line_num, {name: cell.strip() for name, cell in zip(names, row)}
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num}: {error}; correct it") from error


def _json(file: Path, text: str, keep_lists: bool) -> Iterable[tuple[int, dict[str, str]]]:
    for number, line in enumerate(text.split("\n"), 1):  # a string may hold U+2028
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{file}, line {number} is no JSON: {error}; correct it") from error
        if not isinstance(row, dict):
            raise UserError(f"{file}, line {number} is no JSON object such as {{'path': ...}}")
        yield number, {str(name): _text(value, keep_lists) for name, value in row.items()}


def _text(value: object, keep_lists: bool) -> str:
    """A JSON value as a cell of a table; nothing for null and for what is no single value."""
    if keep_lists and isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    if value is None or isinstance(value, (list, dict)):
        return ""
    return str(value).strip()


def existing(root: Path, paths: Sequence[str], file: Path) -> list[str]:
    """The paths that `file` names as the files are spelt, relative to `root` or absolute.

    Each file has one path, without "." and "..": what lies in `root` is relative to it, however
    `file` names it; an absolute path to elsewhere stays absolute.

    Raises:
        MissingFileError: some are missing; the message counts and names them.
    """
    folders: dict[str, Folder] = {}
    found = [_found(root, path, folders) for path in paths]
    missing = [path for path, there in zip(paths, found) if there is None]
    if missing:
        raise MissingFileError(
            f"{len(missing)} of {len(paths)} files that {file} names are not there:"
            f" {some(missing)}. Paths are relative to {root.resolve()}, where the list lies:"
            " move it to the folder that they begin in, or write them whole"
        )
    return [path for path in found if path is not None]


Folder = tuple[str, dict[str, str]]  # its path in one spelling, and the names in it


def _found(root: Path, path: str, folders: dict[str, Folder]) -> str | None:
    """The path as its file is spelt, in a list that may be of another machine; None for no file.

    `folders` are those that were looked into.
    """
    for spelt in dict.fromkeys((path, path.replace("\\", "/"))):
        folder, name = os.path.split(spelt)
        if folder not in folders:
            where = root / folder
            entries = os.listdir(where) if where.is_dir() else []
            names = {composed(entry): entry for entry in entries}
            folders[folder] = _in_one_spelling(root, folder) if entries else "", names
        inside, names = folders[folder]
        there = names.get(composed(name))
        if there is not None and name:
            return os.path.join(inside, there)
    return None


def _in_one_spelling(root: Path, folder: str) -> str:
    """The path of a folder without "." and "..", relative to `root` where it lies in it."""
    where = os.path.join(root, folder)
    relative = [
        os.path.relpath(resolved(where), resolved(root))
        for resolved in (os.path.abspath, os.path.realpath)
    ]
    # ".." behind a link leads elsewhere than it reads; the second one has no links.
    relative = [path for path in relative if _is_same(os.path.join(root, path), where)]
    for path in relative:
        if path.split(os.sep)[0] != os.pardir:
            return "" if path == os.curdir else path
    if not os.path.isabs(folder):
        return relative[0]
    plain = os.path.normpath(folder)
    return plain if _is_same(plain, where) else os.path.realpath(where)


def _is_same(path: str, other: str) -> bool:
    return os.path.exists(path) and os.path.samefile(path, other)
