"""Decodes the bytes of one file by Pillow, and collects the warnings of decoders."""

import io
import os
import sys
import tempfile
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache

from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile
from psutil import virtual_memory

from trainkit.data.image_headers import PNG, checked_png, has_all_rows
from trainkit.errors import UserError

# A row of one colour may take a bit or two (TIFF's fax codes); a whole image a few bytes in the
# sparse formats.
_PIXELS_PER_BYTE = 100_000
_SPARSE = ("WEBP", "AVIF", "JPEG2000")
_BYTES_PER_PIXEL = 4  # Pillow's, of colours
_STORED_SIZE = (256, 257)  # tags of TIFF: width and height of the pixels as they lie in the file

# What an EXIF orientation asks for, as an argument of `image.transpose`.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNS_BACK = {**_TURNS, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


REMEMBERED = 100_000
# length and checksum of PNGs that were found whole, not to inflate again
_with_all_rows: set[tuple[int, int]] = set()


@dataclass
class Notes:
    """Warnings collected while images are read.

    Attributes:
        lines: what a decoder warned of, or left out.
        highest: of each image with 16 bits a channel its highest value (for colours, of which
            decoders give the upper 8 bits, the highest that it can be).
    """

    lines: list[str] = field(default_factory=list)
    highest: list[int] = field(default_factory=list)


_taken: ContextVar[Notes | None] = ContextVar("taken", default=None)


def notes() -> Notes | None:
    """The notes to add warnings to; None outside of `taking_notes`."""
    return _taken.get()


@contextmanager
def taking_notes() -> Iterator[Notes]:
    """Context manager: collect the warnings of images that are read inside.

    libjpeg writes its warnings to the process's standard error, without a name: what is written
    there meanwhile is taken as well. Not for a training: it costs some 50 us.
    """
    found = Notes()
    token = _taken.set(found)
    sys.stderr.flush()
    own = os.dup(2)
    try:
        with tempfile.TemporaryFile() as file, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            os.dup2(file.fileno(), 2)
            try:
                yield found
            finally:
                sys.stderr.flush()
                os.dup2(own, 2)
            file.seek(0)
            found.lines += file.read().decode(errors="replace").splitlines()
        found.lines += [str(each.message) for each in warned if "PIL" in each.filename]
    finally:
        os.close(own)
        _taken.reset(token)
    for each in warned:
        if "PIL" not in each.filename:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


@contextmanager
def opened(data: bytes | bytearray) -> Iterator[ImageFile]:
    """Context manager: the image in the bytes of a file, loaded by Pillow, whatever its size.

    A PNG is loaded only when it is sound.

    Raises:
        UserError: a PNG is damaged, or an image promises more pixels than it can hold.
        Exception: whatever Pillow raises.
    """
    formats = None
    if data.startswith(PNG):
        data, amiss = checked_png(data)
        formats = ("PNG",)
        taken = notes()
        if taken is not None:
            taken.lines += amiss
    with _any_number_of_pixels(), Image.open(io.BytesIO(data), formats=formats) as image:
        _require_room(image, len(data))
        if isinstance(image, TiffImageFile):
            _require_all_strips(image)
        yield image
        if formats is not None and _may_lack_rows(image):
            _require_all_rows(data)


def _require_room(image: Image.Image, num_bytes: int) -> None:
    """Raise UserError for a header that promises more pixels than the file or memory can hold.

    Pillow would allocate them row by row, until the system ends the process.
    """
    pixels = image.width * image.height
    size = f"its header says {image.width}x{image.height} pixels"
    if pixels > _PIXELS_PER_BYTE * num_bytes and image.format not in _SPARSE:
        raise UserError(f"{size}, which {num_bytes} bytes cannot hold")
    if pixels * _BYTES_PER_PIXEL > _memory():
        raise UserError(f"{size}, which this machine's memory cannot hold")


@cache
def _memory() -> int:
    return virtual_memory().total


def _require_all_strips(image: TiffImageFile) -> None:
    """Raise UserError for a TIFF whose strips lack rows, which Pillow would fill with zeros."""
    # `image.size` has the EXIF orientation applied
    width, height = (image.tag_v2[tag] for tag in _STORED_SIZE)
    strips = [tile[1] for tile in image.tile if tile[1] is not None]
    across, down = (max((strip[side] for strip in strips), default=0) for side in (2, 3))
    if across < width or down < height:
        raise UserError(
            f"the TIFF is damaged: its header says {width}x{height} pixels, its strips hold"
            f" {across}x{down}"
        )


def _require_all_rows(data: bytes | bytearray) -> None:
    key = (len(data), zlib.crc32(data))
    if key not in _with_all_rows:
        if not has_all_rows(data):
            raise UserError("the PNG is damaged: it has fewer rows than its header says")
        if len(_with_all_rows) < REMEMBERED:
            _with_all_rows.add(key)


def _may_lack_rows(image: Image.Image) -> bool:
    """Whether a loaded PNG may end before its last row, for which Pillow leaves zeros silently."""
    last_row = image.crop((0, image.height - 1, image.width, image.height))
    return bool(image.info.get("interlace")) or last_row.getbbox(alpha_only=False) is None


def turned(image: Image.Image) -> Image.Image:
    """The image with its EXIF orientation applied.

    By hand, since ImageOps.exif_transpose writes the rest of the EXIF again, which fails where that
    is damaged.
    """
    # of a TIFF Pillow turns the pixels there, and takes the orientation out of its EXIF
    image.load()
    orientation = orientation_of(image)
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def orientation_of(image: Image.Image) -> int | None:
    """What its EXIF says, if anything; of a PNG it is loaded, since EXIF may follow the pixels."""
    found: int | None = image.getexif().get(ExifTags.Base.Orientation)
    return found


def stored(image: Image.Image) -> Image.Image:
    """The image as its pixels are stored, without its EXIF orientation.

    It must not have been loaded before.
    """
    if image.format != "TIFF":
        return image
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    image.load()  # Pillow turns the pixels of a TIFF there
    return image.transpose(_TURNS_BACK[orientation]) if orientation in _TURNS else image


class _Limit:
    """Lifts Pillow's limit of pixels, meant for untrusted images, while a user's image is read."""

    def __init__(self):
        self.lock, self.readers, self.pixels = threading.Lock(), 0, None

    def lift(self) -> None:
        """Lift the limit before an image is read."""
        with self.lock:
            if self.readers == 0:
                self.pixels, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self.readers += 1

    def restore(self) -> None:
        """Restore the limit after an image was read, unless another one is being read."""
        with self.lock:
            self.readers -= 1
            if self.readers == 0:
                Image.MAX_IMAGE_PIXELS = self.pixels


_limit = _Limit()


@contextmanager
def _any_number_of_pixels() -> Iterator[None]:
    _limit.lift()
    try:
        yield
    finally:
        _limit.restore()
