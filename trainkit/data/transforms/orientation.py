"""Vertical flips and turns by right angles, of images that have no top: aerial, medical."""

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from trainkit.errors import UserError


def orientations(vflip: float, rotate90: float) -> list[v2.Transform]:
    """The transforms that are asked for; nothing is drawn for the others.

    Args:
        vflip: probability that top and bottom change sides.
        rotate90: probability of `RandomRotate90`.

    Raises:
        UserError: one is no probability.
    """
    for name, probability in (("vflip", vflip), ("rotate90", rotate90)):
        if not 0 <= probability <= 1:
            raise UserError(f"{name} is {probability}; it is a probability, from 0 to 1")
    steps: list[v2.Transform] = []
    if vflip:
        steps.append(v2.RandomVerticalFlip(vflip))
    if rotate90:
        steps.append(RandomRotate90(rotate90))
    return steps


class RandomRotate90(v2.Transform):
    """Turn an image, and its mask with it, counter-clockwise by 90, 180 or 270 degrees.

    Pixels are moved and none is changed, as by `numpy.rot90`; height and width change sides, but by
    180 degrees.

    Args:
        probability: of a turn; each of the three has a third of it, so that 0.75 makes all four
            directions alike.
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the number of quarter turns, 0 to 3."""
        drawn, which = torch.rand(2).tolist()
        return {"turns": 1 + int(which * 3) if drawn < self.probability else 0}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Turn (..., H, W)."""
        if params["turns"] == 0:
            return inpt
        turned = inpt.as_subclass(Tensor).rot90(params["turns"], (-2, -1))
        return tv_tensors.wrap(turned.contiguous(), like=inpt)
