"""Non-finite (NaN/Inf) losses and gradients: found when the log is read, and kept for replay.

failures/step-<number>/  report.json  batch.safetensors  checkpoint/ (the state it began from)
"""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError

from trainkit.data.loader import collate
from trainkit.data.reader import UNUSABLE, Reader, name_of
from trainkit.engine.setup import Setup
from trainkit.engine.state import StepNumbers
from trainkit.files import reason, save_tensors
from trainkit.storage.checkpoint import digest
from trainkit.storage.checkpoint_writer import CheckpointWriter
from trainkit.storage.lookup import find_weights
from trainkit.storage.run_folder import RunFolder

KEPT = ("report.json", "batch.safetensors", "checkpoint")  # of a failed step
NAMED = 4  # images in the message; the report has all


def is_failure(numbers: StepNumbers, accelerator: Accelerator) -> bool:
    """Whether a step's loss or gradient is non-finite.

    In fp16 the scaler answers such a gradient itself.
    """
    if accelerator.scaler is not None:
        return not math.isfinite(numbers.loss)
    return not numbers.is_finite


class FailureRecorder:
    """Names a step whose loss or gradient is non-finite, and saves it for replay."""

    def __init__(self, setup: Setup, run: RunFolder, writer: CheckpointWriter):
        """Keep what a failed step is described by.

        Args:
            setup: of the training.
            run: in whose folder failed steps are kept.
            writer: of the checkpoints from which they can be replayed.
        """
        self.recipe = setup.recipe
        self.terms = setup.terms
        self.distillation = setup.distillation
        self.options = setup.options
        self.accelerator = setup.accelerator
        self.plan = setup.plan
        self.run = run
        self.writer = writer

    def describe(self, numbers: StepNumbers) -> str:
        """What happened in the step, in one sentence."""
        step, loss, norm = numbers.step, numbers.loss, numbers.grad_norm
        keys = self.plan.order.keys(step - 1)
        named = [f"{index} ({name_of(self.recipe.train_data, index)})" for _, index in keys[:NAMED]]
        more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
        lr = self.plan.groups[0]["lr"] * self.plan.multiplier(step - 1)
        if math.isfinite(loss):
            first, second = f"gradient norm is {norm}", f"loss {loss:.4g}"
        else:
            first, second = f"loss is {loss}", f"gradient norm {norm}"
        return (
            f"the {first} in step {step} ({second}, lr {lr:.3g}), with images "
            f"{', '.join(named)}{more}"
        )

    def keep(self, numbers: StepNumbers) -> str:
        """Save the failed step in the main process, while the others wait; what to report."""
        message = (
            f"{self.describe(numbers)}. The same command meets it again: look at these images,"
            " leave such updates out with --on-nonfinite skip, or train with a lower learning rate"
            " in another folder (--out; --init-from takes weights along). "
        )
        if self.accelerator.is_main_process:
            folder = self.run.folder / "failures" / f"step-{numbers.step:09d}"
            try:
                self._write(numbers, folder)
                message += (
                    f"Kept in {folder}: `trainkit replay {self.run.folder}` runs the step again and"
                    " says where it began"
                )
            except (SafetensorError, *UNUSABLE) as error:
                message += f"It could not be kept in {folder}: {reason(error)}"
        self.accelerator.wait_for_everyone()
        return message

    def _write(self, numbers: StepNumbers, folder: Path) -> None:
        step = numbers.step
        if folder.is_dir():
            strays = [path.name for path in folder.iterdir() if path.name not in KEPT]
            if strays:
                raise OSError(
                    f"trainkit did not write {', '.join(strays)} in it; move that elsewhere"
                )
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        keys = self.plan.order.keys(step - 1)
        report: dict[str, Any] = {
            "step": step,
            "epoch": self.plan.epoch(step - 1),
            "losses": {term: str(loss) for term, loss in zip(self.terms, numbers.losses)},
            "grad_norm": str(numbers.grad_norm),
            "lrs": [
                group["lr"] * multiplier
                for group, multiplier in zip(self.plan.groups, self.plan.multipliers(step - 1))
            ],
            "images": [
                {"index": index, "name": name_of(self.recipe.train_data, index)}
                for _, index in keys
            ],
            "num_processes": self.accelerator.num_processes,
            "precision": self.accelerator.mixed_precision,
            "channels_last": self.options.channels_last,
            "tf32": self.options.tf32,
            "micro_batch": self.plan.order.micro_batch,
            "on_bad_image": self.options.on_bad_image,
            "static_graph": self.options.static_graph,
            "activation_checkpointing": self.options.activation_checkpointing,
        }
        self.writer.wait()
        before, _ = self.run.last_checkpoint(step - 1)
        if before is not None:
            shutil.copytree(before, folder / "checkpoint", copy_function=_link)
        report["checkpoint"] = before.name if before is not None else None
        if before is None and self.options.init_from is not None:  # the state it began from
            weights, _ = find_weights(self.options.init_from)
            report["init"] = {
                "weights": str(weights.resolve()),
                "sha256": digest(weights),
                "weights_key": self.options.weights_key,
            }
        if self.distillation is not None:
            report["teacher"] = self.distillation.as_recorded
        reader = Reader(
            self.recipe.train_data, self.options.seed, replacement=self.plan.replacement
        )
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
    """Link a file that is never changed to a second name, or copy it where links are missing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
