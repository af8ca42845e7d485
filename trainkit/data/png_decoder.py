"""Decodes PNG by torchvision, which is faster than Pillow, after checking the pixels.

Where libpng finds an error it jumps back (longjmp) to where torchvision's decoder began, which then
frees a tensor that it no longer knows, and the process dies. So the pixels are inflated by zlib
first, under the rules of libpng, and torchvision is given them stored, not to inflate them again.
What was found sound is remembered: an image is read many times in a training, and checked once by
each process.
"""

import struct
import zlib

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_png

from trainkit.data.image_headers import checked_png, inflated_size, passes, pixel_data
from trainkit.errors import UserError

_GREY, _RGB, _GREY_ALPHA, _RGBA = 0, 2, 4, 6  # PNG's types of colour
_HEADER_END = 33
_END = b"\0\0\0\0IEND\xaeB`\x82"  # the last chunk, with its checksum
_MAX_SIDE = 1_000_000  # libpng's own limit
_MAX_BYTES = 2**26  # of pixels inflated at once; larger images are left to Pillow
_AT_ONCE = 2**20  # bytes inflated of what follows the rows
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


def decode_channels(data: bytes | bytearray) -> Tensor | None:
    """Decode a PNG of 8 bits to its channels as stored, uint8 (C, H, W).

    None for one that is left to Pillow.

    Raises:
        UserError: it is damaged.
    """
    return _decode(data, (_GREY, _GREY_ALPHA, _RGB, _RGBA), ImageReadMode.UNCHANGED)


def is_deep_colour(data: bytes | bytearray) -> bool:
    """Whether a PNG has 16 bits and several channels, of which Pillow gives the upper 8 bits."""
    return data[24] == 16 and data[25] in (_GREY_ALPHA, _RGB, _RGBA)


def decode_deep_colour(data: bytes | bytearray) -> Tensor:
    """Decode a PNG of `is_deep_colour`, without its EXIF orientation: uint16 (C, H, W).

    Raises:
        UserError: it is damaged, or a side is beyond libpng's limit.
    """
    checked_png(data)
    width, height, *_, compression, filtering, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    if not 0 < min(width, height) <= max(width, height) <= _MAX_SIDE:
        raise UserError(f"its header says {width}x{height} pixels, which no decoder takes")
    if compression or filtering or interlaced > 1:
        raise UserError("the PNG's header is damaged: its pixels are stored in an unknown way")
    bare = _only_pixels(data)
    content = hash(bytes(data))
    if content not in _sound:
        rows = _checked_rows(bare)
        if rows is None:
            raise UserError("the PNG is damaged: its pixels are cut short")
        _remember(content)
        bare = _with_stored(rows, bare)
    return decode_png(torch.frombuffer(bare, dtype=torch.uint8), ImageReadMode.UNCHANGED)


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
        rows = _checked_rows(bare)
        if rows is None:
            return None
        _remember(content)
        bare = _with_stored(rows, bare)
    return decode_png(torch.frombuffer(bare, dtype=torch.uint8), mode)


def _remember(content: int) -> None:
    if len(_sound) < _MAX_REMEMBERED:
        _sound.add(content)


def _needed_chunks(data: bytes | bytearray) -> bytearray | None:
    """Header, pixels and end of a PNG alone; None for one with EXIF, which may turn it."""
    return None if has_exif(data) else _only_pixels(data)


def has_exif(data: bytes | bytearray) -> bool:
    """Whether a PNG with sound chunks has EXIF."""
    place = _HEADER_END
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind in (b"eXIf", b"IEND"):
            return bool(kind == b"eXIf")
        place += 12 + length
    return False


def _only_pixels(data: bytes | bytearray) -> bytearray:
    """Header, pixels and end of a PNG alone.

    Of a PNG in colours a palette is a suggestion for poorer screens.
    """
    view = memoryview(data)
    parts: list[bytes | memoryview] = [view[:_HEADER_END]]
    place, kind, others = _HEADER_END, b"", 0
    while kind != b"IEND" and place < len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if kind == b"IHDR":
            raise UserError("the PNG is damaged: it has two headers")
        if kind == b"IDAT":
            parts.append(view[place:end])
        elif kind != b"IEND":
            others += 1
        place = end
    if kind == b"IEND" and not others:
        return bytearray(data)
    return bytearray().join([*parts, _END])


def _checked_rows(data: bytearray) -> bytes | None:
    """The rows, inflated; None where the stream is cut after the last, at which libpng stumbles.

    Raises:
        UserError: libpng would find an error in the stream, its length, or a filter.
    """
    size = inflated_size(data)
    stream = zlib.decompressobj(wbits=0)  # the window that its header says
    try:
        rows = stream.decompress(pixel_data(data), size)
    except zlib.error as error:
        raise UserError(f"the PNG is damaged: its pixels do not inflate ({error})") from error
    if len(rows) < size:
        raise UserError("the PNG is damaged: it has fewer rows than its header says")
    start = 0
    for number, length in passes(data):
        end = start + number * length
        if max(rows[start:end:length]) > 4:
            raise UserError("the PNG is damaged: it has a row whose filter no decoder knows")
        start = end
    try:
        rest = b" "
        while rest and not stream.eof:  # what follows the rows, of which libpng warns
            rest = stream.decompress(stream.unconsumed_tail, _AT_ONCE)
    except zlib.error:
        return None
    return rows if stream.eof else None


def _with_stored(rows: bytes, data: bytearray) -> bytearray:
    """A PNG with the header of `data` whose rows are stored instead of deflated."""
    if len(rows) > _MAX_BYTES:
        return data
    pixels = zlib.compress(rows, level=0)
    start = struct.pack(">I4s", len(pixels), b"IDAT")
    checksum = struct.pack(">I", zlib.crc32(pixels, zlib.crc32(b"IDAT")))
    return bytearray().join([data[:_HEADER_END], start, pixels, checksum, _END])
