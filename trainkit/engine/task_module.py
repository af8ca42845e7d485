"""Model and loss as one module, and the transfer of batches to the device."""

import torch
from torch import Tensor, nn

from trainkit.distributed.unwrapping import without_compile
from trainkit.models.outputs import run_padded, size_divisor
from trainkit.recipe import Task, as_task


class TaskModule(nn.Module):
    """Model and task as one module, so that only sums or predictions leave what accelerate wraps."""

    def __init__(self, model: nn.Module, task: Task):
        super().__init__()
        self.model, self.task = model, as_task(task)
        if isinstance(self.task.given, nn.Module):
            self.given_task = self.task.given  # its buffers go where the model goes
        # of images' sides, in evaluations
        self.divisor = size_divisor(model) if self.task.is_dense else 1

    def forward(self, images: Tensor, targets: Tensor | None) -> Tensor:
        """In training the weighted loss sums (K,), in evaluation the predictions, one row per
        image.

        Without targets the task's scores, which an evaluation in windows puts together.
        """
        outputs = (
            self.model(images) if self.training else run_padded(self.model, images, self.divisor)
        )
        if targets is None:
            return self.task.scores(outputs, images)
        return (self.task.losses if self.training else self.task.predict)(outputs, targets)


@torch.no_grad()
def set_step(task: Task, model: nn.Module, steps: tuple[int, int] | None) -> None:
    """Have a task change what depends on the step: steps done and total_steps.

    None: leave it as it is.
    """
    if steps is not None:
        task.at_step(model, *steps)


def uncompiled(prepared: nn.Module, task: Task) -> nn.Module:
    """What was prepared, without torch.compile where a task looks at whole images.

    Each size would be compiled.
    """
    return without_compile(prepared) if task.is_dense else prepared
