"""Transforms of an image together with its mask, as torchvision v2 transforms.

Images are `tv_tensors.Image`, masks `tv_tensors.Mask`; torchvision resizes masks to the nearest label, so
no new one ever appears.
"""

from collections.abc import Sequence
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


class BalancedCrop(v2.Transform):
    """`random_crop`, drawn again up to `tries` times while one class has more than `max_share` of the valid pixels.

    As MMSegmentation's cat_max_ratio, where 0.75 is usual. A crop without valid pixels is drawn again too; the last
    one is kept whatever it shows.
    """

    def __init__(self, size: int, ignore: int, max_share: float = 0.75, tries: int = 10):
        super().__init__()
        if not 0 < max_share < 1:
            raise ValueError(f"max_share is {max_share}; it must be between 0 and 1, or None for crops as they come")
        self.crop, self.ignore, self.max_share, self.tries = random_crop(size, ignore), ignore, max_share, tries

    def forward(self, *inputs: Any) -> Any:
        """(image, mask) -> the same cropped."""
        for _ in range(self.tries + 1):
            cropped = self.crop(*inputs)
            mask = next(each for each in cropped if isinstance(each, tv_tensors.Mask)).as_subclass(torch.Tensor)
            sizes = mask[mask != self.ignore].bincount()
            if len(sizes) and sizes.max() <= self.max_share * sizes.sum():
                break
        return cropped


class Look(v2.Compose):
    """What an evaluation makes of an image.

    label: a few words for it, which stand beside the figures. whole: whether a label map of what is left is one of the
    image.
    """

    def __init__(self, steps: Sequence[v2.Transform], label: str, whole: bool = True):
        super().__init__(steps)
        self.label, self.whole = label, whole


class Lighting(v2.Transform):
    """Colours shifted along the principal components of ImageNet's, by eigenvalue times N(0, std) each.

    Krizhevsky et al., 2012. Images in uint8, or float in [0, 1].
    """

    _transformed_types = (tv_tensors.Image,)

    # of RGB in [0, 1], as fb.resnet.torch published them; a column of `vectors` is a component
    values = torch.tensor([0.2175, 0.0188, 0.0045])
    vectors = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])

    def __init__(self, std: float = 0.1):
        super().__init__()
        if std <= 0:
            raise ValueError(f"lighting is {std}; it must be above 0 (0.1 in the paper), or None for none")
        self.std = std

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the shift of the three channels, in [0, 1]."""
        return {"shift": self.vectors @ (torch.randn(3) * self.std * self.values)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Add the shift, and keep to the range."""
        top = 255 if inpt.dtype == torch.uint8 else 1
        shifted = (inpt.as_subclass(torch.Tensor) + top * params["shift"].view(3, 1, 1)).clamp(0, top)
        shifted = shifted.round() if top == 255 else shifted
        return tv_tensors.wrap(shifted.to(inpt.dtype), like=inpt)


def stacked(crops: tuple[Any, ...]) -> Any:
    """Crops of one size (C, H, W) each -> one image of them, (crops, C, H, W)."""
    return tv_tensors.Image(torch.stack(crops))
