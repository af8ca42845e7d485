"""How far a training is, and what a step leaves to the log."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

NOT_OF_PROGRESS = ("results", "updating")


@dataclass
class TrainState:
    """How far a run is: saved with every checkpoint."""

    step: int = 0
    images: int = 0
    train_seconds: float = 0.0
    seconds: float = 0.0
    best: float | None = None
    best_step: int | None = None
    evaluated: int = 0
    """step after which the last evaluation was"""
    skipped_steps: int = 0
    """updates left out because of a non-finite loss or gradient"""
    bad_images: int = 0
    """times another image took the place of one that could not be used"""
    intervals_without_targets: int = 0
    """log intervals in which no target was valid"""
    interval_targets: float = 0.0
    """valid targets of the first loss since the last row of the log"""
    results: dict[str, Any] = field(default_factory=dict)
    """of the last evaluation"""
    updating: bool = False
    """whether weights or optimizer state may be ahead of `step`: such a state is never saved"""

    def advance(self, num_images: int, seconds: float) -> None:
        """Count a step that is done, of `num_images` over all processes, which took `seconds`."""
        self.step += 1
        self.images += num_images
        self.train_seconds += seconds
        self.updating = False

    def restore_evaluation(self, row: Mapping[str, Any]) -> None:
        """Restore the results in a row of the log."""
        self.evaluated = row["step"]
        self.best = row["best"]
        self.best_step = row["best_step"]
        names = ("event", "step", "epoch", "best", "best_step", "seconds")
        self.results = {name: value for name, value in row.items() if name not in names}

    def state_dict(self) -> dict[str, Any]:
        """The state for `load_state_dict`."""
        names = [each.name for each in fields(self) if each.name not in NOT_OF_PROGRESS]
        return {"progress": {name: getattr(self, name) for name in names}, "results": self.results}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave, also in an earlier version, which counted less."""
        vars(self).update(vars(TrainState(**saved["progress"], results=saved["results"])))


class StepStats(NamedTuple):
    """What a step leaves to the log, on the device: nothing waits for it.

    Losses and norm are one process's part: summed over the processes they are those of the step.
    """

    losses: Tensor  # (K,)
    grad_norm: Tensor  # (1,)
    counts: Tensor  # (K,), valid targets of each loss in the whole batch

    @property
    def row(self) -> tuple[Tensor, Tensor]:
        """Losses and norm, which stand side by side in a row of `read_steps`: (K + 1,) together."""
        return self.losses, self.grad_norm


class StepNumbers(NamedTuple):
    """Losses and gradient norm of a step on the host, of all processes together."""

    step: int
    """counted from 1"""
    losses: list[float]
    grad_norm: float

    @property
    def loss(self) -> float:
        """Sum of the losses."""
        return sum(self.losses)

    @property
    def is_finite(self) -> bool:
        """Whether neither a loss nor the norm is NaN or infinite."""
        return math.isfinite(sum((*self.losses, self.grad_norm)))


def read_steps(
    accelerator: Accelerator, rows: Sequence[Sequence[Tensor]], last_step: int
) -> list[StepNumbers]:
    """The numbers of the steps up to `last_step`, summed over the processes; waits for the device.

    Args:
        accelerator: of this process; all of them must call this together.
        rows: `StepStats.row` of each step, or another way to cut (K + 1,) into pieces.
        last_step: of the last row, counted from 1.
    """
    if not rows:
        return []
    pieces = torch.cat([piece for row in rows for piece in row])
    summed = accelerator.reduce(pieces.view(len(rows), -1), "sum").tolist()
    first_step = last_step - len(summed) + 1
    return [
        StepNumbers(step, losses, grad_norm)
        for step, (*losses, grad_norm) in enumerate(summed, first_step)
    ]
