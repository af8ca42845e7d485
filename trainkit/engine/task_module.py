"""Model and loss as one module."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from trainkit.errors import is_shortage
from trainkit.models.outputs import run_padded, size_divisor
from trainkit.tasks.base import Task, as_task

if TYPE_CHECKING:
    from trainkit.engine.distillation import Distillation

Value = TypeVar("Value")


class TaskModule(nn.Module):
    """Model and task as one module, so that only sums or predictions leave accelerate's wrapper."""

    def __init__(self, model: nn.Module, task: Task, distillation: "Distillation | None" = None):
        """Join model and task.

        Args:
            model: that is trained or evaluated.
            task: what its outputs mean.
            distillation: from a teacher, in training; it is no module, so that none of the
                teacher's weights are this module's.
        """
        super().__init__()
        self.distillation = distillation
        self.model, self.task = model, as_task(task)
        if isinstance(self.task.given, nn.Module):
            self.given_task = self.task.given  # its buffers go where the model goes
        # why the evaluation under way has no validation loss
        self.loss_fault: str | None = None
        # of images' sides, in evaluations
        self.divisor = size_divisor(model) if self.task.is_dense else 1

    def forward(self, images: Tensor, targets: Tensor | None, with_losses: bool = False) -> Any:
        """In training the weighted loss sums (K,), in evaluation predictions, one row per image.

        Without targets the task's scores, which sliding-window inference averages. `with_losses`,
        in evaluation: the predictions, and the task's loss sums by term, see `Task.evaluated`.
        """
        # without gradients the model runs for its statistics alone (precise BN)
        learns = self.training and torch.is_grad_enabled()
        if learns and self.distillation is not None and targets is not None:
            return self.distillation.losses(self.model, images, targets)
        outputs = self.outputs(images)
        if targets is None:
            return self.task.scores(outputs, images)
        if with_losses and not self.training:
            return self._evaluated(outputs, targets)
        return (self.task.losses if self.training else self.task.predict)(outputs, targets)

    def outputs(self, images: Tensor) -> Any:
        """What the model gives for images (N, C, H, W), in evaluation of padded ones."""
        if self.training:
            return self.model(images)
        return run_padded(self.model, images, self.divisor)

    def _evaluated(self, outputs: Any, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What `Task.evaluated` gives; without losses once they could not be computed."""
        found = self._tried(self.task.evaluated, outputs, targets)
        return (self.task.predict(outputs, targets), {}) if found is None else found

    def score_losses(self, scores: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """What `Task.score_losses` gives; nothing once losses could not be computed."""
        return self._tried(self.task.score_losses, scores, targets) or {}

    def _tried(
        self, compute: Callable[[Any, Tensor], Value], of: Any, targets: Tensor
    ) -> Value | None:
        """What computes losses in an evaluation; None once it failed.

        A network of one's own may return something else in evaluation mode, and losses of one's own
        may take what `prepare` makes of the targets: neither is to end a training.
        """
        if self.loss_fault is not None or self.task.provides("prepare"):
            return None
        try:
            return compute(of, targets)
        except Exception as error:
            if is_shortage(error):
                raise
            said = (str(error).splitlines() or [""])[0]
            self.loss_fault = f"{type(error).__name__}: {said}"
            return None


@torch.no_grad()
def set_step(task: Task, model: nn.Module, steps: tuple[int, int] | None) -> None:
    """Call a task's `at_step` with (steps done, total_steps); None: leave it as it is."""
    if steps is not None:
        task.at_step(model, *steps)


@torch.no_grad()
def set_images(task: Task, model: nn.Module, seed: int, positions: Sequence[int]) -> None:
    """Call a task's `at_images` before a forward pass of a training step."""
    task.at_images(model, seed, positions)
