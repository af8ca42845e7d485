"""settings.json of a run: what was asked for, and what it ran on."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args


def read_recorded(folder: Path) -> dict[str, Any]:
    """settings.json of the run in `folder`. Raises ValueError where it is damaged."""
    file = folder / "settings.json"
    try:
        content = json.loads(file.read_bytes())
        lacks = [name for name in ("settings", "seed", "recipe") if name not in content]
        fault = f"it has no {', no '.join(lacks)}" if lacks else None
    except (ValueError, TypeError) as error:  # no JSON, or a number
        fault = str(error)
    if fault is None:
        return content
    raise ValueError(
        f"{file} is damaged: {fault}. Put a whole copy in its place, or train afresh with --resume never, which moves "
        "this run aside. Its checkpoints can be given to --checkpoint where the file is removed, with the run's "
        "settings beside"
    )


def plain(value: Any) -> Any:
    """A value as JSON gives it back: paths as strings, tuples as lists."""
    return json.loads(json.dumps(value, default=str))


def typed(value: Any, annotation: Any) -> Any:
    """A setting as JSON keeps it, turned back into what its annotation says."""
    if isinstance(value, list):
        return tuple(value)
    return Path(value) if isinstance(value, str) and Path in (annotation, *get_args(annotation)) else value


def surroundings(recipe_file: Path | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Command, versions and git commit, to know later what ran.

    "local": the settings that name a file or folder that is there. Elsewhere nobody can tell datasets/ade20k, a folder,
    from a name on the Hub.
    """
    where = recipe_file.resolve().parent if recipe_file else Path.cwd()
    packages = ("trainkit", "torch", "torchvision", "accelerate", "datasets", "evaluate")
    return {
        "recipe": str(recipe_file.resolve()) if recipe_file else None,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "local": [name for name, value in settings.items() if _is_there(value)],
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "git_commit": _git(where, "rev-parse", "HEAD"),
        "git_changed": bool(_git(where, "status", "--porcelain", "--untracked-files=no")),
    }


def _is_there(value: Any) -> bool:
    return isinstance(value, (str, Path)) and os.path.exists(value)


def _git(where: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(where), *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
