"""Opens tables of rows through the `datasets` library: splits on the Hub and parquet files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

from datasets import Features, get_dataset_split_names, load_dataset, load_dataset_builder
from datasets import Image as ImageFeature
from datasets.exceptions import DatasetGenerationError

from trainkit.data.datasets.layouts import HOLD_OUT
from trainkit.data.datasets.parquet import ParquetTable, paths_and_digest
from trainkit.data.datasets.split_files import ALL, SplitFiles, all_parquet_files, parquet_files
from trainkit.errors import MissingFileError, UserError


def load_rows(
    source: str | Path, split: str, stream: int | None
) -> tuple[Any, Features, SplitFiles | None]:
    """The rows of a split by index, what their columns hold, and the files of a folder."""
    files = _local_files(source, split) if Path(source).is_dir() else None
    if stream is not None:
        table = ParquetTable(_hub_files(source, split) if files is None else files.files, stream)
        return table, Features.from_arrow_schema(table.schema), files
    if files is not None:
        # `datasets` names no damaged file, nor takes empty ones
        with_rows = ParquetTable(files.files).files_with_rows
        table = _converted(source, with_rows)
    else:
        with _hub_errors(source):
            table = load_dataset(str(source), split=split)
    return table, table.features, files


def _converted(source: str | Path, files: Sequence[str]) -> Any:
    """The rows of parquet files, as `datasets` keeps them.

    Raises UserError where their columns differ in type.
    """
    try:
        return load_dataset("parquet", data_files=[escape(file) for file in files], split="train")
    except DatasetGenerationError as error:
        cause = error.__cause__ or error
        if isinstance(cause, OSError):  # such as a full disk
            raise cause from error
        raise UserError(
            f"the {len(files)} parquet files in {source} do not make one table"
            f" ({type(cause).__name__}: {cause}): give each column the same type in all of them, or"
            " read them as they are, with --stream 16"
        ) from error


def _local_files(source: str | Path, split: str) -> SplitFiles:
    """The parquet files of a split in a folder. Raises MissingFileError where there are none."""
    found = parquet_files(Path(source), split)
    if not found.files and split == ALL:
        found = all_parquet_files(Path(source))
    if not found.files:
        there = ", ".join(sorted(path.name for path in Path(source).iterdir())[:5])
        raise MissingFileError(
            f"no {split}*.parquet in {source} (it holds: {there or 'nothing'}): looked for"
            f" {split}.parquet, {split}-00000-of-00001.parquet and the like, and {split}/*.parquet"
        )
    return found


def _hub_files(source: str | Path, split: str) -> list[str]:
    """The parquet files of a split on the Hub, at the revision that is there now."""
    with _hub_errors(source):
        builder = load_dataset_builder(str(source))
    files = [str(file) for file in (builder.config.data_files or {}).get(split, [])]
    others = [file for file in files if not file.endswith(".parquet")]
    if others or not files:
        stored = f"as {Path(others[0]).name}" if others else "in no files"
        raise UserError(
            f"{source} cannot be streamed: its split {split} is stored {stored}, which does not say"
            " how many images it holds, so that no exact order of them is known before they are"
            " read. Parquet files do; without --stream the whole set is downloaded first"
        )
    return files


def as_stored(table: Any, columns: list[str], features: Features) -> Any:
    """A table of these columns alone, images among them as encoded bytes."""
    table = table.select_columns(columns)
    for column in columns if not isinstance(table, ParquetTable) else ():
        if isinstance(features[column], ImageFeature):
            table = table.cast_column(column, ImageFeature(decode=False))
    return table


def stored_images(table: Any, column: str) -> tuple[list[str | None], str]:
    """The path stored with each image of a table of `datasets`, and a hash of them."""
    return paths_and_digest(table.data.column(column))


def values_of(table: Any, column: str) -> list[Any]:
    """A column of a table of `datasets` as it is stored, a hundred times as fast as by its rows."""
    return table.data.column(column).to_pylist()


def hub_splits(source: str) -> list[str]:
    """The splits that the Hub's dataset `source` has."""
    with _hub_errors(source):
        return get_dataset_split_names(source)


def choose_split(source: str, names: Sequence[str]) -> str:
    """The first of `names` that the Hub's dataset `source` has as a split."""
    known = hub_splits(source)
    for name in names:
        if name in known:
            return name
    alone = f": {HOLD_OUT}" if len(known) == 1 else ""
    raise UserError(
        f"{source} has none of the splits {', '.join(names)}; it has {', '.join(known)}{alone}"
    )


@contextmanager
def _hub_errors(source: str | Path) -> Iterator[None]:
    try:
        yield
    except (
        Exception
    ) as error:  # datasets raises a dozen kinds for "not there", from several libraries
        raise MissingFileError(
            f"cannot load {str(source)!r}: there is no such local folder, and the Hub said "
            f"{type(error).__name__}: {error}"
        ) from error
