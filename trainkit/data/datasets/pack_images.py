"""Reads an image of a dataset, checks it, and makes the bytes that a packed folder has of it."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from trainkit.data.dataset_info import DatasetInfo, SizedDataset
from trainkit.data.datasets.packed_format import (
    ORIGINAL,
    RAW,
    RECOGNITION,
    SEGMENTATION,
    Encoding,
)
from trainkit.data.image_io import read_image, read_mask
from trainkit.data.reader import Reader, name_of
from trainkit.data.sampler import EVALUATION
from trainkit.errors import DataError, UserError

REMEDY = "Mend it and give the same command again, or leave it out with --on-bad-image skip"


class Packed(NamedTuple):
    """An image as it is stored: its bytes, those of its mask, and its size in pixels."""

    name: str
    image: bytes
    mask: bytes
    height: int
    width: int
    label: int

    @property
    def size(self) -> int:
        """Number of bytes."""
        return len(self.image) + len(self.mask)


class ImagePacker:
    """Makes what is stored of each image.

    Args:
        data: the dataset, without transforms.
        task: RECOGNITION or SEGMENTATION.
        encoding: how images are stored.
        check: what the task says of a target.
        remedy: what to do about an image that cannot be read.
        root: folder below which files have their names; others have that of the file alone, so
            that what is stored does not depend on where the data lies.
    """

    def __init__(
        self,
        data: SizedDataset,
        task: str,
        encoding: Encoding,
        check: Callable[[Tensor], str | None] | None,
        remedy: str = REMEDY,
        root: str | Path | None = None,
    ):
        self.data, self.task, self.encoding = data, task, encoding
        self.root = root
        self.reader = Reader(data, 0, check, remedy=remedy)

    def read(self, index: int) -> Packed:
        """An image and its target as they are stored.

        Raises:
            DataError: it cannot be read or stored, or its target is wrong; the message names it.
            UserError: it is of a kind that is not packed.
        """
        image, target, _ = self.reader[EVALUATION, index]
        name = name_of(self.data, index)
        _require_fitting(name, image, target, self.task)
        image = image.as_subclass(Tensor)
        height, width = self.encoding.size_of(*image.shape[1:])
        mask = target if self.task == SEGMENTATION else None
        if (height, width) != tuple(image.shape[1:]):
            image = functional.resize(
                image, [height, width], InterpolationMode.BILINEAR, antialias=True
            )
            if mask is not None:
                nearest = InterpolationMode.NEAREST_EXACT
                mask = functional.resize(mask.as_subclass(Tensor)[None], [height, width], nearest)[
                    0
                ]
        try:
            stored = self._image_bytes(index, image)
        except (OSError, ValueError) as error:  # such as a side that is too long for WebP
            if isinstance(error, UserError):
                raise
            raise DataError(
                f"{name} of {width}x{height} pixels cannot be stored as"
                f" {self.encoding.kind}: {error}. Choose another --encoding"
            ) from error
        stored_mask = b"" if mask is None else self._mask_bytes(name, mask.as_subclass(Tensor))
        label = int(target) if mask is None else -1
        return Packed(self._short(name), stored, stored_mask, height, width, label)

    def _short(self, name: str) -> str:
        if self.root is not None and Path(name).is_relative_to(self.root):
            return Path(name).relative_to(self.root).as_posix()
        return Path(name).name if os.path.isfile(name) else name

    def _image_bytes(self, index: int, image: Tensor) -> bytes:
        """An image as it is stored, which reading it again has shown to be right."""
        kind = self.encoding.kind
        pixels = image.permute(1, 2, 0).contiguous().numpy()
        if kind == RAW:
            return pixels.tobytes()
        if kind == ORIGINAL:
            own = DatasetInfo.of(self.data).image_bytes(index)
            if own is not None and _holds(own, image):
                return own
        encoded = io.BytesIO()
        settings: dict[str, Any] = {}
        if kind == "jpeg":
            settings = {"quality": self.encoding.quality}
        elif kind == "webp":
            settings = {"lossless": True}
        Image.fromarray(pixels).save(encoded, "png" if kind == ORIGINAL else kind, **settings)
        again = read_image(encoded.getvalue()).as_subclass(Tensor)
        same = again.shape == image.shape if kind == "jpeg" else torch.equal(again, image)
        if not same:
            raise AssertionError(
                f"an image of shape {tuple(image.shape)} changes when it is stored"
            )
        return encoded.getvalue()

    def _mask_bytes(self, name: str, mask: Tensor) -> bytes:
        labels = mask.contiguous().numpy()
        if self.encoding.kind == RAW:
            return labels.tobytes()
        encoded = io.BytesIO()
        Image.fromarray(labels).save(encoded, "png")
        if not torch.equal(read_mask(encoded.getvalue()).as_subclass(Tensor), mask):
            raise AssertionError(f"the mask of {name} changes when it is stored")
        return encoded.getvalue()


def _require_fitting(name: str, image: Any, target: Any, task: str) -> None:
    """Raise UserError for what is no RGB image of 8 bits, or no class id or mask of its size."""
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3:
        what = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image)
        raise UserError(f"{name} is {what}; images that are packed are uint8 (3, height, width)")
    if len(image) != 3:
        raise UserError(
            f"{name} has {len(image)} channels; images that are packed have 3 of 8 bits: leave"
            " --channels and --bits out, or train on the files"
        )
    if task == RECOGNITION:
        if isinstance(target, int) or (isinstance(target, Tensor) and target.ndim == 0):
            return
        raise UserError(f"{name} has no class id, but a target of {type(target).__name__}")
    if target.dtype != torch.uint8 or target.shape != image.shape[1:]:
        raise DataError(
            f"{name} of shape {tuple(image.shape)} has a target {target.dtype}"
            f" {tuple(target.shape)}; a mask is uint8, of the size of its image"
        )


def _holds(content: bytes, image: Tensor) -> bool:
    """Whether these bytes are read as this image, which a dataset may read in a way of its own."""
    try:
        return torch.equal(read_image(content).as_subclass(Tensor), image)
    except DataError:
        return False
