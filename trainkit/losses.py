"""Losses as sums over valid targets, never means, and the counts to divide them by.

The loop divides the sums of the whole batch by its counts, over all passes and processes; a mean taken
here would be a mean of means. All are computed in float32 whatever the precision of the network.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy_sum(
    logits: Tensor,
    targets: Tensor,
    ignore: int = -1,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Sum of cross-entropies in nats, a float32 scalar.

    logits: (N, C) or (N, C, H, W). targets: class ids (N,) or (N, H, W), of which `ignore` adds nothing,
    or probabilities (N, C) as mixup and cutmix make them. weight: (C,) per class. With label smoothing s
    the target is (1 - s) of itself and s / C of every class (Szegedy et al., 2016).
    """
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
    return F.cross_entropy(logits.float(), targets, weight, reduction="sum", label_smoothing=label_smoothing)


def num_valid(targets: Tensor, ignore: int = -1, weight: Tensor | None = None) -> Tensor:
    """What `cross_entropy_sum` is divided by, a float32 scalar: valid targets, or the sum of their weights.

    targets: ids of any shape, or probabilities (N, C), which count one per image as in torch's own mean.
    """
    if targets.is_floating_point():
        return torch.full((), float(len(targets)), device=targets.device)
    valid = targets != ignore
    if weight is None:
        return valid.sum().float()
    return torch.where(valid, weight[torch.where(valid, targets, 0).long()], 0.0).sum().float()


def class_presence(targets: Tensor, num_classes: int, ignore: int) -> Tensor:
    """Which classes occur in each label map: (N, H, W) ids -> (N, num_classes) float32 of 0 and 1.

    The target of the semantic-encoding loss, for the whole batch at once and on its device.
    """
    ids = targets.flatten(1).long()  # (N, H W)
    ids = torch.where(ids == ignore, num_classes, ids)
    presence = torch.zeros(len(ids), num_classes + 1, device=ids.device)  # the last column takes the ignored
    return presence.scatter_(1, ids, 1.0)[:, :num_classes]


def presence_loss_sum(logits: Tensor, targets: Tensor, ignore: int) -> Tensor:
    """Semantic-encoding loss (Zhang et al., 2018, EncNet): binary cross-entropy of class presence, summed.

    logits: (N, C), one per class. targets: label maps (N, H, W). Divide by N C.
    """
    presence = class_presence(targets, logits.shape[1], ignore)
    return F.binary_cross_entropy_with_logits(logits.float(), presence, reduction="sum")
