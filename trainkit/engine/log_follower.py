"""Sends the rows of a run's log to a tracker, beside the training, which never waits for it."""

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from trainkit.engine.trackers import PREVIEW, TAKE_SEVERAL, least_step, send_picture, send_rows
from trainkit.storage.evaluation_files import previews

QUEUE = 1000  # rows that wait for a tracker; of more the oldest are dropped
BATCH = 32  # rows that are noted as sent together, before they are
POLL_S = 1.0  # between two looks into the log: several rows cost a tracker little more than one
HANGS_S = 60.0  # without an answer, after which it is reported
PICTURE_FILE = "val_predictions.jpg"
NOT_SENT = ("event", "step", "epoch", "best_step", "num_images", "precise_bn", "seconds")


class Cursors:
    """trackers.json: of each tracker the run's id, and the last steps and pictures sent.

    Written before sending: so a kill between the two loses the last rows of a tracker, and sends
    none twice.
    """

    def __init__(self, file: Path):
        self._file = file
        self._lock = threading.Lock()
        self.content: dict[str, dict[str, Any]] = {}
        if self._file.is_file():
            self.content = json.loads(self._file.read_bytes())

    def of(self, name: str) -> dict[str, Any] | None:
        """That of a tracker; None where it has none of this run yet."""
        return self.content.get(name)

    def note(self, name: str, **changes: Any) -> None:
        """Change and write that of a tracker, whole or not at all."""
        with self._lock:
            of_none = {"id": None, "step": 0, "evaluation": 0, "preview": 0}
            of_none |= {"picture": None, "dropped": 0}
            self.content[name] = {**of_none, **self.content.get(name, {}), **changes}
            aside = self._file.with_name(f".{self._file.name}.writing-{os.getpid()}")
            aside.write_text(json.dumps(self.content, indent=1) + "\n")
            os.replace(aside, self._file)


def values_of(row: Mapping[str, Any]) -> dict[str, int | float]:
    """The numbers of a row by the names that trackers group them by: train/loss, val/mIoU."""
    group = "train" if row["event"] == "step" else "val"
    values: dict[str, int | float] = {"epoch": row["epoch"]}
    for name, value in row.items():
        if name not in NOT_SENT and type(value) in (int, float):
            ema = "ema_" if name.startswith("ema_") else ""
            values[f"{group}/{ema}{name.removeprefix(ema).removeprefix('val_')}"] = value
    return values


class LogFollower(threading.Thread):
    """A thread that sends to one tracker what is in a log and was not sent yet.

    Attributes:
        busy_since: when the call of the tracker began that has not returned yet, on the clock of
            `time.monotonic`; None where none is under way.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[dict[str, Any] | None], Any],
        run: Path,
        cursors: Cursors,
        settings: Mapping[str, Any],
        note: Callable[[str], None],
    ):
        """Prepare to follow.

        Args:
            name: of the tracker.
            start: makes it, from its cursor, None on the first start of the run.
            run: the folder whose log is followed.
            cursors: of all trackers of the run.
            settings: flat ones, sent on the first start alone.
            note: called with what a person is to know, once for each kind of failure.
        """
        super().__init__(name=f"tracker {name}", daemon=True)
        self.tracker_name = name
        self.ending = threading.Event()  # send what there is, and end
        self.aborted = threading.Event()  # send nothing more, and end
        self.busy_since: float | None = None
        self._start, self._settings, self._note = start, settings, note
        self._run, self._cursors = run, cursors
        self._log = run / "log.jsonl"
        self._place = 0  # in the log, up to which rows were read
        self._queue: deque[dict[str, Any]] = deque()
        self._dropped = 0
        self._failed = False
        self._last_step = 0
        self._least_step = 0
        self._may_have_previews = True  # since the last look for them

    def run(self) -> None:
        """Follow until it is to end."""
        tracker = self._call(self._begin)
        if tracker is None:
            return
        while not self.aborted.is_set():
            ending = self.ending.is_set()  # before the last look into the log
            self._read()
            while self._queue and not self.aborted.is_set():
                self._send_rows(tracker, self._call(self._next_rows) or [])
                if len(self._queue) >= BATCH:  # behind: what is too much is dropped now
                    self._read()
            self._call(lambda: self._send_previews(tracker))
            self._call(lambda: self._send_picture(tracker))
            if ending:
                break
            self.ending.wait(POLL_S)
        self._call(tracker.finish)
        if self._dropped:
            self._note(f"{self._dropped} rows were dropped, as it was slower than the training")

    def _call(self, function: Callable[[], Any]) -> Any:
        """What `function` returns; None for an error, of which the first one is reported."""
        self.busy_since = time.monotonic()
        try:
            return function()
        except Exception as error:  # whatever a tracker raises: it ends no training
            if not self._failed:
                said = " ".join(str(error).split()) or type(error).__name__
                self._note(f"failed: {said[:300]}; the training continues without it")
            self._failed = True
            return None
        finally:
            self.busy_since = None

    def _begin(self) -> Any:
        cursor = self._cursors.of(self.tracker_name)
        self._least_step = least_step(self.tracker_name, cursor)
        tracker = self._start(cursor)
        if cursor is None:
            tracker.store_init_configuration(dict(self._settings))
            self._cursors.note(self.tracker_name)
        sent = self._sent()
        self._last_step = max(sent["step"], sent["evaluation"], self._least_step)
        self._dropped = sent["dropped"]
        return tracker

    def _sent(self) -> dict[str, Any]:
        cursor = self._cursors.of(self.tracker_name)
        if cursor is None:
            raise RuntimeError(f"tracker {self.tracker_name} was not begun")
        return cursor

    def _read(self) -> None:
        """Take up the rows that are new in the log; drop the oldest of too many."""
        if not self._log.is_file() or self._log.stat().st_size <= self._place:
            return
        with self._log.open("rb") as file:
            file.seek(self._place)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]  # a row may be half written
        self._place += len(data)
        sent = self._sent()
        for line in data.splitlines():
            if not line.startswith((b'{"event": "step", ', b'{"event": "evaluate", ')):
                continue
            row = json.loads(line)
            if row["step"] > sent["step" if row["event"] == "step" else "evaluation"]:
                self._queue.append(row)
                if row["event"] == "evaluate":  # its preview was made before it
                    self._may_have_previews = True
        num_dropped = max(0, len(self._queue) - QUEUE)
        for _ in range(num_dropped):
            self._queue.popleft()
        self._dropped += num_dropped

    def _next_rows(self) -> list[dict[str, Any]]:
        """Take the oldest rows, noted as sent before they are: none is sent twice.

        Noted together, since a row may come every few milliseconds, and a file takes as long.
        """
        rows = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
        changes = {"dropped": self._dropped}
        for row in rows:
            changes["step" if row["event"] == "step" else "evaluation"] = row["step"]
        self._cursors.note(self.tracker_name, **changes)
        return rows

    def _send_rows(self, tracker: Any, rows: Sequence[Mapping[str, Any]]) -> None:
        at_once = BATCH if tracker.name in TAKE_SEVERAL else 1
        for place in range(0, len(rows), at_once):
            if self.aborted.is_set():
                self._call(partial(self._note_unsent, rows[place:]))
                return
            part = rows[place : place + at_once]
            sent = [(values_of(row), max(row["step"], self._least_step)) for row in part]
            self._call(partial(send_rows, tracker, sent))
            self._last_step = max(self._last_step, *(step for _, step in sent))

    def _note_unsent(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """A resumed run sends them."""
        changes = {}
        for row in reversed(rows):  # the first one of a kind decides
            changes["step" if row["event"] == "step" else "evaluation"] = row["step"] - 1
        self._cursors.note(self.tracker_name, **changes)

    def _send_previews(self, tracker: Any) -> None:
        """Send what --preview made after steps that were not sent, each at its step."""
        if not self._may_have_previews:
            return
        self._may_have_previews = False
        for step, file in previews(self._run).items():
            if self.aborted.is_set():
                return
            if step > self._sent().get("preview", 0):  # absent: an earlier version's
                self._cursors.note(self.tracker_name, preview=step)
                # W&B alone drops what is of a step before the last one
                place = max(step, self._last_step) if tracker.name == "wandb" else step
                send_picture(tracker, file, place, PREVIEW)

    def _send_picture(self, tracker: Any) -> None:
        """Send the pictures of predictions where they are new, at a step that is not before."""
        file = self._run / PICTURE_FILE
        if not file.is_file():
            return
        time_of_change = file.stat().st_mtime_ns
        if time_of_change != self._sent().get("picture"):  # absent: an earlier version's
            self._cursors.note(self.tracker_name, picture=time_of_change)
            send_picture(tracker, file, self._last_step)
