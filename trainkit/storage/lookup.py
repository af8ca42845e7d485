"""Resolves a path on the command line: a run, its best checkpoint, a failed step, its settings."""

import difflib
from collections.abc import Sequence
from inspect import Signature
from pathlib import Path
from typing import Any

from trainkit.errors import MissingFileError, UserError
from trainkit.storage.checked_json import is_count, is_number
from trainkit.storage.checkpoint import (
    MANIFEST,
    checkpoint_path,
    is_checkpoint_name,
    step_of,
)
from trainkit.storage.hub_download import downloaded, is_hub_name
from trainkit.storage.recorded import is_run, meant_run, read_recorded
from trainkit.storage.run_files import read_manifest, read_results
from trainkit.storage.run_folder import RunFolder
from trainkit.storage.run_settings import input_of
from trainkit.storage.weight_links import pointed
from trainkit.tasks.base import Task

PUBLISHED_STEP = "published_step"  # in settings.json of a published folder: that of its weights
COUNTED = (
    "batch norm has the statistics that training counted; the run's own evaluations had"
    " --precise-bn {}"
)


def run_of(path: Path) -> Path | None:
    """The run folder that `path` is, or lies in as a checkpoint or a file of weights; or None."""
    folders = [path, *path.parents[:3]]  # RUN/checkpoints/step-N/model.safetensors
    return next((folder for folder in folders if is_run(folder)), None)


def require_run(folder: Path) -> None:
    """Raise MissingFileError where `folder` is not a run."""
    if not (folder / "settings.json").is_file():
        raise MissingFileError(
            f"{folder} is not a run: give the folder that the training wrote (its --out)"
            f"{meant_run(folder)}"
        )


def find_failure(run: Path, step: int | None) -> Path:
    """The folder of the failed step `step`, or of the newest.

    Raises:
        MissingFileError: there is none.
    """
    require_run(run)
    reports = [path.parent for path in run.glob("failures/step-*/report.json")]
    # and no copy of one
    found = sorted((path for path in reports if is_checkpoint_name(path.name)), key=step_of)
    if not found and is_published(run):
        raise MissingFileError(
            f"{run} was published: failed steps stay in the run's own folder, where it was trained"
        )
    if not found:
        raise MissingFileError(
            f"no step of the run in {run} is kept as failed (it has no failures/step-*)"
        )
    chosen = found[-1] if step is None else run / "failures" / f"step-{step:09d}"
    if chosen not in found:
        raise MissingFileError(
            f"step {step} of {run} is not kept as failed; kept: {', '.join(p.name for p in found)}"
        )
    return chosen


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of the run that `path` is or lies in, as plain values; empty for no run."""
    run = run_of(path)
    return read_recorded(run)["settings"] if run else {}


def read_input(path: Path, signature: Signature) -> dict[str, Any]:
    """Input settings of the run that `path` is or lies in, see `run_settings.input_of`.

    Only settings that a recipe of this signature has, and fills in itself where they are None.
    Empty for no run.
    """
    run = run_of(path)
    looks = input_of(read_recorded(run)) if run else {}
    parameters = signature.parameters
    return {
        n: value for n, value in looks.items() if n in parameters and parameters[n].default is None
    }


def read_class_names(path: Path) -> list[str] | None:
    """The names of the classes, in the order of their ids, of the run of `path`; or None."""
    run = run_of(path)
    classes = read_recorded(run).get("classes") if run else None
    return classes if isinstance(classes, list) else None


def read_origin(run: Path) -> tuple[int, str | None]:
    """The seed of the run in a folder, and the file its recipe was read from."""
    recorded = read_recorded(run)
    return recorded["seed"], recorded["recipe"]


def read_seed(run: Path | None) -> int:
    """The seed of the run in a folder; 0 where there is none."""
    return 0 if run is None else read_recorded(run)["seed"]


def read_precise_bn(run: Path | None, weights: Path) -> int | None:
    """Training images from which a run's evaluation of `weights` re-estimated BatchNorm statistics.

    It is in the log's row of that evaluation. Runs from before that, and published ones, have it as
    an option alone. None for none.
    """
    if run is None:
        return None
    row = RunFolder(run).log.last_evaluation(
        step_of(weights) if is_checkpoint_name(weights.name) else None
    )
    asked = read_recorded(run).get("options", {}).get("precise_bn")
    return asked if row is None else row.get("precise_bn", asked)


def read_thresholds(task: Task, run: Path | None, weights: Path) -> list[float | None] | None:
    """The best threshold of each class in the training's evaluation of `weights`.

    It is in the log's row of that evaluation, and in results.json of a published folder.

    Returns:
        One per class, in the order of their ids, None where the class had no positive; None where
        nothing is known.
    """
    if run is None:
        return None
    row = None
    if is_published(run):
        row = read_results(run)
    elif is_checkpoint_name(weights.name):
        row = RunFolder(run).log.last_evaluation(step_of(weights))
    found = (row or {}).get("ema_thresholds", (row or {}).get("thresholds"))
    classes = task.known_classes
    if isinstance(found, dict) and isinstance(classes, Sequence):
        found = [found.get(str(name)) for name in classes]
    if not isinstance(found, list) or len(found) != task.known_num_classes:
        return None
    return [float(each) if is_number(each) else None for each in found]


def trained_steps(task: Task, run: Path | None, weights: Path) -> tuple[int, int] | None:
    """Steps that `weights` have seen, and those of the whole run they are of.

    Returns:
        None where the task does not depend on them.

    Raises:
        UserError: the task changes with the step (`at_step`), and the step is not known: of a file
            of weights, or a checkpoint outside of its run.
    """
    if not task.provides("at_step"):
        return None
    total = read_recorded(run).get("total_steps") if run is not None else None
    step = None
    if (weights / MANIFEST).is_file():
        step = read_manifest(weights)["step"]
    elif run is not None and is_published(run):
        step = step_of_weights(run, weights)
    if total is None or step is None:
        raise UserError(
            f"task {type(task.given).__name__} changes with the step (at_step), and nothing says of"
            f" which step the weights in {weights} are: give a run folder, or a checkpoint in it"
            " (RUN/checkpoints/step-*)"
        )
    return step, total


def step_of_weights(run: Path, weights: Path) -> int | None:
    """The step that weights of a run are of.

    That of published ones is recorded; of those that earlier versions published it is the best that
    the log tells of. None where nothing says.
    """
    folder = weights if weights.is_dir() else weights.parent
    if is_checkpoint_name(folder.name):
        return step_of(folder)
    recorded = read_recorded(run).get(PUBLISHED_STEP)
    if is_count(recorded):
        return recorded
    last = RunFolder(run).log.last_evaluation()
    return None if last is None else last["best_step"] or last["step"]


def located(path: Path) -> Path:
    """The path itself, or of a name on the Hub the folder that its files were downloaded to.

    Raises:
        MissingFileError: there is neither; it names the nearest run.
    """
    if path.exists():
        return path
    if is_hub_name(path):
        return downloaded(path.as_posix())
    beside = [str(each) for each in path.parent.glob("*") if each.is_dir()]
    near = difflib.get_close_matches(str(path), beside, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    raise MissingFileError(
        f"no checkpoint at {path}: give a run folder, a checkpoint in it, a weights file, or a name"
        f" on the Hugging Face Hub (owner/name){meant}"
    )


def is_published(run: Path) -> bool:
    """Whether `run` is a folder that `trainkit push` wrote, whoever called it, and no run's own."""
    return not RunFolder(run).checkpoints.is_dir() and (run / "model.safetensors").is_file()


def find_weights(path: Path) -> tuple[Path, Path | None]:
    """The weights that `path` stands for, and the run they are of.

    A run's best checkpoint, the one that its best.safetensors or last.safetensors stands for, or
    `path` itself; also of a name on the Hub, see `located`. A folder that `trainkit push` wrote has
    one file of weights and no checkpoints.
    """
    path = located(path)
    path = pointed(path) or path
    if not (path.is_dir() or path.is_file()):  # to read a FIFO would wait for ever
        raise UserError(
            f"{path} is not a regular file: give a run folder, a checkpoint in it, or a weights"
            " file"
        )
    run = run_of(path)
    if run != path:
        if (
            run is None
            and (path / "model.safetensors").is_file()
            and not (path / MANIFEST).exists()
        ):
            return path / "model.safetensors", None  # a model of others, from the Hub
        if path.is_dir() and not path.name.startswith("step-") and not (path / MANIFEST).is_file():
            raise MissingFileError(
                f"{path} is neither a run nor a checkpoint: give a run folder, a checkpoint in it "
                "(checkpoints/step-*), or a weights file"
            )
        return path, run
    if is_published(run):
        return run / "model.safetensors", run
    last, _ = RunFolder(run).last_checkpoint()
    if last is None:
        raise MissingFileError(f"the run in {run} has no checkpoint yet")
    row = RunFolder(run).log.last_evaluation()
    best = (
        checkpoint_path(last.parent, row["best_step"])
        if row is not None and row["best_step"]
        else last
    )
    return (best if best.is_dir() else last), run
