"""What one training has in hand, and how it is begun, saved, restored and finished."""

import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from trainkit import checkpoint
from trainkit.data.loader import choose_workers
from trainkit.display import Display
from trainkit.objective import Objective, ToDevice
from trainkit.plan import Plan
from trainkit.recipe import Recipe
from trainkit.run import Options, Run
from trainkit.signals import StopFlag


@dataclass
class Progress:
    """How far a run is: saved with every checkpoint."""

    step: int = 0
    images: int = 0
    train_seconds: float = 0.0
    seconds: float = 0.0
    best: float | None = None
    best_step: int | None = None
    evaluated: int = 0
    """step after which the last evaluation was"""


@dataclass
class Training:
    """What one training has in hand."""

    recipe: Recipe
    options: Options
    accelerator: Accelerator
    plan: Plan
    run: Run
    display: Display
    objective: nn.Module  # wrapped for processes and precision
    optimizer: Any  # wrapped likewise
    to_device: ToDevice
    stop: StopFlag
    workers: int
    groups: list[dict[str, Any]]  # the optimizer's, as the recipe set them
    loss: Tensor  # (K,) sums over the steps since the last row, this process's part
    progress: Progress = field(default_factory=Progress)
    resumed_from: int = 0  # step of the checkpoint that this process went on from
    saved: int = 0  # step of the newest checkpoint
    since: tuple[int, float] = (0, 0.0)  # images and seconds of training at the last row
    results: dict[str, Any] = field(default_factory=dict)


def open_run(
    accelerator: Accelerator,
    display: Display,
    options: Options,
    settings: Mapping[str, Any],
    recipe_file: Path | None,
    mathematics: Mapping[str, Any],
) -> tuple[Run, Path | None]:
    """The run folder and the checkpoint to go on from; the main process decides for all."""
    answer: list[Any] = [None, None]
    run = Run(options.out or Path(), writes=False)
    if accelerator.is_main_process:
        try:
            run, notes = Run.open(options, settings, recipe_file, mathematics)
            path, damaged = run.last_checkpoint()
            for line in (*notes, *damaged):
                display.note(line)
            answer = [path, None]
        except ValueError as error:
            run.close()
            answer = [None, error]
    path, error = broadcast_object_list(answer)
    if error is not None:
        raise error
    return run, path


def begin(
    recipe: Recipe, options: Options, accelerator: Accelerator, plan: Plan, run: Run, display: Display
) -> Training:
    """Wrap model and optimizer, and say what will be trained on what."""
    if recipe.note:
        display.note(recipe.note)
    display.note(
        f"{run.folder}: {plan.total_steps} steps, {recipe.epochs:g} epochs of {plan.order.num_images} images in "
        f"batches of {recipe.batch_size} on {accelerator.num_processes} x {accelerator.device.type}, "
        f"precision {accelerator.mixed_precision.replace('no', 'fp32')}"
    )
    groups = [
        {name: value for name, value in group.items() if name != "params"} for group in recipe.optimizer.param_groups
    ]
    objective, optimizer = accelerator.prepare(Objective(recipe.model, recipe.task), recipe.optimizer)
    return Training(
        recipe=recipe,
        options=options,
        accelerator=accelerator,
        plan=plan,
        run=run,
        display=display,
        objective=objective,
        optimizer=optimizer,
        to_device=ToDevice(accelerator.device, recipe.mean, recipe.std),
        stop=StopFlag(accelerator.device, accelerator.num_processes),
        workers=choose_workers(options.workers, accelerator.num_processes),
        groups=groups,
        loss=torch.zeros(len(recipe.task.terms), device=accelerator.device),
    )


def save(t: Training, step: int) -> None:
    """Write a checkpoint in the main process, then remove older ones."""
    losses = t.accelerator.reduce(t.loss, "sum")
    if t.accelerator.is_main_process:
        state = {
            "progress": asdict(t.progress),
            "results": t.results,
            "optimizer": t.recipe.optimizer.state_dict(),
            "loss": losses,
        }
        folder = t.run.checkpoints
        resumed = [checkpoint.checkpoint_path(folder, t.resumed_from)] if t.resumed_from else []
        path = checkpoint.save(folder, step, t.recipe.model.state_dict(), state)
        best = checkpoint.checkpoint_path(folder, t.progress.best_step or step)
        checkpoint.rotate(folder, t.options.keep, {path, best, *resumed})
    t.saved = step
    t.accelerator.wait_for_everyone()


def restore(t: Training, path: Path) -> None:
    """Take up the state in `path`, and drop the log's rows of steps lost since."""
    weights, state = checkpoint.load(path)
    load_model(t.recipe.model, weights, path)
    t.recipe.optimizer.load_state_dict(state["optimizer"])
    for group, asked in zip(t.recipe.optimizer.param_groups, t.groups):
        group.update(asked)  # a setting changed on purpose, such as weight decay, is not undone
    t.progress, t.results = Progress(**state["progress"]), state["results"]
    t.since = t.progress.images, t.progress.train_seconds
    t.resumed_from = t.saved = t.progress.step
    if t.accelerator.is_main_process:  # the sum over all processes, so one of them takes it up
        t.loss.copy_(state["loss"])
    t.run.forget_after(t.progress.step, t.progress.evaluated)
    t.display.note(f"going on from {path.name} of {t.plan.total_steps} steps")


def load_model(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load weights. Raises ValueError that lists the keys where they do not fit."""
    try:
        model.load_state_dict(weights)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(
            f"the weights in {path} do not fit {type(model).__name__}: {error}. Give the settings the "
            "checkpoint was trained with"
        ) from error


def finish(t: Training) -> dict[str, Any]:
    """Write and return the summary."""
    if t.accelerator.device.type == "cuda":
        bytes_used = torch.cuda.max_memory_allocated()
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        bytes_used = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    summary = {
        "final": t.results,
        "best": {t.recipe.task.headline: t.progress.best, "step": t.progress.best_step},
        "steps": t.progress.step,
        "images": t.progress.images,
        "seconds": t.progress.seconds,
        "images_per_s": t.progress.images / t.progress.train_seconds,
        "peak_memory_gib": bytes_used / 2**30,
        "num_processes": t.accelerator.num_processes,
    }
    t.run.write("summary.json", summary)
    return summary
