"""The interface of loss functions: a sum over targets, and the count that the sum is divided by.

    Segmentation(150, loss=[OHEM(keep=0.2), Dice(factor=0.5)])
    Recognition(1000, loss=BinaryCrossEntropy(threshold=0.2))

The loop divides the sums of the whole batch by its counts before it knows any output (see
trainkit.losses.functional), so a count comes from the targets alone, and sum and count both add up
over images. `factor` weighs a loss beside others.
"""

from collections.abc import Sequence
from operator import is_
from typing import Protocol

import torch
from torch import Tensor

from trainkit.errors import UserError


class Criterion(Protocol):
    """Interface of a loss, a sum and not a mean as of torch's; a recipe may bring its own.

    docs/extending.md has an example.
    """

    @property
    def name(self) -> str:
        """Name of its term in the log; an attribute does."""

    @property
    def factor(self) -> float:
        """Weight of the loss among several, above 0; an attribute does."""

    def __call__(self, logits: Tensor, targets: Tensor, ignore: int) -> Tensor:
        """Sum the loss over the targets that are not `ignore`.

        Args:
            logits: (N, C), or (N, C, H, W) at the size of the targets.
            targets: class ids (N,), probabilities (N, C), or masks (N, H, W).
            ignore: the id that adds nothing.

        Returns:
            A float32 scalar, with gradients.
        """

    def count(self, targets: Tensor, ignore: int, num_classes: int) -> Tensor:
        """Count what the sum is divided by.

        Args:
            targets: as in the call.
            ignore: the id that adds nothing.
            num_classes: C.

        Returns:
            A float32 scalar on the device of the targets.
        """


def as_criteria(loss: Criterion | Sequence[Criterion], num_classes: int) -> tuple[Criterion, ...]:
    """One loss or several as a tuple.

    Args:
        loss: one loss, or several.
        num_classes: of the task.

    Raises:
        UserError: they cannot be used, or not together.
    """
    criteria = tuple(loss) if isinstance(loss, Sequence) else (loss,)
    for each in criteria:
        if not (hasattr(each, "count") and hasattr(each, "factor") and hasattr(each, "name")):
            raise UserError(
                f"loss is {each!r}; give one of trainkit.losses.pixelwise or "
                "trainkit.losses.region, or an object with the methods of Criterion"
            )
        if each.factor <= 0:
            raise UserError(f"{type(each).__name__}: factor is {each.factor}; it must be above 0")
        weight = getattr(each, "weight", None)
        if weight is not None and (len(weight) != num_classes or min(weight) < 0):
            raise UserError(
                f"{type(each).__name__}: {len(weight)} weights, the least of them {min(weight)},"
                f" for {num_classes} classes; give one per class, none below 0"
            )
    names = [each.name for each in criteria]
    if not names or len(set(names)) < len(names):
        raise UserError(f"loss is {names}; give one loss, or several of different names")
    return criteria


class CheckedCriteria:
    """Losses of a task as a tuple; checked again only where they are others than in the last call.

    A task may change its losses with the step (`Task.at_step`), and asks for them twice a step.
    """

    def __init__(self) -> None:
        self._last: tuple[Criterion, ...] = ()
        self._single: Criterion | None = None  # the only one, given by itself, of the last call

    def __call__(
        self, loss: Criterion | Sequence[Criterion], num_classes: int
    ) -> tuple[Criterion, ...]:
        """See `as_criteria`."""
        if self._single is not None and loss is self._single:
            return self._last
        criteria = tuple(loss) if isinstance(loss, Sequence) else (loss,)
        same = len(criteria) == len(self._last) and all(map(is_, criteria, self._last))
        if not same or not criteria:
            self._last = as_criteria(criteria, num_classes)
        # a list may change
        self._single = None if isinstance(loss, Sequence) else loss
        return self._last


def side_by_side(terms: Sequence[Tensor]) -> Tensor:
    """Scalars as a vector (K,); of a single one no copy is made."""
    return terms[0].unsqueeze(0) if len(terms) == 1 else torch.stack(list(terms))


def weighted(criterion: Criterion, loss: Tensor) -> Tensor:
    """A loss times the factor of its criterion; a factor of 1 leaves it as it is."""
    factor = criterion.factor
    return loss if isinstance(factor, (int, float)) and factor == 1 else factor * loss


def check_maps(criterion: Criterion, logits: Tensor) -> None:
    """Check that the logits are one per pixel and class.

    Raises:
        UserError: they are not.
    """
    if logits.ndim != 4:
        raise UserError(
            f"{type(criterion).__name__} is a segmentation loss, and the logits are"
            f" {tuple(logits.shape)} instead of (N, C, H, W)"
        )
