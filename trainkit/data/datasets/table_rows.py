"""Base of datasets whose images are rows of a table, all of them or those of one side."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch.utils.data import Dataset

from trainkit.data.dataset_info import DatasetInfo
from trainkit.data.datasets.columns import require_group
from trainkit.data.datasets.divided import Division, Whole
from trainkit.data.datasets.held_out import FOLDER
from trainkit.data.datasets.hub_tables import stored_images, values_of
from trainkit.data.datasets.inventory import images_of
from trainkit.data.datasets.split_files import SplitFiles
from trainkit.data.datasets.undivided import folders_of
from trainkit.data.sampler import Locality
from trainkit.errors import UserError

TAKE_OUT = "take the row out of the dataset"


class Rows(Dataset):
    """Base of datasets whose images are a column of a table, `datasets`' or a streamed one.

    Attributes:
        group_by: "folder", or the column that `whole` takes groups from; None: no groups.
        groups: of each row, where they are of a column.
        division: of which this is one side; None: it is all rows.
        chosen: the rows of that side, int64 (N,).
    """

    source: str
    split: str
    table: Any
    image_column: str
    used: str
    transform: Callable[..., Any] | None
    files: SplitFiles | None = None
    group_by: str | None = None
    groups: Sequence[str] | None = None
    division: Division | None = None
    chosen: np.ndarray | None = None

    def whole(self) -> Whole:
        """All rows, to be divided; not of streamed ones.

        A row's name is the path that is stored with its image, where each row has one of its own.
        Else it is the row's number in the split, from 0, which is the same however the rows are
        spread over files; a hash of the images says then whether they are other ones.

        Raises:
            UserError: groups by folders are asked for, and images have none.
        """
        stored, digest = stored_images(self.table, self.image_column)
        paths = [path for path in stored if path]
        have_paths = len(paths) == len(self.table)
        are_named = have_paths and len(set(paths)) == len(paths)
        groups = self.groups
        if self.group_by == FOLDER:
            if not have_paths:
                raise UserError(
                    f"--group-by folder: images of {self.source} have no paths: give a column of"
                    " groups, such as --group-by patient"
                )
            groups = folders_of(paths, Path(self.source))
        targets = self.target_names()
        return Whole(
            Path(self.source),
            paths if are_named else [str(number) for number in range(len(self.table))],
            targets or [""] * len(self.table),
            ("path" if are_named else "row", *(["label"] if targets else [])),
            targets or [""] * len(self.table),
            groups,
            content="" if are_named else digest,
        )

    def part(self, division: Division, split: str, transform: Callable[..., Any] | None) -> Self:
        """The rows of one side, "train" or "val", of a division of `whole`."""
        part = copy(self)
        part.split, part.transform, part.division = split, transform, division
        part.chosen = np.flatnonzero(division.sides == split)
        part.used = f"{len(part):,} of {self.used}, by {division.words}"
        return part

    def target_names(self) -> list[str]:
        """The name of each row's class; none where rows have masks."""
        return []

    def read_groups(self, table: Any, source: str | Path, group_by: str | None) -> None:
        """Read the group of each row, of a table with all columns, where a column is to say it.

        Raises:
            UserError: there is no such column, or a row has nothing in it.
        """
        self.group_by = group_by
        if group_by is None or group_by == FOLDER:
            return
        require_group(source, table.features, group_by)
        values = values_of(table, group_by)
        empty = next((row for row, value in enumerate(values) if value in (None, "")), None)
        if empty is not None:
            raise UserError(
                f"row {empty} of {self.source} has nothing in the column {group_by!r}, which says"
                " its group (--group-by); fill it in"
            )
        self.groups = [str(value) for value in values]

    def number_of(self, index: int) -> int:
        """The number of a row among all of the table."""
        return index if self.chosen is None else int(self.chosen[index])

    def row(self, index: int) -> dict[str, Any]:
        """A row by its index in this dataset."""
        return self.table[self.number_of(index)]

    @property
    def lists(self) -> Mapping[str, bytes]:
        """See `DatasetInfo.lists`."""
        return {} if self.division is None else self.division.lists

    @property
    def locality(self) -> Locality | None:
        """The order for streamed files; None for others."""
        return DatasetInfo.of(self.table).locality

    @property
    def fingerprint(self) -> str | None:
        """A hash of streamed files, which may change where they are, or of how rows were divided.

        None for others.
        """
        if self.division is not None:
            return self.division.fingerprint
        return DatasetInfo.of(self.table).fingerprint

    def __len__(self) -> int:
        return len(self.table) if self.chosen is None else len(self.chosen)

    def name_of(self, index: int) -> str:
        """The image's row, and its file where the table holds one's name."""
        return self.row_name(index, self.row(index)[self.image_column])

    def row_name(self, index: int, stored: dict[str, Any] | None) -> str:
        """The row, and the file whose name is stored with one of its images."""
        path = stored.get("path") if isinstance(stored, Mapping) else None
        return f"row {self.number_of(index)} of {self.source}" + (f" ({path})" if path else "")

    def encoded(self, row: dict[str, Any], index: int, column: str) -> tuple[bytes | Path, str]:
        """The bytes or the file of an image of row `index`, and its name.

        Raises:
            UserError: there are none.
        """
        stored = row[column]
        name = self.row_name(index, stored)
        held = stored.get("bytes") or stored.get("path") if isinstance(stored, Mapping) else stored
        if not held:
            raise UserError(f"{name} is null in the column {column!r}; {TAKE_OUT}")
        return Path(held) if isinstance(held, str) else held, name

    def image_bytes(self, index: int) -> bytes:
        """The bytes of an image as they are stored."""
        held, _ = self.encoded(self.row(index), index, self.image_column)
        return held.read_bytes() if isinstance(held, Path) else held

    def used_of(self, source: str | Path, num_classes: int) -> str:
        """What the table holds, and from which files."""
        where = f"({source})" if self.files is None else self.files.words(Path(source))
        return f"{images_of(len(self), num_classes)} {where}"

    @property
    def used_warnings(self) -> list[str]:
        """What a person should know before a training on it begins."""
        return [*([] if self.files is None else self.files.warnings), *self.without_images()]

    def without_images(self) -> list[str]:
        """A line where classes have no image, as far as that is known."""
        return []
