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
        self._losses: list[tuple[float, int]] = []  # since the last evaluation: loss, steps
        self._step = 0  # of the last row of the log
        self._lr: float | None = None
        self._rows: list[dict[str, Any]] = []

    def write(self) -> None:
        """Write the table, where there is a row of it; None and values of classes are left out.

        "train_loss" is the mean over the steps since the last evaluation, as far as they are in the
        log; "lr" is that of its last row before the evaluation.

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
            if row["loss"] is not None:
                self._losses.append((row["loss"], row["step"] - self._step))
            self._step, self._lr = row["step"], row["lr"]
        elif row.get("event") == "evaluate":
            steps = sum(number for _, number in self._losses)
            mean = sum(loss * number for loss, number in self._losses) / steps if steps else None
            numbers = {
                name: value
                for name, value in row.items()
                if name not in NOT_RESULTS and is_number(value)
            }
            table = {**numbers, "train_loss": mean, "lr": self._lr}
            self._rows.append({name: value for name, value in table.items() if value is not None})
            self._losses.clear()
