"""Finds the parquet files of a split in a folder, by its exact name, in the usual layouts."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainkit.data.datasets.inventory import Inventory, some
from trainkit.errors import UserError

ALL = "all"  # the split of files that are named after none
# folders below the given one; those of the Hub's datasets and of what it converts
LAYOUTS = ("", "data", "default")
# What may follow a split's name: a number, or a place among so many files and a hash, as the Hub
# names them.
_REST = re.compile(
    r"(?P<mark>[-_.]?(?:part|shard|chunk)?[-_.]?)(?P<place>\d+)(?:[-_.]of[-_.](?P<total>\d+))?(?:[-_.][0-9a-f]{8,})?"
)


@dataclass(frozen=True)
class SplitFiles:
    """The parquet files of a split.

    Attributes:
        left_out: others whose names begin like it.
        warnings: lines to show.
    """

    files: list[Path] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def words(self, folder: Path) -> str:
        """A phrase such as "(train.parquet); left out: 1 parquet file (trainval.parquet)"."""
        inventory = Inventory()
        inventory.left_out.update(("table", _within(path, folder)) for path in self.left_out)
        return f"({some(_within(path, folder) for path in self.files)}){inventory.left_out_words}"


def parquet_files(folder: Path, split: str) -> SplitFiles:
    """Find the parquet files of `split` in a folder, in the order of their numbers; or None.

    <split>.parquet, <split>-00000-of-00002.parquet, <split>_0.parquet and <split>/<any
    name>.parquet are taken, in the folder, or in data/ or default/ below it; trainval.parquet is
    none of train, nor val_hard.parquet of val.

    Raises:
        UserError: there are several such sets of files, of which one might repeat the other.
    """
    found: dict[str, list[Path]] = {}
    numbers: dict[Path, tuple[str, int]] = {}
    left_out: list[Path] = []
    for layout in LAYOUTS:
        where = Path(folder) / layout
        for path in _tables(where):
            number = _number(path, split)
            if number is not None:
                numbers[path] = number
                found.setdefault(f"{layout}/{number[0]}", []).append(path)
            elif path.name.startswith(split):
                left_out.append(path)
        inside = _tables(where / split)
        if inside:
            found[f"{layout}/{split}/"] = inside
    if len(found) > 1:
        sets = " and ".join(
            some(_within(path, folder) for path in files) for files in found.values()
        )
        raise UserError(
            f"{folder} has several sets of parquet files of the split {split}: {sets}; one might"
            " repeat the other. Move all but one elsewhere"
        )
    files = next(iter(found.values()), [])
    if files and files[0] in numbers:
        files.sort(key=lambda path: (numbers[path][1], path))
        _require_different(folder, split, [numbers[path][1] for path in files])
    return SplitFiles(files, left_out, _missing(list(numbers.values()), folder, split))


def all_parquet_files(folder: Path) -> SplitFiles:
    """All parquet files right in a folder, or in data/ or default/ below it, in order of names.

    They are of one split, whatever they are called.
    """
    for layout in LAYOUTS:
        files = _tables(folder / layout)
        if files:
            return SplitFiles(files)
    return SplitFiles()


def _require_different(folder: Path, split: str, places: Sequence[int]) -> None:
    twice = [place for place, count in Counter(places).items() if count > 1]
    if twice:
        raise UserError(
            f"{folder} has several parquet files of the split {split} with the number {twice[0]}:"
            " they are of two sets, of which one might repeat the other. Move one elsewhere"
        )


def _tables(folder: Path) -> list[Path]:
    """Parquet files right in a folder but for hidden ones and _metadata."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.glob("*.parquet")
        if not path.name.startswith((".", "_")) and path.is_file()
    )


def _number(path: Path, split: str) -> tuple[str, int] | None:
    """The kind of name, with the number of files, and the file's number among them; or None."""
    if not path.name.startswith(split):
        return None
    rest = path.name.removeprefix(split).removesuffix(".parquet")
    if not rest:
        return "alone", 0
    match = _REST.fullmatch(rest)
    return (
        None if match is None else (f"{match['mark']}#{match['total'] or ''}", int(match["place"]))
    )


def _missing(numbers: Sequence[tuple[str, int]], folder: Path, split: str) -> list[str]:
    """A line where files say how many they are, and some are not there."""
    total = next((kind.partition("#")[2] for kind, _ in numbers), "")
    gone = sorted(set(range(int(total or 0))) - {place for _, place in numbers})
    if not gone:
        return []
    return [
        f"{len(gone)} of {int(total)} parquet files of {split} are not in {folder}: number"
        f" {some(map(str, gone))}"
    ]


def _within(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder))
