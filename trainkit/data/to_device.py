"""Moves batches to the device, where images are scaled to [0, 1] and normalised."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainkit.errors import UserError

# of ImageNet, per channel of images in [0, 1]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WHOLE = (torch.uint8, torch.uint16)  # numbers that are normalised


class ToDevice:
    """Moves images and targets to the device; whole numbers become float32, normalised there.

    Args:
        device: where they go.
        mean: per channel, of images in [0, 1].
        std: per channel, of images in [0, 1].
        channels_last: whether images have their channels last in memory.
    """

    def __init__(
        self,
        device: torch.device,
        mean: Sequence[float],
        std: Sequence[float],
        channels_last: bool = False,
    ):
        self.device = device
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.mean, self.std = (
            255 * torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std)
        )

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Move a batch.

        Args:
            images: (N, C, H, W), uint8 in [0, 255], uint16 in [0, 65535], or float as the model
                wants them; several crops of each, (N, crops, C, H, W), become (N crops, C, H, W).
            targets: of the images.

        Raises:
            UserError: the images have other channels than mean and std are given for.
        """
        images = images.flatten(0, 1) if images.ndim == 5 else images
        if images.dtype in WHOLE and images.shape[-3] != len(self.mean) != 1:
            raise UserError(
                f"images have {images.shape[-3]} channels, and mean has {len(self.mean)} values:"
                " give the recipe mean and std with one for each channel, and a dataset of files an"
                " attribute `pixels`, such as PixelSettings(channels=4) of trainkit.data.bands"
            )
        images = images.to(self.device, non_blocking=True)
        if images.dtype == torch.uint8:
            images = (
                images.to(torch.float32, memory_format=self.format).sub_(self.mean).div_(self.std)
            )
        elif images.dtype == torch.uint16:
            images = images.to(torch.float32, memory_format=self.format).div_(257)
            images = images.sub_(self.mean).div_(self.std)
        else:
            images = images.contiguous(memory_format=self.format)
        return images, targets.to(self.device, non_blocking=True)

    @property
    def black(self) -> Tensor:
        """What a black pixel of a uint8 image becomes: (C, 1, 1)."""
        return -self.mean / self.std
