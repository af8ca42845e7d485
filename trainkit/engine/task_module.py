"""Model and loss as one module."""

import torch
from torch import Tensor, nn

from trainkit.distributed.unwrapping import without_compile
from trainkit.models.outputs import run_padded, size_divisor
from trainkit.tasks.base import Task, as_task


class TaskModule(nn.Module):
    """Model and task as one module, so that only sums or predictions leave accelerate's wrapper."""

    def __init__(self, model: nn.Module, task: Task):
        super().__init__()
        self.model, self.task = model, as_task(task)
        if isinstance(self.task.given, nn.Module):
            self.given_task = self.task.given  # its buffers go where the model goes
        # of images' sides, in evaluations
        self.divisor = size_divisor(model) if self.task.is_dense else 1

    def forward(self, images: Tensor, targets: Tensor | None) -> Tensor:
        """In training the weighted loss sums (K,), in evaluation predictions, one row per image.

        Without targets the task's scores, which sliding-window inference averages.
        """
        outputs = (
            self.model(images) if self.training else run_padded(self.model, images, self.divisor)
        )
        if targets is None:
            return self.task.scores(outputs, images)
        return (self.task.losses if self.training else self.task.predict)(outputs, targets)


@torch.no_grad()
def set_step(task: Task, model: nn.Module, steps: tuple[int, int] | None) -> None:
    """Call a task's `at_step` with (steps done, total_steps); None: leave it as it is."""
    if steps is not None:
        task.at_step(model, *steps)


def uncompiled(prepared: nn.Module, task: Task) -> nn.Module:
    """The prepared module, without torch.compile where a task takes images of any size.

    Each size would be compiled.
    """
    return without_compile(prepared) if task.is_dense else prepared
