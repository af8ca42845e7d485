"""Reads what `trainkit pack` wrote: images with their classes or masks, any of them at once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from trainkit.data.datasets.inventory import images_of, no_image
from trainkit.data.datasets.packed_files import PackedFiles, StreamedFiles
from trainkit.data.datasets.packed_format import (
    RECOGNITION,
    SEGMENTATION,
    Manifest,
    PackedSplit,
    read_manifest,
    split_named,
)
from trainkit.data.datasets.segmentation import MaskDataset
from trainkit.data.sampler import Locality
from trainkit.errors import UserError


class _Packed(Dataset):
    """What packed images of both tasks have in common.

    Attributes:
        re_encoded: see `DatasetInfo.re_encoded`.
        fingerprint: of the packed folder, which no other data has.
    """

    def _open(self, folder: str | Path, split: str, task: str, stream: int | None) -> Manifest:
        """Open one split.

        Raises UserError where it is of the other task.
        """
        manifest = read_manifest(folder)
        if manifest.task != task:
            raise UserError(
                f"{folder} was packed for {manifest.task}, by {manifest.recipe}: give it to a"
                f" recipe for {manifest.task}, or data for {task}"
            )
        where = Path(folder), split_named(split), manifest
        self.files = PackedFiles(*where) if stream is None else StreamedFiles(*where, stream)
        self.manifest, about = manifest, self.files.about
        self.split = about.name or split_named(split)
        self.upright = manifest.upright
        self.fingerprint = manifest.fingerprint
        self.re_encoded = manifest.encoding.changed
        number = images_of(len(self.files), manifest.num_classes)
        self.used = f"{number}, packed from the data of {manifest.recipe} ({folder})"
        self.used_warnings = _warnings(manifest, about)
        return manifest

    @property
    def locality(self) -> Locality | None:
        """The order of a streamed folder; None: any order does."""
        return self.files.locality

    def __len__(self) -> int:
        return len(self.files)

    def name_of(self, index: int) -> str:
        """The image's file, and its number in the split."""
        return self.files.name_of(index)


class PackedImages(_Packed):
    """Images with a class each: index -> (uint8 image (3, H, W), class id).

    Args:
        folder: that `trainkit pack` wrote.
        split: "train" or "val", or what a dataset calls one of them.
        transform: of the image.
        classes: the names that it must have, in this order; None: any.
        stream: number of interleaved row groups, see `StreamedFiles`; None: images are read from
            where they are, in any order.

    Raises:
        UserError: the folder is unfinished, damaged, of segmentation, or has other classes.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        transform: Callable[[Any], Any] | None = None,
        classes: Sequence[str] | None = None,
        stream: int | None = None,
    ):
        manifest = self._open(folder, split, RECOGNITION, stream)
        there, self.transform = manifest.classes, transform
        self.classes = _names(there)
        if classes is not None:
            _require_classes(folder, manifest, classes)
        self.targets = torch.from_numpy(self.files.index["label"].astype(np.int64))
        self.used_warnings += self.without_images()

    def without_images(self) -> list[str]:
        """A line on classes without an image."""
        return no_image(self.classes, set(self.targets.tolist()), self.files.folder)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.files.transformed(index, self.transform)
        return image.as_subclass(Tensor), self.targets[index]


class PackedMasks(_Packed, MaskDataset):
    """Images with masks: index -> (uint8 image (3, H, W), train ids, uint8 (H, W)).

    Args:
        folder: that `trainkit pack` wrote.
        split: as of `PackedImages`.
        transform: of image and mask.
        classes: how many it must have, or their names in this order; None: any.
        stream: as of `PackedImages`.

    Raises:
        UserError: the folder is unfinished, damaged, of recognition, or has other classes.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        transform: Callable[..., Any] | None = None,
        classes: Sequence[str] | int | None = None,
        stream: int | None = None,
    ):
        manifest = self._open(folder, split, SEGMENTATION, stream)
        MaskDataset.__init__(self, manifest.num_classes, transform)
        self.classes = manifest.classes
        if classes is not None:
            _require_classes(folder, manifest, classes)

    @property
    def palette(self) -> np.ndarray:
        """A colour for each train id: uint8 (K, 3)."""
        if self.manifest.palette is None:
            return super().palette
        return np.array(self.manifest.palette, np.uint8)

    @property
    def raw_ids(self) -> np.ndarray:
        """The label in the original masks for each train id: integers (K,)."""
        return np.array(self.manifest.raw_ids)

    def mask_name(self, index: int) -> str:
        """The mask's name, for messages."""
        return f"the mask of {self.name_of(index)}"

    def labels_of(self, index: int) -> Tensor:
        """See `MaskDataset`."""
        return _there(self.files.mask(index))

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """See `MaskDataset`."""
        image, mask = self.files.read(index)
        return image, _there(mask)


def _there(mask: Tensor | None) -> Tensor:
    assert mask is not None  # each image of a segmentation was packed with one
    return mask


def require_plain(folder: str | Path, **given: Any) -> None:
    """Check that no setting says how the images of a packed folder are to be read or divided.

    Args:
        folder: for the message.
        **given: settings by their name, None or False where they say nothing.

    Raises:
        UserError: one does.
    """
    for name, value in given.items():
        if value is not None and value is not False:
            raise UserError(
                f"{name} is {value}, and {folder} is packed, which says all about its images: leave"
                f" --{name.replace('_', '-')} out, or give it to trainkit pack"
            )


def _require_classes(folder: str | Path, manifest: Manifest, classes: Sequence[str] | int) -> None:
    """Raise UserError where the packed images have other classes."""
    number = classes if isinstance(classes, int) else len(classes)
    there = manifest.classes
    named = not isinstance(classes, int) and not isinstance(there, int)
    if number == manifest.num_classes and not (named and _names(classes) != _names(there)):
        return
    raise UserError(
        f"{folder} was packed by {manifest.recipe} with {_counted(there)}, and here there are"
        f" {_counted(classes)}, or in another order: give the recipe the data that it is for"
    )


def _names(classes: Sequence[str] | int) -> list[str]:
    return [str(each) for each in (range(classes) if isinstance(classes, int) else classes)]


def _counted(classes: Sequence[str] | int) -> str:
    if isinstance(classes, int):
        return f"{classes} classes"
    return f"{len(classes)} classes ({', '.join(list(classes)[:5])}, ...)"


def _warnings(manifest: Manifest, about: PackedSplit) -> list[str]:
    """What a person should know before a training on packed images begins."""
    found = []
    if manifest.encoding.changed is not None:
        found.append(
            f"images are not the originals, but {manifest.encoding.changed}: results on them are"
            " not those on the original images"
        )
    if about.left_out:
        found.append(f"{len(about.left_out)} images were left out when it was packed")
    return found
