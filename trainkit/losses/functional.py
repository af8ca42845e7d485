"""Losses as sums over valid targets, never means, and the counts to divide them by.

The loop divides the sums of the whole batch by its counts, over all micro-batches and processes; a
mean taken here would be a mean of means. All are computed in float32 whatever the precision of the
network.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from trainkit.errors import UserError

LOGITS_AT_ONCE = 1 << 19  # of a piece, 2 MiB in float32
PIXELS_OF_A_GROUP = 128


def cross_entropy_sum(
    logits: Tensor,
    targets: Tensor,
    ignore: int = -1,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Sum of cross-entropies in nats.

    With label smoothing s the target is (1 - s) of itself and s / C of every class; of a row that
    sums to less than 1, see `num_valid`, that share of it.

    Args:
        logits: (N, C) or (N, C, H, W).
        targets: class ids (N,) or (N, H, W), or probabilities (N, C) as mixup and cutmix make them.
        ignore: the class id that adds nothing.
        label_smoothing: s, in [0, 1).
        weight: (C,), one per class; None for 1.

    Returns:
        A float32 scalar.

    Source:
        Label smoothing: Szegedy et al., 2016.
    """
    if logits.ndim == 4 and not label_smoothing:
        each = cross_entropies(logits, targets, ignore)  # (N, H, W)
        return each.sum() if weight is None else (each * _weights(targets, ignore, weight)).sum()
    if not targets.is_floating_point():
        targets = targets.long()
        return F.cross_entropy(
            logits.float(),
            targets,
            weight,
            ignore_index=ignore,
            reduction="sum",
            label_smoothing=label_smoothing,
        )
    if label_smoothing:
        smooth = targets.sum(1, keepdim=True) / logits.shape[1]
        targets = torch.lerp(targets, smooth.expand_as(targets), label_smoothing)
    return F.cross_entropy(logits.float(), targets, weight, reduction="sum")


def cross_entropies(logits: Tensor, targets: Tensor, ignore: int = -1) -> Tensor:
    """Cross-entropy of each target in nats.

    Args:
        logits: (N, C) or (N, C, H, W).
        targets: class ids (N,) or (N, H, W).
        ignore: the class id whose cross-entropy is 0.

    Returns:
        float32 in the shape of the targets.
    """
    if logits.ndim == 4:
        return _PixelCrossEntropy.apply(logits, targets, ignore)
    return F.cross_entropy(logits.float(), targets.long(), ignore_index=ignore, reduction="none")


class _PixelCrossEntropy(torch.autograd.Function):
    """Cross-entropy of each pixel, piece by piece in float32, without a second copy of all logits.

    What autograd keeps is the logits as they are; the softmax is computed again for the gradient.
    For 4 images of 150 classes at 512 x 512 in bfloat16 the peak is 0.7 GiB beside the logits,
    where F.cross_entropy takes 1.8 (docs/results.md).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, ignore: int) -> Tensor:
        """Compute the losses (N, H, W) of logits (N, C, H, W) and targets (N, H, W)."""
        valid = is_valid(targets, ignore)
        ids = torch.where(valid, targets, 0).long()
        normaliser = torch.empty(targets.shape, device=logits.device)  # (N, H, W)
        each = torch.empty_like(normaliser)
        for piece, wanted, counted, log_sum, out in pieces(logits, ids, valid, normaliser, each):
            piece = piece.float()  # (C, n)
            torch.logsumexp(piece, 0, out=log_sum)
            out.copy_(torch.where(counted, log_sum - piece.gather(0, wanted[None])[0], 0))
        ctx.save_for_backward(logits, ids, valid, normaliser)
        return each

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Compute (softmax - one-hot) x gradient (N, H, W), of valid pixels."""
        logits, ids, valid, normaliser = ctx.saved_tensors
        result = torch.empty_like(logits)
        for piece, wanted, counted, log_sum, factor, out in pieces(
            logits, ids, valid, normaliser, gradient, result
        ):
            part = (piece.float() - log_sum).exp_()  # (C, n)
            part.scatter_add_(0, wanted[None], torch.full_like(part[:1], -1.0))
            out.copy_(part.mul_(counted * factor))
        return result, None, None


def pieces(*maps: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same rows of an image in each of `maps`, logits (N, C, H, W) the first.

    On a CPU a piece fits into its cache, which takes half of the time for 150 classes; elsewhere,
    and where torch compiles it, a piece is a whole image. No sum depends on that: torch adds up
    pixels side by side in groups, and a piece holds whole ones.
    """
    num_classes, height, width = maps[0].shape[1:]
    rows = height
    if maps[0].device.type == "cpu" and not torch.compiler.is_compiling():
        least = PIXELS_OF_A_GROUP // math.gcd(width, PIXELS_OF_A_GROUP)
        rows = max(1, LOGITS_AT_ONCE // (num_classes * width * least)) * least
    for images in zip(*maps):
        yield from zip(*(image.split(rows, dim=-2) for image in images))


def num_valid(targets: Tensor, ignore: int = -1, weight: Tensor | None = None) -> Tensor:
    """Count what `cross_entropy_sum` is divided by: valid targets, or the sum of their weights.

    Args:
        targets: ids of any shape, or probabilities (N, C), which count one per image as in torch's
            own mean, and less where a row sums to less: mixup leaves the share of an ignored image
            empty.
        ignore: the class id that is not counted.
        weight: (C,), one per class; None for 1.

    Returns:
        A float32 scalar.
    """
    if targets.is_floating_point():
        return shares(targets).sum()
    if weight is None:
        # float32 counts exactly up to 2^24, and one operation less
        dtype = torch.float32 if targets.numel() <= 2**24 else torch.int64
        return is_valid(targets, ignore).sum(dtype=dtype).float()
    return _weights(targets, ignore, weight).sum().float()


def is_valid(targets: Tensor, ignore: int) -> Tensor:
    """Which targets, integers of any shape, are not `ignore`: bool in their shape.

    All are where their type does not hold it: torch would compare a wrapped number, and take 255 of
    a uint8 mask for -1.
    """
    if check_ignore(targets, ignore):
        return torch.ones_like(targets, dtype=torch.bool)
    return targets != ignore


def check_ignore(targets: Tensor, ignore: int) -> str | None:
    """Say what is wrong with an `ignore` that the targets' type cannot hold, or None."""
    if targets.dtype == torch.bool:
        return None
    limits = torch.iinfo(targets.dtype)
    if limits.min <= ignore <= limits.max:
        return None
    return (
        f"ignore is {ignore}, and masks of {str(targets.dtype).removeprefix('torch.')} hold"
        f" {limits.min} to {limits.max}: give an ignored label among these, such as {limits.max},"
        f" or masks of a type that holds {ignore}"
    )


def check_num_outputs(logits: Tensor, num_classes: int, name: str) -> None:
    """Check that a network has one output for each class of a task.

    Args:
        logits: (N, C) or (N, C, H, W).
        num_classes: of the task.
        name: of the output, for the message.

    Raises:
        UserError: it has not.
    """
    if logits.ndim < 2 or logits.shape[1] != num_classes:
        outputs = (
            f"{logits.shape[1]} outputs"
            if logits.ndim > 1
            else f"outputs of shape {tuple(logits.shape)}"
        )
        raise UserError(
            f"the network has {outputs}, and {name} has {num_classes} classes: build the network"
            f" with {num_classes} outputs, or give the task the classes that the network knows"
        )


def shares(targets: Tensor) -> Tensor:
    """The share of each row of probabilities (N, C) that is not ignored: float32 (N,)."""
    return targets.float().sum(1).clamp(max=1.0)


def _weights(targets: Tensor, ignore: int, weight: Tensor) -> Tensor:
    """The weight of each target's class, 0 where it is ignored; in the shape of the targets."""
    valid = is_valid(targets, ignore)
    return torch.where(valid, weight[torch.where(valid, targets, 0).long()], 0.0)


def class_presence(targets: Tensor, num_classes: int, ignore: int) -> Tensor:
    """Which classes occur in each mask, for the whole batch at once and on its device.

    Args:
        targets: class ids (N, H, W).
        num_classes: C.
        ignore: the label that is no class.

    Returns:
        (N, C), float32 of 0 and 1.
    """
    ids = targets.flatten(1).long()  # (N, H W)
    ids = torch.where(is_valid(targets, ignore).flatten(1), ids, num_classes)
    # the last column takes the ignored
    presence = torch.zeros(len(ids), num_classes + 1, device=ids.device)
    return presence.scatter_(1, ids, 1.0)[:, :num_classes]


def presence_loss_sum(logits: Tensor, targets: Tensor, ignore: int) -> Tensor:
    """Binary cross-entropy of class presence, summed (semantic-encoding loss); divide it by N C.

    Args:
        logits: (N, C), one per class.
        targets: segmentation masks (N, H, W).
        ignore: the label that is no class.

    Returns:
        A float32 scalar.

    Source:
        Zhang et al., 2018, EncNet.
    """
    presence = class_presence(targets, logits.shape[1], ignore)
    return F.binary_cross_entropy_with_logits(logits.float(), presence, reduction="sum")
