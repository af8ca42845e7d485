"""Which files of a folder are a run's, and how a run is moved aside."""

import os
import re
from pathlib import Path

from trainkit.errors import UserError
from trainkit.storage import evaluation_files, weight_links
from trainkit.storage.checkpoint import is_checkpoint_name

LOCK = ".lock"
FOLDERS = ("checkpoints", "failures")
EVALUATIONS = (evaluation_files.FOLDER, evaluation_files.SHOWN, evaluation_files.PREVIEW)
FILES = (
    "recipe.py", "function.py", "settings.json", "log.jsonl", "summary.json", "stopped.json",
    "bad_images.txt", "memory.json", "train.csv", "val.csv", "results.json", "doctor.json",
    "results.csv", "starts.jsonl", "report.html", "curves.png", "confusion.png", "predictions.png",
    "train_batch.png", "train_batch.jpg", "val_predictions.jpg", "worst.jpg", "classes.jpg",
    "comparison.json", "trackers.json", "own_trackers.json", "trackers.log",
)  # fmt: skip
TRACKERS = ("tensorboard", "wandb", "profile")  # whatever trackers and profilers write there
# wherever a person has looked into a folder
LEFT_BY_SYSTEMS = (".DS_Store", "Thumbs.db", "desktop.ini")


def check_kinds(folder: Path) -> None:
    """Check that no name of ours is taken by a folder, a FIFO or a device.

    Raises:
        UserError: one is.
    """
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


def move_aside(folder: Path) -> Path:
    """Rename a run's folder to the first of `folder`.1, .2, ... that is free; return that.

    Raises:
        UserError: this process works inside it, or it holds what is not a run's.
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
