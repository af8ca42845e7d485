"""Losses of a number for each pixel, such as depth or height; NaN in the targets counts nowhere."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from trainkit.errors import UserError

LEAST = 1e-6  # of what a logarithm is taken


class MapLoss:
    """Base class of losses of maps; a subclass defines `name` and `of_images`."""

    name: ClassVar[str]

    @abstractmethod
    def of_images(self, values: Tensor, targets: Tensor) -> Tensor:
        """The sum of each image.

        Args:
            values: float32 (N, H, W), what is predicted.
            targets: float32 (N, H, W), NaN where nothing is known.

        Returns:
            float32 (N,).
        """
        raise NotImplementedError

    def __call__(self, logits: Tensor, targets: Tensor, ignore: int) -> Tensor:
        """See `Criterion`; `logits` are the predicted values."""
        return self.of_images(logits, targets).sum()

    def count(self, targets: Tensor, ignore: int, num_classes: int) -> Tensor:
        """Valid pixels."""
        # float32 counts exactly up to 2^24, and one operation less
        dtype = torch.float32 if targets.numel() <= 2**24 else torch.int64
        return targets.isfinite().sum(dtype=dtype).float()


@dataclass(frozen=True)
class L1(MapLoss):
    """Absolute error, the mean over all valid pixels of the batch.

    Args:
        factor: weight of this loss beside others.
    """

    factor: float = 1.0

    name = "l1"

    def of_images(self, values: Tensor, targets: Tensor) -> Tensor:
        """See `MapLoss`."""
        valid = targets.isfinite()
        return (values - torch.where(valid, targets, values)).abs().flatten(1).sum(1)


@dataclass(frozen=True)
class Huber(MapLoss):
    """Huber loss, as torch's: e^2 / 2 up to an error of `delta`, and delta (|e| - delta / 2) above.

    Args:
        delta: in the unit of the targets, above 0.
        factor: weight of this loss beside others.

    Raises:
        UserError: a value is out of range.
    """

    delta: float = 1.0
    factor: float = 1.0

    name = "huber"

    def __post_init__(self) -> None:
        if self.delta <= 0:
            raise UserError(f"Huber: delta is {self.delta}; it must be above 0")

    def of_images(self, values: Tensor, targets: Tensor) -> Tensor:
        """See `MapLoss`."""
        wanted = torch.where(targets.isfinite(), targets, values.detach())
        each = F.huber_loss(values, wanted, reduction="none", delta=self.delta)
        return each.flatten(1).sum(1)


@dataclass(frozen=True)
class ScaleInvariantLog(MapLoss):
    """Scale-invariant error of logarithms, of each image: mean(d^2) - variance_focus x mean(d)^2.

    d = log(predicted) - log(target) over the image's valid pixels; the loss of a batch is the mean
    over its images that have one. Values must be positive.

    Args:
        variance_focus: in [0, 1], 0.5 in the paper; at 1 a factor common to all pixels costs
            nothing.
        factor: weight of this loss beside others.

    Raises:
        UserError: a value is out of range.

    Source:
        Eigen et al., 2014, Depth Map Prediction from a Single Image using a Multi-Scale Deep
        Network.
    """

    variance_focus: float = 0.5
    factor: float = 1.0

    name = "silog"

    def __post_init__(self) -> None:
        if not 0 <= self.variance_focus <= 1:
            raise UserError(
                f"ScaleInvariantLog: variance_focus is {self.variance_focus}; it must be in [0, 1]"
                " (0.5 in the paper)"
            )

    def of_images(self, values: Tensor, targets: Tensor) -> Tensor:
        """See `MapLoss`."""
        valid = targets.isfinite()
        wanted = torch.where(valid, targets, 1.0).clamp(min=LEAST).log()
        off = torch.where(valid, values.clamp(min=LEAST).log() - wanted, 0.0).flatten(1)
        number = valid.flatten(1).sum(1).clamp(min=1)
        mean, square = off.sum(1) / number, off.square().sum(1) / number
        return square - self.variance_focus * mean.square()

    def count(self, targets: Tensor, ignore: int, num_classes: int) -> Tensor:
        """Images with a valid pixel."""
        return targets.isfinite().flatten(1).any(1).sum().float()
