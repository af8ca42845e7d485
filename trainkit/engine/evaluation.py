"""Evaluates weights that were trained, for the command and for Python."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trainkit.data.dataset_info import opened
from trainkit.data.to_device import ToDevice
from trainkit.data.workers import choose_workers, worker_deaths_reported
from trainkit.display.terminal import Display
from trainkit.distributed.accelerator import allow_tf32, lost_processes_reported, start_accelerator
from trainkit.distributed.fsdp import prepare
from trainkit.engine.ema import EMA
from trainkit.engine.evaluation_record import EvaluationRecord
from trainkit.engine.evaluator import Evaluator
from trainkit.engine.introduction import Introduction
from trainkit.engine.label_warnings import evaluation_warnings
from trainkit.engine.metric_checks import require_free_names, try_metrics
from trainkit.engine.results import show_results
from trainkit.engine.task_module import TaskModule
from trainkit.engine.validation_loss import NO_LOSS
from trainkit.errors import MissingFileError, UserError
from trainkit.recipe import Recipe
from trainkit.storage import checkpoint
from trainkit.storage.checkpoint import is_checkpoint_name, step_of
from trainkit.storage.lookup import COUNTED, find_weights, read_precise_bn, trained_steps
from trainkit.storage.recorded import read_order
from trainkit.storage.weights import named_as, take_weights


@lost_processes_reported()
def evaluate(
    recipe: Recipe,
    weights: Path,
    *,
    seed: int = 0,
    workers: int | None = None,
    precise_bn: int | None = None,
    weights_key: str | None = None,
    channels_last: bool = False,
    tf32: bool = False,
    partial: bool = False,
    keep: Callable[[dict[str, Any]], None] | None = None,
    out: Path | None = None,
    pictures: bool = True,
) -> dict[str, Any]:
    """Measure `recipe` on its validation images with the weights at `weights`.

    Args:
        recipe: what was trained.
        weights: a run's folder, of which the best checkpoint is taken, a checkpoint, or a file of
            weights.
        seed: of what is random in the validation data, and of the images of `precise_bn`.
        workers: data-loading workers of each process; None: its share of the cores, up to 8.
        precise_bn: re-estimate BatchNorm's statistics from so many training images; None: take
            those of the weights.
        weights_key: which set of weights in a file that holds several; None: the usual one.
        channels_last: hold images and weights with the channels last.
        tf32: on GPUs: multiply float32 in TF32.
        partial: weights that do not fit are left out and reported.
        keep: called with the metrics in the main process, before they are shown.
        out: an existing folder that gets a row of each image, and pictures, see
            docs/run-folder.md; None: nothing is written.
        pictures: whether pictures are drawn there.

    Returns:
        The metrics, as in results.json.

    Raises:
        UserError: the weights do not fit the model.
        MissingFileError: there are none.
    """
    weights, run = find_weights(Path(weights))
    require_free_names(recipe.task)
    try_metrics(recipe.task)
    if precise_bn is not None:
        _require_training_images(recipe)
    accelerator = start_accelerator()
    allow_tf32(tf32)
    if channels_last:
        recipe.model.to(memory_format=torch.channels_last)
    display = Display(accelerator.is_main_process)
    for line in take_weights(recipe.model, weights, weights_key, partial, averaged=False):
        display.note(line)
    state = recipe.model.state_dict()
    unsound = [name for name, value in state.items() if not value.isfinite().all()]
    if unsound:
        display.note(
            f"{len(unsound)} weights contain NaN/Inf ({unsound[0]}): results are meaningless"
        )
    task_module = prepare(accelerator, TaskModule(recipe.model, recipe.task))
    Introduction(recipe, display.note).say()
    if precise_bn is None and (number := read_precise_bn(run, weights)):
        display.note(COUNTED.format(number))
    evaluator = Evaluator(
        recipe=recipe,
        task_module=task_module,
        accelerator=accelerator,
        to_device=ToDevice(accelerator.device, recipe.mean, recipe.std, channels_last),
        seed=seed,
        workers=choose_workers(workers, accelerator.num_processes),
        ema=_load_ema(recipe, weights),
        precise_bn=precise_bn,
        order=None if run is None else read_order(run),
        thorough=True,
    )
    rows = None
    if out is not None:
        step = step_of(weights) if is_checkpoint_name(weights.name) else None
        rows = EvaluationRecord(evaluator, out, display.note, pictures).of_command(step)
    with worker_deaths_reported():
        results = evaluator.run(steps=trained_steps(recipe.task, run, weights), keep=rows)
    assert results is not None  # nothing stops it
    if keep is not None and accelerator.is_main_process:
        keep(results)
    show_results(display, f"evaluation of {weights}", results, False, recipe)
    for line in evaluation_warnings(results, recipe.task):
        display.note(f"warning: {line}")
    if evaluator.loss_fault is not None:
        display.note(f"warning: {NO_LOSS.format(evaluator.loss_fault)}")
    return results


def _require_training_images(recipe: Recipe) -> None:
    try:
        opened(recipe.train_data)
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{error}. Batch norm's statistics are estimated from training images (--precise-bn),"
            " as the run's own evaluations did; --precise-bn 0 measures with those that training"
            " counted, and gives other results"
        ) from error


def _load_ema(recipe: Recipe, weights: Path) -> EMA | None:
    """The EMA weights of a checkpoint; None where the recipe has none, or `weights` is a file."""
    if recipe.ema is None or not weights.is_dir():
        return None
    averages = checkpoint.load(weights)[1]["ema"]
    if averages is None:
        raise UserError(
            f"ema is {recipe.ema}, and {weights} holds no EMA weights: evaluate with --ema None"
        )
    ema = EMA(recipe.model, recipe.ema)
    by_name = named_as(recipe.model, averages["averages"])
    ema.load_state_dict(averages | {"averages": by_name}, strict=False)
    return ema
