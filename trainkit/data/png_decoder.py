"""Decodes PNG by torchvision, which is faster than Pillow, after checking the pixels.

Where libpng finds an error it jumps back (longjmp) to where torchvision's decoder began, which then
frees a tensor that it no longer knows, and the process dies. So the pixels are inflated by zlib
first, under the rules of libpng, and what was found sound is remembered: an image is read many
times in a training, and checked once by each process.
"""

import struct
import zlib

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_png

from trainkit.data.image_headers import checked_png, inflated_size, pixel_data
from trainkit.errors import UserError

_GREY, _RGB, _RGBA = 0, 2, 6  # PNG's types of colour
_HEADER_END = 33
_END = b"\0\0\0\0IEND\xaeB`\x82"  # the last chunk, with its checksum
_MAX_SIDE = 1_000_000  # libpng's own limit
_MAX_BYTES = 2**26  # of pixels inflated at once; larger images are left to Pillow
_MAX_REMEMBERED = 2**20  # images, some 60 MB

_sound: set[int] = set()


def decode_rgb(data: bytes | bytearray) -> Tensor | None:
    """Decode a PNG of 8 bits to RGB, uint8 (3, H, W); None for one that is left to Pillow.

    Raises:
        UserError: it is damaged.
    """
    return _decode(data, (_GREY, _RGB, _RGBA), ImageReadMode.RGB)


def decode_grey(data: bytes | bytearray) -> Tensor | None:
    """Decode a PNG of 8 bits to grey values as stored, uint8 (H, W); None for one left to Pillow.

    Raises:
        UserError: it is damaged.
    """
    decoded = _decode(data, (_GREY,), ImageReadMode.UNCHANGED)
    return None if decoded is None else decoded[0]


def _decode(
    data: bytes | bytearray, colours: tuple[int, ...], mode: ImageReadMode
) -> Tensor | None:
    if len(data) < _HEADER_END or data[12:16] != b"IHDR":
        return None
    bits, colour, *other = data[24:29]
    if bits != 8 or colour not in colours or any(other):
        return None
    if max(struct.unpack_from(">II", data, 16)) > _MAX_SIDE or inflated_size(data) > _MAX_BYTES:
        return None
    content = hash(bytes(data))
    if content not in _sound:
        checked_png(data)
    bare = _needed_chunks(data)
    if bare is None:
        return None
    if content not in _sound:
        _require_sound_pixels(bare)
        if len(_sound) < _MAX_REMEMBERED:
            _sound.add(content)
    return decode_png(torch.frombuffer(bare, dtype=torch.uint8), mode)


def _needed_chunks(data: bytes | bytearray) -> bytearray | None:
    """Header, pixels and end of a PNG alone; None for one with EXIF, which may turn it.

    Of a PNG in colours a palette is a suggestion for poorer screens.
    """
    parts: list[bytes | bytearray] = [data[:_HEADER_END]]
    place, kind, others = _HEADER_END, b"", 0
    while kind != b"IEND" and place < len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if kind == b"IHDR":
            raise UserError("the PNG is damaged: it has two headers")
        if kind == b"eXIf":
            return None
        if kind == b"IDAT":
            parts.append(data[place:end])
        elif kind != b"IEND":
            others += 1
        place = end
    if kind == b"IEND" and not others and isinstance(data, bytearray):
        return data
    return bytearray(b"".join([*parts, _END]))


def _require_sound_pixels(data: bytearray) -> None:
    """Raise UserError where libpng would find an error in the stream, its length, or a filter."""
    size = inflated_size(data)
    height = struct.unpack_from(">I", data, 20)[0]
    try:
        # the window that its header says
        rows = zlib.decompressobj(wbits=0).decompress(pixel_data(data), size)
    except zlib.error as error:
        raise UserError(f"the PNG is damaged: its pixels do not inflate ({error})") from error
    if len(rows) < size:
        raise UserError("the PNG is damaged: it has fewer rows than its header says")
    if height and max(rows[:: size // height]) > 4:
        raise UserError("the PNG is damaged: it has a row whose filter no decoder knows")
