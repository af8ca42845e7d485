"""Writing checkpoints while a training waits, or beside it: at most one at a time."""

import time
from collections.abc import Iterable
from pathlib import Path
from threading import Thread
from typing import Any

from torch import Tensor

from trainkit import checkpoint


class Saver:
    """Writes the checkpoints of one run, in a thread where `background` is true, and removes older ones.

    keep: newest ones that stay. An error of the file system does not raise here, it waits in `error`.
    """

    def __init__(self, folder: Path, keep: int, background: bool):
        self.folder, self.keep, self.background = folder, keep, background
        self._thread: Thread | None = None
        self._error: OSError | None = None
        self._written: list[dict[str, Any]] = []

    def save(self, step: int, model: dict[str, Tensor], state: dict[str, Any], protected: Iterable[Path] = ()) -> None:
        """Copy model and state, and write them as the checkpoint of `step`; `protected` ones are not removed."""
        begun = time.perf_counter()
        self.wait()
        snapshot = checkpoint.Snapshot.of(model, state)
        arguments = (step, snapshot, list(protected), begun)
        if self.background:
            self._thread = Thread(target=self._write, args=(*arguments, time.perf_counter() - begun))
            self._thread.start()
        else:
            self._write(*arguments, None)

    def _write(
        self, step: int, snapshot: checkpoint.Snapshot, protected: list[Path], begun: float, pause: float | None
    ) -> None:
        try:
            path = checkpoint.write(self.folder, step, snapshot)
        except OSError as error:
            self._error = error
            return
        num_bytes = 0
        try:
            num_bytes = sum(file.stat().st_size for file in path.iterdir())
            checkpoint.rotate(self.folder, self.keep, {path, *protected})
        except OSError as error:
            self._error = OSError(f"old checkpoints in {self.folder} cannot be removed: {checkpoint.reason(error)}")
        seconds = time.perf_counter() - begun
        row = {"step": step, "pause_s": seconds if pause is None else pause, "save_s": seconds, "bytes": num_bytes}
        self._written.append({"event": "save", **row})

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def written(self) -> list[dict[str, Any]]:
        """A row of the log for each checkpoint written since the last call: its pause of the training."""
        rows, self._written = self._written, []
        return rows

    def error(self) -> OSError | None:
        """What went wrong since the last call."""
        error, self._error = self._error, None
        return error
