"""Set-up of a training: run folder, model, and the state that a step needs."""

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from trainkit import files
from trainkit.data.dataset_info import opened
from trainkit.data.to_device import ToDevice
from trainkit.data.workers import choose_workers
from trainkit.display.terminal import Display
from trainkit.display.wording import counted
from trainkit.distributed.accelerator import allow_tf32, start_accelerator
from trainkit.distributed.fsdp import Sharding, prepare
from trainkit.engine.activation_checkpointing import checkpoint_activations
from trainkit.engine.checkpointing import Checkpointer
from trainkit.engine.ema import EMA
from trainkit.engine.evaluation import Evaluator, require_free_names
from trainkit.engine.fsdp_trial import require_same_updates
from trainkit.engine.introduction import introduce
from trainkit.engine.metric_trial import try_metrics
from trainkit.engine.nonfinite import FailureRecorder
from trainkit.engine.optimizer_state import (
    group_values,
    has_modes,
    require_supported,
    switch_mode,
    to_weights,
)
from trainkit.engine.plan import TrainPlan
from trainkit.engine.precise_bn import refuse_frozen
from trainkit.engine.probe import first_image, refuse_lonely_values, unchanged
from trainkit.engine.reporting import Reporter
from trainkit.engine.state import TrainState
from trainkit.engine.step import Stepper
from trainkit.engine.stop_signal import FAILED, StopFlag, Stopped
from trainkit.engine.sync_batch_norm import synchronised
from trainkit.engine.task_module import TaskModule
from trainkit.errors import UserError
from trainkit.models.freezing import FrozenPart
from trainkit.models.outputs import refusals_told
from trainkit.options import Options
from trainkit.recipe import Recipe
from trainkit.storage import checkpoint
from trainkit.storage.checkpoint_writer import CheckpointWriter
from trainkit.storage.model_json import model_json
from trainkit.storage.run_files import posix_locks, read_memory
from trainkit.storage.run_folder import RunFolder

Value = TypeVar("Value")
SEEN_WITHIN_S = 10  # a file of another host, on a network disk that looks only every few seconds


@dataclass(frozen=True)
class Found:
    """What an earlier training left in the folder: where this one resumes."""

    path: Path | None = None
    """the checkpoint"""
    evaluation: dict[str, Any] | None = None
    """the log's row of the last one"""
    memory: dict[str, Any] | None = None
    """images of one pass that were found to fit into memory"""


def on_main_process(accelerator: Accelerator, function: Callable[[], Value]) -> Value:
    """What `function` returns in the main process, in all processes, which wait for it.

    Raises:
        UserError: in all of them where it raised one. Another error is raised in the main process,
            which reports it; the others are Stopped.
    """
    value: Value | None = None
    error: Exception | None = None
    if accelerator.is_main_process:
        try:
            value = function()
        except Exception as raised:  # the others wait for an answer; not every error can be sent
            error = raised
    refusal = error if isinstance(error, UserError) else None
    value, refusal, failed = broadcast_object_list([value, refusal, error is not None])
    if error is not None:
        raise error
    if refusal is not None:
        raise refusal
    if failed:
        raise Stopped(FAILED)
    return value


def open_run(
    accelerator: Accelerator,
    display: Display,
    options: Options,
    settings: Mapping[str, Any],
    recipe_file: Path | None,
    resume_invariants: Mapping[str, Any],
    lists: Mapping[str, bytes],
) -> tuple[RunFolder, Found]:
    """Open the run's folder and find what is in it; the main process decides for all.

    Args:
        accelerator: of this process.
        display: of the main process.
        options: of the run.
        settings: the recipe's.
        recipe_file: where the recipe came from.
        resume_invariants: see `TrainPlan`.
        lists: the files that say which images are held out, see `DatasetInfo`; the folder keeps
            them.

    Raises:
        UserError: this training may not have the folder or cannot write it.
    """

    def open_here() -> tuple[RunFolder, Found, Path]:
        try:
            run, notes = RunFolder.open(options, settings, recipe_file, resume_invariants)
        except OSError as error:
            raise _unwritable(options.out, error) from error
        try:
            run.keep_lists(lists)
            path, damaged = run.last_checkpoint()
            evaluation = run.forget_after(checkpoint.step_of(path) if path else 0)
            for line in (*notes, *damaged):
                display.note(line)
            mark = run.folder / f".seen-{uuid4().hex}"
            if accelerator.num_processes > 1:
                mark.touch()
            return run, Found(path, evaluation, read_memory(run.folder)), mark
        except OSError as error:
            run.close()
            raise _unwritable(options.out, error) from error
        except Exception:
            run.close()
            raise

    run, found, mark = on_main_process(accelerator, open_here)
    if accelerator.num_processes > 1:
        _all_see(accelerator, run, mark)
    return run, found


def _unwritable(folder: Path | None, error: OSError) -> UserError:
    return UserError(
        f"{folder} cannot be written: {files.reason(error)}; choose another folder with --out"
    )


def _all_see(accelerator: Accelerator, run: RunFolder, mark: Path) -> None:
    """Raise UserError where a process does not see the file that the main one has written."""
    until = time.monotonic() + SEEN_WITHIN_S
    while not (seen := mark.exists()) and time.monotonic() < until:
        time.sleep(0.1)
        with suppress(OSError):
            os.listdir(mark.parent)  # a network disk looks again
    place = f"{mark.parent.resolve()} on {socket.gethostname()}"
    blind = [each for places in gather_object([[] if seen else [place]]) for each in places]
    if accelerator.is_main_process:
        mark.unlink(missing_ok=True)
    if blind:
        run.close()
        raise UserError(
            "the run's folder is not one folder for all processes: what the main process writes is"
            f" not in {', '.join(blind[:4])}. Give --out a folder on a disk that all hosts share"
        )


class Started(NamedTuple):
    """What every command that trains begins with."""

    recipe: Recipe  # its training data are open
    accelerator: Accelerator
    display: Display
    plan: TrainPlan


def start(recipe: Recipe, options: Options) -> Started:
    """Open the training data, join the other processes, and plan the run.

    Raises:
        UserError: settings that cannot work, or no training can run.
    """
    posix_locks()
    opened(recipe.train_data)  # a fault of it is reported before the processes connect
    accelerator = start_accelerator(options.static_graph, options.timeout_s)
    display = Display(accelerator.is_main_process)
    plan = TrainPlan.of(recipe, options, accelerator.num_processes)
    refuse_lonely_values(recipe, options, plan)
    require_free_names(recipe.task)
    try_metrics(recipe.task)
    _require_freezable(recipe, options)
    return Started(recipe, accelerator, display, plan)


def _require_freezable(recipe: Recipe, options: Options) -> None:
    """Raise UserError where what is frozen for a while cannot be, or would be measured wrongly."""
    if not recipe.frozen:
        return
    if Sharding.asked() is not None:
        raise UserError(
            "freeze does not work under FSDP, whose units are gathered and reduced whole: launch"
            " without FSDP, or freeze for good with trainkit.freeze"
        )
    refuse_frozen(recipe, options.precise_bn)


@dataclass(frozen=True)
class Training:
    """The parts of one training; each function takes those that it needs."""

    recipe: Recipe
    options: Options
    accelerator: Accelerator
    plan: TrainPlan
    workers: int
    state: TrainState
    stop: StopFlag
    stepper: Stepper
    reporter: Reporter
    checkpointer: Checkpointer
    evaluator: Evaluator


def begin(
    recipe: Recipe,
    options: Options,
    accelerator: Accelerator,
    plan: TrainPlan,
    run: RunFolder,
    display: Display,
) -> Training:
    """Wrap model and optimizer, and report what will be trained on what."""
    introduce(recipe, display.note)
    display.note(
        f"{run.folder}: {plan.total_steps} steps, {counted(recipe.epochs, 'epoch')} of"
        f" {plan.order.num_images} images in batches of {recipe.batch_size} on"
        f" {accelerator.num_processes} x {accelerator.device.type}, precision"
        f" {accelerator.mixed_precision.replace('no', 'fp32')}"
    )
    groups = group_values(recipe.optimizer)
    with refusals_told(recipe.model):
        _convert(recipe, options, accelerator, plan)
    allow_tf32(options.tf32)
    frozen = _frozen(recipe, accelerator, plan)
    task_module = _prepared(recipe, accelerator)
    ema = None if recipe.ema is None else EMA(recipe.model, recipe.ema)
    to_device = ToDevice(accelerator.device, recipe.mean, recipe.std, options.channels_last)
    workers = choose_workers(options.workers, accelerator.num_processes)
    stop = StopFlag(accelerator.device, accelerator.num_processes)
    writer = CheckpointWriter(
        run.checkpoints, options.keep_checkpoints, options.async_checkpoint, model_json(recipe)
    )
    state = TrainState()
    reporter = Reporter(
        recipe=recipe,
        options=options,
        accelerator=accelerator,
        plan=plan,
        run=run,
        display=display,
        stop=stop,
        writer=writer,
        failures=FailureRecorder(
            recipe=recipe,
            options=options,
            accelerator=accelerator,
            plan=plan,
            run=run,
            writer=writer,
            groups=groups,
        ),
        state=state,
    )
    stepper = Stepper(
        recipe=recipe,
        options=options,
        accelerator=accelerator,
        plan=plan,
        task_module=task_module,
        to_device=to_device,
        ema=ema,
        groups=groups,
        frozen=frozen,
        state=state,
        reporter=reporter,
    )
    if stepper.others:
        display.note(
            f"{len(stepper.others)} parameters are not in the optimizer and stay as they are;"
            " requires_grad_(False) would save the time of their gradients"
        )
    checkpointer = Checkpointer(
        recipe=recipe,
        accelerator=accelerator,
        plan=plan,
        ema=ema,
        groups=groups,
        state=state,
        writer=writer,
        reporter=reporter,
    )
    evaluator = Evaluator(
        recipe=recipe,
        task_module=task_module,
        accelerator=accelerator,
        to_device=to_device,
        seed=options.seed,
        workers=workers,
        ema=ema,
        precise_bn=options.precise_bn,
        on_bad_image=options.on_bad_image,
    )
    return Training(
        recipe=recipe,
        options=options,
        accelerator=accelerator,
        plan=plan,
        workers=workers,
        state=state,
        stop=stop,
        stepper=stepper,
        reporter=reporter,
        checkpointer=checkpointer,
        evaluator=evaluator,
    )


def _frozen(recipe: Recipe, accelerator: Accelerator, plan: TrainPlan) -> FrozenPart | None:
    """What the recipe freezes for a while; before DDP looks at which parameters take gradients."""
    if not recipe.frozen:
        return None
    needs_gradients = accelerator.num_processes > 1
    return FrozenPart(recipe.model, recipe.frozen, plan.unfreeze_step, needs_gradients)


def _prepared(recipe: Recipe, accelerator: Accelerator) -> nn.Module:
    """Model and task as one module, and the optimizer, wrapped for processes and precision."""
    task_module: nn.Module = TaskModule(recipe.model, recipe.task)
    require_supported(recipe.optimizer, task_module)
    require_same_updates(recipe.optimizer, accelerator)
    task_module = prepare(accelerator, task_module, recipe.optimizer)
    to_weights(recipe.optimizer)
    if has_modes(recipe.optimizer):
        switch_mode(recipe.optimizer, training=True)
    return task_module


def _convert(recipe: Recipe, options: Options, accelerator: Accelerator, plan: TrainPlan) -> None:
    """Change the model as asked for, and check that no output changes."""
    model = recipe.model.to(accelerator.device)
    # read where it is needed
    image = cache(partial(first_image, recipe, options, plan, accelerator.device))
    if recipe.sync_batch_norm and accelerator.num_processes > 1:
        with unchanged(model, image(), "sync_batch_norm"):
            synchronised(model, accelerator)
    if options.channels_last:
        model.to(memory_format=torch.channels_last)
    if options.activation_checkpointing:
        with unchanged(model, image(), "activation_checkpointing"):
            checkpoint_activations(model)
