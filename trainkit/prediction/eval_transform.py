"""How validation data treats images, for images that are not among them."""

from collections.abc import Callable
from typing import Any

import torch
from torchvision import tv_tensors

from trainkit.data.dataset_info import DatasetInfo
from trainkit.errors import UserError


def transform_of(data: Any) -> Callable[[Any], Any] | None:
    """How validation data treats an image after it is read.

    That is its attribute `transform`, which takes an image alone. Raises UserError where it has
    none, or one that does not.
    """
    info = DatasetInfo.of(data)
    if info.transformed is None:
        raise UserError(
            f"val_data is of type {type(info.innermost).__name__}, without an attribute"
            " `transform`: give it one, a function from an image (uint8 (3, H, W)) to what the"
            " model is evaluated on, so that other images can be read alike"
        )
    transform = info.transform
    if transform is not None:
        try:
            kind = torch.uint8 if info.pixels.bits == 8 else torch.float32  # as `read_pixels`
            transform(tv_tensors.Image(torch.zeros(info.pixels.channels, 64, 64, dtype=kind)))
        except TypeError as error:
            raise UserError(
                f"val_data's transform does not take an image alone ({error}): torchvision's v2"
                " transforms do, with a mask beside it and without"
            ) from error
    return transform
