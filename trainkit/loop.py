"""The one loop: `train` and `evaluate`, for every task, on any number of processes.

A step is one optimizer update from one batch, however many passes and processes share it. Its gradient is
that of sum(loss) / count over the valid targets of the whole batch: the counts are summed over the
processes before the first backward pass, so no mean of means occurs.
"""

import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainkit import checkpoint
from trainkit.data.loader import choose_workers, make_loader
from trainkit.data.order import MIX, Batches, fold, seed_step
from trainkit.display import Display
from trainkit.evaluation import measure
from trainkit.launch import start_accelerator
from trainkit.objective import Objective, ToDevice
from trainkit.plan import Plan
from trainkit.recipe import Recipe
from trainkit.run import Options
from trainkit.signals import Stopped
from trainkit.training import Training, begin, finish, load_model, open_run, restore, save


def train(
    recipe: Recipe, options: Options, settings: Mapping[str, Any] | None = None, recipe_file: Path | None = None
) -> dict[str, Any]:
    """Train `recipe` in the folder `options.out` and return its summary; go on where an earlier call stopped.

    settings, recipe_file: where the recipe came from, kept in the folder. Seed before building the recipe:
    its initial weights are drawn there. Raises ValueError for settings that cannot work.
    """
    begun = time.perf_counter()
    recipe = recipe.opened()
    accelerator = start_accelerator()
    display = Display(accelerator.is_main_process)
    plan = Plan.of(recipe, options, accelerator.num_processes)
    run, path = open_run(accelerator, display, options, settings or {}, recipe_file, plan.mathematics())
    if run.summary is not None:
        display.note(f"{run.folder} is finished ({run.summary['steps']} steps). To train again: --resume never")
        run.close()
        return run.summary

    try:
        t = begin(recipe, options, accelerator, plan, run, display)
        if path is not None:
            restore(t, path)
        before = t.progress.seconds
        with t.stop:
            number = _evaluate_and_save(t, t.progress.step)  # what a stop left undone
            for step in () if number else _steps(t):
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


def _stop(t: Training, number: int) -> None:
    """Save what is not saved, say how to go on, and leave with the signal's exit code."""
    if t.saved != t.progress.step:
        save(t, t.progress.step)
    name = signal.Signals(number).name
    t.display.stop()
    t.display.note(f"stopped by {name} after step {t.progress.step}, saved; the same command goes on from there")
    raise Stopped(number)


def _steps(t: Training) -> Iterator[int]:
    """Train, and yield the number of steps done after each."""
    start, stop, process = t.progress.step, t.plan.total_steps, t.accelerator.process_index
    batches = Batches(t.plan.order, start, stop, process)
    loader = make_loader(t.recipe.train_data, t.options.seed, batches, t.workers, t.accelerator.device)
    t.display.start(stop, start, t.plan.order.steps_per_epoch)
    t.objective.train()
    clock = time.perf_counter()
    for step, (images, targets) in enumerate(loader, start):
        _train_step(t, step, images, targets)
        t.progress.step = step + 1
        t.progress.images += t.plan.order.num_images_of(step)
        t.progress.train_seconds += time.perf_counter() - clock
        yield step + 1
        clock = time.perf_counter()


def _train_step(t: Training, step: int, images: Tensor, targets: Tensor) -> None:
    """One optimizer update from this process's share of the batch. Nothing here waits for the device."""
    recipe, accelerator = t.recipe, t.accelerator
    sizes = t.plan.order.passes(step, accelerator.process_index)  # 0: a filler that counts nowhere
    seed_step(t.options.seed, step, accelerator.process_index)
    multiplier = t.plan.multiplier(step)
    for group, asked in zip(t.optimizer.param_groups, t.groups):
        group["lr"] = asked["lr"] * multiplier

    images, targets = t.to_device(images, targets)
    if recipe.mix is not None:
        images, targets = recipe.mix(images, targets, fold(t.options.seed, MIX, step))
    counts = accelerator.reduce(recipe.task.counts(targets) * bool(sum(sizes)), "sum")  # (K,), of the batch
    counts = torch.where(counts > 0, counts, 1)  # a batch without a valid target has loss 0

    first = 0
    for number, size in enumerate(sizes, 1):
        part = slice(first, first + size) if size else slice(0, 1)
        first += size
        with nullcontext() if number == len(sizes) else accelerator.no_sync(t.objective):
            terms = t.objective(images[part], targets[part]) / counts * bool(size)  # (K,)
            loss = terms.sum() * accelerator.num_processes  # the wrapper averages over processes
            (loss if accelerator.scaler is None else accelerator.scaler.scale(loss)).backward()
        t.loss += terms.detach()

    if recipe.clip_norm is not None:
        accelerator.clip_grad_norm_(t.objective.parameters(), recipe.clip_norm)
    t.optimizer.step()
    t.optimizer.zero_grad()


def _after_step(t: Training, step: int) -> int:
    """Move the bar, and log, evaluate and save where it is time; the signal to stop for, or 0."""
    t.display.advance(step)
    if step % t.options.log_every == 0 or step == t.plan.total_steps:
        _log_row(t, step)
    return t.stop.agreed() or _evaluate_and_save(t, step)


def _evaluate_and_save(t: Training, step: int) -> int:
    """Evaluate and save where it is time and not done yet; the signal to stop for, or 0."""
    options, steps_per_epoch, last = t.options, t.plan.order.steps_per_epoch, step == t.plan.total_steps
    evaluating = (last or step % (options.evaluate_every * steps_per_epoch) == 0) and t.progress.evaluated < step
    improved = False
    if evaluating:
        improved, number = _evaluate_row(t, step)
        if number:
            return number
    due = last or improved or step % (options.checkpoint_every or steps_per_epoch) == 0
    if step and due and (evaluating or t.saved != step):
        save(t, step)
    return 0


def _log_row(t: Training, step: int) -> None:
    """One row of the log: the only place where training waits for the device."""
    window = step - (step - 1) // t.options.log_every * t.options.log_every
    losses = (t.accelerator.reduce(t.loss, "sum") / window).tolist()
    t.loss.zero_()
    if not math.isfinite(sum(losses)):
        raise FloatingPointError(
            f"the loss became {sum(losses)} between steps {step - window} and {step}; lower the learning rate, "
            "or look at the images of these steps"
        )
    images, seconds = t.since
    t.since = t.progress.images, t.progress.train_seconds
    row = {
        "event": "step",
        "step": step,
        "epoch": t.plan.epoch(step),
        "loss": sum(losses),
        "lr": t.optimizer.param_groups[0]["lr"],
        "images_per_s": (t.since[0] - images) / (t.since[1] - seconds),
    }
    if len(losses) > 1:
        row |= {f"loss_{term}": loss for term, loss in zip(t.recipe.task.terms, losses)}
    t.run.append(row)
    t.display.row(row, t.plan.total_steps)


def _evaluate_row(t: Training, step: int) -> tuple[bool, int]:
    """Evaluate and log: whether it is the best so far, and the signal it was broken off for, or 0."""
    number = 0

    def stop() -> int:
        nonlocal number
        number = t.stop.agreed()
        return number

    results = measure(t.recipe, t.objective, t.accelerator, t.to_device, t.options.seed, t.workers, stop)
    if results is None:
        return False, number
    t.results, t.progress.evaluated = results, step
    task, epoch = t.recipe.task, t.plan.epoch(step)
    score, sign = results[task.headline], 1 if task.higher_is_better else -1
    improved = score is not None and (t.progress.best is None or sign * score > sign * t.progress.best)
    if improved:
        t.progress.best, t.progress.best_step = score, step
    t.run.append({"event": "evaluate", "step": step, "epoch": epoch, **results})
    t.display.results(f"evaluation after epoch {epoch:g}", results, improved)
    return improved, 0


def evaluate(recipe: Recipe, weights: Path, options: Options) -> dict[str, Any]:
    """Measure `recipe` on its validation images with the weights at `weights`, and return the figures.

    weights: a checkpoint folder, or a file of weights. Raises ValueError where they do not fit the model.
    """
    accelerator = start_accelerator()
    display = Display(accelerator.is_main_process)
    load_model(recipe.model, checkpoint.load_weights(weights), weights)
    objective = accelerator.prepare(Objective(recipe.model, recipe.task))
    to_device = ToDevice(accelerator.device, recipe.mean, recipe.std)
    if recipe.note:
        display.note(recipe.note)
    workers = choose_workers(options.workers, accelerator.num_processes)
    results = measure(recipe, objective, accelerator, to_device, options.seed, workers)
    display.results(f"evaluation of {weights}", results, best=False)
    return results
