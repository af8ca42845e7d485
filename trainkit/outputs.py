"""What networks return, and the sides of images that they take."""

import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NAMES = ("out", "logits")  # of the logits in a mapping: torchvision's and transformers'


def main_logits(outputs: Any) -> Tensor:
    """The logits that predictions are made of.

    outputs: a tensor, a mapping with it as "out" (torchvision) or "logits" (transformers' ModelOutput), or a tuple with
    a field `logits` (torchvision's GoogLeNet). Raises ValueError that names the type of anything else.
    """
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        found = next((outputs[name] for name in NAMES if name in outputs), None)
        said = f"{type(outputs).__name__} of {sorted(map(str, outputs))}"
    else:
        found = getattr(outputs, "logits", None)
        said = type(outputs).__name__
        if isinstance(outputs, (list, tuple)):
            said += f" of {', '.join(type(each).__name__ for each in outputs)}"
    if isinstance(found, Tensor):
        return found
    raise ValueError(
        f"the model returned a {said}, and a task takes a tensor of logits, or a mapping with it as 'out' or 'logits': "
        "put the network into a module whose forward returns one of them"
    )


def resized_to_targets(logits: Tensor, targets: Tensor) -> Tensor:
    """Logits (N, C, h, w) at the size of targets (N, H, W), bilinear as transformers resizes them.

    Raises ValueError where they are no maps, or larger than the targets in height or width.
    """
    if logits.ndim != 4:
        raise ValueError(f"the model returned logits of shape {list(logits.shape)}; label maps take (N, C, H, W)")
    size = targets.shape[-2:]
    if logits.shape[-2:] == size:
        return logits
    if logits.shape[-2] > size[0] or logits.shape[-1] > size[1]:
        raise ValueError(
            f"the model returned logits of {list(logits.shape[-2:])} for targets of {list(size)}: larger ones are not "
            "resized in training. Let the network return them at the size of its images or smaller"
        )
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def size_divisor(model: nn.Module) -> int:
    """What both sides of an image must be divisible by: 1 where the network takes any.

    A network says so by an attribute `size_divisor`, which a recipe may set, or as segmentation_models_pytorch does.
    Raises ValueError where that is no whole number above 0.
    """
    divisor = getattr(model, "size_divisor", None)
    if divisor is None and getattr(model, "requires_divisible_input_shape", False):
        divisor = getattr(getattr(model, "encoder", None), "output_stride", None)
    divisor = 1 if divisor is None else divisor
    if not isinstance(divisor, int) or divisor < 1:
        raise ValueError(f"{type(model).__name__}.size_divisor is {divisor}; it is a whole number of pixels, 1 for any")
    return divisor


def padded(images: Tensor, divisor: int) -> Tensor:
    """Images (N, C, H, W) with 0, the mean colour, at the bottom and on the right, to sides divisible by `divisor`."""
    bottom, right = (-length % divisor for length in images.shape[-2:])
    return F.pad(images, (0, right, 0, bottom)) if bottom or right else images


def cropped(outputs: Any, padded_size: torch.Size, size: torch.Size) -> Any:
    """What a network gave for padded images, cut to the images: all maps (N, C, h, w) at their size."""
    if isinstance(outputs, Tensor):
        if outputs.ndim != 4:
            return outputs
        if outputs.shape[-2:] != padded_size:
            outputs = F.interpolate(outputs, padded_size, mode="bilinear", align_corners=False)
        return outputs[..., : size[0], : size[1]]
    if isinstance(outputs, Mapping):
        return {name: cropped(each, padded_size, size) for name, each in outputs.items()}
    return cropped(main_logits(outputs), padded_size, size)
