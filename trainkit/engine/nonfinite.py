"""Losses and gradients that are no numbers: found when the log is read, named, and kept to be looked into.

failures/step-<number>/  report.json  batch.safetensors  checkpoint/ (the state it began from)
"""

import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from trainkit.data.loader import collate
from trainkit.data.reader import UNUSABLE, Reader, name_of
from trainkit.engine.state import Training
from trainkit.files import reason, save_tensors
from trainkit.storage.checkpoint import digest
from trainkit.storage.lookup import find_weights

KEPT = ("report.json", "batch.safetensors", "checkpoint")  # of a failed step
NAMED = 4  # images in the message; the report has all


def read_window(t: Training, step: int) -> list[list[float]]:
    """Losses (K) and gradient norm of each step since the last row, up to `step`; waits for the device.

    Raises FloatingPointError where one is no number and that is to stop the run.
    """
    if not t.window:
        return []
    rows = t.accelerator.reduce(torch.stack(t.window), "sum").tolist()
    bad = [number for number, row in enumerate(rows) if is_failure(t, row)]
    if bad and t.options.on_nonfinite == "stop":
        raise FloatingPointError(_keep(t, step - len(rows) + bad[0] + 1, rows[bad[0]]))
    return rows


def is_failure(t: Training, row: Sequence[float]) -> bool:
    """Whether a step's row holds what is no number; in fp16 the scaler answers a gradient that is none itself."""
    return not math.isfinite(sum(row[:-1] if t.accelerator.scaler is not None else row))


def describe(t: Training, step: int, row: Sequence[float]) -> str:
    """What happened in `step` (counted from 1), in one sentence."""
    *losses, norm = row
    keys = t.plan.order.keys(step - 1)
    named = [f"{index} ({name_of(t.recipe.train_data, index)})" for _, index in keys[:NAMED]]
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    lr = t.groups[0]["lr"] * t.plan.multiplier(step - 1)
    first, second = (f"loss is {sum(losses)}", f"gradient norm {norm}")
    if math.isfinite(sum(losses)):
        first, second = f"gradient norm is {norm}", f"loss {sum(losses):.4g}"
    return (
        f"the {first} in step {step} ({second}, lr {lr:.3g}), with images {', '.join(named)}{more}"
    )


def _keep(t: Training, step: int, row: Sequence[float]) -> str:
    """Keep the failed step in the main process, while the others wait; what to tell."""
    told = f"{describe(t, step, row)}. Lower the learning rate, look at these images, or leave such steps out with "
    told += "--on-nonfinite skip. "
    if t.accelerator.is_main_process:
        folder = t.run.folder / "failures" / f"step-{step:09d}"
        try:
            _write(t, step, row, folder)
            told += f"Kept in {folder}: `trainkit replay {t.run.folder}` runs the step again"
        except (SafetensorError, *UNUSABLE) as error:
            told += f"It could not be kept in {folder}: {reason(error)}"
    t.accelerator.wait_for_everyone()
    return told


def _write(t: Training, step: int, row: Sequence[float], folder: Path) -> None:
    if folder.is_dir():
        strays = [path.name for path in folder.iterdir() if path.name not in KEPT]
        if strays:
            raise OSError(f"trainkit did not write {', '.join(strays)} in it; move that elsewhere")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    keys = t.plan.order.keys(step - 1)
    report: dict[str, Any] = {
        "step": step,
        "epoch": t.plan.epoch(step - 1),
        "losses": {term: str(loss) for term, loss in zip(t.recipe.task.terms, row)},
        "grad_norm": str(row[-1]),
        "lrs": [group["lr"] * t.plan.multiplier(step - 1) for group in t.groups],
        "images": [
            {"index": index, "name": name_of(t.recipe.train_data, index)} for _, index in keys
        ],
        "num_processes": t.accelerator.num_processes,
        "precision": t.accelerator.mixed_precision,
        "channels_last": t.options.channels_last,
        "tf32": t.options.tf32,
        "micro_batch": t.plan.order.micro_batch,
        "on_bad_image": t.options.on_bad_image,
        "static_graph": t.options.static_graph,
        "activation_checkpointing": t.options.activation_checkpointing,
    }
    t.saver.wait()
    before, _ = t.run.last_checkpoint(step - 1)
    if before is not None:
        shutil.copytree(before, folder / "checkpoint", copy_function=_link)
    report["checkpoint"] = before.name if before is not None else None
    if before is None and t.options.init is not None:  # the state it began from
        weights, _ = find_weights(t.options.init)
        report["init"] = {
            "weights": str(weights.resolve()),
            "sha256": digest(weights),
            "weights_key": t.options.weights_key,
        }
    neighbour = t.plan.order.neighbour if t.options.on_bad_image == "skip" else None
    reader = Reader(t.recipe.train_data, t.options.seed, neighbour=neighbour)
    try:
        images, targets, _ = collate([reader[key] for key in keys])
        save_tensors(
            {"images": images.contiguous(), "targets": targets.contiguous()},
            folder / "batch.safetensors",
        )
    except UNUSABLE as error:
        report["batch"] = f"could not be read again: {error}"
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")


def _link(source: str, target: str) -> None:
    """A second name for a file that is never changed, or a copy where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
