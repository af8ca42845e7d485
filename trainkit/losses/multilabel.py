"""Losses of images or pixels with any number of classes: a sigmoid for each pair with a class.

Targets are rows (N, C): 1 where an image is of a class, 0 where it is not, shares between them as
mixup makes them, and below 0 where nothing is known, which counts nowhere; or masks (N, C, H, W)
which say the same of pixels. Each loss is the sum over the valid pairs, and its count is their
number: the mean over pairs, and not over images.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from trainkit.errors import UserError


class PairLoss:
    """Base class of losses of pairs of image or pixel and class.

    A subclass defines `name` and `pairs`.
    """

    name: ClassVar[str]

    @abstractmethod
    def pairs(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of each pair.

        Args:
            logits: float32 (N, C) or (N, C, H, W).
            targets: float32 in [0, 1], in the same shape.

        Returns:
            float32 in the same shape.
        """
        raise NotImplementedError

    def of_images(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The sum over the valid pairs of each image: float32 (N,)."""
        if logits.ndim not in (2, 4) or logits.shape != targets.shape:
            raise UserError(
                f"{type(self).__name__} is a loss of several classes for each image or pixel: the"
                f" targets are {tuple(targets.shape)} and the logits {tuple(logits.shape)}, and"
                " both must be (N, C), or (N, C, H, W)"
            )
        each = self.pairs(logits.float(), targets.float().clamp(min=0))
        each = torch.where(targets >= 0, each, 0)
        return each.sum(1) if each.ndim == 2 else each.flatten(1).sum(1)

    def __call__(self, logits: Tensor, targets: Tensor, ignore: int) -> Tensor:
        """See `Criterion`; all negative targets are ignored."""
        return self.of_images(logits, targets).sum()

    def count(self, targets: Tensor, ignore: int, num_classes: int) -> Tensor:
        """Valid pairs."""
        # float32 counts exactly up to 2^24, and one operation less
        dtype = torch.float32 if targets.numel() <= 2**24 else torch.int64
        return (targets >= 0).sum(dtype=dtype).float()


@dataclass(frozen=True)
class BCEWithLogits(PairLoss):
    """Binary cross-entropy of every class: -w y log p - (1 - y) log(1 - p), p = sigmoid(logit).

    Args:
        pos_weight: w, one per class, such as negatives / positives; None for 1.
        label_smoothing: s, in [0, 1): the target is (1 - s) y + s / 2.
        factor: weight of this loss beside others.

    Raises:
        UserError: a value is out of range.
    """

    pos_weight: Sequence[float] | None = None
    label_smoothing: float = 0.0
    factor: float = 1.0

    name = "bce"

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing is {self.label_smoothing}; it must be in [0, 1)")
        weight = self.pos_weight
        if weight is not None and not all(0 < each < float("inf") for each in weight):
            raise UserError(f"pos_weight is {list(weight)[:5]}: each must be above 0 and finite")

    def pairs(self, logits: Tensor, targets: Tensor) -> Tensor:
        """See `PairLoss`."""
        if self.label_smoothing:
            targets = torch.lerp(targets, torch.full_like(targets, 0.5), self.label_smoothing)
        weight = None
        if self.pos_weight is not None:
            weight = torch.tensor(tuple(self.pos_weight), dtype=torch.float32)
            weight = weight.to(logits.device, non_blocking=True)
            weight = weight.view(-1, *[1] * (logits.ndim - 2))  # (C,) or (C, 1, 1)
        return F.binary_cross_entropy_with_logits(
            logits, targets, reduction="none", pos_weight=weight
        )


@dataclass(frozen=True)
class SigmoidFocal(PairLoss):
    """Focal loss of every class: -a y (1 - p)^g log p - (1 - a) (1 - y) p^g log(1 - p).

    Args:
        gamma: g, at least 0.
        alpha: a, in [0, 1]; None: no weight of either side.
        factor: weight of this loss beside others.

    Raises:
        UserError: a value is out of range.

    Source:
        Lin et al., 2017, Focal Loss for Dense Object Detection.
    """

    gamma: float = 2.0
    alpha: float | None = 0.25
    factor: float = 1.0

    name = "sigmoid_focal"

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise UserError(
                f"SigmoidFocal: gamma is {self.gamma}; it must be at least 0 (2 in the paper)"
            )
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise UserError(
                f"SigmoidFocal: alpha is {self.alpha}; it must be in [0, 1] (0.25 in the paper),"
                " or None for no weights"
            )

    def pairs(self, logits: Tensor, targets: Tensor) -> Tensor:
        """See `PairLoss`."""
        there = _modulated(F.logsigmoid(logits), torch.sigmoid(-logits), self.gamma)
        absent = _modulated(F.logsigmoid(-logits), torch.sigmoid(logits), self.gamma)
        if self.alpha is not None:
            there, absent = self.alpha * there, (1 - self.alpha) * absent
        return targets * there + (1 - targets) * absent


@dataclass(frozen=True)
class AsymmetricLoss(PairLoss):
    """Asymmetric loss (ASL): absent classes are focused more, and easy ones among them dropped.

    -y (1 - p)^g+ log p - (1 - y) q^g- log(1 - q), with q = max(p - clip, 0).

    Its mean is over the valid pairs, where the authors' code takes the sum over a batch: a learning
    rate of theirs is of a loss so many times as large.

    Args:
        gamma_neg: g-, of absent classes, at least 0.
        gamma_pos: g+, of present ones, at least 0; the paper has 0, the authors' code 1.
        clip: probabilities below it add nothing where a class is absent, in [0, 1).
        factor: weight of this loss beside others.

    Raises:
        UserError: a value is out of range.

    Source:
        Ridnik et al., 2021, Asymmetric Loss For Multi-Label Classification.
    """

    gamma_neg: float = 4.0
    gamma_pos: float = 0.0
    clip: float = 0.05
    factor: float = 1.0

    name = "asymmetric"

    def __post_init__(self) -> None:
        for name in ("gamma_neg", "gamma_pos"):
            if getattr(self, name) < 0:
                raise UserError(
                    f"AsymmetricLoss: {name} is {getattr(self, name)}; it must be at least 0"
                )
        if not 0 <= self.clip < 1:
            raise UserError(
                f"AsymmetricLoss: clip is {self.clip}; it must be in [0, 1) (0.05 in the paper)"
            )

    def pairs(self, logits: Tensor, targets: Tensor) -> Tensor:
        """See `PairLoss`."""
        there = _modulated(F.logsigmoid(logits), torch.sigmoid(-logits), self.gamma_pos)
        shifted, log_absent = torch.sigmoid(logits), F.logsigmoid(-logits)
        if self.clip:
            shifted = (shifted - self.clip).clamp(min=0)
            log_absent = (-shifted).log1p()
        absent = _modulated(log_absent, shifted, self.gamma_neg)
        return targets * there + (1 - targets) * absent


def _modulated(log_likelihood: Tensor, rest: Tensor, gamma: float) -> Tensor:
    """-rest^gamma x log-likelihood."""
    if gamma == 0:
        return -log_likelihood
    # kept off 0, where a power below 1 has no gradient
    return -(rest.clamp(min=1e-12) ** gamma) * log_likelihood
