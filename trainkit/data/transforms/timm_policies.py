"""Augmentation policies of timm by their names: RandAugment as timm has it, AugMix, 3-Augment."""

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from trainkit.data.to_device import MEAN
from trainkit.errors import MissingPackageError, UserError

POLICIES = ("rand", "augmix", "3a", "original", "originalr", "v0", "v0r")
"""what the names begin with, up to the first hyphen"""
FILL = tuple(round(255 * mean) for mean in MEAN)  # where a moved image leaves nothing
MOVED = 0.45  # of the side, that an image is moved by at most


def is_of_timm(policy: str) -> bool:
    """Whether a name is of a policy of timm's, such as rand-m9-mstd0.5-inc1 or 3a."""
    return policy.partition("-")[0] in POLICIES


class TimmPolicy:
    """A policy of timm's, with the arguments that timm's `create_transform` gives it.

    It draws from Python's and NumPy's global generators.

    Args:
        policy: its name as of timm's --aa: "rand-m7-mstd0.5-inc1" is two operations of magnitude
            7 of 10, each with probability 0.5; "3a" is the 3-Augment of DeiT III, one of grayscale,
            solarization and blur.
        size: side of the images in pixels.
        interpolation: torchvision's mode, of operations that turn and shear.

    Raises:
        UserError: there is no such policy, or it has no such part.
        MissingPackageError: timm is not installed.

    Source:
        timm, `timm.data.auto_augment`; Touvron et al., 2022, DeiT III (3-Augment).
    """

    def __init__(
        self,
        policy: str,
        size: int,
        interpolation: InterpolationMode = InterpolationMode.BILINEAR,
    ):
        timm = _timm(policy)
        arguments = {
            "translate_const": int(MOVED * size),
            "img_mean": FILL,
            "interpolation": timm.transforms.str_to_pil_interp(interpolation.value),
        }
        kind = policy.partition("-")[0]
        if kind == "augmix":
            arguments["translate_pct"] = 0.3
            make = timm.auto_augment.augment_and_mix_transform
        else:
            whole = timm.auto_augment
            make = whole.rand_augment_transform if kind == "rand" else whole.auto_augment_transform
        try:
            self.change = make(policy, arguments)
        except (AssertionError, ValueError, KeyError) as error:
            raise UserError(
                f"auto_augment is {policy!r}, which timm does not take"
                f" ({str(error) or type(error).__name__}): write it as of timm's --aa, such as"
                " rand-m9-mstd0.5-inc1"
            ) from error
        self.policy = policy

    def __call__(self, image: Tensor) -> Tensor:
        """Change an image, uint8 (3, H, W)."""
        if image.dtype != torch.uint8 or image.shape[-3] != 3:
            raise UserError(
                f"auto_augment is {self.policy!r}, and an image is {image.dtype} of"
                f" {image.shape[-3]} channels: timm's policies are of 8 bits and 3 channels"
            )
        changed = self.change(functional.to_pil_image(image))
        return tv_tensors.Image(functional.pil_to_tensor(changed))


def _timm(policy: str) -> ModuleType:
    try:
        import timm.data
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f'auto_augment is {policy!r}, which needs timm: pip install "trainkit[timm]"'
        ) from error
    return timm.data


def names(ours: Sequence[str]) -> str:
    """All policies in words, ours first."""
    return f"{', '.join(ours)}, or one of timm's, such as rand-m9-mstd0.5-inc1 or 3a"
