"""Transforms of an image, or of one together with its mask, as torchvision v2 transforms.

Images are `tv_tensors.Image`, uint8 or float (3, H, W), masks `tv_tensors.Mask`, (H, W) or of
overlapping classes (C, H, W), resized to the nearest label, so that no new one ever appears.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from trainkit.data.to_device import MEAN, STD
from trainkit.data.transforms.region import draw_region, resized
from trainkit.errors import UserError


def resized_region(
    image: Tensor,
    top: int,
    left: int,
    height: int,
    width: int,
    size: Sequence[int],
    interpolation: InterpolationMode = InterpolationMode.BILINEAR,
    mirrored: bool = False,
) -> tv_tensors.Image:
    """Resize a region of an image with antialiasing.

    The region is cut out first, so that nothing else is resized, and copied with a pixel's channels
    side by side, where torch resizes bytes several at a time (of a view it would resize one channel
    after the other).

    Args:
        image: (C, H, W).
        top: of the region, in pixels.
        left: of the region, in pixels.
        height: of the region, in pixels.
        width: of the region, in pixels.
        size: height and width of the result.
        interpolation: torchvision's mode.
        mirrored: whether left and right change sides.

    Returns:
        (C, *size).
    """
    region = image.as_subclass(Tensor)[:, top : top + height, left : left + width].permute(1, 2, 0)
    region = (region.flip(1) if mirrored else region).contiguous().permute(2, 0, 1)
    found = resized(region, size, interpolation)
    return found.as_subclass(tv_tensors.Image)  # in a seventh of its constructor's time


class RandomResizedCrop(v2.RandomResizedCrop):
    """torchvision's RandomResizedCrop, of images only, by `resized_region`: the same crops."""

    cuts_out = True  # its `transform` may be given the region alone, see `begins_with_crop`

    def box(self, height: int, width: int) -> dict[str, int]:
        """Draw the region of an image of this size."""
        return draw_region(height, width, self.scale, self._log_ratio, self.ratio)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the region."""
        return self.box(*v2.query_size(flat_inputs))

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Cut the region out and resize it."""
        return resized_region(inpt, **params, size=self.size, interpolation=self.interpolation)


def _size_of_long_side(height: int, width: int, long_side: int) -> list[int]:
    factor = long_side / max(height, width)
    return [max(1, round(height * factor)), max(1, round(width * factor))]


def nearest_region(
    mask: Tensor,
    top: int,
    left: int,
    height: int,
    width: int,
    size: Sequence[int],
    mirrored: bool = False,
) -> Tensor:
    """Resize a region of a mask: each label is the stored one under its middle, as Pillow's.

    Labels are picked by NumPy, in half of torch's time, and along the side first that leaves fewer
    for the other.

    Args:
        mask: (H, W) or (C, H, W).
        top: of the region, in pixels.
        left: of the region, in pixels.
        height: of the region, in pixels.
        width: of the region, in pixels.
        size: height and width of the result.
        mirrored: whether left and right change sides.

    Returns:
        `size`, or (C, *size).
    """
    rows, columns = (
        (2 * np.arange(to) + 1) * stored // (2 * to) for to, stored in zip(size, (height, width))
    )
    labels = mask.as_subclass(Tensor)[..., top : top + height, left : left + width].numpy()
    columns = columns[::-1] if mirrored else columns
    if len(rows) < height:
        return torch.from_numpy(labels.take(rows, -2).take(columns, -1))
    return torch.from_numpy(labels.take(columns, -1).take(rows, -2))


class RandomScaleCrop(v2.Transform):
    """A random crop of image and mask, whose long side is scaled by a random factor.

    What the crop shows is cut out of the stored image in whole pixels, and only that is resized:
    images bilinearly with antialiasing, masks to the nearest label. An edge of the crop is thus up
    to half a stored pixel from where it would be in the whole image resized. What a smaller image
    lacks on any side is black, and `ignore` in the mask.

    Args:
        long_side: long side of the scaled image in pixels, before the factor.
        crop: side of the crop in pixels, its height where there is a `crop_width`.
        scale: least and largest factor, drawn uniformly.
        ignore: the label of what lies outside of the image.
        cat_max_ratio: draw the crop again, up to `tries` times, while one class has more than this
            share of its valid pixels, as in MMSegmentation, where 0.75 is usual. A crop without
            valid pixels is drawn again too; the last one is kept whatever it shows.
        tries: see `cat_max_ratio`.
        hflip_prob: probability that left and right change sides.
        crop_width: of the crop; None: a square.

    Raises:
        UserError: a value is out of range.
    """

    cuts_pairs_out = True  # its `transform` may be given the region alone, see `first_crop`

    def __init__(
        self,
        long_side: int,
        crop: int,
        scale: tuple[float, float],
        ignore: float,
        cat_max_ratio: float | None = None,
        tries: int = 10,
        hflip_prob: float = 0.0,
        crop_width: int | None = None,
    ):
        super().__init__()
        if not 0 < scale[0] <= scale[1]:
            raise UserError(f"scale is {scale}; give two factors above 0, the smaller one first")
        if cat_max_ratio is not None and not 0 < cat_max_ratio < 1:
            raise UserError(
                f"cat_max_ratio is {cat_max_ratio}; it must be between 0 and 1, or None for crops"
                " as they come"
            )
        if not 0 <= hflip_prob <= 1:
            raise UserError(f"hflip_prob is {hflip_prob}; it must be from 0 to 1")
        self.long_side, self.scale, self.ignore = long_side, scale, ignore
        self.crop = crop, crop if crop_width is None else crop_width
        self.cat_max_ratio, self.tries, self.hflip_prob = cat_max_ratio, tries, hflip_prob

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the side that faces left, the size and the position."""
        side, size = torch.rand(2).tolist()
        low, high = (int(self.long_side * factor) for factor in self.scale)
        height, width = v2.query_size(flat_inputs)
        scaled = _size_of_long_side(height, width, low + int(size * (high + 1 - low)))
        for _ in range(1 if self.cat_max_ratio is None else self.tries + 1):
            down, across = torch.rand(2).tolist()
            rows, columns = (
                _shown(height, scaled[0], self.crop[0], down),
                _shown(width, scaled[1], self.crop[1], across),
            )
            params = {"rows": rows, "columns": columns, "mirrored": side < self.hflip_prob}
            if self.cat_max_ratio is None or self._is_balanced(flat_inputs, params):
                break
        return params

    def _is_balanced(self, flat_inputs: list[Any], params: dict[str, Any]) -> bool:
        mask = next(each for each in flat_inputs if isinstance(each, tv_tensors.Mask))
        labels = self.transform(mask, params).as_subclass(Tensor)
        sizes = labels[labels != self.ignore].bincount()
        return len(sizes) > 0 and bool(sizes.max() <= self.cat_max_ratio * sizes.sum())

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Cut out, resize, and pad to the size of the crop with black or ignored pixels."""
        (top, height, above, rows), (left, width, before, columns) = (
            params["rows"],
            params["columns"],
        )
        region = {
            "top": top,
            "left": left,
            "height": height,
            "width": width,
            "mirrored": params["mirrored"],
        }
        is_mask = isinstance(inpt, tv_tensors.Mask)
        cut = nearest_region if is_mask else resized_region
        shown = cut(inpt, **region, size=(rows, columns)).as_subclass(Tensor)
        if (rows, columns) != self.crop:
            if is_mask:
                whole = shown.new_full((*shown.shape[:-2], *self.crop), self.ignore)
            else:
                whole = shown.new_zeros((*self.crop, len(shown))).permute(2, 0, 1)
            whole[..., above : above + rows, before : before + columns] = shown
            shown = whole
        return tv_tensors.wrap(shown, like=inpt)


def _shown(stored: int, scaled: int, crop: int, drawn: float) -> tuple[int, int, int, int]:
    """Along one side: first pixel cut out and how many, first in the crop and how many."""
    place = int(drawn * (abs(scaled - crop) + 1))
    if scaled <= crop:
        return 0, stored, place, scaled
    length = max(1, round(crop * stored / scaled))
    return min(round(place * stored / scaled), stored - length), length, 0, crop


class LongSide(v2.Transform):
    """Resize the image so that its long side is `long_side`, and leave the mask untouched.

    Args:
        long_side: in pixels.
    """

    _transformed_types = (tv_tensors.Image,)

    def __init__(self, long_side: int):
        super().__init__()
        self.long_side = long_side

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize the image bilinearly with antialiasing."""
        height, width = inpt.shape[-2:]
        size = _size_of_long_side(height, width, self.long_side)
        return functional.resize(inpt, size, antialias=True)


class ShortSide(v2.Transform):
    """Resize the image so that its short side is `short_side`, and leave the mask untouched.

    Args:
        short_side: in pixels.
    """

    _transformed_types = (tv_tensors.Image,)

    def __init__(self, short_side: int):
        super().__init__()
        self.short_side = short_side

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize the image bilinearly with antialiasing."""
        return functional.resize(inpt, [self.short_side], antialias=True)


class EvalTransform(v2.Compose):
    """The transform of an evaluation.

    Args:
        steps: transforms in their order.
        label: a short description, shown beside the metrics.
        whole: whether a mask of the transformed image covers the whole image.
    """

    def __init__(self, steps: Sequence[v2.Transform], label: str, whole: bool = True):
        super().__init__(steps)
        self.label, self.whole = label, whole


class NoiseErasing(v2.RandomErasing):
    """Random erasing with noise of each pixel, of ImageNet's mean and standard deviation.

    uint8 images end at 0 and 255, which cuts the noise off at two deviations. timm's mode "pixel"
    fills in such noise after normalisation.

    Args:
        p: probability.

    Source:
        Zhong et al., 2020, Random Erasing; `timm.data.random_erasing` with mode "pixel".
    """

    def __init__(self, p: float):
        super().__init__(p, value=0.0)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the rectangle, and what fills it."""
        found = super().make_params(flat_inputs)
        if found["v"] is None:  # no rectangle fits
            return found
        mean, std = (255 * torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        noise = torch.randn(3, found["h"], found["w"])
        return {**found, "v": (mean + std * noise).round().clamp(0, 255).to(torch.uint8)}


class Lighting(v2.Transform):
    """AlexNet's colour jitter: shifts along the principal components of ImageNet's colours.

    Each is its eigenvalue times N(0, std). Images are uint8, or float in [0, 1].

    Args:
        std: 0.1 in the paper.

    Source:
        Krizhevsky et al., 2012, ImageNet Classification with Deep CNNs.
    """

    _transformed_types = (tv_tensors.Image,)

    # of RGB in [0, 1], as fb.resnet.torch published them; a column of `vectors` is a component
    values = torch.tensor([0.2175, 0.0188, 0.0045])
    vectors = torch.tensor(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    )

    def __init__(self, std: float = 0.1):
        super().__init__()
        if std <= 0:
            raise UserError(
                f"lighting is {std}; it must be above 0 (0.1 in the paper), or None for none"
            )
        self.std = std

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the shift of the three channels, in [0, 1]."""
        return {"shift": self.vectors @ (torch.randn(3) * self.std * self.values)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Add the shift, and keep to the range."""
        top = 255 if inpt.dtype == torch.uint8 else 1
        shifted = (inpt.as_subclass(Tensor) + top * params["shift"].view(3, 1, 1)).clamp(0, top)
        shifted = shifted.round() if top == 255 else shifted
        return tv_tensors.wrap(shifted.to(inpt.dtype), like=inpt)


def stacked(crops: tuple[Any, ...]) -> Any:
    """Stack crops of one size (C, H, W) into one image (crops, C, H, W)."""
    return tv_tensors.Image(torch.stack(crops))
