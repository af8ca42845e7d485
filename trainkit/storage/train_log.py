"""The log of a run, log.jsonl: a row of each logged step, evaluation and save."""

import json
import os
from collections.abc import Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from trainkit.errors import UserError
from trainkit.storage.checked_json import Fault, read_regular
from trainkit.storage.run_files import EVALUATION_BEGINS, kept_rows, parse_row

REMEDY = "Put a whole copy in its place, or remove that line"


class TrainLog:
    """Rows are added at the end; a resume drops those of steps that were lost.

    Attributes:
        path: of the file.
        writes: whether this process writes it; only the main one does.
    """

    def __init__(self, path: Path, writes: bool):
        self.path, self.writes = path, writes
        self._torn = False  # the last line may be half a one

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row to the log."""
        if self.writes:
            line = ("\n" if self._torn else "") + json.dumps(row, allow_nan=False) + "\n"
            self._torn = True
            with self.path.open("a") as file:
                file.write(line)
            self._torn = False

    def forget_after(self, step: int) -> dict[str, Any] | None:
        """Drop the log's rows of steps that were lost; return the last evaluation left.

        Reads from the end, so that a long log costs no more than a short one.
        """
        path = self.path
        if not path.is_file() or not path.stat().st_size:
            return None
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            try:
                kept, evaluation = kept_rows(data, step)
            except ValueError as error:
                raise UserError(f"{path} is damaged: {error}. {REMEDY}") from error
            ends_whole = data[kept - 1 : kept] == b"\n"
        if kept < path.stat().st_size:
            os.truncate(path, kept)
        if kept and not ends_whole:
            with path.open("a") as log:
                log.write("\n")
        return evaluation

    def evaluations(self) -> list[dict[str, Any]]:
        """The rows of all evaluations in the log, the first one first."""
        path = self.path
        if not os.path.lexists(path):
            return []
        try:
            lines = read_regular(path).splitlines()
            rows = [parse_row(line) for line in lines if EVALUATION_BEGINS in line]
        except Fault as error:
            raise UserError(f"{path} is damaged: {error}. {REMEDY}") from error
        return [row for row in rows if row is not None]

    def last_evaluation(self, step: int | None = None) -> dict[str, Any] | None:
        """The last row of an evaluation in the log, of `step` where that is given."""
        path = self.path
        if not os.path.lexists(path):
            return None
        try:
            lines = read_regular(path).splitlines()
            rows = (
                row
                for line in reversed(lines)
                if EVALUATION_BEGINS in line and (row := parse_row(line))
            )
            return next((row for row in rows if step in (None, row["step"])), None)
        except Fault as error:
            raise UserError(f"{path} is damaged: {error}. {REMEDY}") from error
