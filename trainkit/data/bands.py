"""Images of other channels than red, green and blue, and of 16 bits a channel."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image

from trainkit.data.image_headers import JPEG, PNG, require_jpeg_room
from trainkit.data.image_io import read_image, read_with
from trainkit.data.pillow_decoder import opened, orientation_of, stored, turned
from trainkit.data.png_decoder import (
    decode_channels,
    decode_deep_colour,
    has_exif,
    is_deep_colour,
)
from trainkit.errors import DataError, MissingPackageError, UserError
from trainkit.settings import SharedSettings

WHITE = {torch.uint8: 255, torch.uint16: 65535}
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# What Pillow gives as it is stored, with the channels of each.
MODES = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "I;16": 1, "I;16B": 1, "I;16L": 1}
CONVERTED = ("1", "P", "PA")  # black and white, and palettes, which mean their colours
BITS_PER_SAMPLE, PHOTOMETRIC, ORIENTATION = 258, 262, 274  # tags of TIFF
WHITE_IS_ZERO, GREY, RGB, INKS = 0, 1, 2, 5  # photometric
# What an EXIF orientation asks for, of (C, H, W).
TURNS: dict[int | None, Callable[[Tensor], Tensor]] = {
    2: lambda image: image.flip(-1),
    3: lambda image: image.flip(-1, -2),
    4: lambda image: image.flip(-2),
    5: lambda image: image.transpose(-1, -2),
    6: lambda image: image.rot90(-1, (-2, -1)),
    7: lambda image: image.transpose(-1, -2).flip(-1, -2),
    8: lambda image: image.rot90(1, (-2, -1)),
}


@dataclass(frozen=True)
class PixelSettings(SharedSettings):
    """How the pixels of an image are read.

    Attributes:
        channels: of the images, such as 1 of grey ones or 4 with infrared; files with others are
            refused. mean and std are estimated where they are not given
        bits: of a channel, 8 or 16; of 16 stored bits 8 are the upper ones
    """

    channels: int = 3
    bits: Literal[8, 16] = 8

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise UserError(f"channels is {self.channels}; an image has at least 1 (--channels)")

    def require_each(self, **values: tuple[float, ...] | None) -> None:
        """Raise UserError for values, by their name, that are not one for each channel."""
        for name, given in values.items():
            if given is not None and len(given) != self.channels:
                raise UserError(
                    f"{name} has {len(given)} values, and the images have {self.channels} channels"
                    " (--channels): give one for each"
                )

    @property
    def given(self) -> dict[str, int | None]:
        """The settings by name; None where they are as usual."""
        usual = {"channels": 3, "bits": 8}
        values = {name: getattr(self, name) for name in usual}
        return {name: None if value == usual[name] else value for name, value in values.items()}

    @property
    def usual(self) -> bool:
        """Whether images are red, green and blue of 8 bits."""
        return self.channels == 3 and self.bits == 8


USUAL = PixelSettings()


def read_pixels(
    source: str | Path | bytes, pixels: PixelSettings, upright: bool = True, name: str | None = None
) -> Tensor:
    """Read an image, with its EXIF orientation applied unless `upright` is False.

    Three channels of 8 bits are read by `read_image`. Else channels are taken as they are stored:
    grey ones are repeated where three are asked for, an opaque alpha is left out, and equal
    channels count as grey.

    Returns:
        A tv_tensors.Image (C, H, W): uint8, or of 16 bits float32 in [0, 1], see `as_stored`.

    Raises:
        DataError: the file cannot be read, or has other channels; the message names it.
    """
    if pixels.usual:
        return read_image(source, name, upright)
    return tv_tensors.Image(
        read_with(source, lambda data: _conformed(_decoded(data, upright), pixels), name)
    )


def read_channels(source: str | Path | bytes) -> Tensor:
    """Read all channels of a file as they are stored, whatever they mean: (C, H, W).

    Raises:
        DataError: the file cannot be read; the message names it.
    """
    return read_with(source, lambda data: _decoded(data, upright=False))


def read_image_like(
    source: str | Path | bytes,
    size: tuple[int, ...],
    upright: bool = True,
    name: str | None = None,
    pixels: PixelSettings = USUAL,
) -> Tensor:
    """Read an image upright or as stored, whichever has its mask's `size` (H, W)."""
    image = read_pixels(source, pixels, upright, name)
    if image.shape[-2:] != size:
        other = read_pixels(source, pixels, not upright, name)
        return other if other.shape[-2:] == size else image
    return image


def as_stored(image: Tensor, pixels: PixelSettings) -> Tensor:
    """An image of `read_pixels`, after transforms, as a batch holds it: uint8, or uint16."""
    if pixels.bits == 8:
        return image
    return (image.as_subclass(Tensor).clamp(0, 1) * 65535).round().to(torch.int32).to(torch.uint16)


def shown(image: Tensor) -> Tensor:
    """What a person is shown of an image of `read_pixels`, its first channels: uint8 (3, H, W)."""
    image = image.as_subclass(Tensor)
    image = image[:3] if len(image) > 2 else image[:1].repeat(3, 1, 1)
    if image.is_floating_point():  # of 16 bits, of which many use a small part of the range
        image = (image / image.max().clamp(min=1e-6) * 255).round().to(torch.uint8)
    return image


def _decoded(data: bytes, upright: bool) -> Tensor:
    """(C, H, W), uint8 or uint16, as stored."""
    if data.startswith(JPEG):
        require_jpeg_room(data)
        image = decode_image(_bytes(data), ImageReadMode.UNCHANGED, upright)
        if len(image) == 4:
            raise DataError("it is a JPEG of inks (CMYK), which are no channels: save it as RGB")
        return image
    if data.startswith(PNG):
        decoded = _png(data, upright)
        if decoded is not None:
            return decoded
    if data.startswith(TIFF) and not _pillow_reads(data):
        return _tiff(data)
    with opened(data) as image:
        image = turned(image) if upright else stored(image)
        if image.mode in CONVERTED:
            transparent = image.mode == "PA" or "transparency" in image.info
            image = image.convert("L" if image.mode == "1" else "RGBA" if transparent else "RGB")
        if image.mode not in MODES:
            raise DataError(
                f"its pixels are of mode {image.mode}: save them as they are, in a TIFF"
            )
        array = np.array(image)
    array = array[..., None] if array.ndim == 2 else array
    return _tensor(array.transpose(2, 0, 1))


def _png(data: bytes, upright: bool) -> Tensor | None:
    """As `_decoded`; None for one that is left to Pillow: palettes, few bits, 16 of grey, EXIF."""
    if not is_deep_colour(data):
        return decode_channels(data)
    image = decode_deep_colour(data)
    if upright and has_exif(data):
        with opened(data) as other:
            image = TURNS.get(orientation_of(other), torch.clone)(image)
    return image


def _pillow_reads(data: bytes) -> bool:
    """Whether Pillow gives all bits of all channels of a TIFF, as they are stored."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            bits = set(getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (1,)))
            if getattr(image, "n_frames", 1) > 1:
                return False
            if image.mode.startswith("I;16"):
                return getattr(image, "tag_v2", {}).get(PHOTOMETRIC) != WHITE_IS_ZERO
            return image.mode in CONVERTED or (image.mode in MODES and bits <= {1, 2, 4, 8})
    except (OSError, ValueError):  # it knows no mode for so many channels
        return False


def _tiff(data: bytes) -> Tensor:
    try:
        from tifffile import TiffFile
    except ImportError as error:
        raise MissingPackageError(
            'a TIFF of several bands or 16-bit colours needs tifffile: pip install "trainkit[tiff]"'
        ) from error
    with TiffFile(io.BytesIO(data)) as tiff:
        series, first = tiff.series[0], tiff.pages.first
        if first.photometric == INKS:
            raise DataError("it is a TIFF of inks (CMYK), which are no channels: save it as RGB")
        light = first.tags.get(PHOTOMETRIC)
        if light is not None and light.value not in (GREY, RGB):
            raise DataError(
                f"it is a TIFF of photometric {getattr(light.value, 'name', light.value)}, neither"
                " grey from black to white nor RGB: save it as one of them"
            )
        if first.bitspersample < 8:
            raise DataError(f"its values have {first.bitspersample} bits: save it with 8 or 16")
        turn = first.tags.get(ORIENTATION)
        if turn is not None and turn.value != 1:
            raise DataError(f"its orientation is {turn.value}: turn its pixels, and save it anew")
        array, axes = series.asarray(), series.axes
    if axes == "YX":
        array, axes = array[None], "SYX"
    if axes.endswith("YX") and len(axes) == 3:
        return _tensor(array)
    if axes == "YXS":
        return _tensor(array.transpose(2, 0, 1))
    raise DataError(f"its axes are {axes} of shape {array.shape}: save bands, rows and columns")


def _tensor(array: np.ndarray) -> Tensor:
    """(C, H, W), the channels of a pixel side by side in memory."""
    if array.dtype not in (np.uint8, np.uint16, np.dtype(">u2")):
        raise DataError(
            f"its values are of type {array.dtype}, whose range nothing tells: save it with 8 or 16"
            " bits a channel"
        )
    kind = np.uint8 if array.dtype == np.uint8 else np.uint16
    return torch.from_numpy(np.array(array.transpose(1, 2, 0), dtype=kind)).permute(2, 0, 1)


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _conformed(image: Tensor, pixels: PixelSettings) -> Tensor:
    """With the channels and bits that are asked for."""
    white, asked = WHITE[image.dtype], pixels.channels
    values = image.to(torch.int32)
    if len(values) in (2, 4) and asked in (1, 3) and bool((values[-1] == white).all()):
        values = values[:-1]
    if len(values) == 3 and asked == 1 and bool((values[1:] == values[:1]).all()):
        values = values[:1]
    if len(values) == 1 and asked == 3:
        values = values.repeat(3, 1, 1)
    if len(values) != asked:
        raise DataError(
            f"it has {len(image)} channels, and --channels is {asked}: give images with as many,"
            " or another --channels"
        )
    if pixels.bits == 16:
        return values.to(torch.float32) / white
    values = values.to(torch.uint8) if white == 255 else (values >> 8).to(torch.uint8)
    return values.permute(1, 2, 0).contiguous().permute(2, 0, 1)
