"""best.safetensors and last.safetensors at a run's top, which say which checkpoint they are of.

Each is a relative link to the checkpoint's file of weights, which moves with the run, and which
other programs read. Where the file system has no links, where EMA weights decide which is best and
the checkpoint's file holds the raw ones, and where several files hold them (a sharded checkpoint),
it is a small JSON file that names the checkpoint: no program takes it for weights.
"""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainkit.errors import MissingFileError
from trainkit.files import reason, replace_file
from trainkit.storage.checkpoint import (
    checkpoint_path,
    is_checkpoint_name,
    list_checkpoints,
    weight_files,
)

BEST, LAST = "best.safetensors", "last.safetensors"
LINKS = (BEST, LAST)
WEIGHTS = "model.safetensors"
MOST_BYTES = 4096  # of the JSON file


class WeightLinks:
    """Keeps the two of a run up to date: whole or absent, and never of a checkpoint that is gone.

    Called by the process that writes checkpoints, also from its thread.

    Args:
        run: the run's folder.
        averaged: whether EMA weights decide which is best.
        best_step: gives the step of the best checkpoint so far; None for none.
    """

    def __init__(self, run: Path, averaged: bool, best_step: Callable[[], int | None]):
        self.run, self.averaged, self.best_step = run, averaged, best_step
        self.fault: str | None = None  # why they could not be written
        self._lock = threading.Lock()

    def update(self) -> None:
        """Point to the best and to the newest checkpoint, as far as they are there."""
        with self._lock:
            folder = self.run / "checkpoints"
            step = self.best_step()
            best = checkpoint_path(folder, step) if step else None
            newest = list_checkpoints(folder)[-1:]
            try:
                self._point(BEST, best)
                self._point(LAST, newest[0] if newest else None)
            except OSError as error:
                self.fault = f"{BEST} and {LAST} cannot be written: {reason(error)}"

    def _point(self, name: str, checkpoint: Path | None) -> None:
        path = self.run / name
        if os.path.lexists(path) and not _is_ours(path):
            self.fault = f"{name} is not of trainkit, and stays"
            return
        if checkpoint is None or not weight_files(checkpoint):
            path.unlink(missing_ok=True)
            return
        target = Path(checkpoint.parent.name, checkpoint.name)
        if self.averaged or not (checkpoint / WEIGHTS).is_file():
            self._describe(path, target, "ema" if self.averaged else "raw")
            return
        if path.is_symlink() and Path(os.readlink(path)) == target / WEIGHTS:
            return
        aside = path.with_name(f".{name}.writing-{os.getpid()}")
        try:
            aside.unlink(missing_ok=True)
            aside.symlink_to(target / WEIGHTS)
            os.replace(aside, path)
        except OSError:
            aside.unlink(missing_ok=True)
            self._describe(path, target, "raw")

    @staticmethod
    def _describe(path: Path, target: Path, weights: str) -> None:
        content = {
            "checkpoint": target.as_posix(),
            "weights": weights,
            "note": "no weights: trainkit reads those of this checkpoint; `trainkit export` writes"
            " them into a file of their own",
        }
        if named_in(path) != target.as_posix():
            replace_file(path, (json.dumps(content, indent=1) + "\n").encode())


def _is_ours(path: Path) -> bool:
    return _linked(path) is not None or named_in(path) is not None


def _linked(path: Path) -> Path | None:
    """The checkpoint that a link of ours leads to, relative to its folder; None for others."""
    if not path.is_symlink():
        return None
    target = Path(os.readlink(path))
    ours = (
        target.parts[:1] == ("checkpoints",) and target.name == WEIGHTS and len(target.parts) == 3
    )
    return target.parent if ours and is_checkpoint_name(target.parent.name) else None


def named_in(path: Path) -> str | None:
    """The checkpoint that a JSON file of ours names, relative to its folder; None for others."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MOST_BYTES:
            return None
        content: Any = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    named = content.get("checkpoint") if isinstance(content, dict) else None
    if not isinstance(named, str):
        return None
    parent, _, name = named.rpartition("/")
    return named if parent == "checkpoints" and is_checkpoint_name(name) else None


def pointed(path: Path) -> Path | None:
    """The checkpoint that best.safetensors or last.safetensors of a run stands for.

    Args:
        path: of any file.

    Returns:
        The checkpoint's folder; None where `path` is something else, such as a file of weights.

    Raises:
        MissingFileError: the checkpoint is not beside it.
    """
    linked = _linked(path)
    if linked is not None:
        return path.parent / linked
    named = named_in(path)
    if named is None:
        return None
    folder = path.parent / named
    if not folder.is_dir():
        raise MissingFileError(
            f"{path} says which checkpoint of its run it is, {named}, and holds no weights: give"
            " it in the run's folder, or write the weights into a file with trainkit export"
        )
    return folder
