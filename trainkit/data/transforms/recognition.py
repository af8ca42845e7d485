"""Transforms of recognition: training and evaluation."""

from collections.abc import Sequence
from typing import Any

from torchvision.transforms import AutoAugmentPolicy, InterpolationMode, v2

from trainkit.data.transforms.ops import (
    EvalTransform,
    Lighting,
    NoiseErasing,
    RandomResizedCrop,
    stacked,
)
from trainkit.data.transforms.orientation import orientations
from trainkit.data.transforms.timm_policies import TimmPolicy, is_of_timm, names
from trainkit.errors import UserError
from trainkit.settings.rebuildable import rebuildable

MAGNITUDES = 31  # of torchvision's RandAugment, from 0
POLICIES = tuple(policy.value for policy in AutoAugmentPolicy)
CROP_MODES = ("center", "squash")  # of timm's
ERASED_WITH = ("mean", "noise")


def train_transform(
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    interpolation: InterpolationMode = InterpolationMode.BILINEAR,
    rand_augment: tuple[int, int] | None = None,
    trivial_augment: bool = False,
    jitter: Sequence[float] | None = None,
    lighting: float | None = None,
    erase: float | None = None,
    auto_augment: AutoAugmentPolicy | str | None = None,
    vflip: float = 0.0,
    rotate90: float = 0.0,
    erase_with: str = "mean",
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
        auto_augment: AutoAugment's policy, found on imagenet, cifar10 or svhn, or a policy of
            timm's, see `TimmPolicy`.
        vflip: probability that top and bottom change sides.
        rotate90: probability of a turn by 90, 180 or 270 degrees.
        erase_with: "mean", or "noise" of each pixel in place of the mean colour.

    Returns:
        uint8 (3, H, W) -> uint8 (3, size, size).

    Raises:
        UserError: a value is out of range, or two of RandAugment, TrivialAugment and AutoAugment
            are asked for.

    Source:
        Cubuk et al., 2019, AutoAugment, and 2020, RandAugment; Müller and Hutter, 2021,
        TrivialAugment; Zhong et al., 2020, Random Erasing.
    """
    _check_side(size)
    if not 0 < scale[0] <= scale[1]:
        raise UserError(
            f"scale is {scale}; give two shares of the image's area above 0, the smaller one first"
        )
    if jitter is not None and not 1 <= len(jitter) <= 4:
        raise UserError(
            f"jitter is {jitter}; give one to four: of brightness, contrast, saturation and hue"
        )
    steps: list[Any] = [
        RandomResizedCrop(size, scale=scale, interpolation=interpolation),
        v2.RandomHorizontalFlip(),
    ]
    steps += orientations(vflip, rotate90)
    steps += _policy(rand_augment, trivial_augment, auto_augment, size, interpolation)
    if jitter is not None:
        steps.append(v2.ColorJitter(*jitter))
    if lighting is not None:
        steps.append(Lighting(lighting))
    if erase_with not in ERASED_WITH:
        raise UserError(f"erase_with is {erase_with!r}; it must be {' or '.join(ERASED_WITH)}")
    if erase is not None and erase_with == "noise":
        steps.append(NoiseErasing(erase))
    elif erase is not None:
        steps.append(v2.RandomErasing(erase, value=[124, 116, 104]))
    return v2.Compose(steps)


def _policy(
    rand_augment: tuple[int, int] | None,
    trivial_augment: bool,
    auto_augment: AutoAugmentPolicy | str | None,
    size: int,
    interpolation: InterpolationMode,
) -> list[Any]:
    """The one of the three that is asked for, as a list; an empty one for none."""
    if rand_augment is not None and not (rand_augment[0] > 0 and 0 <= rand_augment[1] < MAGNITUDES):
        raise UserError(
            f"rand_augment is {rand_augment}; give how many changes, at least 1, and their"
            f" magnitude, 0 to {MAGNITUDES - 1}, such as 2 9"
        )
    asked = {
        "rand_augment": rand_augment,
        "trivial_augment": trivial_augment or None,
        "auto_augment": auto_augment,
    }
    chosen = [f"{name} is {value}" for name, value in asked.items() if value is not None]
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(chosen)}; choose one of them")
    bilinear = InterpolationMode.BILINEAR  # no bicubic turns tensors
    if rand_augment is not None:
        return [v2.RandAugment(*rand_augment, interpolation=bilinear)]
    if trivial_augment:
        return [v2.TrivialAugmentWide(interpolation=bilinear)]
    if auto_augment is None:
        return []
    if is_of_timm(str(auto_augment)):
        return [TimmPolicy(str(auto_augment), size, interpolation)]
    if auto_augment not in POLICIES:
        raise UserError(f"auto_augment is {auto_augment!r}; it is one of {names(POLICIES)}")
    return [v2.AutoAugment(AutoAugmentPolicy(auto_augment), interpolation=bilinear)]


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
