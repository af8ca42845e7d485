"""Reads what networks return, and the sides of images that they take."""

import math
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainkit.errors import UserError

NAMES = ("out", "logits")  # of the logits in a mapping: torchvision's and transformers'
SIZES = re.compile(r"height|width|size|shape|divisib|resolution", re.IGNORECASE)


def main_logits(outputs: Any) -> Tensor:
    """The logits that predictions are made of.

    Args:
        outputs: a tensor, a mapping with it as "out" (torchvision) or "logits" (transformers'
            ModelOutput), or a tuple with a field `logits` (torchvision's GoogLeNet).

    Raises:
        UserError: the outputs are of another type.
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
    raise UserError(
        f"the model returned a {said}, and a task takes a tensor of logits, or a mapping with it as"
        " 'out' or 'logits': put the network into a module whose forward returns one of them"
    )


def class_logits(outputs: Any) -> Tensor:
    """The logits (N, C) of whole images, see `main_logits`.

    Raises:
        UserError: they are of another shape.
    """
    logits = main_logits(outputs)
    if logits.ndim != 2:
        raise UserError(
            f"the model returned logits of shape {tuple(logits.shape)}, and recognition takes (N,"
            " classes): pool and flatten them in the network, or take the task Segmentation for"
            " segmentation masks"
        )
    return logits


def resized(logits: Tensor, size: torch.Size) -> Tensor:
    """Resize logits (N, C, h, w), bilinear with pixels as areas, as transformers and SegFormer do.

    Raises:
        UserError: the logits are of another shape.
    """
    if logits.ndim != 4:
        raise UserError(
            f"the model returned logits of shape {tuple(logits.shape)}, and segmentation takes (N,"
            " classes, H, W)"
        )
    return (
        logits
        if logits.shape[-2:] == size
        else F.interpolate(logits, size, mode="bilinear", align_corners=False)
    )


def resized_to_targets(logits: Tensor, targets: Tensor) -> Tensor:
    """Resize logits (N, C, h, w) to the size of targets (N, H, W).

    Raises:
        UserError: the logits are larger than the targets.
    """
    size = targets.shape[-2:]
    if logits.shape[-2] > size[0] or logits.shape[-1] > size[1]:
        raise UserError(
            f"the model returned logits of {logits.shape[-2]} x {logits.shape[-1]} for targets of"
            f" {size[0]} x {size[1]}: smaller ones are resized to the targets, larger ones are not."
            " Let the network return logits at the size of its images, or smaller"
        )
    return resized(logits, size)


def size_divisor(model: nn.Module) -> int:
    """What both sides of an image must be divisible by: 1 where the network takes any.

    A network says so by an attribute `size_divisor`, its own or that of a part, which a recipe may
    set; networks of segmentation_models_pytorch have an attribute of their own.

    Raises:
        UserError: the attribute is no whole number above 0.
    """
    least = 1
    for name, module in model.named_modules():
        divisor = getattr(module, "size_divisor", None)
        # segmentation_models_pytorch
        if divisor is None and getattr(module, "requires_divisible_input_shape", False):
            divisor = module.encoder.output_stride
        if divisor is not None and (not isinstance(divisor, int) or divisor < 1):
            raise UserError(
                f"size_divisor of {name or type(model).__name__} is {divisor!r}; it is a whole"
                " number of pixels, 1 for a network that takes any size"
            )
        least = math.lcm(least, divisor or 1)
    return least


def check_only_size(
    model: nn.Module, crop: int | tuple[int, int], window: int | tuple[int, int] | None
) -> None:
    """Check that a segmenter that takes images of one size gets no others.

    A network says so by an attribute `image_size`: height and width.

    Args:
        model: any network.
        crop: side of the images in training, or height and width.
        window: likewise of the windows or crops of an evaluation; None for whole images.

    Raises:
        UserError: it gets others.
    """
    only = getattr(model, "image_size", None)
    crop = crop if isinstance(crop, tuple) else (crop, crop)
    window = (window, window) if isinstance(window, int) else window
    if only is None or crop == only == window:
        return
    height, width = only
    said = "whole images" if window is None else f"windows of {_sides(window)}"
    flags = {"--crop-width": crop, "--eval-window-width": window or only}
    widths = [flag for flag, sides in flags.items() if sides[0] != sides[1]]
    without = f" and leave out {' and '.join(widths)}" if widths and height == width else ""
    # of transformers; ours are built for the crop
    other = ", or build it for another size (--model-args image_size=SIDE)"
    raise UserError(
        f"{type(model).__name__} takes images of {height} x {width} alone, and crop is"
        f" {_sides(crop)} and an evaluation has {said}: give --crop {height} and --eval-window"
        f" {height} {2 * height // 3}{without}{other if hasattr(model, 'config') else ''}"
    )


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]}" if size[0] == size[1] else f"{size[0]} x {size[1]}"


def only_window(model: nn.Module, images: Tensor) -> Tensor:
    """The first window of images (N, C, H, W) for a segmenter that takes images of one size alone.

    Smaller images are padded with 0, the mean colour; all stay as they are for other networks.
    """
    only = getattr(model, "image_size", None)
    return first_window(images, only) if isinstance(only, tuple) else images


def first_window(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The first window of images (N, C, H, W), of this height and width; padded as above."""
    height, width = size
    bottom, right = (max(0, side - have) for side, have in zip(size, images.shape[-2:]))
    return F.pad(images, (0, right, 0, bottom))[..., :height, :width]


def fill_up(images: Tensor, divisor: int) -> Tensor:
    """Pad images (N, C, H, W) at the bottom and on the right to sides divisible by `divisor`.

    The padding is 0, the mean colour.
    """
    bottom, right = (-length % divisor for length in images.shape[-2:])
    return F.pad(images, (0, right, 0, bottom)) if bottom or right else images


def run_padded(model: Callable[[Tensor], Any], images: Tensor, divisor: int) -> Any:
    """Run a model that takes only sides divisible by `divisor` on images of any size (N, C, H, W).

    Outputs (N, C, h, w) of padded images are resized to them and cut to the size of the images.
    Images that fit are passed on as they are.
    """
    filled = fill_up(images, divisor)
    outputs = model(filled)
    return outputs if filled is images else _cut(outputs, filled.shape[-2:], images.shape[-2:])


def _cut(outputs: Any, filled: torch.Size, size: torch.Size) -> Any:
    if isinstance(outputs, Mapping):
        return {
            name: _cut(each, filled, size)
            for name, each in outputs.items()
            if isinstance(each, Tensor)
        }
    logits = main_logits(outputs)
    return resized(logits, filled)[..., : size[0], : size[1]] if logits.ndim == 4 else logits


@contextmanager
def refusals_reported(model: nn.Module) -> Iterator[None]:
    """Report where a network from outside does not take the images that it is given.

    Errors of the user's own network keep their traceback.

    Raises:
        UserError: in place of an error about sizes that an installed package raised (timm,
            transformers), and of torch's about norms that are left with one value.
    """
    try:
        yield
    except Exception as error:
        raise_refusal(model, error)
        raise


def raise_refusal(model: nn.Module, error: Exception) -> None:
    """Raise what `refusals_reported` raises in place of an error; return where it is another."""
    if not isinstance(error, (AssertionError, ValueError, RuntimeError)):
        return
    message = " ".join(str(error).split())
    name = type(model).__name__
    if "Expected more than 1" in message and "when training" in message:
        raise UserError(
            f"a batch norm or instance norm of {name} has one value per channel, of which there"
            f" is no variance ({message}): a forward pass of one image, or images too small. Give"
            " another batch_size or micro_batch that leaves no single image, drop_last=True in"
            " the recipe where it is the last batch of an epoch, or larger images"
        ) from error
    if SIZES.search(message) and _raised_by_package(error):
        raise UserError(
            f"{name} does not take images like these: {message}. Give the size that it is built"
            " for, or build it for this one (timm: img_size or dynamic_img_size); for"
            " segmentation its attribute size_divisor says what both sides must be divisible"
            " by, and evaluations fill images up to it"
        ) from error


def _raised_by_package(error: Exception) -> bool:
    """Whether the innermost code that is not torch's is an installed package's."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    torch_itself = Path(torch.__file__).parent
    outside = [file for file in files if not Path(file).is_relative_to(torch_itself)]
    package = Path(__file__).parents[1]
    return bool({"site-packages", "dist-packages"} & set(Path(outside[-1]).parts)) and not Path(
        outside[-1]
    ).is_relative_to(package)
