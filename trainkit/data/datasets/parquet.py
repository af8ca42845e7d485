"""Parquet files read a row group at a time where they are: on a disk, on the Hub, at an address.

Only the footers are read at first, which say how many rows each row group has. So row i is known to
be row r of group g before any data is there, the order of all rows is arithmetic, and resuming in
its midst reads nothing of what came before. A row group is always read whole, hence `Locality`: an
order that keeps its rows close together.
"""

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from trainkit.data.sampler import Locality
from trainkit.display.terminal import of_launcher
from trainkit.errors import UserError

NUM_INTERLEAVED = 16  # number of interleaved row groups
NUM_HASHED = 256  # images, by which others in their place are seen
PAUSES_S = (1, 4)  # before a file that is not on this machine is tried again
Result = TypeVar("Result")


class ParquetTable:
    """Rows of parquet files by index, each a dict as a map-style dataset of `datasets` gives it.

    Args:
        files: paths or addresses that fsspec opens.
        num_interleaved: number of interleaved row groups in an epoch's order. Each worker keeps the
            last 2 x num_interleaved row groups in memory: the current ones, and those that follow
            within a batch.
        pauses_s: seconds before each further try of a file that is not on this machine.

    Raises:
        UserError: a file is no parquet file or has other columns than the first, or none has a row.
        OSError: a file cannot be had.
    """

    def __init__(
        self,
        files: Sequence[str | os.PathLike],
        num_interleaved: int = NUM_INTERLEAVED,
        pauses_s: Sequence[float] = PAUSES_S,
    ):
        if num_interleaved < 1:
            raise UserError(
                f"num_interleaved is {num_interleaved}; give the number of interleaved row groups, "
                "at least 1"
            )
        self.files = [os.fspath(file) for file in files]
        self.num_interleaved = num_interleaved
        self.pauses_s = pauses_s
        self._footers = []
        with (
            ThreadPoolExecutor(16) as pool,
            of_launcher().progress("opening parquet files") as tell,
        ):
            for footer in pool.map(self._read_footer, self.files):
                self._footers.append(footer)
                tell(len(self._footers), len(self.files))
        self.schema: pa.Schema = self._footers[0].schema.to_arrow_schema()
        for file, footer in zip(self.files, self._footers):
            if sorted(footer.schema.names) != sorted(self._footers[0].schema.names):
                raise UserError(
                    f"{file} has other columns than {self.files[0]}: they are not files of one"
                    " dataset"
                )
        self.columns = self.schema.names
        self._groups = [
            (place, group)
            for place, each in enumerate(self._footers)
            for group in range(each.num_row_groups)
        ]
        self._lengths = [
            self._footers[place].row_group(group).num_rows for place, group in self._groups
        ]
        self._ends = np.cumsum(self._lengths, dtype=np.int64)
        self._held: OrderedDict[int, pa.Table] = OrderedDict()
        if not len(self):
            raise UserError(
                f"{', '.join(self.files[:3])}: there are no rows in these parquet files"
            )

    @property
    def files_with_rows(self) -> list[str]:
        """The files that have any row."""
        return [file for file, footer in zip(self.files, self._footers) if footer.num_rows]

    @property
    def locality(self) -> Locality:
        """The order that needs few row groups at a time."""
        return Locality(tuple(self._lengths), self.num_interleaved)

    @property
    def fingerprint(self) -> str:
        """A hash of the row groups' rows and bytes, which other files change, wherever they are."""
        sizes = [
            self._footers[place].row_group(group).total_byte_size for place, group in self._groups
        ]
        return hashlib.sha256(repr((self._lengths, sizes)).encode()).hexdigest()[:16]

    def select_columns(self, columns: list[str]) -> "ParquetTable":
        """Read these columns alone from now on."""
        self.columns = columns
        return self

    def unique(self, column: str) -> list[Any]:
        """The different values of a column, which is read whole."""
        values: dict[Any, None] = {}
        for place in range(len(self.files)):
            table = self._read(place, lambda file: file.read([column], use_threads=False))
            values |= dict.fromkeys(table[column].unique().to_pylist())
        return list(values)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        group = int(np.searchsorted(self._ends, index, side="right"))
        table = self._group(group)
        row = index - int(self._ends[group]) + self._lengths[group]
        return {name: table[name][row].as_py() for name in self.columns}

    def _group(self, number: int) -> pa.Table:
        """A row group, among the last that were asked for or read now."""
        if number not in self._held:
            while len(self._held) >= 2 * self.num_interleaved:
                self._held.popitem(last=False)
            self._held[number] = self.read_group(number)
        self._held.move_to_end(number)
        return self._held[number]

    def read_group(self, number: int) -> pa.Table:
        """The chosen columns of a row group, from its file."""
        place, group = self._groups[number]
        return self._read(
            place, lambda file: file.read_row_group(group, self.columns, use_threads=False)
        )

    def _read(self, place: int, what: Callable[[pq.ParquetFile], Result]) -> Result:
        """What `what` makes of a file, opened for it alone, as forked processes would share it."""

        def read() -> Result:
            with (
                _opened(self.files[place]) as source,
                pq.ParquetFile(source, metadata=self._footers[place]) as file,
            ):
                return what(file)

        return self._patiently(self.files[place], read)

    def _read_footer(self, file: str) -> pq.FileMetaData:
        def read() -> pq.FileMetaData:
            with _opened(file) as source:
                return pq.read_metadata(source)

        return self._patiently(file, read)

    def _patiently(self, file: str, read: Callable[[], Result]) -> Result:
        """What `read` returns, tried a few times where the file is remote, as networks fail."""
        pauses = () if _is_local(file) else self.pauses_s
        for pause in (*pauses, None):
            try:
                return read()
            except pa.ArrowInvalid as error:
                raise UserError(
                    f"{file} is not a parquet file, or is cut short: {_line(error)}"
                ) from error
            except Exception as error:  # each of fsspec's file systems raises kinds of its own
                if pause is None:
                    raise OSError(
                        f"cannot read {file}: {type(error).__name__}: {_line(error)}"
                    ) from error
                time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": OrderedDict()}


def paths_and_digest(images: pa.ChunkedArray) -> tuple[list[str | None], str]:
    """The path stored with each encoded image, and a hash that says whether they are the same ones.

    The hash is of all images' numbers of bytes, and of the bytes of a few, as all of them may be
    more than fits in memory.

    Args:
        images: structs of bytes and path, or bytes.
    """
    paths: list[str | None] = [None] * len(images)
    if pa.types.is_struct(images.type):
        names = [field.name for field in images.type]
        fields = dict(zip(names, images.flatten()))
        if "path" in fields:
            paths = fields["path"].to_pylist()
        images = fields["bytes"]
    if not pa.types.is_binary(images.type):  # views have no lengths to ask for
        images = images.cast(pa.large_binary())
    sizes = pc.binary_length(images).fill_null(0).to_pylist()
    found = hashlib.sha256(repr(sizes).encode())
    for row in range(0, len(images), max(1, len(images) // NUM_HASHED)):
        found.update(images[row].as_py() or b"")
    return paths, found.hexdigest()[:16]


def _is_local(file: str) -> bool:
    return isinstance(fsspec.core.url_to_fs(file)[0], LocalFileSystem)


@contextmanager
def _opened(file: str) -> Any:
    """Open what pyarrow reads from: a local file itself, others without reading ahead."""
    system, path = fsspec.core.url_to_fs(file)
    if isinstance(system, LocalFileSystem):
        yield path
    else:
        with system.open(path, "rb", cache_type="none") as source:
            yield source


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
