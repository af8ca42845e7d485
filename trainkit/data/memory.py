"""Small images of one size, decoded once and held in memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors


class InMemory(Dataset):
    """All images of a dataset of (image, class id) as one uint8 tensor (N, 3, H, W): index -> the same pair.

    For CIFAR and its like: 50,000 images of 32x32 take 154 MB, which workers share, and no decoding.
    """

    def __init__(self, data: Dataset, transform: Callable[[Any], Any] | None = None):
        first, _ = data[0]
        self.images = torch.empty((len(data), *first.shape), dtype=first.dtype).share_memory_()
        self.targets = torch.empty(len(data), dtype=torch.int64)
        for index in range(len(data)):
            image, self.targets[index] = data[index]
            if image.shape != first.shape:
                raise ValueError(
                    f"image {index} is {tuple(image.shape)} and image 0 {tuple(first.shape)}: images held in "
                    "memory must be of one size"
                )
            self.images[index] = image
        self.classes = data.classes
        self.split = getattr(data, "split", None)
        self.name_of = getattr(data, "name_of", "number {} in memory".format)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = tv_tensors.Image(self.images[index])
        if self.transform is not None:
            image = self.transform(image)
        return image.as_subclass(Tensor), self.targets[index]
