"""What settings.json of a run says about its environment, and what must not change since."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

from trainkit import __version__
from trainkit.data.dataset_info import DatasetInfo, SizedDataset
from trainkit.data.datasets.divided import ROWS, SIDES
from trainkit.data.datasets.held_out import without_mount
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

    It is seen by their names, in the run's train.csv and the `lists` of `val_data`. Where `data`
    among the settings is not the run's, it is the run's that was moved if all names are the same;
    of absolute paths counts what lies below their common folder. Rows that have numbers for names
    are the run's where their contents have its hash.
    """
    info = DatasetInfo.of(val_data)
    if run is None or not info.lists or not (run / "train.csv").is_file():
        return
    recorded = read_recorded(run)
    is_same_place = recorded["settings"].get("data") == plain(settings.get("data"))
    before, now = _names(dict(_lists_of(run))), _names(info.lists)
    rows = str(info.fingerprint).partition(ROWS)[2]
    if rows != str(recorded.get("train_data")).partition(ROWS)[2]:
        if not is_same_place:
            return
        raise UserError(
            f"the rows of {settings.get('data')} are others than those that the run in {run} was"
            " trained on, and have no file names: nothing says which of them it has seen. Give the"
            " files, or the revision, that it was trained on"
        )
    if not is_same_place and {*before["train"], *before["val"]} != {*now["train"], *now["val"]}:
        return
    trained_on = {*before["train"], *before["train"].values()}
    both = sum(bool({*pair} & trained_on) for pair in now["val"].items())
    if both:
        raise UserError(
            f"{both} of the {len(now['val'])} images held out now are among those that the run in"
            f" {run} trained on ({run / 'train.csv'}): {settings.get('data')} has changed, or"
            " --val-share, --split-seed, --group-by or --fold has. Give the run's settings and"
            f" images; {run / 'val.csv'} says which it held out"
        )


def _lists_of(run: Path) -> Iterator[tuple[str, bytes]]:
    for side in SIDES:
        file = run / f"{side}.csv"
        if file.is_file():
            yield file.name, file.read_bytes()


def _names(lists: Mapping[str, bytes]) -> dict[str, dict[str, str]]:
    """Of "train" and "val" the names below the common folder of both, and as they are listed."""
    paths = {side: paths_in(lists.get(f"{side}.csv", b"")) for side in SIDES}
    folders = {os.path.dirname(path) for listed in paths.values() for path in listed}
    return {side: dict(zip(without_mount(each, folders), each)) for side, each in paths.items()}


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
