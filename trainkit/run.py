"""The run folder: what was asked for, the log, and how it ended.

    recipe.py  settings.json  log.jsonl  summary.json  checkpoints/
    and where there was trouble: stopped.json  bad_images.txt  memory.json  failures/

Only the main process writes; the others hold a Run that reads.
"""

import errno
import fcntl
import json
import os
import platform
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from trainkit.checkpoint import flush, is_older, list_checkpoints, reason, step_of, steps_done, verify
from trainkit.options import Options
from trainkit.recorded import plain, read_recorded, surroundings

LOCK, MEMORY = ".lock", "memory.json"
EVALUATION = b'{"event": "evaluate", '  # how such a row of the log begins


class Run:
    """One run's folder. `Run.open` decides whether it is new, goes on, or is finished."""

    def __init__(self, folder: Path, writes: bool = True):
        self.folder, self.writes = folder, writes
        self.checkpoints = folder / "checkpoints"
        self._lock: Any = None
        self._torn = False  # the log's last line may be half a one

    @classmethod
    def open(
        cls, options: Options, settings: Mapping[str, Any], recipe_file: Path | None, mathematics: Mapping[str, Any]
    ) -> tuple["Run", list[str]]:
        """Make or check the folder and lock it, in the main process; the run and lines to be told.

        settings: the recipe's, resolved. mathematics: what a run must keep, see `Plan.mathematics`. Raises
        ValueError where the folder holds something else, is in use, or holds a run of other mathematics.
        """
        folder = options.out
        if folder is None:
            raise ValueError("Options.out is None: name the folder of the run")
        run, notes = cls(folder), []
        recorded = folder / "settings.json"
        now = {**plain(mathematics), "seed": options.seed}
        if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            if not recorded.is_file():
                raise ValueError(f"{folder} is not empty and not a run; choose another folder with --out")
            run._take_lock()
            if options.resume == "never":
                aside = _move_aside(folder)
                run.close()
                notes = [f"the run in {folder} was moved to {aside}"]
            else:
                try:
                    notes = run._going_on(read_recorded(folder), plain(settings), now, options.rebase)
                except Exception:
                    run.close()
                    raise
        run._take_lock()
        if notes or not recorded.is_file():  # the first thing in a new folder: it makes it a run
            content = {"settings": plain(settings), **now, "options": plain(asdict(options))}
            run.write(recorded.name, {**content, **surroundings(recipe_file, settings)})
        (folder / "stopped.json").unlink(missing_ok=True)
        run.checkpoints.mkdir(exist_ok=True)
        flush(folder)
        if recipe_file is not None and (notes or not (folder / "recipe.py").exists()):
            shutil.copyfile(recipe_file, folder / "recipe.py")
        return run, notes

    def _going_on(
        self, recorded: dict[str, Any], settings: dict[str, Any], now: dict[str, Any], rebase: bool
    ) -> list[str]:
        """What changed since the run began, a line each; refuses a change of the mathematics."""
        refused = _changes({name: recorded.get(name) for name in now}, now)
        changed = {**_changes(recorded["settings"], settings), **refused}
        allowed = {"total_steps", "schedule"} if rebase else set()
        if refused.keys() - allowed:
            raise ValueError(
                f"the run in {self.folder} was started otherwise: {'; '.join(changed.values())}. Give the same "
                "settings to go on, --rebase to go on with another length or schedule, another folder with --out, or "
                f"--resume never to start afresh (this run is moved aside){self._of_older(refused)}"
            )
        done = steps_done(self.checkpoints)
        if done > now["total_steps"]:
            raise ValueError(
                f"the run in {self.folder} has done {done} steps, and is to have {now['total_steps']}: --rebase is "
                "for a longer run; for a shorter one take another folder with --out, and its weights with --init"
            )
        if self.summary is not None and not refused:
            return []  # it is finished: nothing will be trained with the changed settings
        (self.folder / "summary.json").unlink(missing_ok=True)
        return [f"changed since this run began: {change}" for change in changed.values()]

    def _of_older(self, refused: Mapping[str, str]) -> str:
        """A word more on a run that an older trainkit began, where names or groups of parameters are others by now."""
        if not (refused.keys() & {"model", "lrs"} and is_older(self.checkpoints)):
            return ""
        return (
            ". An older trainkit began it, which named and grouped some parameters otherwise: evaluate, predict and "
            "export read its weights, and --init begins another run from them"
        )

    def _take_lock(self) -> None:
        """Own the folder until `close` or the end of this process, however it ends.

        A POSIX record lock: the kernel drops it with the process, and forked workers do not inherit it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._lock = (self.folder / LOCK).open("a+")
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self._lock.seek(0)
                owner = self._lock.read().strip()
                self.close()
                if error.errno not in (errno.EACCES, errno.EAGAIN):  # such as ENOLCK
                    raise ValueError(
                        f"{self.folder} cannot be locked: {reason(error)}. Choose a folder with --out on a disk that "
                        "locks files; NFS does where its lock service runs"
                    ) from error
                raise ValueError(
                    f"another run is training in {self.folder} ({owner}): wait for it, stop it, or choose another "
                    "folder with --out"
                ) from error
            self._lock.truncate(0)
            self._lock.write(f"process {os.getpid()} on {platform.node()}")
            self._lock.flush()

    def close(self) -> None:
        """Give the folder free."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def summary(self) -> dict[str, Any] | None:
        """How the run ended; None while it has not."""
        path = self.folder / "summary.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def last_checkpoint(self, until: int | None = None) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that verifies, and a line about each newer one that does not.

        until: the newest step that is asked for. Raises ValueError where there are checkpoints and none verifies.
        """
        damaged = []
        paths = [path for path in list_checkpoints(self.checkpoints) if until is None or step_of(path) <= until]
        for path in reversed(paths):
            reason = verify(path)
            if reason is None:
                return path, damaged
            damaged.append(f"checkpoint {path.name} is damaged and skipped: {reason}")
        if damaged:
            raise ValueError(
                f"no checkpoint in {self.checkpoints} is whole ({'; '.join(damaged)}). Nothing was changed; "
                "start afresh with --resume never, which moves this run aside"
            )
        return None, []

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row to the log."""
        if self.writes:
            line = ("\n" if self._torn else "") + json.dumps(row, allow_nan=False) + "\n"
            self._torn = True
            with (self.folder / "log.jsonl").open("a") as file:
                file.write(line)
            self._torn = False

    def forget_after(self, step: int) -> dict[str, Any] | None:
        """Drop the log's rows of steps that were lost with their process; the last evaluation left.

        Looks from the end, so that a long log costs no more than a short one.
        """
        path = self.folder / "log.jsonl"
        if not path.is_file() or not path.stat().st_size:
            return None
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            kept, evaluation = _kept_rows(data, step)
            ends_whole = data[kept - 1 : kept] == b"\n"
        if kept < path.stat().st_size:
            os.truncate(path, kept)
        if kept and not ends_whole:
            with path.open("a") as file:
                file.write("\n")
        return evaluation

    def last_evaluation(self, step: int | None = None) -> dict[str, Any] | None:
        """The last row of an evaluation in the log, of `step` where that is given."""
        path = self.folder / "log.jsonl"
        lines = path.read_bytes().splitlines() if path.is_file() else []
        rows = (row for line in reversed(lines) if EVALUATION in line and (row := parsed_row(line)))
        return next((row for row in rows if step in (None, row["step"])), None)

    def list_bad_images(self, lines: Iterable[str]) -> list[str]:
        """Add to `bad_images.txt` those lines that it has not yet, and return them."""
        path = self.folder / "bad_images.txt"
        known = set(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else set()
        # Names may hold bytes that are no UTF-8; they are escaped.
        told = (" ".join(line.split()).encode("utf-8", "backslashreplace").decode() for line in lines)
        new = [line for line in dict.fromkeys(told) if line not in known]
        with path.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in new)
        return new

    @property
    def memory(self) -> dict[str, int | None] | None:
        """What an earlier process found to fit: images of one pass as "micro_batch", and how many were "asked" for."""
        path = self.folder / MEMORY
        return json.loads(path.read_text()) if path.is_file() else None

    def remember_micro_batch(self, micro_batch: int, asked: int | None) -> None:
        """Keep it for the processes that go on. Any process may: the one that ran out may be the only one to know."""
        self._replace(self.folder / MEMORY, json.dumps({"micro_batch": micro_batch, "asked": asked}) + "\n")

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        if self.writes:
            self._replace(self.folder / name, json.dumps(content, indent=1, allow_nan=False) + "\n")

    @staticmethod
    def _replace(path: Path, text: str) -> None:
        aside = path.with_name(f".{path.name}.writing-{os.getpid()}")
        aside.write_text(text)
        os.replace(aside, path)


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Name -> what changed, in words."""
    return {
        name: f"{name} was {_short(before.get(name))} and is {_short(now.get(name))}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    }


def _short(value: Any) -> str:
    """A value as a person reads it: three digits of each number in a list."""
    if isinstance(value, list) and all(isinstance(item, float) for item in value):
        return f"[{', '.join(f'{item:.3g}' for item in value)}]"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."  # the names of a thousand classes


def _move_aside(folder: Path) -> Path:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    return folder.rename(aside)


def _kept_rows(data: mmap, step: int) -> tuple[int, dict[str, Any] | None]:
    """Length of a log without rows of steps after `step` at its end, and the last evaluation in what is left."""
    kept, end, evaluation = 0, len(data), None
    while end and evaluation is None:
        start = data.rfind(b"\n", 0, end - 1) + 1
        line = data[start:end]
        if not kept:
            row = parsed_row(line)  # None for a line that a crash cut
            told_late = row is not None and row["event"] == "save"  # a row about a step long past
            kept = end if row is not None and row["step"] <= step and not told_late else 0
        if kept and EVALUATION in line:
            evaluation = parsed_row(line)
        end = start
    return kept, evaluation


def parsed_row(line: str | bytes) -> dict[str, Any] | None:
    """A row of the log; None for one that a crash cut."""
    try:
        return json.loads(line)
    except ValueError:
        return None
