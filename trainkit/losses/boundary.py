"""Boundary loss of segmentation: how far from a class's outline its probability lies."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainkit.losses.base import check_maps
from trainkit.losses.functional import class_presence, is_valid, num_valid

LOOKED_AT_ONCE = 8  # columns, before it is asked whether further ones can be nearer


@dataclass(frozen=True)
class Boundary:
    """Boundary loss: probabilities times signed distances, the mean over valid pixels.

    It is the sum of p_c d_c over the classes c that an image's labels have. d_c is the distance in
    pixels to the class's outline, see `signed_distances`: above 0 outside, so that probability
    costs the more the farther off it lies, and below 0 inside, so that the loss may be negative.
    Of masks (N, C, H, W) of overlapping classes p_c is the class's sigmoid, and the mean is over
    valid pairs of pixel and class.

    It says little where nothing is found yet: use it beside another loss, such as
    `[Dice(), Boundary()]`, with a small factor, as distances are large numbers. `at_step` of a
    task of one's own may raise it with the step (docs/recipes.md).

    Args:
        factor: weight of this loss beside others; the authors begin with the default.

    Source:
        Kervadec et al., 2019, Boundary loss for highly unbalanced segmentation. Their code takes
        the mean over classes too, of those that are chosen.
    """

    factor: float = 0.01

    name = "boundary"

    def __call__(self, logits: Tensor, targets: Tensor, ignore: int) -> Tensor:
        """See `Criterion`; waits for the device once, for which classes there are."""
        check_maps(self, logits)
        if targets.ndim == 4:
            return self._of_masks(logits, targets)
        present = class_presence(targets, logits.shape[1], ignore).cpu()
        total = torch.zeros((), device=logits.device)
        for image, target, row in zip(logits, targets, present):
            ids = row.nonzero()[:, 0].to(logits.device)
            distances = signed_distances(target, ids, ignore)
            total = total + checkpoint(
                _of_image, image, ids, distances, use_reentrant=False, preserve_rng_state=False
            )
        return total

    def _of_masks(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Sum over masks (N, C, H, W): 1, 0, or below 0 where it is not known."""
        total = torch.zeros((), device=logits.device)
        for image, mask in zip(logits, masks):
            with torch.no_grad():
                distances = distances_to_outlines(mask > 0, mask >= 0)
            total = total + checkpoint(
                _of_classes, image, distances, use_reentrant=False, preserve_rng_state=False
            )
        return total

    def count(self, targets: Tensor, ignore: int, num_classes: int) -> Tensor:
        """Valid pixels, or of masks of overlapping classes valid pairs of pixel and class."""
        return (targets >= 0).sum().float() if targets.ndim == 4 else num_valid(targets, ignore)


def _of_classes(logits: Tensor, distances: Tensor) -> Tensor:
    """Sum over one image of overlapping classes: logits and distances (C, H, W)."""
    return (logits.float().sigmoid() * distances).sum()


def _of_image(logits: Tensor, ids: Tensor, distances: Tensor) -> Tensor:
    """Sum over one image: logits (C, H, W), distances (K, H, W) of the classes `ids` (K,)."""
    return (logits.float().softmax(0)[ids] * distances).sum()


@torch.no_grad()
def signed_distances(target: Tensor, ids: Tensor, ignore: int) -> Tensor:
    """Distance of each pixel to the outlines of classes.

    Outside a class it is the Euclidean distance to its nearest pixel, 1 beside it; inside it is
    1 minus that to the nearest valid pixel of another class, 0 at the outline, as in the authors'
    code. It is 0 of ignored pixels, which make no outline either, and of a class without an
    outline, which no valid pixel has or all have.

    Args:
        target: class ids (H, W).
        ids: classes (K,), on the same device.
        ignore: the label that is no class.

    Returns:
        float32 (K, H, W), in pixels.
    """
    valid = is_valid(target, ignore)
    return distances_to_outlines((target == ids.view(-1, 1, 1)) & valid, valid)


def distances_to_outlines(inside: Tensor, valid: Tensor) -> Tensor:
    """`signed_distances` of classes by the pixels that are of them.

    Args:
        inside: bool (K, H, W), pixels of each class, valid ones.
        valid: bool (H, W), or (K, H, W) of each class.

    Returns:
        float32 (K, H, W), in pixels.
    """
    outside = ~inside & valid
    outlined = inside.flatten(1).any(1) & outside.flatten(1).any(1)  # (K,)
    # what has no outline is as near as can be: the search ends sooner
    nowhere = ~outlined.view(-1, 1, 1)
    to_inside = squared_distances(inside | nowhere).sqrt_()
    to_outside = squared_distances(outside | nowhere).sqrt_()
    signed = torch.where(inside, 1 - to_outside, to_inside)
    return torch.where(valid & ~nowhere, signed, 0)


def squared_distances(there: Tensor) -> Tensor:
    """Squared Euclidean distance, in pixels, of each pixel to the nearest one that is `there`.

    Args:
        there: bool (K, H, W), True somewhere in each map.

    Returns:
        float32 (K, H, W): whole numbers, exact below 2^24.
    """
    if not there.numel():  # no map
        return there.float()
    height, width = there.shape[-2:]
    far = float(height + width)  # above any distance within the image
    row = torch.arange(height, dtype=torch.float32, device=there.device).view(-1, 1)
    # of each pixel's own column first
    above = row - torch.where(there, row, -far).cummax(-2).values
    below = torch.where(there, row, row + far).flip(-2).cummin(-2).values.flip(-2) - row
    column = torch.minimum(above, below).clamp_(max=far).square_()
    best = column.clone()
    for shift in range(1, width):
        # no column farther off can be nearer than what is found
        if shift % LOOKED_AT_ONCE == 0 and shift**2 >= best.max():
            break
        left, right = best[..., :-shift], best[..., shift:]
        torch.minimum(left, column[..., shift:] + shift**2, out=left)
        torch.minimum(right, column[..., :-shift] + shift**2, out=right)
    return best
