"""results.csv: a row of each evaluation, rewritten from the log."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from trainkit.files import replace_file
from trainkit.storage.checked_json import is_number

NAME = "results.csv"
FIRST, LAST = ("step", "epoch", "train_loss", "val_loss"), ("lr", "seconds")
NOT_RESULTS = ("event", "best", "best_step")


class ResultsTable:
    """Writes a run's results.csv.

    It follows from log.jsonl alone, so that a kill or a resume never doubles a row. The log is read
    once; each later `write` reads what was added.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path):
        self.run = run
        self._read = 0  # bytes of the log
        self._sum, self._steps = 0.0, 0  # of the losses since the last evaluation
        # of those since the last row of the log that an evaluation has counted
        self._counted_sum, self._counted_steps = 0.0, 0
        self._unlogged: dict[str, Any] | None = None
        self._step = self._skipped = 0  # of the last row of the log
        self._lr: float | None = None
        self._rows: list[dict[str, Any]] = []

    def write(self) -> None:
        """Write the table, where there is a row of it; None and values of classes are left out.

        "train_loss" is the mean over the steps since the last evaluation; "lr" is that of the log's
        last row before the evaluation.

        Raises:
            OSError: it cannot be read or written.
        """
        log = self.run / "log.jsonl"
        if not log.is_file():
            return
        with log.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                self._add(line)
        if not self._rows:
            return
        found = dict.fromkeys(name for row in self._rows for name in row)
        middle = [name for name in found if name not in (*FIRST, *LAST)]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, [*FIRST, *middle, *LAST], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        replace_file(self.run / NAME, text.getvalue().encode())

    def _add(self, line: bytes) -> None:
        try:
            row = json.loads(line)
        except ValueError:  # a line that was cut short as it was written
            return
        if row.get("event") == "step":
            skipped = row.get("skipped_steps", 0)  # of all steps so far
            if row["loss"] is not None:
                self._count(row["loss"], row["step"] - self._step - (skipped - self._skipped))
            self._counted_sum, self._counted_steps = 0.0, 0
            self._step, self._lr, self._skipped = row["step"], row["lr"], skipped
        elif row.get("event") == "unlogged":
            self._unlogged = row
        elif row.get("event") == "evaluate":
            self._add_evaluation(row)

    def _count(self, loss: float, steps: int) -> None:
        """Count the mean loss of finite steps since the last row, but for those counted before."""
        self._sum += loss * steps - self._counted_sum
        self._steps += steps - self._counted_steps
        self._counted_sum, self._counted_steps = loss * steps, steps

    def _add_evaluation(self, row: dict[str, Any]) -> None:
        if self._unlogged is not None and self._unlogged["step"] == row["step"]:
            self._count(self._unlogged["loss"], self._unlogged["finite_steps"])
        mean = self._sum / self._steps if self._steps else None
        self._sum, self._steps, self._unlogged = 0.0, 0, None
        numbers = {
            name: value
            for name, value in row.items()
            if name not in NOT_RESULTS and is_number(value)
        }
        table = {**numbers, "train_loss": mean, "lr": self._lr}
        self._rows.append({name: value for name, value in table.items() if value is not None})
