"""Writes checkpoints while a training waits, or in the background: at most one at a time."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from threading import Thread
from typing import Any

from torch import Tensor

from trainkit import files
from trainkit.models.lora import Adapters
from trainkit.storage import checkpoint
from trainkit.storage.checkpoint_shards import ALONE, Shards
from trainkit.storage.weight_links import WeightLinks


class CheckpointWriter:
    """Writes the checkpoints of one run, and removes older ones in a thread.

    An error of the file system does not raise here, it waits in `error`; any other one of the
    thread raises in the next call of `wait` or `error`.

    Args:
        folder: of the checkpoints.
        keep: newest ones that stay.
        background: whether a thread writes.
        model_json: content of model.json in each; None for no such file.
        links: to the best and the last one; None for none.
        adapters: that the network has; None for none.
        shards: which part of each checkpoint this process writes; whole ones by default. Only the
            first of several processes has errors and rows of the log, and removes what is older.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        background: bool,
        model_json: Mapping[str, Any] | None = None,
        links: WeightLinks | None = None,
        adapters: Adapters | None = None,
        shards: Shards = ALONE,
    ):
        self.links, self.adapters = links, adapters
        self.folder, self.keep, self.background = folder, keep, background
        self.model_json, self.shards = model_json, shards
        self._thread: Thread | None = None
        # Deques, which one thread fills while the other takes out what is there: nothing is
        # overwritten unread.
        self._errors: deque[OSError] = deque()
        self._bugs: deque[Exception] = deque()
        self._written: deque[dict[str, Any]] = deque()

    def save(
        self,
        step: int,
        model: dict[str, Tensor],
        state: dict[str, Any],
        protected: Iterable[Path] = (),
    ) -> None:
        """Write model and state, in the background copies, as the checkpoint of `step`.

        `protected` ones stay. Where several processes write, all of them call it, with what they
        hold.
        """
        begun = time.perf_counter()
        self.wait()
        snapshot = checkpoint.Snapshot.of(
            model,
            state,
            copy=self.background,
            model_json=self.model_json,
            adapters=self.adapters,
            shards=self.shards,
        )
        if self.background:
            pause = time.perf_counter() - begun
            self._beside(lambda: self._write_and_rotate(step, snapshot, protected, begun, pause))
        elif self._write(step, snapshot, begun, pause=None):
            # to give the space of a file back takes a third of that time
            self._beside(lambda: self._remove_older(step, protected))

    def _beside(self, work: Callable[[], object]) -> None:
        def kept() -> None:
            try:
                work()
            except Exception as error:
                self._bugs.append(error)

        self._thread = Thread(target=kept)
        self._thread.start()

    def _write_and_rotate(
        self,
        step: int,
        snapshot: checkpoint.Snapshot,
        protected: Iterable[Path],
        begun: float,
        pause: float,
    ) -> None:
        if self._write(step, snapshot, begun, pause):
            self._remove_older(step, protected)

    def _write(
        self, step: int, snapshot: checkpoint.Snapshot, begun: float, pause: float | None
    ) -> bool:
        """Write it; whether it is there, for this process to tell of it."""
        try:
            path = checkpoint.write(self.folder, step, snapshot, self.shards)
            num_bytes = sum(file.stat().st_size for file in path.iterdir())
        except OSError as error:
            if self.shards.is_main:
                self._errors.append(error)
            return False
        if not self.shards.is_main:
            return False
        seconds = time.perf_counter() - begun
        row = {
            "step": step,
            "pause_s": seconds if pause is None else pause,
            "save_s": seconds,
            "bytes": num_bytes,
        }
        self._written.append({"event": "save", **row})
        if self.links is not None:
            self.links.update()  # before the checkpoints that they leave are removed
        return True

    def _remove_older(self, step: int, protected: Iterable[Path]) -> None:
        try:
            checkpoint.rotate(
                self.folder, self.keep, {checkpoint.checkpoint_path(self.folder, step), *protected}
            )
        except OSError as error:
            message = f"old checkpoints in {self.folder} cannot be removed: {files.reason(error)}"
            self._errors.append(OSError(message))

    def wait(self) -> None:
        """Wait until nothing is being written or removed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._raise_bug()

    def _raise_bug(self) -> None:
        if self._bugs:
            raise self._bugs.popleft()

    def written(self) -> list[dict[str, Any]]:
        """Rows of the log on the checkpoints written since the last call, with their pauses."""
        return [self._written.popleft() for _ in range(len(self._written))]

    def error(self) -> OSError | None:
        """The first error that was not reported yet; None where there is none."""
        self._raise_bug()
        return self._errors.popleft() if self._errors else None
