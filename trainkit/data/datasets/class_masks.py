"""Images with a mask for each class, which may overlap: files per class, bands, COCO's polygons."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from trainkit.data.bands import USUAL, PixelSettings, as_stored, read_channels, read_image_like
from trainkit.data.datasets.coco_style import coco_class_masks, is_of_coco
from trainkit.data.datasets.divided import Division
from trainkit.data.datasets.folder import FileList
from trainkit.data.datasets.inventory import some
from trainkit.data.datasets.multi_hot import IGNORED
from trainkit.data.image_io import MaskSizeError, read_mask, read_with
from trainkit.errors import DataError


class ClassMasks(Dataset):
    """One side of a division of images with masks of overlapping classes.

    index -> (uint8 image (3, H, W), masks int8 (C, H, W): 1, 0, and -1 where it is not known).

    Args:
        division: the division; its targets are files, or several with their classes as JSON.
        split: "train" or "val".
        classes: their names, in the order of their ids.
        transform: of image and masks.
        ignore: stored value that says that nothing is known; None: none.
        pixels: channels and bits of the images.
    """

    upright = True

    def __init__(
        self,
        division: Division,
        split: str,
        classes: Sequence[str],
        transform: Callable[..., Any] | None = None,
        ignore: int | None = None,
        pixels: PixelSettings = USUAL,
    ):
        names, targets = division.side(split)
        self.images = FileList(division.whole.root, names)
        self.targets_of = targets
        self.classes, self.transform, self.ignore, self.pixels = (
            list(classes),
            transform,
            ignore,
            pixels,
        )
        self.split: str
        self.used: str
        self.used_warnings: list[str]
        division.mark(self, split, names, len(classes))

    def name_of(self, index: int) -> Path:
        """The image's file."""
        return self.images[index]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        file, target = self.images[index], self.targets_of[index]
        if target.startswith("{"):
            found = json.loads(target)
            files = {label: self.images.root / name for label, name in found.items()}
            masks = _of_classes(files, self.classes, self.ignore)
        else:
            masks = read_masks(self.images.root / target, self.classes, self.ignore)
        size = None if masks is None else (masks.shape[-2], masks.shape[-1])
        image = read_image_like(file, size or (0, 0), self.upright, pixels=self.pixels)
        if masks is None:  # of none of the classes
            masks = torch.zeros((len(self.classes), *image.shape[-2:]), dtype=torch.int8)
        elif tuple(image.shape[-2:]) != size:
            raise MaskSizeError(
                f"{file} is {image.shape[-1]}x{image.shape[-2]} and its masks are"
                f" {masks.shape[-1]}x{masks.shape[-2]}"
            )
        masks = tv_tensors.Mask(masks)
        if self.transform is not None:
            image, masks = self.transform(image, masks)
        return as_stored(image, self.pixels).as_subclass(Tensor), masks.as_subclass(Tensor)


def read_masks(file: Path, classes: Sequence[str], ignore: int | None = None) -> Tensor:
    """The masks of all classes in one file: int8 (C, H, W).

    Args:
        file: an image of COCO's file, see `coco_class_masks`; .npy or TIFF of as many bands as
            there are classes, first or last; or .npz with such an array, or with one (H, W) named
            after each class, where a class that is lacking has no pixel.
        classes: their names.
        ignore: stored value that says that nothing is known, as NaN does; None: none.

    Raises:
        DataError: it cannot be read, or has other bands.
    """
    if is_of_coco(file):
        return coco_class_masks(file, classes)
    if file.suffix.lower() in (".tif", ".tiff"):
        stored = read_channels(file)
        return _multi_hot(_bands(stored.numpy(), classes, file), ignore)

    def decode(content: bytes) -> Tensor:
        found = np.load(io.BytesIO(content), allow_pickle=False)
        if isinstance(found, np.ndarray):
            return _multi_hot(_bands(found, classes, file), ignore)
        arrays = {name: found[name] for name in found.files}
        if len(arrays) == 1 and not arrays.keys() <= set(classes):
            (only,) = arrays.values()
            return _multi_hot(_bands(only, classes, file), ignore)
        unknown = sorted(arrays.keys() - set(classes))
        if unknown or not arrays:
            raise DataError(
                f"{file} holds {some(unknown) or 'nothing'}, and the classes are"
                f" {some(classes)}: name its arrays after the classes, or save one (C, H, W)"
            )
        shape = next(iter(arrays.values())).shape
        wrong = [name for name, each in arrays.items() if each.ndim != 2 or each.shape != shape]
        if wrong:
            raise DataError(f"{file}: masks are of one size (H, W), and {some(wrong)} is not")
        empty = np.zeros(shape, dtype=np.uint8)
        return _multi_hot(np.stack([arrays.get(name, empty) for name in classes]), ignore)

    return read_with(file, decode)


def _bands(array: np.ndarray, classes: Sequence[str], file: Path) -> np.ndarray:
    """Bands (C, H, W), from (C, H, W), (H, W, C), or (H, W) of a single class."""
    if array.ndim == 2 and len(classes) == 1:
        return array[None]
    if array.ndim == 3 and len(array) == len(classes):
        return array
    if array.ndim == 3 and array.shape[2] == len(classes):
        return array.transpose(2, 0, 1)
    raise DataError(
        f"{file} is of shape {array.shape}: there are {len(classes)} classes, and it needs a band"
        " of each (C, H, W)"
    )


def _multi_hot(stored: np.ndarray, ignore: int | None) -> Tensor:
    if stored.dtype.kind not in "biuf":
        raise DataError(f"masks are numbers, and these are {stored.dtype}")
    known = np.isfinite(stored)
    if stored.dtype.kind == "f" and (stored[known] % 1 != 0).any():
        raise DataError(
            "masks hold fractions: save whole numbers, 0 where a pixel is not of the class"
        )
    masks = np.where(known, stored != 0, IGNORED).astype(np.int8)
    if ignore is not None:
        masks[stored == ignore] = IGNORED
    return torch.from_numpy(masks)


def _of_classes(
    files: dict[str, Path], classes: Sequence[str], ignore: int | None
) -> Tensor | None:
    """The masks of an image in a file for each class; a class without one has no pixel.

    None where there is no file at all.
    """
    read = {name: read_mask(file).as_subclass(Tensor) for name, file in files.items()}
    if not read:
        return None
    first = next(iter(read))
    shape = tuple(read[first].shape)
    for name, mask in read.items():
        if tuple(mask.shape) != shape:
            raise MaskSizeError(
                f"{files[name]} is {mask.shape[1]}x{mask.shape[0]} and {files[first]}"
                f" {shape[1]}x{shape[0]}: masks of an image are of its size"
            )
    masks = torch.zeros((len(classes), *shape), dtype=torch.int8)
    for label, name in enumerate(classes):
        if name in read:
            masks[label] = _multi_hot(read[name].numpy(), ignore)
    return masks
