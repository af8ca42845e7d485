"""The one loop: `train` and `evaluate`, for every task, on any number of processes.

A step is one optimizer update from one batch, however many passes and processes share it. Its gradient is
that of sum(loss) / count over the valid targets of the whole batch: the counts are summed over the
processes before the first backward pass, so no mean of means occurs.
"""

import math
import os
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from trainkit import checkpoint
from trainkit.data.order import MIX, Batches, Seeded, TrainOrder, evaluation_batches, fold, seed_step
from trainkit.display import Display
from trainkit.launch import start_accelerator
from trainkit.metrics import each_metric
from trainkit.recipe import Recipe, Task
from trainkit.run import Options, Run


class Objective(nn.Module):
    """Model and task in one forward pass, so that only sums or predictions leave the wrapped model."""

    def __init__(self, model: nn.Module, task: Task):
        super().__init__()
        self.model, self.task = model, task

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """In training the weighted loss sums (K,), in evaluation the predictions."""
        outputs = self.model(images)
        return (self.task.losses if self.training else self.task.predict)(outputs, targets)


@dataclass
class Progress:
    """How far a run is: saved with every checkpoint."""

    step: int = 0
    images: int = 0
    train_seconds: float = 0.0
    seconds: float = 0.0
    best: float | None = None
    best_step: int | None = None


@dataclass
class Training:
    """What one training has in hand."""

    accelerator: Accelerator
    recipe: Recipe
    options: Options
    order: TrainOrder
    total_steps: int
    objective: nn.Module  # wrapped for processes and precision
    optimizer: Any
    run: Run
    display: Display
    base_lrs: list[float]
    progress: Progress = field(default_factory=Progress)
    results: dict[str, Any] = field(default_factory=dict)
    loss: Tensor | None = None  # (K,) sums over the steps since the last row, this process's part


def train(
    recipe: Recipe,
    options: Options,
    settings: Mapping[str, Any] | None = None,
    recipe_file: Path | None = None,
) -> dict[str, Any]:
    """Train `recipe` in the folder `options.out` and return its summary; go on where an earlier call stopped.

    settings, recipe_file: where the recipe came from, kept in the folder. Seed before building the recipe:
    its initial weights are drawn there. Raises ValueError for settings that cannot work.
    """
    begun = time.perf_counter()
    accelerator = start_accelerator()
    display = Display(accelerator.is_main_process)
    order, total_steps = _plan(recipe, options, accelerator.num_processes)
    run, path = _open(accelerator, display, recipe, options, order, total_steps, settings, recipe_file)
    if run.summary is not None:
        display.note(f"{run.folder} is finished ({run.summary['steps']} steps). To train again: --resume never")
        return run.summary

    base_lrs = [group["lr"] for group in recipe.optimizer.param_groups]
    objective, optimizer = accelerator.prepare(Objective(recipe.model, recipe.task), recipe.optimizer)
    t = Training(accelerator, recipe, options, order, total_steps, objective, optimizer, run, display, base_lrs)
    if path is not None:
        _restore(t, path)
    before = t.progress.seconds
    for step in _steps(t):
        t.progress.seconds = before + time.perf_counter() - begun
        _once_in_a_while(t, step)
    return _finish(t)


def _steps(t: Training) -> Iterator[int]:
    """Train, and yield the number of steps done after each."""
    start = t.progress.step
    process = t.accelerator.process_index
    loader = _loader(t, t.recipe.train_data, Batches(t.order, start, t.total_steps, process))
    if t.loss is None:
        t.loss = torch.zeros(len(t.recipe.task.terms), device=t.accelerator.device)
    t.display.start(t.total_steps, start, t.order.steps_per_epoch)
    t.objective.train()
    clock = time.perf_counter()
    for step, (images, targets) in enumerate(loader, start):
        _train_step(t, step, images, targets)
        t.progress.step = step + 1
        t.progress.images += t.order.num_images_of(step)
        t.progress.train_seconds += time.perf_counter() - clock
        yield step + 1
        clock = time.perf_counter()


def _train_step(t: Training, step: int, images: Tensor, targets: Tensor) -> None:
    """One optimizer update from this process's share of the batch."""
    recipe, accelerator = t.recipe, t.accelerator
    sizes = t.order.passes(step, accelerator.process_index)  # 0: a filler that counts nowhere
    seed_step(t.options.seed, step, accelerator.process_index)
    for group, base_lr in zip(t.optimizer.param_groups, t.base_lrs):
        group["lr"] = base_lr * recipe.schedule(step, t.total_steps, t.order.steps_per_epoch)

    images, targets = _on_device(t, images, targets)
    if recipe.mix is not None:
        images, targets = recipe.mix(images, targets, fold(t.options.seed, MIX, step))
    counts = accelerator.reduce(recipe.task.counts(targets) * bool(sum(sizes)), "sum")  # (K,), of the batch
    counts = torch.where(counts > 0, counts, 1)  # a batch without a valid target has loss 0

    begin = 0
    for number, size in enumerate(sizes, 1):
        part = slice(begin, begin + size) if size else slice(0, 1)
        begin += size
        with nullcontext() if number == len(sizes) else accelerator.no_sync(t.objective):
            terms = t.objective(images[part], targets[part]) / counts * bool(size)  # (K,)
            loss = terms.sum() * accelerator.num_processes  # the wrapper averages over processes
            (loss if accelerator.scaler is None else accelerator.scaler.scale(loss)).backward()
        t.loss += terms.detach()

    if recipe.clip_norm is not None:
        accelerator.clip_grad_norm_(t.objective.parameters(), recipe.clip_norm)
    t.optimizer.step()
    t.optimizer.zero_grad()


def _once_in_a_while(t: Training, step: int) -> None:
    """After a step: move the bar, and log, evaluate and save where it is time."""
    options, last = t.options, step == t.total_steps
    t.display.advance(step)
    if step % options.log_every == 0 or last:
        _log_row(t, step)
    improved = False
    if last or step % (options.evaluate_every * t.order.steps_per_epoch) == 0:
        improved = _evaluate_row(t, step)
    if last or improved or step % (options.checkpoint_every or t.order.steps_per_epoch) == 0:
        _save(t, step)


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
    row = {
        "event": "step",
        "step": step,
        "epoch": step / t.order.steps_per_epoch,
        "loss": sum(losses),
        "lr": t.optimizer.param_groups[0]["lr"],
        "images_per_s": t.progress.images / t.progress.train_seconds,
    }
    if len(losses) > 1:
        row |= {f"loss_{term}": loss for term, loss in zip(t.recipe.task.terms, losses)}
    t.run.append(row)
    t.display.row(row, t.total_steps)


def _evaluate_row(t: Training, step: int) -> bool:
    """Evaluate, log, and say whether it is the best so far."""
    t.results = _measure(t)
    score, task = t.results[t.recipe.task.headline], t.recipe.task
    sign = 1 if task.higher_is_better else -1
    improved = score is not None and (t.progress.best is None or sign * score > sign * t.progress.best)
    if improved:
        t.progress.best, t.progress.best_step = score, step
    epoch = step / t.order.steps_per_epoch
    t.run.append({"event": "evaluate", "step": step, "epoch": epoch, **t.results})
    t.display.results(f"evaluation after epoch {epoch:g}", t.results, improved)
    return improved


@torch.no_grad()
def _measure(t: Training) -> dict[str, Any]:
    """Every image of val_data once: `num_images` and the figures of the task's metrics."""
    accelerator, task, data = t.accelerator, t.recipe.task, t.recipe.val_data
    batches, valid = evaluation_batches(
        len(data), t.recipe.eval_batch_size, accelerator.process_index, accelerator.num_processes
    )
    own, *others = task.metrics()
    t.objective.eval()
    for (images, targets), count in zip(_loader(t, data, batches), valid):
        images, targets = _on_device(t, images, targets)
        predictions = t.objective(images, targets)[:count]  # beyond: a filler, see evaluation_batches
        if count:
            own.add_batch(predictions=predictions, references=targets[:count])
        if others:
            _add_gathered(accelerator, others, task.labels(predictions), targets[:count])
    t.objective.train()
    num_images = int(accelerator.reduce(torch.tensor(sum(valid), device=accelerator.device), "sum"))
    if num_images != len(data):
        raise RuntimeError(f"the evaluation saw {num_images} images of {len(data)}")
    own.counts = accelerator.reduce(own.counts.to(accelerator.device), "sum")
    results = {"num_images": num_images, **own.compute()}
    for metric in others:
        results |= metric.compute()
    return results


def _add_gathered(accelerator: Accelerator, metrics: list, labels: Tensor, targets: Tensor) -> None:
    """Give metrics that cannot be summed over processes the labels of all of them."""
    pairs = gather_object([(labels.cpu().numpy(), targets.cpu().numpy())])
    for metric in metrics:
        for predictions, references in pairs:
            for one in each_metric(metric) if len(predictions) else ():
                one.add_batch(predictions=predictions, references=references)


def evaluate(recipe: Recipe, weights: Path, options: Options) -> dict[str, Any]:
    """Measure `recipe` on its validation images with the weights at `weights`, and return the figures.

    weights: a checkpoint folder, or a file of weights. Raises ValueError where they do not fit the model.
    """
    accelerator = start_accelerator()
    display = Display(accelerator.is_main_process)
    _load_model(recipe.model, checkpoint.load_weights(weights), weights)
    objective = accelerator.prepare(Objective(recipe.model, recipe.task))
    order, total_steps = _plan(recipe, options, accelerator.num_processes)
    run = Run(options.out or Path(), writes=False)
    t = Training(accelerator, recipe, options, order, total_steps, objective, None, run, display, [])
    results = _measure(t)
    display.results(f"evaluation of {weights}", results, best=False)
    return results


def _plan(recipe: Recipe, options: Options, num_processes: int) -> tuple[TrainOrder, int]:
    """Order and number of steps; the schedule is tried at both ends, to fail before the first step."""
    order = TrainOrder(
        len(recipe.train_data),
        recipe.batch_size,
        options.seed,
        num_processes,
        options.micro_batch,
        unit=2 if recipe.mix is not None else 1,
        drop_last=recipe.drop_last,
    )
    total_steps = max(1, round(recipe.epochs * order.steps_per_epoch))
    recipe.schedule(0, total_steps, order.steps_per_epoch)
    return order, total_steps


def _open(
    accelerator: Accelerator,
    display: Display,
    recipe: Recipe,
    options: Options,
    order: TrainOrder,
    total_steps: int,
    settings: Mapping[str, Any] | None,
    recipe_file: Path | None,
) -> tuple[Run, Path | None]:
    """The run folder and the checkpoint to go on from; decided by the main process for all."""
    answer: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            curve = [recipe.schedule(total_steps * part // 8, total_steps, order.steps_per_epoch) for part in range(9)]
            mathematics = {"batch_size": recipe.batch_size, "total_steps": total_steps, "schedule": curve}
            run = Run.open(options, settings or {}, recipe_file, mathematics)
            path, damaged = run.last_checkpoint()
            for line in damaged:
                display.note(line)
            answer = [path, None]
        except ValueError as error:
            answer = [None, error]
    path, error = broadcast_object_list(answer)
    if error is not None:
        raise error
    if recipe.note:
        display.note(recipe.note)
    run = Run(options.out, writes=accelerator.is_main_process)
    if run.summary is None:
        display.note(
            f"{run.folder}: {total_steps} steps, {recipe.epochs:g} epochs of {order.num_images} images in batches of "
            f"{recipe.batch_size} on {accelerator.num_processes} x {accelerator.device.type}, "
            f"precision {accelerator.mixed_precision.replace('no', 'fp32')}"
        )
    return run, path


def _loader(t: Training, data: Any, batches: Iterable) -> DataLoader:
    workers = t.options.workers
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = min(8, max(1, cores // t.accelerator.num_processes - 1))
    return DataLoader(
        Seeded(data, t.options.seed),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=t.accelerator.device.type == "cuda",
    )


def _collate(rows: list) -> Any:
    shapes = sorted({tuple(image.shape) for image, _ in rows})
    if len(shapes) > 1:
        raise ValueError(
            f"images of one batch have unlike shapes {shapes[:4]}; crop them to one size in the transform, or "
            "evaluate one at a time with eval_batch_size=1"
        )
    return default_collate(rows)


def _on_device(t: Training, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """To the device; uint8 images become float32, scaled to [0, 1] and normalised there."""
    device = t.accelerator.device
    images, targets = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
    if images.dtype == torch.uint8:
        mean, std = (
            torch.tensor(values).view(-1, 1, 1).to(device, non_blocking=True)
            for values in (t.recipe.mean, t.recipe.std)
        )
        images = images.float().sub_(255 * mean).div_(255 * std)
    return images, targets


def _save(t: Training, step: int) -> None:
    """Write a checkpoint in the main process, then remove older ones."""
    losses = t.accelerator.reduce(t.loss, "sum")
    if t.accelerator.is_main_process:
        state = {
            "progress": asdict(t.progress),
            "optimizer": t.recipe.optimizer.state_dict(),
            "loss": losses,
        }
        folder = t.run.checkpoints
        path = checkpoint.save(folder, step, t.recipe.model.state_dict(), state)
        best = checkpoint.checkpoint_path(folder, t.progress.best_step or step)
        checkpoint.rotate(folder, t.options.keep, {path, best})
    t.accelerator.wait_for_everyone()


def _restore(t: Training, path: Path) -> None:
    weights, state = checkpoint.load(path)
    _load_model(t.recipe.model, weights, path)
    t.recipe.optimizer.load_state_dict(state["optimizer"])
    t.progress = Progress(**state["progress"])
    t.run.forget_after(t.progress.step)
    if t.accelerator.is_main_process:  # the sum over all processes, so one of them takes it up
        t.loss = state["loss"].to(t.accelerator.device)
    t.display.note(f"going on from {path.name} of {t.total_steps} steps")


def _load_model(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(weights)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(
            f"the weights in {path} do not fit {type(model).__name__}: {error}. Give the settings the "
            "checkpoint was trained with"
        ) from error


def _finish(t: Training) -> dict[str, Any]:
    """Write and return the summary."""
    t.display.stop()
    on_cuda = t.accelerator.device.type == "cuda"
    bytes_used = (
        torch.cuda.max_memory_allocated()
        if on_cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    )
    summary = {
        "final": t.results,
        "best": {t.recipe.task.headline: t.progress.best, "step": t.progress.best_step},
        "steps": t.progress.step,
        "images": t.progress.images,
        "seconds": t.progress.seconds,
        "images_per_s": t.progress.images / t.progress.train_seconds if t.progress.train_seconds else None,
        "peak_memory_gib": bytes_used / 2**30,
        "num_processes": t.accelerator.num_processes,
    }
    t.run.write("summary.json", summary)
    return summary
