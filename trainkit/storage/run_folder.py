"""The run folder: settings, log, checkpoints and summary.

    recipe.py (function.py)  settings.json  log.jsonl  summary.json  results.csv
    checkpoints/  evaluations/
    and where something went wrong: stopped.json  bad_images.txt  memory.json  failures/
    and where trainkit held out a part of the data: train.csv  val.csv

Only the main process writes; the others hold a RunFolder that reads.
"""

import errno
import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainkit.errors import UserError
from trainkit.files import flush, reason, replace_file
from trainkit.options import Options
from trainkit.storage import evaluation_files, weight_links
from trainkit.storage.checked_json import read_regular
from trainkit.storage.checkpoint import (
    is_checkpoint_name,
    list_checkpoints,
    step_of,
    verify,
)
from trainkit.storage.locks import posix_locks
from trainkit.storage.old_names import renamed_settings
from trainkit.storage.recipe_source import RecipeSource
from trainkit.storage.recorded import read_recorded
from trainkit.storage.run_changes import compare_settings
from trainkit.storage.run_files import read_bad_images, read_summary
from trainkit.storage.run_settings import surroundings
from trainkit.storage.setting_values import plain, require_all
from trainkit.storage.train_log import TrainLog
from trainkit.storage.trained_here import remember

LOCK = ".lock"
FOLDERS = ("checkpoints", "failures")
EVALUATIONS = (evaluation_files.FOLDER, evaluation_files.SHOWN, evaluation_files.PREVIEW)
FILES = (
    "recipe.py", "function.py", "settings.json", "log.jsonl", "summary.json", "stopped.json",
    "bad_images.txt", "memory.json", "train.csv", "val.csv", "results.json", "doctor.json",
    "results.csv", "starts.jsonl", "report.html", "curves.png", "confusion.png", "predictions.png",
    "train_batch.png", "train_batch.jpg", "val_predictions.jpg", "worst.jpg", "classes.jpg",
    "trackers.json", "own_trackers.json", "trackers.log",
)  # fmt: skip
TRACKERS = ("tensorboard", "wandb", "profile")  # whatever trackers and profilers write there
# wherever a person has looked into a folder
LEFT_BY_SYSTEMS = (".DS_Store", "Thumbs.db", "desktop.ini")


class RunFolder:
    """One run's folder; `RunFolder.open` decides whether it is new, resumes, or is finished."""

    def __init__(self, folder: Path, writes: bool = True):
        self.folder, self.writes = folder, writes
        self.checkpoints = folder / "checkpoints"
        self.log = TrainLog(folder / "log.jsonl", writes)
        self._lock: Any = None

    def __reduce__(self) -> tuple[type["RunFolder"], tuple[Path, bool]]:
        """Sent to another process, it reads: the lock and the files are one process's."""
        return RunFolder, (self.folder, False)

    @classmethod
    def open(
        cls,
        options: Options,
        settings: Mapping[str, Any],
        source: RecipeSource | None,
        resume_invariants: Mapping[str, Any],
        stays_stopped: Callable[[TrainLog], bool] = lambda log: True,
    ) -> tuple["RunFolder", list[str]]:
        """Make or check the folder and lock it, in the main process.

        Args:
            options: of the run.
            settings: the recipe's, resolved.
            source: of the recipe; None where nothing is known of it.
            resume_invariants: what a run must keep, see `TrainPlan.resume_invariants`.
            stays_stopped: whether a run that early stopping ended has no more to do now.

        Returns:
            The run, and lines to show.

        Raises:
            UserError: the folder holds something else, is in use, or holds a run whose
                `resume_invariants` differ.
        """
        folder = options.out
        if folder is None:
            raise UserError('which folder? Name that of the run, such as out="runs/streets"')
        source = source or RecipeSource()
        run, notes, renamed = cls(folder), [], False
        recorded = folder / "settings.json"
        now = {**plain(resume_invariants), "seed": options.seed}
        _check_kinds(folder)
        began = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
        if began:
            if not recorded.is_file():
                raise UserError(
                    f"{folder} is not empty and not a run; choose another folder with --out"
                )
            read_recorded(folder)  # somebody else's settings.json makes no run
        try:
            run._take_lock()
            if began and options.resume == "never":
                notes = [f"the run in {folder} was moved to {_move_aside(folder)}"]
                run.close()
                run._take_lock()
            elif began:
                earlier = read_recorded(folder)
                todays = renamed_settings(earlier["settings"], settings)
                renamed, earlier["settings"] = todays != earlier["settings"], todays
                # from Python a run may be trained without them
                if settings or source.file is not None:
                    require_all(todays, settings, folder, earlier["recipe"], source.file)
                notes = run._resume(
                    earlier, plain(settings), now, options.allow_schedule_change, stays_stopped
                )
            # the first thing in a new folder: it makes it a run
            if notes or renamed or not recorded.is_file():
                content = {"settings": plain(settings), **now, "options": plain(asdict(options))}
                content |= {**surroundings(source.file, settings), **source.recorded()}
                run.write(recorded.name, content)
            (folder / "stopped.json").unlink(missing_ok=True)
            run.checkpoints.mkdir(exist_ok=True)
            flush(folder)
            for name, code in source.files().items():
                run._keep_code(name, code, again=bool(notes) or renamed)
                if source.file is not None:
                    remember(folder, code, source.file)
        except Exception:
            run.close()
            raise
        return run, notes

    def _keep_code(self, name: str, content: bytes, again: bool) -> None:
        """Save code where it is not saved yet, or only its beginning is; `again`: in any case."""
        file = self.folder / name
        kept = read_regular(file) if file.exists() else None
        if again or kept is None or (kept != content and content.startswith(kept)):
            replace_file(file, content)

    def _resume(
        self,
        recorded: dict[str, Any],
        settings: dict[str, Any],
        now: dict[str, Any],
        allow_schedule_change: bool,
        stays_stopped: Callable[[TrainLog], bool],
    ) -> list[str]:
        """What changed since the run began, a line each; a run that has more to do is unfinished.

        Raises UserError for a change of settings that affect the result.
        """
        changed, affects_result = compare_settings(
            self.folder, recorded, settings, now, allow_schedule_change
        )
        summary = self.summary
        ended = summary is not None and (
            summary.get("stopped_early_at") is None or stays_stopped(self.log)
        )
        if ended and not affects_result:
            return []  # it is finished: nothing will be trained with the changed settings
        (self.folder / "summary.json").unlink(missing_ok=True)
        return [f"changed since this run began: {change}" for change in changed]

    def _take_lock(self) -> None:
        """Own the folder until `close` or the end of this process, however it ends.

        A POSIX record lock: the kernel drops it with the process, and forked workers do not inherit
        it.
        """
        fcntl = posix_locks()
        # a link may lead to where no folder is yet
        self.folder.resolve().mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._lock = (self.folder / LOCK).open("a+")
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self._lock.seek(0)
                owner = self._lock.read().strip()
                self.close()
                if error.errno not in (errno.EACCES, errno.EAGAIN):  # such as ENOLCK
                    raise UserError(
                        f"{self.folder} cannot be locked: {reason(error)}. Choose a folder with"
                        " --out on a disk that locks files; NFS does where its lock service runs"
                    ) from error
                raise UserError(
                    f"another run is training in {self.folder} ({owner}): wait for it, stop it, or"
                    " choose another folder with --out"
                ) from error
            self._lock.truncate(0)
            self._lock.write(f"process {os.getpid()} on {platform.node()}")
            self._lock.flush()

    def close(self) -> None:
        """Release the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def summary(self) -> dict[str, Any] | None:
        """How the run ended; None while it has not.

        Raises:
            UserError: summary.json is damaged.
        """
        return read_summary(self.folder)

    def last_checkpoint(self, until: int | None = None) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that verifies, and a line about each newer one that does not.

        Args:
            until: the newest step that is asked for.

        Raises:
            UserError: there are checkpoints and none verifies.
        """
        damaged: list[str] = []
        paths = [
            path
            for path in list_checkpoints(self.checkpoints)
            if until is None or step_of(path) <= until
        ]
        for path in reversed(paths):
            reason = verify(path)
            if reason is None:
                return path, damaged
            damaged.append(f"checkpoint {path.name} is damaged and skipped: {reason}")
        if damaged:
            raise UserError(
                f"no checkpoint in {self.checkpoints} is whole ({'; '.join(damaged)}). Nothing was"
                " changed; start afresh with --resume never, which moves this run aside"
            )
        return None, []

    def list_bad_images(self, lines: Iterable[str]) -> list[str]:
        """Add to `bad_images.txt` those lines that it has not yet, and return them."""
        known = read_bad_images(self.folder)
        # Names may hold bytes that are no UTF-8; they are escaped.
        shown = (
            " ".join(line.split()).encode("utf-8", "backslashreplace").decode() for line in lines
        )
        new = [line for line in dict.fromkeys(shown) if line not in known]
        with (self.folder / "bad_images.txt").open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in new)
        return new

    def remember_micro_batch(self, micro_batch: int, asked: int | None) -> None:
        """Save the micro-batch size for a resume.

        Any process may write it: the one that is out of memory may be the only one to know.
        """
        content = json.dumps({"micro_batch": micro_batch, "asked": asked}) + "\n"
        replace_file(self.folder / "memory.json", content.encode())

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        if self.writes:
            replace_file(
                self.folder / name, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()
            )

    def keep_lists(self, lists: Mapping[str, bytes]) -> None:
        """Write files that say which images are held out, see `DatasetInfo.lists`."""
        for name, content in lists.items():
            if not (self.folder / name).is_file():
                replace_file(self.folder / name, content)


def _check_kinds(folder: Path) -> None:
    """Raise UserError where a name of ours is taken by a folder, a FIFO or a device."""
    for name in (*FILES, LOCK):
        if os.path.lexists(folder / name) and not (folder / name).is_file():
            raise UserError(
                f"{folder / name} is not a regular file: move it elsewhere, or choose another --out"
            )
    lock = folder / LOCK
    is_new = not (folder / "settings.json").exists()
    if (
        is_new
        and lock.is_file()
        and lock.stat().st_size
        and not lock.read_bytes().startswith(b"process ")
    ):
        raise UserError(
            f"trainkit did not write {lock}: move it elsewhere, or choose another --out"
        )
    for name in (*FOLDERS, *EVALUATIONS):
        if os.path.lexists(folder / name) and not (folder / name).is_dir():
            raise UserError(
                f"{folder / name} is not a folder: move it elsewhere, or choose another --out"
            )


def _move_aside(folder: Path) -> Path:
    """Rename a run's folder to the first of `folder`.1, .2, ... that is free.

    Raises UserError where the system refuses it.
    """
    place = folder.resolve()
    if Path.cwd().is_relative_to(place):
        raise UserError(
            f"the run in {folder} cannot be moved aside: this command runs inside it, in"
            f" {Path.cwd()}. Run it from elsewhere, or choose another folder with --out"
        )
    strays = _strays(place)
    if strays:
        more = f" and {len(strays) - 4} more" if len(strays) > 4 else ""
        raise UserError(
            f"the run in {folder} is not moved aside: trainkit did not write"
            f" {', '.join(strays[:4])}{more} in it. Move that elsewhere, or choose another folder"
            " with --out"
        )
    number = 1
    while os.path.lexists(aside := place.with_name(f"{place.name}.{number}")):
        number += 1
    return place.rename(aside)


def _strays(folder: Path) -> list[str]:
    """What is in a run's folder and was not written by a training or a command."""
    names = (*FILES, *weight_links.LINKS, *FOLDERS, *EVALUATIONS, *TRACKERS)
    any_name = "|".join(map(re.escape, names))
    hidden = rf"\.lock|\.trackers\.lock|\.seen-[0-9a-f]+|\.({any_name})\.writing-[0-9]+"
    own = [
        path for path in folder.iterdir() if path.name in names or re.fullmatch(hidden, path.name)
    ]
    found = [path for path in folder.iterdir() if path not in own]
    for name in FOLDERS:
        inside = (folder / name).iterdir() if (folder / name).is_dir() else ()
        found += [
            path
            for path in inside
            if not is_checkpoint_name(re.sub(r"^\.(writing|removing)-", "", path.name))
        ]
    found += evaluation_files.strays(folder)
    return sorted(
        str(path.relative_to(folder)) for path in found if path.name not in LEFT_BY_SYSTEMS
    )
