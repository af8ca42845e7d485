"""The log of a run, log.jsonl: a row of each logged step, evaluation and save."""

import json
import os
from collections.abc import Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from trainkit.errors import UserError
from trainkit.storage.checked_json import Fault, parse_json, read_regular
from trainkit.storage.run_files import EVALUATION_BEGINS, kept_rows, parse_row, require_row

TOGETHER = 1000  # lines that are parsed together
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


def read_rows(file: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """All rows of a log that can be read, and what is wrong with those that cannot.

    For what looks at a run; a training refuses a damaged log. Rows are checked as everywhere, by
    `parse_row`, but for a NaN or an infinite number, which leaves its row out.

    Returns:
        Rows in the order of the file, and a line about each that is left out. A row that was cut
        short as it was written, and an absent file, are none.
    """
    if not os.path.lexists(file):
        return [], []
    try:
        lines = read_regular(file).splitlines()
    except Fault as error:
        return [], [f"{file.name} is left out: {error}"]
    rows: list[dict[str, Any]] = []
    faults: list[str] = []
    for begin in range(0, len(lines), TOGETHER):
        block = lines[begin : begin + TOGETHER]
        found = _whole_rows(block)
        if found is None:
            found = _sound_rows(block, begin + 1, file.name, faults)
        rows += found
    return rows, faults


def _whole_rows(lines: list[bytes]) -> list[dict[str, Any]] | None:
    """The rows of lines that are all sound; None where one may not be.

    Parsed together, which takes a fifth of the time that one after the other does.
    """
    try:
        rows = parse_json(b"[" + b",".join(lines) + b"]")
        if len(rows) != len(lines):  # a line may hold two
            return None
        for row in rows:
            require_row(row)
    except Fault:
        return None
    return rows


def _sound_rows(
    lines: list[bytes], first: int, name: str, faults: list[str]
) -> list[dict[str, Any]]:
    """The sound rows among lines, of which the first has the number `first`; adds to `faults`."""
    rows = []
    for number, line in enumerate(lines, first):
        try:
            row = parse_row(line)
        except Fault as error:
            faults.append(f"{name}, line {number}, is left out: {error}")
            continue
        if row is not None:
            rows.append(row)
    return rows
