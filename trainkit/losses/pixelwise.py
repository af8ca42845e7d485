"""Loss functions of single pixels and images: cross-entropy and its relatives."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trainkit.errors import UserError
from trainkit.losses.base import check_maps
from trainkit.losses.functional import (
    cross_entropies,
    cross_entropy_sum,
    is_valid,
    num_valid,
    shares,
)


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of masks, class ids or probabilities; with class weights a weighted mean.

    Args:
        weight: one per class, or None; the count is then the sum of the targets' weights, as in
            torch's mean.
        label_smoothing: in [0, 1), see `trainkit.losses.functional.cross_entropy_sum`.
        factor: weight of this loss beside others.

    Raises:
        UserError: a value is out of range.
    """

    weight: Sequence[float] | None = None
    label_smoothing: float = 0.0
    factor: float = 1.0

    name = "cross_entropy"

    def __post_init__(self) -> None:
        _check_range("label_smoothing", self.label_smoothing)

    def __call__(self, logits: Tensor, targets: Tensor, ignore: int) -> Tensor:
        """See `Criterion`."""
        return cross_entropy_sum(
            logits, targets, ignore, self.label_smoothing, _on(logits, self.weight)
        )

    def count(self, targets: Tensor, ignore: int, num_classes: int) -> Tensor:
        """Valid targets, or the sum of their weights."""
        return num_valid(targets, ignore, _on(targets, self.weight))


@dataclass(frozen=True)
class Focal:
    """Focal loss -w (1 - p)^gamma log p of the target's class, with a softmax, over valid targets.

    Of a mixture of classes (mixup) it is the mixture of their focal losses.

    Args:
        gamma: exponent, at least 0.
        weight: w, the paper's alpha, one per class; None for 1.
        factor: weight of this loss beside others.

    Raises:
        UserError: a value is out of range.

    Source:
        Lin et al., 2017, Focal Loss for Dense Object Detection, there with a sigmoid.
    """

    gamma: float = 2.0
    weight: Sequence[float] | None = None
    factor: float = 1.0

    name = "focal"

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise UserError(f"Focal: gamma is {self.gamma}; it must be at least 0 (2 in the paper)")

    def __call__(self, logits: Tensor, targets: Tensor, ignore: int) -> Tensor:
        """See `Criterion`."""
        weight = _on(logits, self.weight)
        if targets.is_floating_point():
            logs = logits.float().log_softmax(1)  # (N, C)
            weight = targets if weight is None else targets * weight
            return -(weight * self._modulating_factor(logs) * logs).sum()
        each = cross_entropies(logits, targets, ignore)  # -log p, 0 where ignored
        if weight is not None:
            weight = weight[torch.where(is_valid(targets, ignore), targets, 0).long()]
        return (self._modulating_factor(-each) * each * (1.0 if weight is None else weight)).sum()

    def _modulating_factor(self, logs: Tensor) -> Tensor:
        # kept off 0, where a power below 1 has no gradient
        return (-logs.expm1()).clamp(min=1e-12) ** self.gamma

    def count(self, targets: Tensor, ignore: int, num_classes: int) -> Tensor:
        """Valid targets, whatever their weights, as in the paper."""
        return num_valid(targets, ignore)


@dataclass(frozen=True)
class OHEM:
    """Cross-entropy of each image's hardest pixels, the share `keep` of its valid ones, rounded up.

    The other form, all pixels whose probability is below a threshold, has no count before the
    forward pass, and what it keeps depends on how a batch is split into micro-batches; it is left
    out.

    Args:
        keep: share of the valid pixels, in (0, 1].
        factor: weight of this loss beside others.

    Raises:
        UserError: a value is out of range.

    Source:
        Online hard example mining: Shrivastava et al., 2016; with a share for each image: Yang et
        al., 2019, DeeperLab. Panoptic-DeepLab keeps 0.2.
    """

    keep: float = 0.2
    factor: float = 1.0

    name = "ohem"

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise UserError(
                f"OHEM: keep is {self.keep}; it is the share of pixels kept, above 0 and at most 1"
            )

    def __call__(self, logits: Tensor, targets: Tensor, ignore: int) -> Tensor:
        """See `Criterion`."""
        check_maps(self, logits)
        # (N, H W); ignored ones are 0 and come last
        each = cross_entropies(logits, targets, ignore).flatten(1)
        hardest = each.sort(dim=1, descending=True, stable=True).values
        ranks = torch.arange(each.shape[1], device=each.device)
        return torch.where(ranks < self._num_kept(targets, ignore)[:, None], hardest, 0).sum()

    def _num_kept(self, targets: Tensor, ignore: int) -> Tensor:
        return (self.keep * is_valid(targets, ignore).flatten(1).sum(1).float()).ceil()  # (N,)

    def count(self, targets: Tensor, ignore: int, num_classes: int) -> Tensor:
        """Pixels kept."""
        return self._num_kept(targets, ignore).sum()


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Binary cross-entropy of every class, for recognition.

    Args:
        threshold: probabilities above it, after smoothing, become 1 and others 0, so that both
            images of a mixup are wholly present (0.2 in the paper); None leaves them.
        label_smoothing: as in `CrossEntropy`.
        factor: weight of this loss beside others.

    Raises:
        UserError: a value is out of range.

    Source:
        Wightman et al., 2021, ResNet strikes back.
    """

    threshold: float | None = None
    label_smoothing: float = 0.0
    factor: float = 1.0

    name = "binary_cross_entropy"

    def __post_init__(self) -> None:
        _check_range("label_smoothing", self.label_smoothing)
        if self.threshold is not None:
            _check_range("threshold", self.threshold)

    def __call__(self, logits: Tensor, targets: Tensor, ignore: int) -> Tensor:
        """See `Criterion`."""
        if logits.ndim != 2:
            raise UserError(
                f"BinaryCrossEntropy is a loss of images, and the logits are {tuple(logits.shape)}"
            )
        # of what a mixture has no target for, nothing is known, not even absence
        if targets.is_floating_point():
            valid = shares(targets)
            targets = targets / valid.clamp(min=torch.finfo(valid.dtype).tiny)[:, None]
        else:
            valid = (targets != ignore).float()
            targets = F.one_hot(
                torch.where(targets != ignore, targets, 0).long(), logits.shape[1]
            ).float()
        targets = (
            1 - self.label_smoothing
        ) * targets.float() + self.label_smoothing / logits.shape[1]
        if self.threshold is not None:
            targets = (targets > self.threshold).float()
        # (N, C)
        each = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
        return (each.sum(1) * valid).sum()

    def count(self, targets: Tensor, ignore: int, num_classes: int) -> Tensor:
        """Valid images times classes."""
        return num_valid(targets, ignore) * num_classes


def _on(tensor: Tensor, values: Sequence[float] | None) -> Tensor | None:
    """Constants on a tensor's device, without waiting for it."""
    return (
        None
        if values is None
        else torch.tensor(tuple(values)).to(tensor.device, torch.float32, non_blocking=True)
    )


def _check_range(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UserError(f"{name} is {value}; it must be in [0, 1)")
