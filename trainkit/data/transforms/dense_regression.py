"""Transforms of images and maps of numbers, such as depth, for training."""

import math

from torchvision.transforms import v2

from trainkit.data.transforms.ops import RandomScaleCrop
from trainkit.data.transforms.orientation import orientations


def train_transform(
    long_side: int,
    crop: int,
    scale: tuple[float, float] = (1.0, 1.5),
    photometric: bool = False,
    vflip: float = 0.0,
    rotate90: float = 0.0,
) -> v2.Transform:
    """Long side to long_side times a random scale, random crop, flip, of image and map.

    Values stay as they are: a map is resized to the nearest one, and none is made up between two.
    What a crop larger than the image lacks is black in the image and NaN in the map.

    Args:
        long_side: in pixels.
        crop: side of the crop in pixels.
        scale: least and largest factor of `long_side`.
        photometric: distort brightness, contrast, saturation and hue.
        vflip: probability that top and bottom change sides.
        rotate90: probability of a turn by 90, 180 or 270 degrees.

    Returns:
        (image (3, H, W), map (H, W)) -> (image (3, crop, crop), map (crop, crop)).
    """
    scaled = RandomScaleCrop(long_side, crop, scale, math.nan, hflip_prob=0.5)
    further = orientations(vflip, rotate90)
    if photometric:
        further.append(v2.RandomPhotometricDistort())
    return v2.Compose([scaled, *further]) if further else scaled
