"""What stands between a batch and the optimizer: images to the device, model and task in one forward pass."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainkit.outputs import run_padded, size_divisor
from trainkit.recipe import Task


class Objective(nn.Module):
    """Model and task as one module, so that only sums or predictions leave what accelerate wraps."""

    def __init__(self, model: nn.Module, task: Task):
        super().__init__()
        self.model, self.task = model, task
        self.divisor = size_divisor(model) if hasattr(task, "scores") else 1  # of images' sides, in evaluations

    def forward(self, images: Tensor, targets: Tensor | None) -> Tensor:
        """In training the weighted loss sums (K,), in evaluation the predictions, one row per image.

        Without targets the task's scores, which an evaluation in windows puts together.
        """
        outputs = self.model(images) if self.training else run_padded(self.model, images, self.divisor)
        if targets is None:
            return self.task.scores(outputs, images)
        return (self.task.losses if self.training else self.task.predict)(outputs, targets)


def uncompiled(prepared: nn.Module, task: Task) -> nn.Module:
    """What was prepared, without torch.compile where a task looks at whole images: each size would be compiled."""
    return getattr(prepared, "_orig_mod", prepared) if hasattr(task, "scores") else prepared


class ToDevice:
    """Images and targets to the device; uint8 images become float32, scaled to [0, 1] and normalised there."""

    def __init__(self, device: torch.device, mean: Sequence[float], std: Sequence[float], channels_last: bool = False):
        self.device = device
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.mean, self.std = (255 * torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """images: (N, C, H, W), uint8 in [0, 255] or float as the model wants them.

        Several crops of each, (N, crops, C, H, W), become (N crops, C, H, W).
        """
        images = images.flatten(0, 1) if images.ndim == 5 else images
        images = images.to(self.device, non_blocking=True)
        if images.dtype == torch.uint8:
            images = images.to(torch.float32, memory_format=self.format).sub_(self.mean).div_(self.std)
        else:
            images = images.contiguous(memory_format=self.format)
        return images, targets.to(self.device, non_blocking=True)

    @property
    def black(self) -> Tensor:
        """What a black pixel of a uint8 image becomes: (C, 1, 1)."""
        return -self.mean / self.std
