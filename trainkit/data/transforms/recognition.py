"""Transforms of recognition: training and evaluation."""

from collections.abc import Sequence

from torchvision.transforms import InterpolationMode, v2

from trainkit.data.transforms.ops import EvalTransform, Lighting, RandomResizedCrop, stacked
from trainkit.errors import UserError
from trainkit.settings.rebuildable import rebuildable

MAGNITUDES = 31  # of torchvision's RandAugment, from 0
CROP_MODES = ("center", "squash")  # of timm's


def train_transform(
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    interpolation: InterpolationMode = InterpolationMode.BILINEAR,
    rand_augment: tuple[int, int] | None = None,
    trivial_augment: bool = False,
    jitter: Sequence[float] | None = None,
    lighting: float | None = None,
    erase: float | None = None,
) -> v2.Transform:
    """A random crop resized to `size`, flip, and what else is asked for, in the order below.

    Args:
        size: side of the images in pixels.
        scale: least and largest share of the image's area that a crop has.
        interpolation: torchvision's mode.
        rand_augment: number and magnitude of RandAugment's operations.
        trivial_augment: TrivialAugmentWide.
        jitter: strengths of changes of brightness, contrast, saturation and hue; later ones may be
            left out.
        lighting: see `Lighting`; 0.1 in the paper.
        erase: probability that a rectangle is filled with ImageNet's mean colour.

    Returns:
        uint8 (3, H, W) -> uint8 (3, size, size).

    Raises:
        UserError: a value is out of range, or both RandAugment and TrivialAugment are asked for.

    Source:
        Cubuk et al., 2020, RandAugment; Müller and Hutter, 2021, TrivialAugment; Zhong et al.,
        2020, Random Erasing.
    """
    _check_side(size)
    if not 0 < scale[0] <= scale[1]:
        raise UserError(
            f"scale is {scale}; give two shares of the image's area above 0, the smaller one first"
        )
    if rand_augment is not None and not (rand_augment[0] > 0 and 0 <= rand_augment[1] < MAGNITUDES):
        raise UserError(
            f"rand_augment is {rand_augment}; give how many changes, at least 1, and their"
            f" magnitude, 0 to {MAGNITUDES - 1}, such as 2 9"
        )
    if jitter is not None and not 1 <= len(jitter) <= 4:
        raise UserError(
            f"jitter is {jitter}; give one to four: of brightness, contrast, saturation and hue"
        )
    if rand_augment is not None and trivial_augment:
        raise UserError(
            f"rand_augment is {rand_augment} and trivial_augment is True; choose one of them"
        )
    steps = [
        RandomResizedCrop(size, scale=scale, interpolation=interpolation),
        v2.RandomHorizontalFlip(),
    ]
    if rand_augment is not None:
        steps.append(
            v2.RandAugment(*rand_augment, interpolation=InterpolationMode.BILINEAR)
        )  # no bicubic turns tensors
    if trivial_augment:
        steps.append(v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR))
    if jitter is not None:
        steps.append(v2.ColorJitter(*jitter))
    if lighting is not None:
        steps.append(Lighting(lighting))
    if erase is not None:
        steps.append(v2.RandomErasing(erase, value=[124, 116, 104]))
    return v2.Compose(steps)


@rebuildable
def eval_transform(
    size: int,
    crop_fraction: float = 0.875,
    interpolation: InterpolationMode = InterpolationMode.BILINEAR,
    ten_crop: bool = False,
    crop_mode: str = "center",
) -> EvalTransform:
    """Resize the short side to size / crop_fraction (224 -> 256), then crop `size` from the centre.

    Args:
        size: side of the images in pixels; it may be another than in training.
        crop_fraction: share of the short side that the crop has.
        interpolation: torchvision's mode.
        ten_crop: corners, centre and their mirror images, (10, 3, size, size), of which
            `Recognition` averages the probabilities (Krizhevsky et al., 2012).
        crop_mode: "center", or "squash": both sides to size / crop_fraction, as timm has it, which
            keeps all of a long image and changes its proportions.

    Returns:
        uint8 (3, H, W) -> uint8 (3, size, size).

    Raises:
        UserError: a value is out of range.
    """
    interpolation = InterpolationMode(interpolation)  # which may be its name, from model.json
    _check_side(size)
    if not 0 < crop_fraction <= 1:
        raise UserError(
            f"crop_fraction is {crop_fraction}; it must be above 0 and at most 1 (0.875 is usual)"
        )
    if crop_mode not in CROP_MODES:
        raise UserError(f"crop_mode is {crop_mode!r}; it must be {' or '.join(CROP_MODES)}")
    short = round(size / crop_fraction)
    side = short if crop_mode == "center" else [short, short]
    resize = v2.Resize(side, interpolation=interpolation, antialias=True)
    cut = [v2.TenCrop(size), stacked] if ten_crop else [v2.CenterCrop(size)]
    of = "short side" if crop_mode == "center" else "both sides"
    label = (
        f"{'ten crops' if ten_crop else 'centre crop'} of {size},"
        f"{' mean of their probabilities,' if ten_crop else ''} {of} {short},"
        f" {interpolation.value}"
    )
    return EvalTransform([resize, *cut], label)


def _check_side(size: int) -> None:
    if size < 1:
        raise UserError(
            f"size is {size}; it is the side of a crop in pixels, at least 1 (224 is usual)"
        )
