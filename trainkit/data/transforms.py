"""Transforms of an image together with its mask, as torchvision v2 transforms.

Images are `tv_tensors.Image`, masks `tv_tensors.Mask`; torchvision resizes masks to the nearest label, so
no new one ever appears.
"""

from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional


def _size_of_long_side(inputs: list[Any], long_side: int) -> list[int]:
    height, width = v2.query_size(inputs)
    factor = long_side / max(height, width)
    return [max(1, round(height * factor)), max(1, round(width * factor))]


class RandomLongSide(v2.Transform):
    """Resize image and mask so that the long side is base times a factor drawn evenly from `scale`."""

    def __init__(self, base: int, scale: tuple[float, float]):
        super().__init__()
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale is {scale}; give two factors above 0, the smaller one first")
        self.base, self.scale = base, scale

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the size."""
        low, high = (int(self.base * factor) for factor in self.scale)
        return {"size": _size_of_long_side(flat_inputs, int(torch.randint(low, high + 1, ())))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize: images bilinearly with antialiasing, masks to the nearest label."""
        return functional.resize(inpt, params["size"], antialias=True)


class LongSide(v2.Transform):
    """Resize the image so that its long side is `base`, and leave the mask untouched."""

    _transformed_types = (tv_tensors.Image,)

    def __init__(self, base: int):
        super().__init__()
        self.base = base

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize the image bilinearly with antialiasing."""
        return functional.resize(inpt, _size_of_long_side([inpt], self.base), antialias=True)


def random_crop(size: int, ignore: int) -> v2.Transform:
    """Random crop; what a smaller image lacks on any side is black, and `ignore` in the mask."""
    return v2.RandomCrop(size, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: ignore})
