"""Dry run of a recipe: all that a run does, on three batches, and an estimate of its cost."""

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import Subset
from torch.utils.flop_counter import FlopCounterMode

from trainkit.commands.arguments import read_settings_and_options
from trainkit.commands.idle_settings import idle_settings
from trainkit.commands.proposals import propose
from trainkit.commands.recipe_file import build, load_recipe
from trainkit.commands.recipe_names import find_recipe
from trainkit.data.sampler import EVALUATION
from trainkit.data.seeding import Seeded, seed_host
from trainkit.display.result_tables import in_words
from trainkit.display.wording import counted, duration
from trainkit.distributed.accelerator import lost_processes_reported, use_whole_host
from trainkit.distributed.fsdp import is_sharded, reshard
from trainkit.distributed.sharded_tensors import local
from trainkit.engine.checkpointing import Checkpointer
from trainkit.engine.nonfinite import is_failure
from trainkit.engine.reporting import Reporter
from trainkit.engine.run_opening import on_main_process
from trainkit.engine.setup import Setup
from trainkit.engine.state import read_steps
from trainkit.engine.step import Stepper
from trainkit.engine.throughput import peak_memory_gib
from trainkit.engine.training import Training
from trainkit.errors import NonFiniteError, UserError
from trainkit.metrics.base import declared
from trainkit.models.freezing import frozen_statistics
from trainkit.options import Options
from trainkit.recipe import Recipe
from trainkit.storage.checkpoint import checkpoint_path
from trainkit.storage.locks import posix_locks
from trainkit.storage.run_folder import RunFolder

# the first one warms up and is saved; the others are timed, and trained again from what was saved
STEPS = 3
PLACES = 60  # of the schedule's curve


def run(recipe: str, words: list[str]) -> int:
    """Try a recipe, a file or the name of one; the exit code."""
    path = find_recipe(recipe)
    recipe_file = load_recipe(path)
    prog = f"trainkit check {recipe}"
    settings, options = read_settings_and_options(recipe_file, "check", prog, words)
    posix_locks()  # before a recipe that takes minutes to build
    if settings.get("pretrained") is True:  # bad data is reported before a download
        seed_host(options.seed)
        read_one_of_each(build(recipe_file, {**settings, "pretrained": False}))
    seed_host(options.seed)
    built = build(recipe_file, settings)
    use_whole_host()
    check(built, options)
    propose(recipe_file, settings)
    return 0


def read_one_of_each(recipe: Recipe) -> None:
    """Open the training and the validation data, and read an image of each.

    Raises:
        UserError: they cannot be opened, or the image cannot be read.
    """
    for data in (recipe.train_data, recipe.val_data):
        if len(data):
            Seeded(data, 0)[EVALUATION, 0]


@lost_processes_reported()
def check(recipe: Recipe, options: Options) -> dict[str, Any]:
    """Read, train, save, resume and evaluate on a few batches, and show and return the results.

    It leaves no files.

    Returns:
        "results", and "warnings" (settings that do nothing or contradict each other).

    Raises:
        UserError: resuming from a checkpoint does not give the same weights, or whatever a training
            would raise.
    """
    setup = Setup(recipe, options)
    accelerator, display, plan = setup.accelerator, setup.display, setup.plan
    setup.introduction.say()
    setup.load_initial_weights()
    folder = on_main_process(accelerator, _temporary_folder)
    try:
        own_run = RunFolder(folder, writes=accelerator.is_main_process)
        if accelerator.is_main_process:
            own_run.checkpoints.mkdir()
        quiet = replace(
            options,
            out=folder,
            workers=0,
            async_checkpoint=False,
            checkpoint_format="full",
            precise_bn=None,
        )
        frozen = frozen_statistics(recipe.model)
        results = _try(Training(setup.silent(quiet), own_run), setup.workers)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    warnings = idle_settings(recipe, options, plan)
    after = frozen_statistics(recipe.model)  # of more layers, where the recipe freezes a part
    moved = [name for name, mean in frozen.items() if not torch.equal(mean, after[name])]
    if moved:
        warnings.append(
            f"{len(moved)} batch norms of frozen layers ({', '.join(moved[:3])}) still count their"
            " statistics: freeze them with trainkit.freeze, which keeps them in evaluation mode"
        )
    warnings += setup.introduction.label_warnings()
    unrepeatable = setup.introduction.unrepeatable(options.seed, setup.workers, in_process=True)
    if unrepeatable:
        results["resume"] = "not bit-equal: images read again differ, see below"
        warnings.append(unrepeatable)
    display.table("check", _in_words(results))
    places = min(PLACES, plan.total_steps)
    curve = display.curve(
        [plan.multiplier(plan.total_steps * place // places) for place in range(places)]
    )
    display.note(f"learning rate over the run: {curve}")
    for warning in setup.introduction.unsaid(warnings):
        display.note(f"note: {warning}")
    return {"results": results, "warnings": warnings}


def _in_words(results: dict[str, Any]) -> dict[str, str]:
    """The results of a check with names and units, as they are shown."""
    steps = counted(results["total_steps"], "step")
    losses = results["losses"]
    training_alone = results["images_per_s_training_alone"]
    reading_alone = results["images_per_s_reading_alone"]
    return {
        "parameters": f"{results['weights']:,}",
        "forward pass": f"{results['gflops_per_image']:.3g} GFLOP per image",
        "micro-batch": f"{counted(results['micro_batch'], 'image')} per process,"
        f" {results['micro_batches_per_step']} per step",
        "peak memory": f"{results['peak_memory_gib']:.2f} GiB",
        f"loss of {counted(len(losses), 'step')}": ", ".join(f"{loss:.4g}" for loss in losses),
        f"evaluation of {counted(results['evaluated_images'], 'image')}": results["evaluation"],
        "resume from a checkpoint": results["resume"],
        "length of the run": f"{steps}, {results['steps_per_epoch']:,} per epoch",
        "speed": f"{_rate(results['images_per_s'])} images/s (training alone"
        f" {_rate(training_alone)}, reading alone {_rate(reading_alone)})",
        "time of the whole run": duration(3600 * results["forecast_hours"]),
    }


def _rate(images_per_s: float) -> str:
    return f"{images_per_s:.3g}" if images_per_s < 1000 else f"{images_per_s:,.0f}"


def _temporary_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="trainkit-check-"))


def _try(training: Training, workers: int) -> dict[str, Any]:
    """Run steps, a checkpoint, a resume from it and an evaluation; return their results."""
    setup, stepper = training.setup, training.stepper
    recipe, plan, options, accelerator = setup.recipe, setup.plan, setup.options, setup.accelerator
    checkpointer = training.checkpointer
    steps = min(STEPS, plan.total_steps)
    loader = plan.loader(0, steps, accelerator, workers=0)
    read_s, batches = _timed(
        accelerator, lambda: [(images, targets) for images, targets, _ in loader]
    )
    read_s /= sum(len(images) for images, _ in batches)  # of one image, by one reading process
    flops = _flops(stepper, *batches[0])

    checkpointer.require_savable()
    stepper.task_module.train()
    train = partial(_train, stepper, training.reporter)
    first_s, losses = _timed(accelerator, lambda: train(batches[:1], 0))
    checkpointer.require_savable()
    checkpointer.save()
    step_s, more_losses = _timed(accelerator, lambda: train(batches[1:], 1))
    step_s = step_s / (steps - 1) if steps > 1 else first_s
    resumes = _resumes(recipe.model, checkpointer, lambda: train(batches[1:], 1))

    num_images = min(len(recipe.val_data), 2 * recipe.eval_batch_size * accelerator.num_processes)
    val_data: Any = recipe.val_data
    few = replace(recipe, val_data=Subset(val_data, range(num_images)))
    evaluator = replace(training.evaluator, recipe=few, workers=0)
    eval_s, results = _timed(accelerator, lambda: evaluator.run(steps=(steps, plan.total_steps)))

    reading_s = recipe.batch_size / accelerator.num_processes * read_s / max(1, workers)
    bound_s = max(step_s, reading_s) if workers else step_s + reading_s
    evaluations = max(1, int(recipe.epochs // options.evaluate_every))
    total_s = plan.total_steps * bound_s + evaluations * len(recipe.val_data) * eval_s / num_images
    numbers = {
        name: value
        for name, value in results.items()
        if isinstance(value, (int, float)) and not name.startswith("num_")
    }
    percent = declared(recipe.task, "percent")
    return {
        "weights": sum(weight.numel() for weight in recipe.model.parameters()),
        "gflops_per_image": flops / 1e9,
        "micro_batch": max(plan.order.passes(0, 0)),
        "micro_batches_per_step": len(plan.order.passes(0, 0)),
        "peak_memory_gib": peak_memory_gib(accelerator),
        "losses": [round(loss, 4) for loss in (*losses, *more_losses)],
        "evaluated_images": num_images,
        "evaluation": ", ".join(
            f"{name} {in_words(name, value, percent)}" for name, value in numbers.items()
        ),
        "resume": resumes,
        "steps_per_epoch": plan.order.steps_per_epoch,
        "total_steps": plan.total_steps,
        "images_per_s": recipe.batch_size / bound_s,
        "images_per_s_training_alone": recipe.batch_size / step_s,
        "images_per_s_reading_alone": recipe.batch_size / reading_s,
        "forecast_hours": total_s / 3600,
    }


def _train(
    stepper: Stepper, reporter: Reporter, batches: list[tuple[Tensor, Tensor]], first_step: int
) -> list[float]:
    """Train on the batches; the loss of each step."""
    rows = []
    for step, (images, targets) in enumerate(batches, first_step):
        stats = stepper(step, images, targets)
        stepper.state.advance(num_images=0, seconds=0.0)
        reporter.step(stats, [])
        rows.append(stats.row)
    steps = read_steps(stepper.accelerator, rows, first_step + len(rows))
    for numbers in steps:
        if is_failure(numbers, stepper.accelerator):
            raise NonFiniteError(reporter.failures.describe(numbers))
    return [numbers.loss for numbers in steps]


def _resumes(
    model: nn.Module, checkpointer: Checkpointer, train_again: Callable[[], object]
) -> str:
    """Whether the steps after the first, trained again from its checkpoint, give equal weights."""
    accelerator = checkpointer.accelerator
    path = checkpoint_path(checkpointer.writer.folder, 1)
    if not all(gather_object([path.exists()])):
        return "not tried: the hosts have no temporary folder in common"
    buffers = {name for name, _ in model.named_buffers()}
    compared = [
        name for name in model.state_dict() if accelerator.is_main_process or name not in buffers
    ]
    after = {name: local(value).clone() for name, value in model.state_dict().items()}
    checkpointer.restore(path)
    train_again()
    mine = [
        name for name in compared if not torch.equal(local(model.state_dict()[name]), after[name])
    ]
    different = [name for names in gather_object([mine]) for name in names]
    if different and accelerator.device.type == "cpu":
        raise UserError(
            f"resuming from a checkpoint gave other weights ({', '.join(different[:3])}): something"
            " in the model or the optimizer keeps state that no checkpoint sees"
        )
    return (
        "not bit-equal: kernels of this device add in changing order" if different else "bit-equal"
    )


def _timed(accelerator: Accelerator, work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that the work takes, on the device too, and what it gave."""
    begun = time.perf_counter()
    result = work()
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun, result


@torch.no_grad()
def _flops(stepper: Stepper, images: Tensor, targets: Tensor) -> int:
    """Floating-point operations of one image's forward pass, by torch's own counter."""
    images, targets = stepper.to_device(images[:1], targets[:1])
    task_module = stepper.task_module
    was_training = task_module.training
    task_module.eval()
    with FlopCounterMode(display=False) as counter:
        if is_sharded(task_module):  # which gathers the weights
            task_module(images, targets)
        else:
            stepper.recipe.model(images)
    reshard(task_module)
    task_module.train(was_training)
    return counter.get_total_flops()
