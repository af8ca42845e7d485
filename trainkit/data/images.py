"""Reading images and masks from files or bytes."""

import io
import os
import re
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image, decode_png

# torchvision 0.29 announces that its decoders will move to torchcodec one day; until then they are the fastest
# at hand, and a user can do nothing about the warning.
warnings.filterwarnings("ignore", message="The image decoding and encoding capabilities of TorchVision")

# What torchvision decodes well by itself: JPEG (whatever its colours) and PNG. The rest is left to Pillow.
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_GREY = (8, 0)  # bytes 24 and 25 of a PNG whose pixels are 8-bit grey values


class MaskSizeError(ValueError):
    """A mask of another size than its image."""


class LabelError(ValueError):
    """A label that is none of the classes."""


def read_image(source: Path | bytes, name: str | None = None, upright: bool = True) -> tv_tensors.Image:
    """RGB image, uint8 (3, H, W), turned upright by its EXIF orientation, or with `upright` False as stored.

    source: a file, or the bytes of one; the format is told by its content, not its name. name: what to call it
    in an error. In memory the channels of a pixel lie side by side. Raises ValueError naming the file where it cannot
    be read.
    """
    try:
        return tv_tensors.Image(_decode(_content(source), upright))
    except (RuntimeError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(_unreadable(source, name, error)) from error


def _content(source: Path | bytes) -> bytearray:
    """What torch may share without a warning, read without a copy in between."""
    if isinstance(source, bytes):
        return bytearray(source)
    with open(source, "rb", buffering=0) as file:
        content = bytearray(os.fstat(file.fileno()).st_size)
        del content[file.readinto(content) :]
    return content


def _decode(data: bytearray, upright: bool) -> Tensor:
    if data.startswith((_JPEG, _PNG)):
        image = decode_image(torch.frombuffer(data, dtype=torch.uint8), ImageReadMode.RGB, upright)
        return image if image.dtype == torch.uint8 else (image.to(torch.int32) >> 8).to(torch.uint8)
    with Image.open(io.BytesIO(data)) as image:
        image = ImageOps.exif_transpose(image) if upright else image
        if image.mode.startswith("I;16"):  # Pillow would cut off all above 255
            grey = torch.from_numpy((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
            return grey.expand(3, -1, -1).permute(1, 2, 0).contiguous().permute(2, 0, 1)
        if image.mode in ("I", "F"):
            raise OSError(f"its pixels are of mode {image.mode}, whose range nothing tells: save it with 8 or 16 bits")
        rgb = image.convert("RGB")
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def read_mask(source: Path | bytes, name: str | None = None) -> tv_tensors.Mask:
    """Label map, integers (H, W): the palette indices or grey values as stored, never colours.

    uint8, or int32 where the file has more than 8 bits. name: what to call it in an error. Raises ValueError
    naming the file where it cannot be read or holds colours.
    """
    try:
        data = _content(source)
        if data.startswith(_PNG) and tuple(data[24:26]) == _GREY:
            labels = decode_png(torch.frombuffer(data, dtype=torch.uint8))
            if len(labels) == 1:  # two where a grey value means transparent
                return tv_tensors.Mask(labels[0])
        with Image.open(io.BytesIO(data)) as image:
            if len(image.getbands()) != 1:
                raise ValueError(
                    f"{name or _name(source)} is a mask with {len(image.getbands())} channels ({image.mode}); a mask "
                    "holds one label per pixel: save it as grey or palette PNG"
                )
            labels = np.array(image)
    except (RuntimeError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(_unreadable(source, name, error)) from error
    return tv_tensors.Mask(torch.from_numpy(labels.astype(np.uint8 if labels.dtype.itemsize == 1 else np.int32)))


def _name(source: Path | bytes) -> str:
    return f"{len(source)} bytes" if isinstance(source, bytes) else str(source)


def _unreadable(source: Path | bytes, name: str | None, error: Exception) -> str:
    reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    reason = re.sub(r"^\S.*\.cpp:\d+, ", "", reason)  # where in torchvision's sources
    reason = re.sub(r" <_io.BytesIO object at \w+>", "", reason)
    return f"cannot read {name or _name(source)}: {reason}; replace the file or take it out of the dataset"
