"""Transforms of images and segmentation masks: training and evaluation."""

from torchvision.transforms import v2

from trainkit.data.transforms.ops import (
    EvalTransform,
    LongSide,
    RandomScaleCrop,
    ShortSide,
)
from trainkit.data.transforms.orientation import orientations
from trainkit.errors import UserError
from trainkit.settings.rebuildable import rebuildable


def train_transform(
    long_side: int,
    crop: int,
    scale: tuple[float, float] = (0.5, 2.0),
    ignore: int = 255,
    photometric: bool = False,
    cat_max_ratio: float | None = None,
    vflip: float = 0.0,
    rotate90: float = 0.0,
    crop_width: int | None = None,
) -> v2.Transform:
    """Long side to long_side times a random scale, random crop, flip, of image and mask.

    What a crop larger than the image lacks is black in the image and `ignore` in the mask.

    Args:
        long_side: in pixels.
        crop: side of the crop in pixels, its height where there is a `crop_width`.
        scale: least and largest factor of `long_side`.
        ignore: the label that is never counted.
        photometric: distort brightness, contrast, saturation and hue, and swap channels, of the
            crop, each with probability 0.5.
        cat_max_ratio: largest share of one class in a crop, see `RandomScaleCrop`.
        vflip: probability that top and bottom change sides.
        rotate90: probability of a turn by 90, 180 or 270 degrees.
        crop_width: of the crop in pixels; None: a square.

    Returns:
        (image (3, H, W), mask (H, W)) -> the same, of the size of the crop.

    Raises:
        UserError: a side is not above 0, or a value is out of range.

    Source:
        Photometric distortion: Liu et al., 2016, SSD, as torchvision has it.
    """
    _check_sides(long_side=long_side, crop=crop, crop_width=crop_width)
    if rotate90 and crop_width not in (None, crop):
        raise UserError(
            f"rotate90 is {rotate90} and crops are {crop} x {crop_width}, which a turn makes others"
            " of: leave out one of rotate90 and crop_width"
        )
    scaled = RandomScaleCrop(
        long_side, crop, scale, ignore, cat_max_ratio, hflip_prob=0.5, crop_width=crop_width
    )
    further = orientations(vflip, rotate90)
    if photometric:
        further.append(v2.RandomPhotometricDistort())
    return v2.Compose([scaled, *further]) if further else scaled


@rebuildable
def eval_transform(
    long_side: int | None, crop: int | None = None, short_side: int | None = None
) -> EvalTransform:
    """Resize the long or the short side; the mask stays as stored, for predictions to match.

    Args:
        long_side: in pixels; None leaves the image as it is.
        crop: short side to it and centre crop of it, image and mask alike, which leaves out most of
            the borders: the metrics of older code, which are not comparable with those of whole
            images.
        short_side: in pixels, in place of `long_side`.

    Raises:
        UserError: a side is not above 0.
    """
    _check_sides(long_side=long_side, crop=crop, short_side=short_side)
    if crop is not None:
        return EvalTransform(
            [v2.Resize(crop), v2.CenterCrop(crop)],
            f"centre crop of {crop} of image and mask",
            whole=False,
        )
    if short_side is not None:
        return EvalTransform([ShortSide(short_side)], f"short side {short_side}")
    return (
        EvalTransform([v2.Identity()], "as stored")
        if long_side is None
        else EvalTransform([LongSide(long_side)], f"long side {long_side}")
    )


def _check_sides(**sides: int | None) -> None:
    for name, side in sides.items():
        if side is not None and side < 1:
            raise UserError(f"{name} is {side}; it is a side in pixels, at least 1")
