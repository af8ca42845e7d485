"""Checks the header of an image file, and refuses what no decoder may be given."""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from trainkit.errors import UserError

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"

_PALETTE = 3  # PNG's colour type of palette indices
_KEPT = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"eXIf")

_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_AT_ONCE = 2**20  # bytes inflated

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's colour types
_DEFLATED_BYTES_PER_BYTE = 1032  # what deflate can do at best: 258 bytes by two bits

# A baseline or progressive JPEG spends at least one bit on the 64 pixels of a block: 512 pixels a
# byte.
JPEG_PIXELS_PER_BYTE = 512
_PROGRESSIVE = 0xC2
_FRAMES = (0xC0, 0xC1, _PROGRESSIVE)  # baseline, extended; with Huffman codes
_PICTURE_BEGINS = 0xDA  # after the last segment of the header
_EXIF = (0xE1, b"Exif\0\0")  # the segment, and how it begins
_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}  # how its values begin, and their bytes' order
_ORIENTATION = 274  # tag of EXIF


def checked_png(data: bytes | bytearray) -> tuple[bytes, list[str]]:
    """Return a PNG that decodes to the same pixels, and what was wrong with its other chunks.

    Of the chunks only header, palette, pixels and EXIF are kept: no text, profile, animation or
    transparency reaches a decoder. A palette is filled up with black, so that no index lies outside
    it.

    Raises:
        UserError: a chunk is cut short, does not match its checksum, or is missing.
    """
    view = memoryview(data)
    parts: list[bytes | memoryview] = [PNG]
    notes: list[str] = []
    kinds: set[bytes] = set()
    kind, place = b"", len(PNG)
    while kind != b"IEND":
        if place + 12 > len(data):
            if b"IDAT" in kinds and place == len(data):
                notes.append("the end of the PNG (IEND) is missing")
                break
            raise UserError("the PNG is cut short")
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            raise UserError(f"the PNG is cut short in its chunk {_shown(kind)}")
        needed = not kind[0] & 32
        sound = zlib.crc32(view[place + 4 : end]) == struct.unpack_from(">I", data, end)[0]
        if needed and not sound:
            raise UserError(
                f"the PNG is damaged: its chunk {_shown(kind)} does not match its checksum"
            )
        if needed and kind not in _KEPT:
            raise UserError(f"the PNG has a chunk {_shown(kind)} that no decoder knows")
        if not sound:
            notes.append(
                f"the PNG's chunk {_shown(kind)} does not match its checksum and was left out"
            )
        elif kind == b"PLTE":
            parts.append(_whole_palette(view[place + 8 : end]))
        elif kind in _KEPT:
            parts.append(view[place : end + 4])
        kinds.add(kind)
        place = end + 4
    if len(data) < 33 or data[12:16] != b"IHDR" or struct.unpack_from(">I", data, 8)[0] != 13:
        raise UserError("the PNG has no header")
    if b"IDAT" not in kinds:
        raise UserError("the PNG has no pixels")
    if data[25] == _PALETTE and b"PLTE" not in kinds:
        raise UserError("the PNG's palette is missing")
    if inflated_size(data) > _DEFLATED_BYTES_PER_BYTE * len(data):
        width, height = struct.unpack_from(">II", data, 16)
        raise UserError(
            f"its header says {width}x{height} pixels, which {len(data)} bytes cannot hold"
        )
    return b"".join(parts), notes


def _shown(kind: bytes) -> str:
    return repr(kind.decode("latin-1"))


def _whole_palette(colours: memoryview) -> bytes:
    """The chunk PLTE with 256 colours, those that are missing black."""
    if len(colours) % 3 or not 0 < len(colours) <= 768:
        raise UserError(f"the PNG's palette is damaged: it has {len(colours)} bytes")
    body = b"PLTE" + bytes(colours).ljust(768, b"\0")
    return struct.pack(">I", 768) + body + struct.pack(">I", zlib.crc32(body))


def has_all_rows(data: bytes | bytearray) -> bool:
    """Whether the pixels of a sound PNG inflate to as many bytes as its header promises.

    Takes as long as inflating.
    """
    missing = inflated_size(data)
    stream, rest = zlib.decompressobj(), pixel_data(data)
    while rest and missing > 0:
        missing -= len(stream.decompress(rest, min(missing, _AT_ONCE)))
        rest = stream.unconsumed_tail
    return missing <= 0


def pixel_data(data: bytes | bytearray) -> bytes:
    """The pixels of a sound PNG, deflated: what its chunks IDAT hold, put together."""
    parts, place, kind = [], len(PNG), b""
    while kind != b"IEND" and place < len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IDAT":
            parts.append(data[place + 8 : place + 8 + length])
        place += 12 + length
    return b"".join(parts)


def inflated_size(data: bytes | bytearray) -> int:
    """Bytes of all rows of a PNG by its header; each row begins with a byte for its filter."""
    return sum(rows * length for rows, length in passes(data))


def passes(data: bytes | bytearray) -> list[tuple[int, int]]:
    """Rows, and bytes of each with its filter, of a PNG's passes: one, or up to seven interlaced.

    Raises:
        UserError: its colours are none of PNG's.
    """
    width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    if colour not in _CHANNELS:
        raise UserError(f"the PNG's header is damaged: it has colours of type {colour}")
    bits *= _CHANNELS[colour]
    found = []
    for left, top, across, down in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            found.append((rows, 1 + (columns * bits + 7) // 8))
    return found


def png_bits(data: bytes | bytearray) -> int:
    """Bits of a channel of a pixel: 1, 2, 4, 8 or 16."""
    return data[24]


class JpegFrame(NamedTuple):
    """What the header of a JPEG says.

    Attributes:
        bits: of a channel.
        height: of the pixels as they are stored.
        width: of the pixels as they are stored.
        channels: 1 of grey, 3 of colours, 4 of inks.
        sampling: how many pixels share a sample of the other channels than the first, across and
            down; (0, 0) where these differ.
        orientation: of its EXIF, 1 where it has none, 0 where that cannot be read; of several the
            first that is not 1.
        progressive: whether the pixels come in several scans, each finer than the last.
    """

    bits: int
    height: int
    width: int
    channels: int
    sampling: tuple[int, int]
    orientation: int
    progressive: bool


def jpeg_frame(data: bytes | bytearray) -> JpegFrame | None:
    """Read the header of a JPEG; None for one of other codes than Huffman's, or that is damaged."""
    frame, orientation = None, 1
    for marker, place in _jpeg_segments(data):
        if marker == _PICTURE_BEGINS:
            return None if frame is None else frame._replace(orientation=orientation)
        if marker in _FRAMES and frame is None:
            try:
                frame = _frame(data, place, marker == _PROGRESSIVE)
            except IndexError:  # the file ends there
                return None
        elif marker == _EXIF[0] and orientation == 1:
            length = int.from_bytes(data[place : place + 2], "big")
            body = bytes(data[place + 8 : place + length])
            # torchvision turns by the first segment of this marker, whatever its name
            if data[place + 2 : place + 8] == _EXIF[1] or body[:4] in _ORDERS:
                orientation = _orientation(body)
    return None


def _jpeg_segments(data: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """The marker of each segment of a JPEG's header, and where its length is."""
    place, end = 2, len(data) - 9
    while place < end and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:
            place += 1
            continue
        yield marker, place + 2
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")


def _frame(data: bytes | bytearray, place: int, progressive: bool) -> JpegFrame:
    bits, height, width, channels = struct.unpack_from(">BHHB", data, place + 2)
    own = place + 8
    samples = [divmod(data[own + 3 * channel + 1], 16) for channel in range(channels)]
    first = samples[0] if samples else (0, 0)
    shared = channels == 1 or set(samples[1:]) == {(1, 1)}
    sampling = (1, 1) if channels == 1 else first if shared else (0, 0)
    return JpegFrame(bits, height, width, channels, sampling, 1, progressive)


def _orientation(exif: bytes) -> int:
    """The orientation of EXIF, 1 where it has none, 0 where it cannot be read."""
    order = _ORDERS.get(exif[:4])
    if order is None:
        return 0
    try:
        place = struct.unpack_from(f"{order}I", exif, 4)[0]
        for entry in range(struct.unpack_from(f"{order}H", exif, place)[0]):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, place + 2 + 12 * entry)
            if tag == _ORIENTATION:
                return value
    except struct.error:
        return 0
    return 1


def require_jpeg_room(data: bytes | bytearray) -> None:
    """Check that a JPEG's header promises no more pixels than its bytes can hold.

    A few bytes that promise 65,500 x 65,500 pixels would otherwise be decoded to 12 GiB of nothing.

    Raises:
        UserError: it does.
    """
    for marker, place in _jpeg_segments(data):
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, place + 3)
            if height * width > JPEG_PIXELS_PER_BYTE * len(data):
                raise UserError(
                    f"its header says {width}x{height} pixels, which {len(data)} bytes cannot hold"
                )
            return


def may_be_cut_short(head: bytes, tail: bytes, size: int) -> bool:
    """Whether a file lacks the end that its format asks for; whole ones with an appendix do too.

    Args:
        head: its first 16 bytes.
        tail: its last 64 bytes.
        size: in bytes.

    Returns:
        True also where the format is unknown; False for a TIFF, whose end says nothing.
    """
    if len(head) < 16:
        return True
    if head.startswith(JPEG):
        return not tail.rstrip(b"\0").endswith(b"\xff\xd9")
    if head.startswith(PNG):
        return tail[-8:-4] != b"IEND"
    if head.startswith(b"RIFF"):  # WebP
        return size < 8 + int.from_bytes(head[4:8], "little")
    if head.startswith(b"BM"):
        return size < int.from_bytes(head[2:6], "little")
    if head.startswith(b"GIF8"):
        return not tail.endswith(b";")
    return not head.startswith((b"II*\0", b"MM\0*"))
