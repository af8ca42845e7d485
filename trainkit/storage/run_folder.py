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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainkit.errors import UserError
from trainkit.files import flush, reason, replace_file
from trainkit.options import Options
from trainkit.storage.checked_json import read_regular
from trainkit.storage.checkpoint import list_checkpoints, step_of, steps_done, verify
from trainkit.storage.locks import posix_locks
from trainkit.storage.old_names import renamed_settings
from trainkit.storage.recipe_source import RecipeSource
from trainkit.storage.recorded import read_recorded
from trainkit.storage.run_changes import Change, compare_settings
from trainkit.storage.run_contents import LOCK, check_kinds, move_aside
from trainkit.storage.run_files import read_bad_images, read_summary
from trainkit.storage.run_settings import surroundings
from trainkit.storage.setting_values import plain, require_all
from trainkit.storage.train_log import TrainLog
from trainkit.storage.trained_here import remember


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
        run, renamed = cls(folder), False
        notes: list[str] = []
        changes: list[dict[str, Any]] = []
        recorded = folder / "settings.json"
        now = {**plain(resume_invariants), "seed": options.seed}
        check_kinds(folder)
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
                notes = [f"the run in {folder} was moved to {move_aside(folder)}"]
                run.close()
                run._take_lock()
            elif began:
                earlier = read_recorded(folder)
                todays = renamed_settings(earlier["settings"], settings)
                renamed, earlier["settings"] = todays != earlier["settings"], todays
                # from Python a run may be trained without them
                if settings or source.file is not None:
                    require_all(todays, settings, folder, earlier["recipe"], source.file)
                changed = run._resume(earlier, plain(settings), now, options, stays_stopped)
                notes = [f"changed since this run began: {change}" for change in changed]
                changes = [*earlier.get("changes", []), *run._recorded(changed)]
            # the first thing in a new folder: it makes it a run
            if notes or renamed or not recorded.is_file():
                content = {"settings": plain(settings), **now, "options": plain(asdict(options))}
                content |= {**surroundings(source.file, settings), **source.recorded()}
                content |= {"changes": changes} if changes else {}
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
        options: Options,
        stays_stopped: Callable[[TrainLog], bool],
    ) -> list[Change]:
        """What changed since the run began; a run that has more to do is unfinished.

        Raises UserError for a change that is refused.
        """
        _check_initial_weights(self.folder, recorded, options)
        found = compare_settings(
            self.folder,
            recorded,
            settings,
            now,
            options.allow_schedule_change,
            options.allow_change,
            bool(self.log.evaluations()),
        )
        summary = self.summary
        ended = summary is not None and (
            summary.get("stopped_early_at") is None or stays_stopped(self.log)
        )
        if ended and not found.reopens:
            return []  # it is finished: nothing will be trained with the changed settings
        (self.folder / "summary.json").unlink(missing_ok=True)
        return found.changes

    def _recorded(self, changes: Iterable[Change]) -> list[dict[str, Any]]:
        """Changes as settings.json holds them, with the step that the run resumes from, if any."""
        step = steps_done(self.checkpoints)
        return [change.recorded(step) for change in changes if step]

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

    def last_checkpoint(
        self,
        until: int | None = None,
        paths: Sequence[Path] | None = None,
        verified: Callable[[Path], str | None] = verify,
    ) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that verifies, and a line about each newer one that does not.

        Args:
            until: the newest step that is asked for.
            paths: of the checkpoints, the oldest first; all in the folder by default.
            verified: says why one cannot be used, or None.

        Raises:
            UserError: there are checkpoints and none verifies.
        """
        damaged: list[str] = []
        paths = [
            path
            for path in (list_checkpoints(self.checkpoints) if paths is None else paths)
            if until is None or step_of(path) <= until
        ]
        for path in reversed(paths):
            reason = verified(path)
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


def _check_initial_weights(folder: Path, recorded: Mapping[str, Any], options: Options) -> None:
    """Raise UserError where a run is resumed with initial weights that it did not begin with."""
    before, now = recorded.get("options", {}).get("init_from"), plain(options.init_from)
    if now is not None and now != before and steps_done(folder / "checkpoints"):
        began = "without --init-from" if before is None else f"with --init-from {before}"
        raise UserError(
            f"the run in {folder} began {began}, and is resumed with --init-from {now}: initial"
            " weights are those of step 0. For a run that begins with these give another folder"
            " with --out; to resume this one leave --init-from out"
        )
