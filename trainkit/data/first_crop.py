"""Reads and transforms an image, and no more of it than the crop that the transform begins with."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from trainkit.data.bands import USUAL, PixelSettings, read_pixels
from trainkit.data.image_headers import JPEG, jpeg_frame
from trainkit.data.image_io import read_with
from trainkit.data.pillow_decoder import notes
from trainkit.data.turbojpeg import has_region, turbojpeg

# top, left, height and width in pixels -> that part of an image
Region = Callable[[int, int, int, int], Tensor]


def read_transformed(
    source: str | Path | bytes,
    pixels: PixelSettings,
    transform: Callable[[Any], Any] | None,
    name: str | None = None,
) -> Tensor:
    """`transform(read_pixels(source, pixels, name=name))`, and sooner where that can be.

    That is where the transform `begins_with_crop`: what v2 wraps around an image is left out, and
    of a JPEG the crop alone is decoded where `turbojpeg` finds a library. The same numbers are
    drawn, and the same pixels come out.

    Args:
        source: a file, or the bytes of one.
        pixels: channels and bits of the image.
        transform: of the image.
        name: what to call it in an error; None for the file's name.

    Returns:
        (C, H, W), see `read_pixels`.

    Raises:
        DataError: the file cannot be read; the message names it.
    """
    if transform is None or not begins_with_crop(transform):
        image = read_pixels(source, pixels, name=name)
        return image if transform is None else transform(image)
    name = name or (None if isinstance(source, bytes) else str(source))
    if pixels.usual and may_read_regions():
        source = read_with(source, bytes, name)
        found = jpeg_regions(source, name)
        if found is not None:
            return of_first_crop(*found, transform)
    whole = read_pixels(source, pixels, name=name)
    height, width = whole.shape[-2:]
    return of_first_crop(height, width, partial(_part, whole), transform)


def may_read_regions() -> bool:
    """Whether a region of a file may be decoded alone: it leaves a decoder's warnings out."""
    return notes() is None


def jpeg_regions(data: bytes, name: str | None) -> tuple[int, int, Region] | None:
    """What reads regions of a file in memory, where `may_read_regions`.

    Args:
        data: the bytes of the file.
        name: what to call it in an error.

    Returns:
        Height and width of the image, and what gives a region of it, see `of_first_crop`; None for
        a file that is decoded whole.
    """
    # the library is looked for where there is a JPEG for it
    if not data.startswith(JPEG) or (library := turbojpeg()) is None:
        return None
    frame = jpeg_frame(data)
    if frame is None or not has_region(data, frame):
        return None

    def region(top: int, left: int, height: int, width: int) -> Tensor:
        found = library.region(data, frame, top, left, height, width)
        if found is None:  # the whole is decoded, or refused with the reason
            found = _part(read_pixels(data, USUAL, name=name), top, left, height, width)
        return found

    return frame.height, frame.width, region


def pair_of_first_crop(region: Region, mask: Tensor, transform: Any) -> tuple[Tensor, Tensor]:
    """Transform an image and its mask, where no more is read of the image than the crop.

    Args:
        region: see `of_first_crop`.
        mask: a tv_tensors.Mask of the image's size.
        transform: one that `begins_with_pairs_crop`.

    Returns:
        What the transform makes of the whole image, and of the mask.
    """
    crop, *others = transform.transforms if type(transform) is v2.Compose else [transform]
    drawn = crop.make_params([mask])
    (top, height, *down), (left, width, *across) = drawn["rows"], drawn["columns"]
    part = region(top, left, height, width).as_subclass(tv_tensors.Image)
    moved = {**drawn, "rows": (0, height, *down), "columns": (0, width, *across)}
    pair = crop.transform(part, moved), crop.transform(mask, drawn)
    for step in others:
        pair = step(*pair)
    return pair


def begins_with_pairs_crop(transform: Any) -> bool:
    """Whether a transform of pairs begins by cutting a region out, as our `RandomScaleCrop`."""
    first = transform
    if type(transform) is v2.Compose and transform.transforms:
        first = transform.transforms[0]
    return vars(type(first)).get("cuts_pairs_out", False)


def _part(image: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    return image.as_subclass(Tensor)[:, top : top + height, left : left + width]


def begins_with_crop(transform: Any) -> bool:
    """Whether the first that a transform does is to cut a region out and resize it.

    That is so of a v2.Compose of a transform that says so itself, as our `RandomResizedCrop` does
    by `cuts_out`, and draws the region by `box`, and others. A subclass may do more first.
    """
    return (
        type(transform) is v2.Compose
        and len(transform.transforms) > 0
        and vars(type(transform.transforms[0])).get("cuts_out", False)
    )


def of_first_crop(height: int, width: int, region: Region, transform: v2.Compose) -> Tensor:
    """Transform an image of which no more is read than the crop.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        region: top, left, height and width in pixels -> that part of the image, (3, height, width),
            as `read_image` lays it out.
        transform: one that `begins_with_crop`.

    Returns:
        What the transform makes of the whole image.
    """
    crop, *others = transform.transforms
    box = crop.box(height, width)
    part = region(box["top"], box["left"], box["height"], box["width"])
    image = crop.transform(part, {**box, "top": 0, "left": 0})
    for step in others:
        is_usual_flip = (
            type(step) is v2.RandomHorizontalFlip
            and step.p == 0.5
            and type(image) is tv_tensors.Image  # a step may give a PIL image, or several
        )
        image = _perhaps_flipped(image) if is_usual_flip else step(image)
    return image


def _perhaps_flipped(image: Tensor) -> Tensor:
    """As v2.RandomHorizontalFlip, without what it wraps around an image, which takes longer."""
    if torch.rand(1).item() >= 0.5:
        return image
    return image.as_subclass(Tensor).flip(-1).as_subclass(tv_tensors.Image)
