"""The one loop: `train` and `evaluate`, for every task, on any number of processes.

A step, from a batch to one optimizer update, is in step.py; what a training writes, in records.py.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from trainkit.data.repeatability import find_unrepeatable
from trainkit.data.to_device import ToDevice
from trainkit.data.workers import choose_workers, worker_deaths_told
from trainkit.display import Display
from trainkit.distributed.accelerator import lost_processes_told, start_accelerator
from trainkit.distributed.fsdp import prepare
from trainkit.engine.checkpointing import (
    count_targets,
    finish,
    log,
    note_evaluation,
    rehearse,
    restore,
    save,
    tell_bad_images,
    tell_saves,
)
from trainkit.engine.ema import EMA
from trainkit.engine.evaluation import Evaluation, require_free_names
from trainkit.engine.introduction import introduce, not_introduced
from trainkit.engine.label_warnings import evaluation_warnings, ranks, training_warnings
from trainkit.engine.nonfinite import describe, is_failure, read_window
from trainkit.engine.optimizer_state import evaluation_mode
from trainkit.engine.plan import Plan
from trainkit.engine.probe import refuse_lonely_values
from trainkit.engine.setup import allow_tf32, begin, open_run
from trainkit.engine.state import Training
from trainkit.engine.step import steps
from trainkit.engine.stop_signal import FAILED, Stopped
from trainkit.engine.task_module import Objective
from trainkit.errors import MissingFileError, UserError
from trainkit.metrics.base import declared
from trainkit.options import Options
from trainkit.recipe import Recipe
from trainkit.storage import checkpoint
from trainkit.storage.lookup import COUNTED, find_weights, read_precise_bn, trained_steps
from trainkit.storage.weights import named_as, start_from, take_weights


@lost_processes_told()
def train(
    recipe: Recipe,
    options: Options,
    settings: Mapping[str, Any] | None = None,
    recipe_file: Path | None = None,
) -> dict[str, Any]:
    """Train `recipe` in the folder `options.out` and return its summary; go on where an earlier call stopped.

    settings, recipe_file: where the recipe came from, kept in the folder. Seed before building the recipe:
    its initial weights are drawn there. Raises UserError for settings and images that cannot work,
    FloatingPointError for a loss that is no number, OSError where the folder cannot be written, MemoryError
    where a single image does not fit, Stopped (a SystemExit) after a signal.
    """
    begun = time.perf_counter()
    recipe = recipe.opened()
    accelerator = start_accelerator(options.static_graph, options.timeout_s)
    display = Display(accelerator.is_main_process)
    plan = Plan.of(recipe, options, accelerator.num_processes)
    refuse_lonely_values(recipe, options, plan)
    require_free_names(recipe.task)
    run, found = open_run(
        accelerator, display, options, settings or {}, recipe_file, plan.mathematics()
    )
    if run.summary is not None:
        display.note(
            f"{run.folder} is finished ({run.summary['steps']} steps). To train again: --resume never"
        )
        run.close()
        return run.summary

    try:
        # before the weights are wrapped, shared out and averaged
        if options.init is not None and found.path is None:
            for line in start_from(recipe.model, options.init, options.weights_key):
                display.note(line)
        t = begin(recipe, options, accelerator, plan, run, display)
        if found.memory is not None and found.memory["asked"] == options.micro_batch:
            t.plan = plan.in_passes_of(found.memory["micro_batch"])
            display.note(
                f"passes of {found.memory['micro_batch']} images, as memory ran out before; --micro-batch changes it"
            )
        if found.path is not None:
            restore(t, found.path, found.evaluation)
        rehearse(t)
        if accelerator.is_main_process:
            t.warnings = training_warnings(recipe.train_data, recipe.task)
        for line in not_introduced(recipe, t.warnings):
            display.note(f"warning: {line}")
        before = t.progress.seconds
        display.start(plan.total_steps, t.progress.step, plan.order.steps_per_epoch)
        with t.stop, worker_deaths_told(), _kept_on_error(t):
            if found.path is None and accelerator.is_main_process:
                unrepeatable = find_unrepeatable(recipe.train_data, options.seed, t.workers)
                if unrepeatable:
                    display.note(f"warning: {unrepeatable}")
            number = _evaluate_and_save(t, t.progress.step)  # what a stop left undone
            for step in () if number else steps(t, plan.total_steps):
                t.progress.seconds = before + time.perf_counter() - begun
                number = _after_step(t, step)
                if number:
                    break
            if number:
                _stop(t, number)
        return finish(t)
    finally:
        display.stop()
        run.close()


@contextmanager
def _kept_on_error(t: Training) -> Iterator[None]:
    """Save whole steps before an error ends the training, such as an image that cannot be read.

    With several processes the others are inside the next step by then, and what counts is the last checkpoint.
    """
    try:
        yield
    except (ValueError, OSError, RuntimeError, MemoryError):
        if (
            t.whole
            and t.accelerator.num_processes == 1
            and t.saved != t.progress.step
            and t.trouble is None
        ):
            save(t, t.progress.step)
            t.saver.wait()
            tell_saves(t)
            if t.trouble is None:
                t.display.note(
                    f"saved after step {t.progress.step}; the same command goes on from there"
                )
        raise
    finally:
        t.saver.wait()


def _stop(t: Training, number: int) -> None:
    """Save what is not saved, say how to go on, and leave with the signal's exit code."""
    if number == FAILED:
        raise t.trouble or Stopped(FAILED)  # the process that failed says why
    if t.saved != t.progress.step:
        save(t, t.progress.step)
    t.saver.wait()
    tell_saves(t)
    t.accelerator.wait_for_everyone()
    if t.trouble is not None and t.options.on_save_error == "stop":
        raise t.trouble
    name = signal.Signals(number).name
    with suppress(OSError):  # the exit code says it too
        t.run.write("stopped.json", {"signal": name, "step": t.progress.step})
    t.display.stop()
    t.display.note(
        f"stopped by {name} after step {t.progress.step}, saved; the same command goes on from there"
    )
    raise Stopped(number)


def _after_step(t: Training, step: int) -> int:
    """Move the bar, and log, evaluate and save where it is time; the signal to stop for, or 0."""
    t.display.advance(step)
    if step % t.options.log_every == 0 or step == t.plan.total_steps:
        _log_row(t, step)
    number = t.stop.agreed() or _evaluate_and_save(t, step)
    if not number and t.saved == step:  # a save that failed costs no further step
        number = t.stop.agreed()
    return number


def _evaluate_and_save(t: Training, step: int) -> int:
    """Save and evaluate where it is time and not done yet; the signal to stop for, or 0.

    Saved first: an evaluation that fails or is cut short takes no step with it.
    """
    options, steps_per_epoch, last = (
        t.options,
        t.plan.order.steps_per_epoch,
        step == t.plan.total_steps,
    )
    if (
        step
        and t.saved != step
        and (last or step % (options.checkpoint_every or steps_per_epoch) == 0)
    ):
        save(t, step)
    if (
        last or step % (options.evaluate_every * steps_per_epoch) == 0
    ) and t.progress.evaluated < step:
        improved, number = _evaluate_row(t, step)
        if number:
            return number
        if improved and t.saved != step:
            save(t, step)
    return 0


def _log_row(t: Training, step: int) -> None:
    """One row of the log: the only place where training waits for the device."""
    rows = read_window(t, step)
    t.window.clear()
    tell_bad_images(t)
    tell_saves(t)
    good = [row for row in rows if math.isfinite(sum(row))]
    for number, row in enumerate(rows, step - len(rows) + 1):
        if is_failure(t, row):
            t.display.note(f"{describe(t, number, row)}: its update was left out")
    t.progress.skipped_steps += len(rows) - len(good)
    losses = [sum(column) / len(good) for column in zip(*good)][:-1] if good else None
    images, seconds = t.since
    t.since = t.progress.images, t.progress.train_seconds
    _note_targets(t, step, len(rows))
    row = {
        "event": "step",
        "step": step,
        "epoch": t.plan.epoch(step),
        "loss": sum(losses) if losses else None,
        "lr": float(t.recipe.optimizer.param_groups[0]["lr"]),
        "grad_norm": good[-1][-1] if good else None,
        "images_per_s": (t.since[0] - images) / (t.since[1] - seconds),
    }
    if losses and len(losses) > 1:
        row |= {f"loss_{term}": loss for term, loss in zip(t.recipe.task.terms, losses)}
    names = ("skipped_steps", "bad_images", "windows_without_targets")
    counters = {name: getattr(t.progress, name) for name in names}
    row |= {name: count for name, count in counters.items() if count}
    log(t, row)
    t.display.row(row, t.plan.total_steps)


def _note_targets(t: Training, step: int, num_steps: int) -> None:
    """Count a window of the log in which no target was valid, and tell the first one."""
    count_targets(t)
    if num_steps and t.progress.window_targets <= 0:
        t.progress.windows_without_targets += 1
        if t.progress.windows_without_targets == 1:
            t.display.note(
                f"warning: no target was valid in steps {step - num_steps + 1} to {step}, which learnt nothing: all of "
                "their labels are ignored"
            )
    t.progress.window_targets = 0.0


def _evaluate_row(t: Training, step: int) -> tuple[bool, int]:
    """Evaluate and log: whether it is the best so far, and the signal it was broken off for, or 0."""
    number = 0
    read_window(t, step)  # weights that are no numbers are not worth an evaluation

    def stop() -> int:
        nonlocal number
        number = t.stop.agreed()
        return number

    with evaluation_mode(t.recipe.optimizer):
        results = t.evaluation.measure(stop, (step, t.plan.total_steps))
    if results is None:
        return False, number
    epoch = t.plan.epoch(step)
    score, sign = results[t.recipe.headline], 1 if t.recipe.task.higher_is_better else -1
    known = score is not None and ranks(results, t.recipe.task)
    improved = known and (t.progress.best is None or sign * score > sign * t.progress.best)
    best, best_step = (score, step) if improved else (t.progress.best, t.progress.best_step)
    row = {
        "event": "evaluate",
        "step": step,
        "epoch": epoch,
        "best": best,
        "best_step": best_step,
        **results,
    }
    note_evaluation(t, row)
    log(t, row)
    _show(t.display, f"evaluation after epoch {epoch:g}", results, improved, t.recipe)
    for line in evaluation_warnings(results, t.recipe.task) if not t.told else ():
        t.display.note(f"warning: {line}")
    t.told = True
    return improved, 0


@lost_processes_told()
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
) -> dict[str, Any]:
    """Measure `recipe` on its validation images with the weights at `weights`, and return the metrics.

    Args:
        recipe: what was trained.
        weights: a run's folder, of which the best checkpoint is taken, a checkpoint, or a file of weights.
        seed: of what is random in the validation data, and of the images of `precise_bn`.
        workers: data-loading workers of each process; None: its share of the cores, up to 8.
        precise_bn: re-estimate BatchNorm's statistics from so many training images; None: take those of the weights.
        weights_key: which set of weights in a file that holds several; None: the usual one.
        channels_last: hold images and weights with the channels last.
        tf32: on GPUs: multiply float32 in TF32.
        partial: weights that do not fit are left out and reported.
        keep: called with the metrics in the main process, before they are shown.

    Raises:
        UserError: the weights do not fit the model.
        MissingFileError: there are none.
    """
    weights, run = find_weights(Path(weights))
    require_free_names(recipe.task)
    recipe = recipe if precise_bn is None else _with_training_images(recipe)
    accelerator = start_accelerator()
    allow_tf32(tf32)
    if channels_last:
        recipe.model.to(memory_format=torch.channels_last)
    display = Display(accelerator.is_main_process)
    for line in take_weights(recipe.model, weights, weights_key, partial, averaged=False):
        display.note(line)
    if unsound := [
        name for name, value in recipe.model.state_dict().items() if not value.isfinite().all()
    ]:
        display.note(
            f"{len(unsound)} weights hold numbers that are not finite ({unsound[0]}): figures of them say nothing"
        )
    objective = prepare(accelerator, Objective(recipe.model, recipe.task))
    ema = None if recipe.ema is None or not weights.is_dir() else EMA(recipe.model, recipe.ema)
    if ema is not None:
        averages = checkpoint.load(weights)[1]["ema"]
        if averages is None:
            raise UserError(
                f"ema is {recipe.ema}, and {weights} holds no averaged weights: evaluate with --ema None"
            )
        by_name = named_as(recipe.model, averages["averages"])
        ema.load_state_dict(averages | {"averages": by_name}, strict=False)
    to_device = ToDevice(accelerator.device, recipe.mean, recipe.std, channels_last)
    introduce(recipe, display.note)
    if precise_bn is None and (number := read_precise_bn(run, weights)):
        display.note(COUNTED.format(number))
    way = (
        recipe,
        objective,
        accelerator,
        to_device,
        seed,
        choose_workers(workers, accelerator.num_processes),
        ema,
        precise_bn,
    )
    with worker_deaths_told():
        steps = trained_steps(recipe.task, run, weights)
        results = Evaluation(*way, thorough=True).measure(steps=steps)
    if keep is not None and accelerator.is_main_process:
        keep(results)
    _show(display, f"evaluation of {weights}", results, False, recipe)
    for line in evaluation_warnings(results, recipe.task):
        display.note(f"warning: {line}")
    return results


def _with_training_images(recipe: Recipe) -> Recipe:
    try:
        return recipe.opened()
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{error}. Batch norm's statistics are estimated from training images (--precise-bn), as the run's own "
            "evaluations did; --precise-bn 0 measures with those that training counted, and gives other figures"
        ) from error


def _show(
    display: Display, title: str, results: Mapping[str, Any], best: bool, recipe: Recipe
) -> None:
    """The results as the task's metrics say that they are to be read."""
    percent, per_class = (declared(recipe.task, what) for what in ("percent", "per_class"))
    # the protocol says it in words
    results = {name: value for name, value in results.items() if name != "precise_bn"}
    display.results(title, results, best, percent, per_class)
