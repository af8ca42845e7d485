"""What a training writes into its folder, and takes up again: checkpoints, rows of the log, the summary."""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from trainkit import files
from trainkit.data.datasets.inventory import used
from trainkit.distributed.fsdp import part, unsharded_state, whole
from trainkit.engine.label_warnings import evaluation_warnings, window_warnings
from trainkit.engine.nonfinite import read_window
from trainkit.engine.optimizer_state import (
    evaluation_mode,
    has_modes,
    state_of,
    take_up,
    train_with,
)
from trainkit.engine.state import Progress, Training
from trainkit.engine.stop_signal import FAILED
from trainkit.errors import UserError
from trainkit.storage import checkpoint, packing
from trainkit.storage.weights import load_model, require_same_names


def save(t: Training, step: int) -> None:
    """Write a checkpoint in the main process, then remove older ones."""
    tell_bad_images(t)
    count_targets(t)
    window = torch.tensor(read_window(t, step))
    with evaluation_mode(t.recipe.optimizer) as in_training:
        state = {**_state(t, in_training), "window": window}
        model, state = whole(
            (t.recipe.model.state_dict(), state), keep=t.accelerator.is_main_process
        )
        if t.accelerator.is_main_process:
            steps = (t.resumed_from, t.progress.best_step)
            protected = [
                checkpoint.checkpoint_path(t.run.checkpoints, step) for step in steps if step
            ]
            t.saver.save(step, model, state, protected)
            tell_saves(t)
    t.saved = step
    t.accelerator.wait_for_everyone()


def _state(t: Training, in_training: list[Tensor] | None) -> dict[str, Any]:
    """What a checkpoint holds besides the model. in_training: weights where the model now has others."""
    scaler = t.accelerator.scaler
    return {
        "progress": asdict(t.progress),
        "results": t.results,
        "optimizer": state_of(t.recipe.optimizer, t.groups),
        "in_training": in_training,
        "ema": None if t.ema is None else t.ema.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
    }


def rehearse(t: Training) -> None:
    """See that a checkpoint can hold what there is now.

    Before the first step, and after it, when the optimizer has made its state. Raises UserError where it cannot.
    """
    model, optimizer = t.recipe.model, t.recipe.optimizer
    whole_state = unsharded_state(optimizer)
    if whole_state is not None:
        raise UserError(
            f"optimizer {type(optimizer).__name__} holds {whole_state!r}, which is not sharded as its weights are: "
            "FSDP cannot save it. Take AdamW or SGD, or launch without FSDP"
        )
    packing.rehearse(model, {"model": model.state_dict(), **_state(t, None)})


def count_targets(t: Training) -> None:
    """Add the valid targets of the steps since the last time to those of the window; waits for the device."""
    if t.targets is not None:
        t.progress.window_targets += float(t.targets)
        t.targets = None


def restore(t: Training, path: Path, evaluation: Mapping[str, Any] | None) -> None:
    """Take up the state in `path`, and the last evaluation, which the log has."""
    weights, state = checkpoint.load(path)
    require_same_names(t.recipe.model, weights, path)
    load_model(t.recipe.model, weights, path)
    optimizer = t.recipe.optimizer
    take_up(optimizer, state["optimizer"], t.groups)
    if has_modes(optimizer):
        live = (weight for group in optimizer.param_groups for weight in group["params"])
        train_with(
            optimizer, [part(value, weight) for value, weight in zip(state["in_training"], live)]
        )
    if t.ema is not None:
        t.ema.load_state_dict(state["ema"])
    if state["scaler"] is not None and t.accelerator.scaler is not None:
        t.accelerator.scaler.load_state_dict(state["scaler"])
    t.progress, t.results = Progress(**state["progress"]), state["results"]
    if evaluation is not None:
        note_evaluation(t, evaluation)
    t.since = t.progress.images, t.progress.train_seconds
    t.resumed_from = t.saved = t.progress.step
    # What is in it is summed over all processes, so one of them takes it up.
    t.window = list(state["window"].to(t.accelerator.device) * t.accelerator.is_main_process)
    t.display.note(f"going on from step-{t.progress.step:09d} of {t.plan.total_steps} steps")


def note_evaluation(t: Training, row: Mapping[str, Any]) -> None:
    """Take up the figures in a row of the log."""
    t.progress.evaluated, t.progress.best, t.progress.best_step = (
        row["step"],
        row["best"],
        row["best_step"],
    )
    t.results = {
        name: row[name]
        for name in row
        if name not in ("event", "step", "epoch", "best", "best_step")
    }


def log(t: Training, row: Mapping[str, Any]) -> None:
    """Add a row to the log."""
    try:
        t.run.append(row)
    except OSError as error:
        cannot_write(
            t, OSError(f"{t.run.folder}/log.jsonl cannot be written: {files.reason(error)}")
        )


def tell_saves(t: Training) -> None:
    """Log and show what the saver has written by now, or that it could not."""
    for row in t.saver.written():
        t.trouble = None  # of an earlier save, which the run went on without
        log(t, row)
        t.display.note(
            f"saved step {row['step']}: training paused {row['pause_s']:.2f} s, {_size(row['bytes'])}"
        )
    while (error := t.saver.error()) is not None:
        cannot_write(t, error)


def cannot_write(t: Training, error: OSError) -> None:
    """Stop all processes after the step, or go on without: `--on-save-error`."""
    if t.options.on_save_error == "stop":
        t.trouble = t.trouble or error
        t.stop.ask(FAILED)
    elif str(error) != str(t.trouble):  # the same trouble is told once
        t.trouble = error
        t.display.note(f"{error}; going on without it")


def tell_bad_images(t: Training) -> None:
    """Count the images replaced in all processes, and list new ones in the folder."""
    if t.options.on_bad_image == "skip":
        lines = gather_object(t.bad_images)
        t.bad_images = []
        t.progress.bad_images += len(lines)
        if lines and t.accelerator.is_main_process:
            try:
                for line in t.run.list_bad_images(lines):
                    t.display.note(f"image {line}: the next one in the order takes its place")
            except OSError as error:
                cannot_write(
                    t,
                    OSError(
                        f"{t.run.folder}/bad_images.txt cannot be written: {files.reason(error)}"
                    ),
                )


def remember_micro_batch(t: Training, micro_batch: int, alone: bool) -> None:
    """Go on with passes of so many images, and begin with them when the run goes on.

    alone: the others do not know, so that this process writes it, whichever it is.
    """
    t.plan = t.plan.in_passes_of(micro_batch)
    # a replay remembers nothing
    if (t.accelerator.is_main_process or alone) and t.options.out is not None:
        try:
            t.run.remember_micro_batch(micro_batch, t.options.micro_batch)
        except OSError as error:
            cannot_write(
                t, OSError(f"{t.run.folder}/memory.json cannot be written: {files.reason(error)}")
            )


def finish(t: Training) -> dict[str, Any]:
    """Write and return the summary. Raises OSError where the folder cannot be written."""
    if t.progress.step != t.plan.total_steps:  # a run that something cut short is not finished
        raise RuntimeError(
            f"the training ended after step {t.progress.step} of {t.plan.total_steps}, which no rule of the run asked "
            "for: something that it calls ended an iteration (StopIteration)"
        )
    t.saver.wait()
    tell_saves(t)
    if t.trouble is not None and t.options.on_save_error == "stop":
        raise t.trouble  # without its last checkpoint a run is not finished
    summary = {
        "final": t.results,
        "best": {t.recipe.headline: t.progress.best, "step": t.progress.best_step},
        "steps": t.progress.step,
        "images": t.progress.images,
        "skipped_steps": t.progress.skipped_steps,
        "bad_images": t.progress.bad_images,
        "seconds": t.progress.seconds,
        "images_per_s": t.progress.images / t.progress.train_seconds,
        "peak_memory_gib": peak_memory_gib(t.accelerator),
        "num_processes": t.accelerator.num_processes,
        "data": {"train": used(t.recipe.train_data), "val": used(t.recipe.val_data)},
        "warnings": [
            *t.warnings,
            *window_warnings(t.progress.windows_without_targets),
            *evaluation_warnings(t.results, t.recipe.task),
        ],
    }
    try:
        t.run.write("summary.json", summary)
    except OSError as error:
        cannot_write(
            t, OSError(f"{t.run.folder}/summary.json cannot be written: {files.reason(error)}")
        )
    if t.trouble is not None and t.options.on_save_error == "stop":
        raise t.trouble
    return summary


def peak_memory_gib(accelerator: Accelerator) -> float:
    """The most that this process has used: of the GPU where it has one, else of the host."""
    if accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    import resource  # which Windows has not

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:.0f} KiB"
