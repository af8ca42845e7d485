"""Small datasets held on the training's device, read and augmented a whole batch at a time.

An image's augmentation is arithmetic on (seed, epoch, index, number of the draw), as its order is:
neither its batch, nor the number of processes, nor the device changes it, and there is no generator
to seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from trainkit.data.dataset_info import DatasetInfo, SizedDataset
from trainkit.data.seeding import uniform
from trainkit.data.targets import as_target
from trainkit.errors import UserError


class Augment(Protocol):
    """A change of a whole batch, each image by its own random numbers."""

    draws: int
    """random numbers that an image takes"""

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Augment a batch.

        Args:
            images: uint8 (N, C, H, W).
            draws: float32 (N, draws) in [0, 1).
        """


@dataclass(frozen=True)
class PadCrop:
    """A crop of the image's own size from `padding` black pixels around it.

    Source:
        He et al., 2016, Deep Residual Learning, section 4.2.
    """

    padding: int
    draws = 2

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """See `Augment`."""
        height, width = images.shape[-2:]
        padded = F.pad(images, [self.padding] * 4)
        top, left = (draws * (2 * self.padding + 1)).long().unbind(1)  # (N,)
        rows = top[:, None] + torch.arange(height, device=images.device)  # (N, H)
        columns = left[:, None] + torch.arange(width, device=images.device)  # (N, W)
        batch = torch.arange(len(images), device=images.device)[:, None, None, None]
        channels = torch.arange(images.shape[1], device=images.device)[:, None, None]
        return padded[batch, channels, rows[:, None, :, None], columns[:, None, None]]


@dataclass(frozen=True)
class Flip:
    """A horizontal flip with probability 0.5."""

    draws = 1

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """See `Augment`."""
        return torch.where(draws[:, :, None, None] < 0.5, images.flip(-1), images)


@dataclass(frozen=True)
class Cutout:
    """A black square of `size` pixels around a random pixel, as much of it as is inside.

    Source:
        DeVries and Taylor, 2017, Cutout.
    """

    size: int
    draws = 2

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """See `Augment`."""
        inside = []
        for length, draw in zip(images.shape[-2:], draws.unbind(1)):
            first = (draw * length).long() - self.size // 2
            place = torch.arange(length, device=images.device) - first[:, None]  # (N, length)
            inside.append((place >= 0) & (place < self.size))
        return images.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0)


class OnDevice(Dataset):
    """All images of a dataset of (image, class id), read once into one tensor on the device.

    For CIFAR and the like: 50,000 images of 32x32 take 154 MB there. Batches need no data-loading
    workers. A single index is augmented too, by torch's generator, as where a Subset wraps it.

    Args:
        data: images uint8 (C, H, W) of one size, with class ids.
        augment: applied in turn.

    Raises:
        UserError: images differ in size, or a target is no class id.
    """

    def __init__(self, data: SizedDataset, augment: Sequence[Augment] = ()):
        first, _ = data[0]
        self.images = torch.empty((len(data), *first.shape), dtype=first.dtype)
        self.targets = torch.empty(len(data), dtype=torch.int64)
        for index in range(len(data)):
            image, target = data[index]
            target = as_target(target)
            if not isinstance(target, Tensor) or target.ndim or target.is_floating_point():
                raise UserError(
                    f"the target of image {index} is {target}: images held in memory have a class"
                    " id each"
                )
            self.targets[index] = target
            if image.shape != first.shape:
                raise UserError(
                    f"image {index} is {tuple(image.shape)} and image 0 {tuple(first.shape)}:"
                    " images held in memory must be of one size"
                )
            self.images[index] = image
        info = DatasetInfo.of(data)
        self.data, self.classes, self.split = data, info.classes, info.split
        self.name_of = info.own_name_of or "number {} in memory".format
        self.augment = tuple(augment)
        self._sizes = [each.draws for each in self.augment]
        self._held = self.images, self.targets

    @property
    def inner(self) -> SizedDataset:
        """The dataset that was read."""
        return self.data

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        if self.augment:
            image = self._augmented(image[None], torch.rand(1, sum(self._sizes)))[0]
        return image, self.targets[index]

    def to(self, device: torch.device) -> None:
        """Move the images to a device."""
        if not same_device(self._held[0].device, device):
            self._held = self.images.to(device), self.targets.to(device)

    def read(self, seed: int, epoch: int, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A batch as it is in `epoch`, where the images are held, without waiting for the device.

        Args:
            seed: of the run.
            epoch: from 0.
            indices: of the images.

        Returns:
            uint8 (N, C, H, W) and class ids (N,).
        """
        images, targets = self._held
        places = torch.tensor(indices)
        if max(indices) >= len(self):  # a later draw, which is augmented by draws of its own
            places %= len(self)
        places = _moved(places, images.device)
        batch = images.index_select(0, places)
        if self.augment:
            draws = torch.from_numpy(uniform(seed, epoch, indices, sum(self._sizes)))
            batch = self._augmented(batch, _moved(draws, images.device))
        return batch, targets.index_select(0, places)

    def _augmented(self, images: Tensor, draws: Tensor) -> Tensor:
        for change, drawn in zip(self.augment, draws.split(self._sizes, 1)):
            images = change(images, drawn)
        return images


def same_device(held: torch.device, asked: torch.device) -> bool:
    """Whether what is on the device `held` is on the device `asked`.

    "cuda" is any of this process's GPUs, as "cuda:0" is.
    """
    return held.type == asked.type and (asked.index is None or held.index in (None, asked.index))


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    return (
        tensor.pin_memory().to(device, non_blocking=True)
        if device.type == "cuda"
        else tensor.to(device)
    )
