"""The run folder: what was asked for, the log, and how it ended.

    recipe.py  settings.json  log.jsonl  summary.json  checkpoints/

Only the main process writes; the others hold a Run that reads.
"""

import fcntl
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from trainkit.checkpoint import checkpoint_path, list_checkpoints, load, verify

LOCK = ".lock"


@dataclass(frozen=True)
class Options:
    """How a run goes, beside the recipe's own settings."""

    out: Path | None = None
    """the run's folder; default: runs/<recipe>"""
    seed: int = 0
    """decides initial weights, order, augmentation, mixing and dropout"""
    workers: int | None = None
    """processes that read images, for each training process (0: none); default: its share of the cores, up to 8"""
    resume: Literal["auto", "never"] = "auto"
    """auto: go on from the folder's last checkpoint. never: start afresh; an older run there is moved aside"""
    log_every: int = 10
    """steps between two rows of the log"""
    checkpoint_every: int | None = None
    """steps between two checkpoints; default: one at the end of each epoch"""
    evaluate_every: int = 1
    """epochs between two evaluations; there is always one after the last step"""
    micro_batch: int | None = None
    """most images of one forward pass in one process; the batch is the same in more passes. Default: its share"""
    keep: int = 2
    """newest checkpoints kept, beside the best and the one gone on from"""
    rebase: bool = False
    """go on with another length or schedule than the run was started with"""

    def __post_init__(self) -> None:
        for name, least in {
            "workers": 0, "log_every": 1, "checkpoint_every": 1, "evaluate_every": 1, "micro_batch": 1, "keep": 1
        }.items():  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")


@dataclass(frozen=True)
class EvaluateOptions:
    """What is measured, beside the recipe's own settings."""

    checkpoint: Path
    """a run folder (its best checkpoint), a checkpoint in it, or a .safetensors or .pth file"""
    out: Path | None = None
    """where results.json goes; default: the checkpoint's run, nowhere for a bare file of weights"""
    seed: int = 0
    """of what is random in the validation data, if anything"""
    workers: int | None = None
    """processes that read images, for each process; default: its share of the cores, up to 8"""


class Run:
    """One run's folder. `Run.open` decides whether it is new, goes on, or is finished."""

    def __init__(self, folder: Path, writes: bool = True):
        self.folder, self.writes = folder, writes
        self.checkpoints = folder / "checkpoints"
        self._lock: Any = None

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
        now = {**_plain(mathematics), "seed": options.seed}
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
                    notes = run._going_on(json.loads(recorded.read_text()), _plain(settings), now, options.rebase)
                except ValueError:
                    run.close()
                    raise
        run._take_lock()
        if notes or not recorded.is_file():  # the first thing in a new folder: it makes it a run
            content = {"settings": _plain(settings), **now, "options": _plain(asdict(options))}
            run.write(recorded.name, {**content, **_surroundings(recipe_file)})
        run.checkpoints.mkdir(exist_ok=True)
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
                "--resume never to start afresh (this run is moved aside)"
            )
        if self.summary is not None and not refused:
            return []  # it is finished: nothing will be trained with the changed settings
        (self.folder / "summary.json").unlink(missing_ok=True)
        return [f"changed since this run began: {change}" for change in changed.values()]

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

    def last_checkpoint(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that verifies, and a line about each newer one that does not.

        Raises ValueError where there are checkpoints and none verifies.
        """
        damaged = []
        for path in reversed(list_checkpoints(self.checkpoints)):
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
            with (self.folder / "log.jsonl").open("a") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")

    def forget_after(self, step: int, evaluated: int) -> None:
        """Drop the log's rows of steps and evaluations that were lost with the process that made them."""
        path = self.folder / "log.jsonl"
        if self.writes and path.is_file():
            rows = [line for line in path.read_text().splitlines() if _is_kept(line, step, evaluated)]
            self._replace(path, "".join(f"{row}\n" for row in rows))

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        if self.writes:
            self._replace(self.folder / name, json.dumps(content, indent=1, allow_nan=False) + "\n")

    @staticmethod
    def _replace(path: Path, text: str) -> None:
        aside = path.with_name(f".{path.name}.writing")
        aside.write_text(text)
        os.replace(aside, path)


def run_of(path: Path) -> Path | None:
    """The run folder that `path` is, or lies in as a checkpoint; None where there is none."""
    return next((folder for folder in (path, path.parent.parent) if (folder / "settings.json").is_file()), None)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of the run that `path` is or lies in, as plain values; empty where there is none."""
    run = run_of(path)
    return json.loads((run / "settings.json").read_text())["settings"] if run else {}


def find_weights(path: Path) -> tuple[Path, Path | None]:
    """The weights that `path` stands for, and the run they are of: a run's best checkpoint, or `path` itself."""
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}: give a run folder, a checkpoint in it, or a weights file")
    run = run_of(path)
    if run != path:
        return path, run
    last, _ = Run(run).last_checkpoint()
    if last is None:
        raise FileNotFoundError(f"the run in {run} has no checkpoint yet")
    best = load(last)[1]["progress"]["best_step"]
    return (last if best is None else checkpoint_path(last.parent, best)), run


def write_results(folder: Path, weights: Path, settings: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """Write `results.json`: the figures of an evaluation, and of what."""
    folder.mkdir(parents=True, exist_ok=True)
    Run(folder).write("results.json", {"checkpoint": str(weights), "settings": _plain(settings), **results})


def _plain(value: Any) -> Any:
    """As JSON gives it back: paths as strings, tuples as lists."""
    return json.loads(json.dumps(value, default=str))


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
    return repr(value)


def _move_aside(folder: Path) -> Path:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    return folder.rename(aside)


def _is_kept(line: str, step: int, evaluated: int) -> bool:
    try:
        row = json.loads(line)
    except ValueError:
        return False  # cut by the crash
    return row["step"] <= (evaluated if row["event"] == "evaluate" else step)


def _surroundings(recipe_file: Path | None) -> dict[str, Any]:
    """Command, versions and git commit, to know later what ran."""
    where = recipe_file.resolve().parent if recipe_file else Path.cwd()
    packages = ("trainkit", "torch", "torchvision", "accelerate", "datasets", "evaluate")
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "git_commit": _git(where, "rev-parse", "HEAD"),
        "git_changed": bool(_git(where, "status", "--porcelain", "--untracked-files=no")),
    }


def _git(where: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(where), *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
