"""Reads images and masks from files or bytes: here they are decoded.

torchvision decodes JPEG, and the usual PNGs by png_decoder.py; pillow_decoder.py decodes the rest.
Images of other channels or bits than RGB of 8 bits are read by bands.py.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image

from trainkit.data.image_headers import JPEG, PNG, png_bits, require_jpeg_room
from trainkit.data.palette import color_code
from trainkit.data.pillow_decoder import notes, opened, stored, turned
from trainkit.data.png_decoder import decode_grey, decode_rgb
from trainkit.errors import DataError, MissingPackageError

# torchvision 0.29 announces that its decoders will move to torchcodec one day; until then the one
# of JPEG is the fastest at hand, and a user can do nothing about the warning.

Read = TypeVar("Read")  # what is made of a file's content

_BITS, _WHITE_IS_ZERO = 258, (262, 0)  # tags of TIFF: bits of a channel; how grey is stored
_COLOR_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
_BLURRING = ("jpeg", "tiff_jpeg", "webp")  # compressions of TIFF that do not keep labels


class MaskSizeError(DataError):
    """A mask of another size than its image."""


class LabelError(DataError):
    """A label that is none of the classes."""


class _NotAMaskError(DataError):
    """What is wrong with a file that can be read, but holds no labels; says what it holds."""


def read_image(
    source: str | Path | bytes, name: str | None = None, upright: bool = True
) -> tv_tensors.Image:
    """Read an RGB image, with its EXIF orientation applied unless `upright` is False.

    Of 16 bits the upper 8 are taken, whatever range the image uses: 65535 becomes 255, 4095 becomes
    15.

    Args:
        source: a file, or the bytes of one; the format is detected from its content, not its name.
        name: what to call it in an error; None for the file's name.
        upright: whether the EXIF orientation is applied.

    Returns:
        uint8 (3, H, W), the channels of a pixel side by side in memory.

    Raises:
        UserError: it cannot be read; the message names the file.
    """
    image = _read(source, name, lambda data: _decode(data, upright))
    return image.as_subclass(tv_tensors.Image)  # in a seventh of its constructor's time


def read_mask(source: str | Path | bytes, name: str | None = None) -> tv_tensors.Mask:
    """Read a segmentation mask: palette indices or grey values as stored, never colours.

    Args:
        source: a file, or the bytes of one.
        name: what to call it in an error; None for the file's name.

    Returns:
        (H, W), uint8, or int32 where the file has more than 8 bits.

    Raises:
        UserError: it cannot be read, holds colours or fractions, or was compressed in a way that
            blurs labels; the message names the file.
    """
    return tv_tensors.Mask(_read(source, name, _labels))


def read_color_mask(source: str | Path | bytes, name: str | None = None) -> tv_tensors.Mask:
    """Read the colours of a mask as labels 65536 R + 256 G + B; palette indices mean their colours.

    Args:
        source: a file, or the bytes of one.
        name: what to call it in an error; None for the file's name.

    Returns:
        int32 (H, W).

    Raises:
        UserError: it cannot be read, or was compressed in a way that blurs colours; the message
            names the file.
    """
    return tv_tensors.Mask(_read(source, name, _colors))


def read_with(
    source: str | Path | bytes, decode: Callable[[bytes], Read], name: str | None = None
) -> Read:
    """What `decode` makes of a file's content, or of its bytes.

    Raises:
        DataError: for whatever a decoder raises; the message names the file.
    """
    return _read(source, name, decode)


def _read(source: str | Path | bytes, name: str | None, decode: Callable[[bytes], Read]) -> Read:
    """Decode the content; whatever a decoder raises becomes an error that names the file."""
    try:
        return decode(_content(source))
    except MissingPackageError:
        raise
    except _NotAMaskError as error:
        raise DataError(f"{name or _name(source)} is a mask {error}") from error
    except (
        Exception
    ) as error:  # a decoder raises struct.error, EOFError, IndexError, ... as it likes
        raise DataError(_unreadable(source, name, error)) from error


def _content(source: str | Path | bytes) -> bytes:
    """Read a file at once; bytes stay as they are."""
    if isinstance(source, bytes):
        return source
    with open(source, "rb", buffering=0) as file:
        return file.read()


def _decode(data: bytes, upright: bool) -> Tensor:
    """Decode to RGB, uint8 (3, H, W), a view of (H, W, 3).

    torchvision decodes JPEG and the usual kinds of PNG, faster than Pillow does the rest. Where
    notes are taken, Pillow decodes PNG, which says more.
    """
    if data.startswith(JPEG):
        require_jpeg_room(data)
        shared = torch.frombuffer(bytearray(data), dtype=torch.uint8)  # torch warns of bytes
        return decode_image(shared, ImageReadMode.RGB, upright)
    if data.startswith(PNG) and notes() is None:
        decoded = decode_rgb(data)
        if decoded is not None:
            return decoded
    with opened(data) as image:
        bits = _bits(image, data)
        pixels = image_to_rgb(image, upright)
        if bits == 16 and not image.mode.startswith("I") and notes() is not None:
            _note_range(256 * int(pixels.numpy().max(initial=0)) + 255)
    return pixels


def image_to_rgb(image: Image.Image, upright: bool = True) -> Tensor:
    """A PIL image as `read_image` gives its file: uint8 (3, H, W), a view of (H, W, 3).

    Raises:
        DataError: its pixels have no known range.
    """
    shown = turned(image) if upright else stored(image)
    if shown.mode.startswith("I;16") or (shown.mode == "I" and shown.format == "PPM"):
        values = np.asarray(shown).astype(np.uint16)  # Pillow would cut off all above 255
        _note_range(int(values.max(initial=0)))
        pixels = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
    elif shown.mode in ("I", "F"):
        raise DataError(
            f"its pixels are of mode {shown.mode}, whose range nothing tells: save it with 8 or"
            " 16 bits"
        )
    else:
        pixels = np.array(shown if shown.mode == "RGB" else shown.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _note_range(highest: int) -> None:
    if (found := notes()) is not None:
        found.highest.append(highest)


def _bits(image: ImageFile, data: bytes) -> int:
    """Bits of a channel of a pixel as stored: those of PNG and TIFF, 16 of PPM, else 8."""
    if data.startswith(PNG):
        return png_bits(data)
    if isinstance(image, TiffImageFile):
        return image.tag_v2.get(_BITS, (1,))[0]
    return 16 if _most(image) > 255 else 8


def _most(image: ImageFile) -> int:
    """The value that Pillow makes white of, a PGM's or PPM's or 255, before pixels are loaded."""
    decoder, _, _, settings = image.tile[0] if image.tile else ("", None, 0, None)
    return settings[-1] if decoder in ("ppm", "ppm_plain") and isinstance(settings, tuple) else 255


def _labels(data: bytes) -> Tensor:
    if data.startswith(JPEG):
        raise _NotAMaskError(
            "saved as JPEG, which blurs labels: save it anew as grey or palette PNG. Where it is a"
            " photograph, images and masks are swapped"
        )
    if data.startswith(PNG) and notes() is None:
        decoded = decode_grey(data)
        if decoded is not None:
            return decoded
    with opened(data) as image:
        bands, most, bits = len(image.getbands()), _most(image), _bits(image, data)
        if bands != 1:
            raise _NotAMaskError(
                f"with {bands} channels ({image.mode}); a mask holds one label per pixel: save it"
                " as grey or palette PNG"
            )
        if image.format == "JPEG2000" or image.info.get("compression") in _BLURRING:
            raise _NotAMaskError(
                "compressed as JPEG does, which blurs labels: save it anew as grey or palette PNG"
            )
        if (
            isinstance(image, TiffImageFile)
            and image.mode in ("1", "L")
            and image.tag_v2.get(_WHITE_IS_ZERO[0]) == _WHITE_IS_ZERO[1]
        ):
            raise _NotAMaskError(
                "that stores white as 0 (WhiteIsZero): save it as grey or palette PNG"
            )
        labels = np.asarray(stored(image))
    if labels.dtype.kind == "f":
        return torch.from_numpy(_whole(labels))
    if image.mode == "L" and bits in (2, 4) and image.format in ("PNG", "TIFF"):
        labels = labels // (255 // (2**bits - 1))  # Pillow spreads them over 0 to 255
    elif most not in (255, 65535):
        white = 255 if image.mode == "L" else 65535
        labels = (labels.astype(np.int64) * most + white // 2) // white
    return torch.from_numpy(labels.astype(np.uint8 if image.mode in ("1", "L", "P") else np.int32))


def _colors(data: bytes) -> Tensor:
    if data.startswith(JPEG):
        raise _NotAMaskError(
            "saved as JPEG, which blurs the colours of labels: save it anew as PNG, from the"
            " original"
        )
    with opened(data) as image:
        if image.format == "JPEG2000" or image.info.get("compression") in _BLURRING:
            raise _NotAMaskError(
                "compressed as JPEG does, which blurs the colours of labels: save it anew as PNG"
            )
        if image.mode not in _COLOR_MODES:
            raise _NotAMaskError(
                f"of mode {image.mode}, which holds no colours of 8 bits: save it as RGB PNG"
            )
        return torch.from_numpy(color_code(np.array(stored(image).convert("RGB"))))


def _whole(labels: np.ndarray) -> np.ndarray:
    """Turn floats that are whole numbers into int32."""
    whole = (
        np.nan_to_num(labels.astype(np.float64)).round().clip(-(2**31), 2**31 - 1).astype(np.int32)
    )
    wrong = labels[whole != labels]
    if len(wrong):
        raise _NotAMaskError(
            f"whose pixels are fractions, such as {wrong[0]}; a label is a whole number"
        )
    return whole


def _name(source: str | Path | bytes) -> str:
    return f"{len(source)} bytes" if isinstance(source, bytes) else str(source)


def _unreadable(source: str | Path | bytes, name: str | None, error: Exception) -> str:
    if isinstance(error, MemoryError):
        reason = "it does not fit into memory"
    else:
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    reason = re.sub(r"^\S.*\.cpp:\d+, ", "", reason)  # where in torchvision's sources
    reason = re.sub(r" <_io.BytesIO object at \w+>", "", reason) or type(error).__name__
    return (
        f"cannot read {name or _name(source)}: {reason}; replace the file or take it out of the"
        " dataset"
    )
