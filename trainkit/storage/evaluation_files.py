"""Files of an evaluation in a run's folder: evaluations/<name>.npz and .json, shown/<name>/.

The name is step-<number> for an evaluation of the training, `evaluate` for that of the command. The
.npz has a row for each validation image, the .json says what they are of, and shown/ has thumbnails
of a few of them. With --preview, preview/<name>.jpg and preview/<name>/ show the same images after
each evaluation of the training. Each file is whole or absent.
"""

import io
import json
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trainkit.files import replace_file

FOLDER, SHOWN, PREVIEW = "evaluations", "shown", "preview"
EVALUATE = "evaluate"  # name of the files that the command writes
INDEX = "index.json"  # of the thumbnails, written last
NAME = re.compile(r"step-[0-9]{9,18}")
THUMBNAIL = re.compile(r"[0-9]+-(image|target|prediction|error)\.webp|index\.json")
LEFT_OVER = re.compile(r"\..+\.writing-[0-9]+")  # by a process that died over it
# by a training; what `trainkit evaluate` writes at this moment looks the same
LEFT_OF_STEP = re.compile(rf"\.{NAME.pattern}{LEFT_OVER.pattern}")


def name_of_step(step: int) -> str:
    """The name of the files of an evaluation after so many steps."""
    return f"step-{step:09d}"


def write_evaluation(
    run: Path, name: str, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]
) -> None:
    """Write the rows of all images, then what they are of: never beside rows of something else.

    Args:
        run: folder that they go to.
        name: of the evaluation.
        arrays: by name, a row for each image, and the confusion matrix.
        about: content of the JSON file.

    Raises:
        OSError: they cannot be written.
    """
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").unlink(missing_ok=True)
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **dict(arrays))
    replace_file(folder / f"{name}.npz", content.getvalue())
    replace_file(folder / f"{name}.json", (json.dumps(about, indent=1) + "\n").encode())


def empty_thumbnails(run: Path, name: str, kind: str = SHOWN) -> Path:
    """Make the folder of an evaluation's thumbnails, without those of an earlier one.

    Args:
        run: folder that they go to.
        name: of the evaluation.
        kind: SHOWN or PREVIEW.

    Raises:
        OSError: it cannot be made, or one cannot be removed.
    """
    folder = run / kind / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)  # first: it never lists what is gone
    for path in _listed(folder):
        if THUMBNAIL.fullmatch(path.name):
            path.unlink()
    return folder


def keep_evaluations(run: Path, steps: Collection[int]) -> None:
    """Remove the files of evaluations after other steps than these, and what was left half written.

    Files of other names stay, and so does a folder of thumbnails that holds one.

    Raises:
        OSError: one cannot be removed.
    """
    kept = {name_of_step(step) for step in steps}
    for path in _listed(run / FOLDER):
        is_old = path.suffix in (".npz", ".json") and _is_old(path.stem, kept)
        if (is_old or LEFT_OF_STEP.fullmatch(path.name)) and path.is_file():
            path.unlink()
    for path in _listed(run / SHOWN):
        if _is_old(path.name, kept) and holds_only_thumbnails(path):
            shutil.rmtree(path)


def previews(run: Path) -> dict[int, Path]:
    """The pictures of --preview, by the step that they were made after, in its order."""
    paths = [path for path in _listed(run / PREVIEW) if path.suffix == ".jpg" and path.is_file()]
    steps = {_preview_step(path): path for path in paths}
    return {step: steps[step] for step in sorted(step for step in steps if step is not None)}


def keep_previews(run: Path, last_step: int) -> None:
    """Remove what --preview made after a later step than this, and what was left half written.

    Files of other names stay, and so does a folder of thumbnails that holds one.

    Raises:
        OSError: one cannot be removed.
    """
    for path in _listed(run / PREVIEW):
        step = _preview_step(path)
        is_lost = step is not None and step > last_step
        if path.is_file() and (is_lost or LEFT_OVER.fullmatch(path.name)):
            path.unlink()
        elif is_lost and holds_only_thumbnails(path):
            shutil.rmtree(path)


def _preview_step(path: Path) -> int | None:
    """The step of a picture or a folder in preview/; None for what else lies there."""
    name = path.name.removesuffix(".jpg")
    return int(name.removeprefix("step-")) if NAME.fullmatch(name) else None


def _is_old(name: str, kept: Collection[str]) -> bool:
    return NAME.fullmatch(name) is not None and name not in kept


def _listed(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def holds_only_thumbnails(folder: Path) -> bool:
    """Whether a folder holds nothing but thumbnails of an evaluation."""
    return (
        folder.is_dir()
        and not folder.is_symlink()
        and all(
            (THUMBNAIL.fullmatch(path.name) or LEFT_OVER.fullmatch(path.name)) and path.is_file()
            for path in folder.iterdir()
        )
    )


def strays(run: Path) -> list[Path]:
    """What is in these folders of a run, and was not written by a training or a command."""
    found = []
    for path in _listed(run / FOLDER):
        of_ours = path.stem == EVALUATE or NAME.fullmatch(path.stem)
        ours = path.suffix in (".npz", ".json") and of_ours
        if not (path.is_file() and (ours or LEFT_OVER.fullmatch(path.name))):
            found.append(path)
    for path in _listed(run / SHOWN):
        of_ours = path.name == EVALUATE or NAME.fullmatch(path.name)
        if not (of_ours and holds_only_thumbnails(path)):
            found.append(path)
    for path in _listed(run / PREVIEW):
        is_whole = path.is_file() if path.suffix else holds_only_thumbnails(path)
        is_preview = is_whole and _preview_step(path) is not None
        if not (is_preview or (path.is_file() and LEFT_OVER.fullmatch(path.name))):
            found.append(path)
    return found
