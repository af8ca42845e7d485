"""Mixup and cutmix of one process's share of a batch, on the device.

Each image is mixed with its neighbour in the batch's order (0 with 1, 2 with 3, ...), and one
weight is drawn per batch from (seed, step). The order is random, so the pairs are; and since pairs
are never parted (`TrainOrder.unit`), mixing gives the same images for any number of processes,
workers and micro-batches. The last image of an odd batch stays as it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from trainkit.errors import UserError


def _pair(x: Tensor) -> Tensor:
    """Each image's partner: x[[1, 0, 3, 2, ...]] (an odd last one is its own)."""
    index = torch.arange(len(x), device=x.device) ^ 1
    return x[index.clamp_(max=len(x) - 1)]


def soft_targets(targets: Tensor, num_classes: int) -> Tensor:
    """Turn class ids into probabilities; soft targets pass as they are.

    Args:
        targets: class ids (N,), of which a negative one gives a row of zeros, or (N, num_classes).
        num_classes: how many classes there are.

    Returns:
        float32 (N, num_classes).
    """
    if targets.ndim > 1:
        return targets
    return one_hot(targets.long().clamp(min=0), num_classes).float() * (targets >= 0)[:, None]


def _mixed(targets: Tensor, num_classes: int, weight: float) -> Tensor:
    """Targets mixed with their neighbours': float32 (N, num_classes).

    Of multi-hot rows, whole numbers, it is -1, not known, where it is so of either image.
    """
    if targets.ndim > 1 and not targets.is_floating_point():
        unknown = (targets < 0) | (_pair(targets) < 0)
        present = targets.clamp(min=0).float()
        return torch.where(unknown, -1.0, torch.lerp(_pair(present), present, weight))
    targets = soft_targets(targets, num_classes)
    return torch.lerp(_pair(targets), targets, weight)


def _check_alpha(name: str, alpha: float) -> None:
    if alpha <= 0:
        raise UserError(
            f"{name}: alpha is {alpha}; it must be above 0 (pass no mixing to turn it off)"
        )


@dataclass(frozen=True)
class _OfPairs:
    """The settings of `Mixup` and `Cutmix`, checked."""

    alpha: float
    num_classes: int

    def __post_init__(self) -> None:
        name = type(self).__name__
        _check_alpha(name, self.alpha)
        if self.num_classes < 2:
            raise UserError(f"{name}: num_classes is {self.num_classes}; it must be at least 2")


class Mixup(_OfPairs):
    """Mixup: w x1 + (1 - w) x2 and the same for the targets, w ~ Beta(alpha, alpha).

    Args:
        num_classes: how many classes there are.
        alpha: above 0.

    Raises:
        UserError: a value is out of range.

    Source:
        Zhang et al., 2018, mixup.
    """

    def __call__(self, images: Tensor, targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Mix each image with its neighbour.

        Args:
            images: (N, C, H, W), float.
            targets: class ids (N,), probabilities (N, num_classes), or multi-hot rows of whole
                numbers (N, num_classes), negative where nothing is known.
            seed: of this step.

        Returns:
            Mixed images and soft targets.
        """
        weight = float(np.random.default_rng(seed).beta(self.alpha, self.alpha))
        mixed = _mixed(targets, self.num_classes, weight)
        return torch.lerp(_pair(images), images, weight), mixed


class Cutmix(_OfPairs):
    """Cutmix: a box of the partner replaces the image's; targets are mixed by area.

    The box covers 1 - w of the image before it is cut at the border, w ~ Beta(alpha, alpha); the
    targets' weight is the area really left.

    Args:
        num_classes: how many classes there are.
        alpha: above 0.

    Raises:
        UserError: a value is out of range.

    Source:
        Yun et al., 2019, CutMix.
    """

    def __call__(self, images: Tensor, targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """See `Mixup`."""
        height, width = images.shape[-2:]
        top, bottom, left, right = _box(height, width, self.alpha, seed)
        mixed = _with_box(images, top, bottom, left, right)
        weight = 1.0 - (bottom - top) * (right - left) / (height * width)
        return mixed, _mixed(targets, self.num_classes, weight)


@dataclass(frozen=True)
class CutmixMasks:
    """Cutmix of images with segmentation masks: a box of the partner replaces image and mask.

    Labels stay whole, ignored ones too, so that each loss counts the targets that it sees.

    Args:
        alpha: see `Cutmix`.

    Raises:
        UserError: `alpha` is out of range.

    Source:
        French et al., 2020, Semi-supervised semantic segmentation needs strong, varied
        perturbations, after CutMix.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        _check_alpha("CutmixMasks", self.alpha)

    def __call__(self, images: Tensor, targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Mix each image and mask with its neighbour.

        Args:
            images: (N, C, H, W).
            targets: (N, H, W).
            seed: of this step.
        """
        if targets.shape[-2:] != images.shape[-2:]:
            raise UserError(
                f"CutmixMasks: targets are {tuple(targets.shape)} and images"
                f" {tuple(images.shape)}; it mixes masks of the images' size"
            )
        height, width = images.shape[-2:]
        box = _box(height, width, self.alpha, seed)
        return _with_box(images, *box), _with_box(targets, *box)


@dataclass(frozen=True)
class MixupMasks:
    """Mixup of images with segmentation masks: w x1 + (1 - w) x2, w ~ Beta(alpha, alpha).

    Both masks stay whole, and each loss is w times that of the image's own and 1 - w times that of
    its partner's. What is ignored of one is so for that one alone: `Segmentation` counts the valid
    targets of both by the same weights.

    Args:
        alpha: see `Mixup`.

    Raises:
        UserError: `alpha` is out of range.

    Source:
        Zhang et al., 2018, mixup; with masks Panfilov et al., 2019, Improving Robustness of Deep
        Learning Based Knee MRI Segmentation: Mixup and Adversarial Domain Adaptation.
    """

    alpha: float = 0.4

    def __post_init__(self) -> None:
        _check_alpha("MixupMasks", self.alpha)

    def __call__(self, images: Tensor, targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Mix each image with its neighbour.

        Args:
            images: (N, C, H, W), float.
            targets: masks (N, H, W), of integers below 2^24.
            seed: of this step.

        Returns:
            Mixed images, and the masks of both as `mixed_masks` reads them: float32 (N, 3, H, W),
            an image's own, its partner's, and the weight.
        """
        if targets.ndim != 3 or targets.is_floating_point():
            raise UserError(
                f"MixupMasks: targets are {targets.dtype} {tuple(targets.shape)}; it mixes images"
                " with masks of class ids (N, H, W)"
            )
        weight = float(np.random.default_rng(seed).beta(self.alpha, self.alpha))
        own = targets.float()
        both = torch.stack([own, _pair(own), torch.full_like(own, weight)], 1)
        return torch.lerp(_pair(images), images, weight), both


def mixed_masks(targets: Tensor) -> list[tuple[Tensor, Tensor | None]]:
    """Masks and the weight of each, of what `MixupMasks` made or of masks as they are.

    Args:
        targets: masks (N, H, W), or what `MixupMasks` made of them, (N, 3, H, W).

    Returns:
        The masks and None; of mixed ones twice masks (N, H, W), int32, and their weight, of all
        images alike: float32 ().
    """
    if targets.ndim != 4:
        return [(targets, None)]
    own, partners, weights = targets.unbind(1)
    weight = weights[:1, :1, :1].sum()  # of no images 0
    return [(own.int(), weight), (partners.int(), 1 - weight)]


def heavier_masks(targets: Tensor) -> Tensor:
    """Of what `MixupMasks` made (N, 3, H, W): the masks (N, H, W) of the larger weight, int32."""
    own, partners, weights = targets.unbind(1)
    return torch.where(weights >= 0.5, own, partners).int()


def weighted_sum(parts: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
    """Sum of what was computed of each of `mixed_masks`, by its weight."""
    (total, weight), *others = parts
    if weight is None:
        return total
    total = weight * total
    for value, share in others:
        assert share is not None  # of mixed masks all have one
        total = total + share * value
    return total


def _box(height: int, width: int, alpha: float, seed: int) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of the box of a batch."""
    random = np.random.default_rng(seed)
    side = np.sqrt(1.0 - random.beta(alpha, alpha))
    y, x = random.integers(height), random.integers(width)
    top, bottom = (int(np.clip(y + sign * side * height / 2, 0, height)) for sign in (-1, 1))
    left, right = (int(np.clip(x + sign * side * width / 2, 0, width)) for sign in (-1, 1))
    return top, bottom, left, right


def _with_box(whole: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
    """Images or masks (N, ..., H, W) with a box of their partners."""
    mixed = whole.clone()
    mixed[..., top:bottom, left:right] = _pair(whole)[..., top:bottom, left:right]
    return mixed


@dataclass(frozen=True)
class Either:
    """One of several mixings per batch, each as likely."""

    mixings: Sequence[Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]]

    def __call__(self, images: Tensor, targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """See `Mixup`."""
        choice = int(np.random.default_rng([seed, 1]).integers(len(self.mixings)))
        return self.mixings[choice](images, targets, seed)


def by_turns(num_classes: int, mixup: float | None, cutmix: float | None) -> Either | None:
    """Mixup or cutmix of these alphas, chosen per batch where both are given.

    Args:
        num_classes: how many classes there are.
        mixup: alpha of mixup; None for none.
        cutmix: alpha of cutmix; None for none.

    Returns:
        None where neither is given.
    """
    alphas = ((Mixup, mixup), (Cutmix, cutmix))
    mixings = tuple(kind(alpha, num_classes) for kind, alpha in alphas if alpha is not None)
    return Either(mixings) if mixings else None


def masks_by_turns(
    mixup: float | None, cutmix: float | None
) -> Either | MixupMasks | CutmixMasks | None:
    """Mixup or cutmix of images with masks, of these alphas, by chance where both are given.

    Args:
        mixup: alpha of mixup; None for none.
        cutmix: alpha of cutmix; None for none.

    Returns:
        None where neither is given.
    """
    alphas = ((MixupMasks, mixup), (CutmixMasks, cutmix))
    mixings = [kind(alpha) for kind, alpha in alphas if alpha is not None]
    if len(mixings) > 1:
        return Either(tuple(mixings))
    return mixings[0] if mixings else None
