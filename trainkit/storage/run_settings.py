"""What settings.json of a run says about its environment, and what must not change since."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

from trainkit import __version__
from trainkit.data.dataset_info import DatasetInfo, SizedDataset
from trainkit.data.datasets.lists import paths_in
from trainkit.data.to_device import MEAN, STD
from trainkit.errors import UserError
from trainkit.storage.recorded import read_recorded
from trainkit.storage.setting_values import plain
from trainkit.tasks.base import Task


def input_of(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Input settings of a run, by names of settings, from its settings.json.

    Runs from before this was kept had ImageNet's mean and std, but for pretrained networks their
    own; what a recipe had no setting for was as here.
    """
    if "input" in recorded:
        return dict(recorded["input"])
    settings = recorded["settings"]
    then: dict[str, Any] = {"interpolation": "bilinear" if "pretrained" in settings else "bicubic"}
    then |= {"crop_fraction": 0.875, "crop_mode": "center"}
    if not settings.get("pretrained"):
        then |= {"mean": list(MEAN), "std": list(STD)}
    return {name: settings.get(name, value) for name, value in then.items()}


def surroundings(recipe_file: Path | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Command, versions, git commit and what differs from it, to know later what ran.

    "local": the settings that name a file or folder that is there. Elsewhere nobody can tell
    datasets/ade20k, a folder, from a name on the Hub.
    """
    where = recipe_file.resolve().parent if recipe_file else Path.cwd()
    changed = _git(where, "status", "--porcelain", "--untracked-files=no")
    packages = ("torch", "torchvision", "accelerate", "datasets", "evaluate")
    return {
        "recipe": str(recipe_file.resolve()) if recipe_file else None,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "local": [name for name, value in settings.items() if _is_there(value)],
        "versions": {
            "python": platform.python_version(),
            "trainkit": __version__,
            **{name: version(name) for name in packages},
        },
        "git_commit": _git(where, "rev-parse", "HEAD"),
        "git_changed": bool(changed),
        "git_diff_stat": _git(where, "diff", "--stat", "HEAD") if changed else None,
    }


def _is_there(value: Any) -> bool:
    return isinstance(value, (str, Path)) and os.path.exists(value)


def _git(where: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(where), *words], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def check_not_trained_on(
    run: Path | None, settings: Mapping[str, Any], val_data: SizedDataset
) -> None:
    """Raises UserError where images that are held out now are among those that the run trained on.

    It is seen by their names, in the run's train.csv and the `lists` of `val_data`, where `data`
    among the settings is the run's.
    """
    lists = DatasetInfo.of(val_data).lists
    if run is None or not lists or not (run / "train.csv").is_file():
        return
    if read_recorded(run)["settings"].get("data") != plain(settings.get("data")):
        return
    trained_on = set(paths_in((run / "train.csv").read_bytes()))
    now = paths_in(lists["val.csv"])
    both = sum(path in trained_on for path in now)
    if both:
        raise UserError(
            f"{both} of the {len(now)} images held out now are among those that the run in {run}"
            f" trained on ({run / 'train.csv'}): {settings.get('data')} has changed, or"
            " --val-share, --split-seed, --group-by or --fold has. Give the run's settings and"
            f" images; {run / 'val.csv'} says which it held out"
        )


def check_same_classes(run: Path | None, task: Task) -> None:
    """Check that the run was trained on the same classes, in the same order.

    Args:
        run: its folder.
        task: the recipe's, whose classes, and their ids, follow from the data.

    Raises:
        UserError: it was not.
    """
    classes = task.known_classes
    trained = read_recorded(run).get("classes") if run is not None else None
    if (
        isinstance(trained, list)
        and not isinstance(classes, (int, type(None)))
        and list(classes) != trained
    ):
        number, (before, now) = next(
            (number, pair)
            for number, pair in enumerate(zip_longest(trained, classes, fillvalue="none"))
            if pair[0] != pair[1]
        )
        raise UserError(
            f"the run in {run} was trained on {len(trained)} classes, number {number} of them"
            f" {before}; those of the data now are {len(list(classes))}, number {number} of them"
            f" {now}: class ids would be mapped to the wrong names. Give the data it was trained"
            " on, or name its classes as they were"
        )
