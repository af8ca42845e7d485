"""Region-based segmentation losses: Dice, Tversky and Lovasz-softmax, image by image.

They are chosen like those of trainkit.losses.pixelwise, and most often combined with one of them.
Dice and Tversky take masks (N, C, H, W) too, one of each class, as overlapping classes have them:
1, 0, or below 0 where it is not known. Then a class's probability is its sigmoid, and not its part
in the softmax.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainkit.errors import UserError
from trainkit.losses.base import check_maps
from trainkit.losses.functional import class_presence, is_valid


class PresentClasses:
    """A loss of each image and each class in its labels, of which the others are not counted."""

    name: str
    factor: float

    def __call__(self, logits: Tensor, targets: Tensor, ignore: int) -> Tensor:
        """See `Criterion`."""
        check_maps(self, logits)
        return _image_by_image(self._of_image, logits, targets, ignore)

    def _of_image(self, logits: Tensor, target: Tensor, ignore: int) -> Tensor:
        """Sum over the classes of one image: logits (C, H, W), target (H, W) or (C, H, W)."""
        if target.ndim == 3:
            members = target > 0
            p = torch.where(target >= 0, logits.float().sigmoid(), 0)
        else:
            members = _members(target, ignore, len(logits))  # (C, H, W)
            p = logits.float().softmax(0) * is_valid(target, ignore)
        sizes = members.sum((1, 2))  # (C,)
        return torch.where(sizes > 0, self._of_classes(p, members, sizes), 0).sum()

    def _of_classes(self, p: Tensor, members: Tensor, sizes: Tensor) -> Tensor:
        """Losses (C,) by probabilities and members (C, H, W), and the members' numbers (C,)."""
        raise NotImplementedError

    def count(self, targets: Tensor, ignore: int, num_classes: int) -> Tensor:
        """Pairs of an image and a class present in it."""
        if targets.ndim == 4:
            return (targets > 0).flatten(2).any(2).sum().float()
        return class_presence(targets, num_classes, ignore).sum()


@dataclass(frozen=True)
class Dice(PresentClasses):
    """Dice loss of each image and each class in its labels.

    It is 1 - (2 sum(p g) + smooth) / (sum(p^2) + sum(g) + smooth).

    Here p are probabilities and g is 0 or 1, summed over the valid pixels of the image. Classes
    that an image's labels lack are not counted: what is wrongly given to them is missing from those
    it has.

    Args:
        smooth: added to both sums, at least 0.
        factor: weight of this loss beside others.

    Raises:
        UserError: a value is out of range.

    Source:
        Milletari et al., 2016, V-Net.
    """

    smooth: float = 1.0
    factor: float = 1.0

    name = "dice"

    def __post_init__(self) -> None:
        if self.smooth < 0:
            raise UserError(f"Dice: smooth is {self.smooth}; it must be at least 0")

    def _of_classes(self, p: Tensor, members: Tensor, sizes: Tensor) -> Tensor:
        overlap = torch.where(members, p, 0).sum((1, 2))
        dice = (2 * overlap + self.smooth) / (p.square().sum((1, 2)) + sizes + self.smooth).clamp(
            min=1e-12
        )
        return 1 - dice


@dataclass(frozen=True)
class Tversky(PresentClasses):
    """Tversky loss of each image and each class in its labels: Dice with a price for each error.

    It is 1 - (tp + smooth) / (tp + alpha fp + beta fn + smooth).

    Here tp = sum(p g), fp = sum(p (1 - g)) and fn = sum((1 - p) g), of probabilities p and g of 0
    or 1, summed over the valid pixels of the image. Classes that an image's labels lack are not
    counted, as in `Dice`.

    Args:
        alpha: price of false positives, at least 0.
        beta: price of false negatives, at least 0; above alpha small parts are found sooner.
        smooth: added to both sides of the ratio, at least 0.
        factor: weight of this loss beside others.

    Raises:
        UserError: a value is out of range.

    Source:
        Salehi et al., 2017, Tversky Loss Function for Image Segmentation, whose 0.3 and 0.7 are the
        defaults.
    """

    alpha: float = 0.3
    beta: float = 0.7
    smooth: float = 1.0
    factor: float = 1.0

    name = "tversky"

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "smooth"):
            if not getattr(self, name) >= 0:
                raise UserError(f"Tversky: {name} is {getattr(self, name)}; it must be at least 0")

    def _of_classes(self, p: Tensor, members: Tensor, sizes: Tensor) -> Tensor:
        hits = torch.where(members, p, 0).sum((1, 2))
        wrong, missed = p.sum((1, 2)) - hits, sizes - hits
        whole = hits + self.alpha * wrong + self.beta * missed + self.smooth
        return 1 - (hits + self.smooth) / whole.clamp(min=1e-12)


@dataclass(frozen=True)
class Lovasz:
    """Lovasz-softmax, a surrogate of 1 - IoU: per image, mean over the classes present.

    Takes a sort of all pixels for every class: several times the memory of one image's float32
    logits.

    Args:
        factor: weight of this loss beside others.

    Source:
        Berman et al., 2018, The Lovasz-Softmax Loss.
    """

    factor: float = 1.0

    name = "lovasz"

    def __call__(self, logits: Tensor, targets: Tensor, ignore: int) -> Tensor:
        """See `Criterion`."""
        check_maps(self, logits)
        return _image_by_image(self._of_image, logits, targets, ignore)

    def _of_image(self, logits: Tensor, target: Tensor, ignore: int) -> Tensor:
        """Mean over the classes of one image: logits (C, H, W), target (H, W)."""
        # (H, W), (C, H W)
        valid, members = is_valid(target, ignore), _members(target, ignore, len(logits)).flatten(1)
        p = logits.float().softmax(0).flatten(1)
        # ignored: 0, and with the last ones
        errors = torch.where(members, 1 - p, p) * valid.flatten()
        # the extension is linear for one order of the errors: these are its slopes
        with torch.no_grad():
            order = errors.argsort(dim=1, descending=True, stable=True)
            hits = members.gather(1, order)
            size = hits.sum(1, keepdim=True)  # (C, 1)
            missed = size - hits.cumsum(1, dtype=torch.int32)
            union = size + (~hits).cumsum(1, dtype=torch.int32)
            jaccard = 1 - missed / union  # of the first k errors as mistakes
            jaccard[:, 1:] -= jaccard[:, :-1].clone()
            slopes = torch.empty_like(errors).scatter_(1, order, jaccard)
            present = size[:, 0] > 0
        each = (errors * slopes).sum(1)  # (C,)
        return torch.where(present, each, 0).sum() / present.sum().clamp(min=1)

    def count(self, targets: Tensor, ignore: int, num_classes: int) -> Tensor:
        """Images with a valid pixel."""
        return is_valid(targets, ignore).flatten(1).any(1).sum().float()


def _members(target: Tensor, ignore: int, num_classes: int) -> Tensor:
    """Which pixels are valid and of each class: (H, W) ids -> bool (C, H, W)."""
    classes = torch.arange(num_classes, device=target.device).view(-1, 1, 1)
    return (target == classes) & is_valid(target, ignore)


def _image_by_image(
    of_image: Callable[..., Tensor], logits: Tensor, targets: Tensor, ignore: int
) -> Tensor:
    """Sum over images; float32 copies are computed again in the backward pass, not kept for all."""
    total = torch.zeros((), device=logits.device)
    for image, target in zip(logits, targets):
        total = total + checkpoint(
            of_image, image, target, ignore, use_reentrant=False, preserve_rng_state=False
        )
    return total
