"""Pipelines of albumentations, and others that take and give arrays, as transforms."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Albumentations:
    """A pipeline as the transform of a dataset: of images, or of images with masks.

        MaskFolder(images, masks, 3, Albumentations(albumentations.Compose([...])))

    Its random numbers follow from (seed, epoch, image) as those of other transforms: the generators
    that it holds are found and seeded for each image, also where it was given a seed of its own.

    Args:
        pipeline: called with image=(H, W, C) and, of masks, mask=(H, W), both arrays; it returns a
            mapping with the same names, of arrays or of tensors as ToTensorV2 makes them. Where it
            normalises too, the images are floats, which a training uses as they are.
    """

    def __init__(self, pipeline: Callable[..., Any]):
        self.pipeline = pipeline

    def __call__(self, image: Tensor, mask: Tensor | None = None) -> Any:
        """Transform an image (C, H, W), or a pair of one and its mask (H, W)."""
        array = np.ascontiguousarray(image.as_subclass(Tensor).permute(1, 2, 0).numpy())
        if mask is None:
            return _image(self.pipeline(image=array)["image"])
        found = self.pipeline(image=array, mask=mask.as_subclass(Tensor).numpy())
        labels = found["mask"]
        if not isinstance(labels, Tensor):
            labels = torch.from_numpy(np.ascontiguousarray(labels))
        return _image(found["image"]), labels

    def __repr__(self) -> str:
        return f"Albumentations({self.pipeline!r})"


def _image(found: Any) -> Tensor:
    """An image as (C, H, W), of an array (H, W, C) or of a tensor that is one already."""
    if isinstance(found, Tensor):
        return found
    return torch.from_numpy(np.ascontiguousarray(found.transpose(2, 0, 1)))
