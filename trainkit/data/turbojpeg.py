"""Decodes a region of a JPEG by libjpeg-turbo, in its library TurboJPEG of version 3.

torchvision and Pillow decode whole JPEGs only. Where this library is installed (by the system, by
conda, or by `pip install "trainkit[region]"`), what lies below a region is not decoded at all, and
what lies beside it only as far as the entropy code asks for.

The pixels are those of the whole image decoded by torchvision, bit for bit: a library that gives
others is not used. So it changes how long reading takes, and nothing else.
"""

import ctypes
import io
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from trainkit.data.image_headers import (
    JPEG_PIXELS_PER_BYTE,
    JpegFrame,
    jpeg_frame,
    may_be_cut_short,
)

_DECOMPRESSES, _RGB = 1, 0  # TJINIT_DECOMPRESS, TJPF_RGB
_END_BYTES = 64  # of a file, in which its end marker is searched
# Channels, and how many pixels share a sample of chroma, across and down: the kinds of `agrees`.
_KINDS = {(1, (1, 1)), (3, (1, 1)), (3, (2, 1)), (3, (2, 2))}
_NAMES = (
    ("libturbojpeg.dylib", "libturbojpeg.0.dylib")
    if sys.platform == "darwin"
    else ("libturbojpeg.so.0", "libturbojpeg.so")
)
_FOLDERS = (Path(sys.prefix) / "lib", Path("/opt/libjpeg-turbo/lib64")) + (
    (Path("/opt/homebrew/opt/jpeg-turbo/lib"), Path("/usr/local/opt/jpeg-turbo/lib"))
    if sys.platform == "darwin"
    else ()
)


class _Region(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_int),
        ("y", ctypes.c_int),
        ("w", ctypes.c_int),
        ("h", ctypes.c_int),
    )


class TurboJpeg:
    """The library, of which each thread has a decoder of its own.

    Args:
        path: its file, or a name that the system finds.

    Raises:
        OSError: there is none.
        AttributeError: it is older than version 3.
    """

    def __init__(self, path: str):
        self.path, self._decoders = path, threading.local()
        library = ctypes.CDLL(path)
        handle, data, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
        self._begin = library.tj3Init
        self._begin.restype, self._begin.argtypes = handle, [number]
        self._end = library.tj3Destroy
        self._end.argtypes = [handle]
        self._header = library.tj3DecompressHeader
        self._header.argtypes = [handle, data, ctypes.c_size_t]
        self._cut = library.tj3SetCroppingRegion
        self._cut.argtypes = [handle, _Region]
        self._decode = library.tj3Decompress8
        self._decode.argtypes = [handle, data, ctypes.c_size_t, handle, number, number]

    def region(
        self, data: bytes, frame: JpegFrame, top: int, left: int, height: int, width: int
    ) -> Tensor | None:
        """Decode a region.

        It is decoded with a block more on each side, since chroma is interpolated between samples:
        the pixels at its edge would be others.

        Args:
            data: the file, one of `has_region`.
            frame: its header.
            top: of the region, in pixels, as they are stored.
            left: of the region, in pixels.
            height: of the region, in pixels.
            width: of the region, in pixels.

        Returns:
            uint8 (3, height, width), the channels of a pixel side by side in memory; None where the
            library has any objection.
        """
        across, down = (8 * times for times in frame.sampling)
        before = max(0, left // across - 1) * across
        above = max(0, top // down - 1) * down
        behind = min(frame.width, (-(-(left + width) // across) + 1) * across)
        below = min(frame.height, (-(-(top + height) // down) + 1) * down)
        decoder = self._decoder()
        if self._header(decoder, data, len(data)):
            return None
        if self._cut(decoder, _Region(before, above, behind - before, below - above)):
            return None
        pixels = np.empty((below - above, behind - before, 3), np.uint8)
        if self._decode(decoder, data, len(data), pixels.ctypes.data, 0, _RGB):
            return None
        inside = pixels[top - above :, left - before :][:height, :width]
        return torch.from_numpy(inside).permute(2, 0, 1)

    def _decoder(self) -> int:
        found: _Decoder | None = getattr(self._decoders, "own", None)
        if found is None:
            found = self._decoders.own = _Decoder(self._begin(_DECOMPRESSES), self._end)
        return found.handle


class _Decoder:
    """What the library keeps for one thread, given back with it."""

    def __init__(self, handle: int | None, end: Callable[[int], Any]):
        if handle is None:
            raise MemoryError("TurboJPEG has no memory for a decoder")
        self.handle, self._end = handle, end

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            self._end(self.handle)


def has_region(data: bytes, frame: JpegFrame) -> bool:
    """Whether a region of a JPEG can be decoded, and the file goes on to its end.

    A region says nothing of what is below it: a file that was cut short is not among these, so that
    the whole is decoded, which fails. Nor are kinds that the library may decode otherwise: four
    channels, unusual sampling, pixels that are turned, or progressive ones. Where a progressive
    file lacks scans, libjpeg smooths its blocks by what is around them, also outside of a region,
    and each version does so in its own way.
    """
    return (
        frame.bits == 8
        and 0 < frame.height * frame.width <= JPEG_PIXELS_PER_BYTE * len(data)
        and (frame.channels, frame.sampling) in _KINDS
        and frame.orientation == 1
        and not frame.progressive
        and not may_be_cut_short(data[:16], data[-_END_BYTES:], len(data))
    )


@cache
def turbojpeg() -> TurboJpeg | None:
    """The library that is installed, where its pixels are torchvision's; else None."""
    for path in _candidates():
        try:
            library = TurboJpeg(path)
        except (OSError, AttributeError):  # none, or one before version 3
            continue
        if agrees(library):
            return library
    return None


def _candidates() -> Iterator[str]:
    """Where the library may be: the system's and conda's come first, which are kept up."""
    yield from (str(folder / name) for folder in _FOLDERS for name in _NAMES)
    yield from _NAMES
    try:
        of_wheel = files("turbojpeg") or ()
    except PackageNotFoundError:
        return
    for file in of_wheel:
        if file.name.startswith("libturbojpeg"):
            yield str(file.locate())


def agrees(library: TurboJpeg) -> bool:
    """Whether regions of generated JPEGs are bit-equal to those of the whole by torchvision.

    They are not where torchvision or Pillow was built without JPEG.
    """
    try:
        return all(_agrees(library, subsampling) for subsampling in (0, 1, 2, None))
    except (RuntimeError, OSError):  # torchvision's, Pillow's
        return False


def _agrees(library: TurboJpeg, subsampling: int | None) -> bool:
    """The same of one JPEG, of Pillow's `subsampling`, or grey where that is None."""
    down, across = np.mgrid[:67, :93]
    waves = [np.sin(down * across / 90 + phase) + np.sin(across / 3 + phase) for phase in range(3)]
    coloured = Image.fromarray((127.5 + 60 * np.stack(waves, -1)).astype(np.uint8))
    image = coloured.convert("L" if subsampling is None else "RGB")
    file = io.BytesIO()
    image.save(file, "JPEG", subsampling=subsampling or 0)
    data = file.getvalue()
    whole = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    frame = jpeg_frame(data)
    assert frame is not None and has_region(data, frame)
    for top, left, height, width in ((0, 0, 67, 93), (17, 33, 29, 31), (40, 1, 27, 90)):
        region = library.region(data, frame, top, left, height, width)
        expected = whole[:, top : top + height, left : left + width]
        if region is None or not torch.equal(region, expected):
            return False
    return True
