"""Knowledge distillation: how far a student's probabilities are from its teacher's."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from trainkit.losses.functional import is_valid, pieces, shares


def distillation_sum(
    logits: Tensor, teacher: Tensor, targets: Tensor, ignore: int, temperature: float
) -> Tensor:
    """Sum of T² KL(teacher || student) in nats over valid targets, both softened by T.

    The factor T² keeps the gradient's size whatever the temperature is. The count to divide by is
    `trainkit.losses.functional.num_valid`: of a row of probabilities that sums to less than 1, the
    divergence counts by that share.

    Args:
        logits: of the student, (N, C) or (N, C, H, W).
        teacher: its teacher's, in the same shape; they get no gradient.
        targets: class ids (N,) or (N, H, W), or probabilities (N, C): they say what is counted.
        ignore: the class id that adds nothing.
        temperature: T, above 0, which logits are divided by before the softmax.

    Returns:
        A float32 scalar.

    Source:
        Hinton et al., 2015, Distilling the Knowledge in a Neural Network.
    """
    mixed = targets.is_floating_point()
    counted = shares(targets) if mixed else is_valid(targets, ignore).float()
    if logits.ndim == 4:
        each = _PixelDivergence.apply(logits, teacher, temperature)  # (N, H, W)
    else:
        each = _divergences(logits, teacher, temperature, dim=1)  # (N,)
    # the divergence of an ignored image or pixel may be NaN
    return torch.where(counted > 0, each * counted, 0).sum() * temperature**2


def binary_distillation_sum(
    logits: Tensor, teacher: Tensor, targets: Tensor, temperature: float
) -> Tensor:
    """Sum of T² KL(teacher || student) in nats over pairs with a class whose target is known.

    Both are probabilities of yes and no, the sigmoid of logits that are divided by T. The count to
    divide by is `num_known`.

    Args:
        logits: of the student, (N, C) or (N, C, H, W).
        teacher: its teacher's, in the same shape; they get no gradient.
        targets: in the same shape; below 0 where nothing is known, which adds nothing.
        temperature: T, above 0.

    Returns:
        A float32 scalar.
    """
    ours, theirs = logits.float() / temperature, teacher.detach().float() / temperature
    wanted = theirs.sigmoid()
    crossed, least = (
        F.binary_cross_entropy_with_logits(each, wanted, reduction="none")
        for each in (ours, theirs)
    )
    return torch.where(targets >= 0, crossed - least, 0).sum() * temperature**2


def num_known(targets: Tensor) -> Tensor:
    """How many targets are not below 0: float32 ()."""
    return (targets >= 0).sum().float()


def _divergences(logits: Tensor, teacher: Tensor, temperature: float, dim: int) -> Tensor:
    """KL(teacher || student) of softened logits, float32; `dim`: of the classes, summed over."""
    ours = (logits.float() / temperature).log_softmax(dim)
    theirs = (teacher.float() / temperature).softmax(dim)
    return F.kl_div(ours, theirs, reduction="none").sum(dim)


class _PixelDivergence(torch.autograd.Function):
    """The divergence of each pixel, piece by piece in float32.

    What autograd keeps is both logits as they are, see `trainkit.losses.functional`.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Compute the divergences (N, H, W) of logits (N, C, H, W)."""
        each = torch.empty(
            (len(logits), *logits.shape[-2:]), dtype=torch.float32, device=logits.device
        )
        for ours, theirs, out in pieces(logits, teacher, each):
            out.copy_(_divergences(ours, theirs, temperature, dim=0))
        ctx.save_for_backward(logits, teacher)
        ctx.temperature = temperature
        return each

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Compute (student - teacher) / T x gradient (N, H, W), of softened probabilities."""
        logits, teacher = ctx.saved_tensors
        temperature = ctx.temperature
        result = torch.empty_like(logits)
        for ours, theirs, factor, out in pieces(logits, teacher, gradient, result):
            part = (ours.float() / temperature).softmax(0)  # (C, n)
            part -= (theirs.float() / temperature).softmax(0)
            out.copy_(torch.where(factor == 0, 0, part.mul_(factor / temperature)))
        return result, None, None
