"""Checkpoints of a training: saved, resumed from, and rehearsed before the first step."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainkit.distributed.sharded_tensors import part, unsharded_state, whole
from trainkit.engine.ema import EMA
from trainkit.engine.optimizer_state import (
    evaluation_mode,
    has_modes,
    state_of,
    take_up,
    train_with,
)
from trainkit.engine.reporting import Reporter
from trainkit.engine.setup import Setup
from trainkit.engine.state import TrainState
from trainkit.errors import UserError, may_fail_alone
from trainkit.storage import checkpoint, packing
from trainkit.storage.checkpoint_writer import CheckpointWriter
from trainkit.storage.model_json import require_same_build
from trainkit.storage.old_names import renamed_state
from trainkit.storage.weights import load_model, require_same_names

# names of tensors in a checkpoint's state, see `Checkpointer._state`: laid out as weights are
OF_WEIGHT = re.compile(r"state\.(?:in_training\.(\d+)|optimizer\.state_dict\.state\.(\d+)\.[^.]+)")
AVERAGES = "state.ema.averages."


class Checkpointer:
    """Saves a training and restores it; everything that a step depends on is in a checkpoint."""

    def __init__(
        self,
        setup: Setup,
        writer: CheckpointWriter,
        ema: EMA | None,
        state: TrainState,
        reporter: Reporter,
    ):
        """Keep the parts that are saved.

        Args:
            setup: of the training.
            writer: that writes to the run's folder.
            ema: averages, or None.
            state: how far the training is.
            reporter: of what is saved.
        """
        self.recipe = setup.recipe
        self.accelerator = setup.accelerator
        self.plan = setup.plan
        self.writer = writer
        self.ema = ema
        self.state = state
        self.reporter = reporter
        self.saved = 0  # step of the newest checkpoint
        self.resumed_from = 0  # step of the checkpoint that this process resumed from

    def save(self) -> None:
        """Write a checkpoint, in the main process or each process its part; remove older ones.

        All processes call it together.
        """
        step = self.state.step
        self.reporter.report_bad_images()
        self.reporter.count_targets()
        # `read_unlogged` ends the training where one is non-finite: no checkpoint is written then
        unlogged = torch.tensor(
            [[*numbers.losses, numbers.grad_norm] for numbers in self.reporter.read_unlogged()]
        )
        with evaluation_mode(self.recipe.optimizer) as in_training:
            state = {**self._state(in_training), "unlogged": unlogged}
            model, is_main = self.recipe.model.state_dict(), self.accelerator.is_main_process
            is_sharded = self.writer.shards.count is not None
            if not is_sharded:
                model, state = whole((model, state), keep=is_main)
            if is_sharded or is_main:
                kept = (self.resumed_from, self.state.best_step)
                folder = self.writer.folder
                protected = [checkpoint.checkpoint_path(folder, each) for each in kept if each]
                self.writer.save(step, model, state, protected)
                self.reporter.report_saves()
        self.saved = step
        self.accelerator.wait_for_everyone()

    def save_rest(self) -> None:
        """Save the steps that are not saved yet, and wait until they are on the disk."""
        if self.saved != self.state.step:
            self.save()
        self.writer.wait()
        self.reporter.report_saves()

    @contextmanager
    def saving_on_error(self) -> Iterator[None]:
        """Save whole steps before an error ends the training, such as an image that cannot be read.

        With several processes the others are inside the next step by then, and what counts is the
        last checkpoint.
        """
        try:
            yield
        except (ValueError, OSError, RuntimeError, MemoryError):
            if (
                not self.state.updating
                and self.accelerator.num_processes == 1
                and self.saved != self.state.step
                and self.reporter.write_error is None
            ):
                self.save_rest()
                if self.reporter.write_error is None:
                    self.reporter.note(
                        f"saved after step {self.state.step}; run the same command again to resume"
                    )
            raise
        finally:
            self.writer.wait()

    def require_savable(self) -> None:
        """Check that a checkpoint can hold what there is now.

        Called before the first step, and after it, when the optimizer has made its state.

        Raises:
            UserError: it cannot.
        """
        model, optimizer = self.recipe.model, self.recipe.optimizer
        whole_state = unsharded_state(optimizer)
        if whole_state is not None:
            raise UserError(
                f"optimizer {type(optimizer).__name__} holds {whole_state!r}, which is not sharded"
                " as its weights are: FSDP cannot save it. Take AdamW or SGD, or launch without"
                " FSDP"
            )
        packing.require_savable(model, {"model": model.state_dict(), **self._state(None)})

    def restore(
        self,
        path: Path,
        evaluation: Mapping[str, Any] | None = None,
        verified: bool = False,
    ) -> None:
        """Restore a checkpoint, of which each process reads what it holds.

        Args:
            path: of the checkpoint.
            evaluation: the last one that the log has, a row of it.
            verified: whether the processes have verified it between them.
        """
        with may_fail_alone():  # each process reads files of its own
            weights, saved = checkpoint.load(path, self._likes(), verified)
        saved = renamed_state(saved)
        require_same_names(self.recipe.model, weights, path)
        require_same_build(self.recipe.model, path)
        load_model(self.recipe.model, weights, path)
        optimizer = self.recipe.optimizer
        take_up(optimizer, saved["optimizer"], self.plan.groups)
        if has_modes(optimizer):
            live = (weight for group in optimizer.param_groups for weight in group["params"])
            train_with(
                optimizer,
                [part(value, weight) for value, weight in zip(saved["in_training"], live)],
            )
        if self.ema is not None:
            self.ema.load_state_dict(saved["ema"])
        if saved["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        self.state.load_state_dict(saved)
        if evaluation is not None:
            self.state.restore_evaluation(evaluation)
        self.saved = self.resumed_from = self.state.step
        self.reporter.resume(saved["unlogged"])
        self.reporter.note(
            f"resuming from step-{self.state.step:09d} of {self.plan.total_steps} steps"
        )

    def _likes(self) -> dict[str, Callable[[str], Tensor | None]]:
        """For model and state, the tensor here as which one there is sharded, by its name there."""
        ours = self.recipe.model.state_dict()
        groups = self.recipe.optimizer.param_groups
        weights = [weight for group in groups for weight in group["params"]]

        def of_state(name: str) -> Tensor | None:
            numbered = OF_WEIGHT.fullmatch(name)
            if numbered is None:
                return ours.get(name.removeprefix(AVERAGES)) if name.startswith(AVERAGES) else None
            number = int(numbered[1] or numbered[2])
            return weights[number] if number < len(weights) else None

        return {"model": ours.get, "state": of_state}

    def _state(self, in_training: list[Tensor] | None) -> dict[str, Any]:
        """What a checkpoint holds besides the model.

        `in_training` are the trained weights where the model has others for now.
        """
        scaler = self.accelerator.scaler
        return {
            **self.state.state_dict(),
            "optimizer": state_of(self.recipe.optimizer, self.plan.groups),
            "in_training": in_training,
            "ema": None if self.ema is None else self.ema.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
