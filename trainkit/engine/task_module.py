"""What stands between a batch and the optimizer: images to the device, model and task in one forward pass."""

from torch import Tensor, nn

from trainkit.outputs import run_padded, size_divisor
from trainkit.recipe import Task


class Objective(nn.Module):
    """Model and task as one module, so that only sums or predictions leave what accelerate wraps."""

    def __init__(self, model: nn.Module, task: Task):
        super().__init__()
        self.model, self.task = model, task
        # of images' sides, in evaluations
        self.divisor = size_divisor(model) if hasattr(task, "scores") else 1

    def forward(self, images: Tensor, targets: Tensor | None) -> Tensor:
        """In training the weighted loss sums (K,), in evaluation the predictions, one row per image.

        Without targets the task's scores, which an evaluation in windows puts together.
        """
        outputs = (
            self.model(images) if self.training else run_padded(self.model, images, self.divisor)
        )
        if targets is None:
            return self.task.scores(outputs, images)
        return (self.task.losses if self.training else self.task.predict)(outputs, targets)


def uncompiled(prepared: nn.Module, task: Task) -> nn.Module:
    """What was prepared, without torch.compile where a task looks at whole images: each size would be compiled."""
    return getattr(prepared, "_orig_mod", prepared) if hasattr(task, "scores") else prepared
