"""How a training begins: its folder, the model as asked for, and all that a step needs."""

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from trainkit import files
from trainkit.data.to_device import ToDevice
from trainkit.data.workers import choose_workers
from trainkit.display import Display
from trainkit.distributed.fsdp import prepare
from trainkit.engine.activation_checkpointing import checkpoint_activations
from trainkit.engine.ema import EMA
from trainkit.engine.evaluation import Evaluation
from trainkit.engine.fsdp_trial import require_same_updates
from trainkit.engine.introduction import introduce
from trainkit.engine.optimizer_state import (
    group_values,
    has_modes,
    of_torch,
    require_supported,
    to_weights,
    trained_and_others,
)
from trainkit.engine.plan import Plan
from trainkit.engine.probe import first_image, unchanged
from trainkit.engine.rollback import Undo
from trainkit.engine.state import Training
from trainkit.engine.stop_signal import FAILED, StopFlag, Stopped
from trainkit.engine.sync_batch_norm import synchronised
from trainkit.engine.task_module import Objective
from trainkit.errors import UserError
from trainkit.options import Options
from trainkit.outputs import refusals_told
from trainkit.recipe import Recipe
from trainkit.storage import checkpoint
from trainkit.storage.checkpoint_writer import Saver
from trainkit.storage.run_files import read_memory
from trainkit.storage.run_folder import Run

SEEN_WITHIN_S = 10  # a file of another host, on a network disk that looks only every few seconds


@dataclass(frozen=True)
class Found:
    """What an earlier training left in the folder: where this one goes on."""

    path: Path | None = None
    """the checkpoint"""
    evaluation: dict[str, Any] | None = None
    """the log's row of the last one"""
    memory: dict[str, Any] | None = None
    """images of one pass that were found to fit into memory"""


def open_run(
    accelerator: Accelerator,
    display: Display,
    options: Options,
    settings: Mapping[str, Any],
    recipe_file: Path | None,
    mathematics: Mapping[str, Any],
) -> tuple[Run, Found]:
    """The run's folder and what is in it; the main process decides for all.

    Raises UserError where this training may not have the folder or cannot write it. Another error is the main
    process's, which says why; the others are Stopped.
    """
    answer: list[Any] = [None, None]
    bug: Exception | None = None
    (mark,) = broadcast_object_list([(options.out or Path()) / f".seen-{uuid4().hex}"])
    run = Run(options.out or Path(), writes=False)
    if accelerator.is_main_process:
        try:
            run, notes = Run.open(options, settings, recipe_file, mathematics)
            path, damaged = run.last_checkpoint()
            evaluation = run.forget_after(checkpoint.step_of(path) if path else 0)
            for line in (*notes, *damaged):
                display.note(line)
            if accelerator.num_processes > 1:
                mark.touch()
            answer = [Found(path, evaluation, read_memory(run.folder)), None]
        except ValueError as error:
            run.close()
            answer = [None, error]
        except OSError as error:
            run.close()
            problem = f"{options.out} cannot be written: {files.reason(error)}; choose another folder with --out"
            answer = [None, ValueError(problem)]
        except (
            Exception
        ) as error:  # the others wait for an answer, and it may be one that cannot be sent
            run.close()
            bug = error
    found, error = broadcast_object_list(answer)
    if error is not None:
        raise error
    if found is None:
        raise bug or Stopped(FAILED)
    if accelerator.num_processes > 1:
        _all_see(accelerator, run, mark)
    return run, found


def _all_see(accelerator: Accelerator, run: Run, mark: Path) -> None:
    """Raises UserError where a process does not see the file that the main one has written into the folder."""
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
            f"the run's folder is not one folder for all processes: what the main process writes is not in "
            f"{', '.join(blind[:4])}. Give --out a folder on a disk that all hosts share"
        )


def begin(
    recipe: Recipe,
    options: Options,
    accelerator: Accelerator,
    plan: Plan,
    run: Run,
    display: Display,
) -> Training:
    """Wrap model and optimizer, and say what will be trained on what."""
    introduce(recipe, display.note)
    display.note(
        f"{run.folder}: {plan.total_steps} steps, {recipe.epochs:g} epochs of {plan.order.num_images} images in "
        f"batches of {recipe.batch_size} on {accelerator.num_processes} x {accelerator.device.type}, "
        f"precision {accelerator.mixed_precision.replace('no', 'fp32')}"
    )
    groups = group_values(recipe.optimizer)
    with refusals_told(recipe.model):
        _convert(recipe, options, accelerator, plan)
    allow_tf32(options.tf32)
    objective = Objective(recipe.model, recipe.task)
    require_supported(recipe.optimizer, objective)
    require_same_updates(recipe.optimizer, accelerator)
    objective = prepare(accelerator, objective, recipe.optimizer)
    to_weights(recipe.optimizer)
    if has_modes(recipe.optimizer):
        recipe.optimizer.train()
    weights, others = trained_and_others(objective, recipe.optimizer)
    if others:
        display.note(
            f"{len(others)} parameters are not in the optimizer and stay as they are; requires_grad_(False) would save "
            "the time of their gradients"
        )
    ema = None if recipe.ema is None else EMA(recipe.model, recipe.ema)
    to_device = ToDevice(accelerator.device, recipe.mean, recipe.std, options.channels_last)
    workers = choose_workers(options.workers, accelerator.num_processes)
    skips = options.on_nonfinite == "skip"
    return Training(
        recipe=recipe,
        options=options,
        accelerator=accelerator,
        plan=plan,
        run=run,
        display=display,
        objective=objective,
        to_device=to_device,
        stop=StopFlag(accelerator.device, accelerator.num_processes),
        saver=Saver(run.checkpoints, options.keep, options.background_save),
        ema=ema,
        undo=Undo(recipe.model, recipe.optimizer, skips and of_torch(recipe.optimizer)),
        workers=workers,
        evaluation=Evaluation(
            recipe,
            objective,
            accelerator,
            to_device,
            options.seed,
            workers,
            ema,
            options.precise_bn,
            options.on_bad_image,
        ),
        groups=groups,
        weights=weights,
        others=others,
    )


def _convert(recipe: Recipe, options: Options, accelerator: Accelerator, plan: Plan) -> None:
    """Change the model as asked for, and see that no output changes."""
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


def allow_tf32(allowed: bool) -> None:
    """Whether float32 may be multiplied in TF32, in matrix products and convolutions alike."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
