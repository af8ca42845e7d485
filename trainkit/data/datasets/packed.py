"""Reads what `trainkit pack` wrote: images with their classes or masks, any of them at once."""

import mmap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from trainkit.data.datasets.inventory import images_of, no_image
from trainkit.data.datasets.packed_format import (
    RAW,
    RECOGNITION,
    SEGMENTATION,
    Manifest,
    PackedSplit,
    read_manifest,
    split_named,
)
from trainkit.data.datasets.segmentation import MaskDataset
from trainkit.data.image_io import read_image, read_mask
from trainkit.data.sampler import Locality
from trainkit.errors import UserError


class Place(NamedTuple):
    """Where an image lies, see `PLACE`."""

    shard: int
    height: int
    width: int
    mask_bytes: int
    at: int
    bytes: int
    mask_at: int
    label: int


class PackedFiles:
    """The images and masks of one split, read from where they lie in its files.

    Files are mapped into memory when first used: processes share what the system keeps of them.

    Args:
        folder: that `trainkit pack` wrote.
        split: "train" or "val".
        manifest: of the folder.
    """

    def __init__(self, folder: Path, split: str, manifest: Manifest):
        self.folder, self.about = folder, manifest.splits[split]
        self.is_raw = manifest.encoding.kind == RAW
        self.locality: Locality | None = None
        self.index = np.load(folder / self.about.index["file"], mmap_mode="r")
        self._maps: dict[int, mmap.mmap] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}

    def __len__(self) -> int:
        return len(self.index)

    def place(self, index: int) -> Place:
        """Where an image lies."""
        return Place(*self.index[index].item())

    def name_of(self, index: int) -> str:
        """The image's file, and its number in the split."""
        shard = self.about.shards[self.place(index).shard]["file"]
        return f"{self.folder / shard}[{index}]"

    def read(self, index: int) -> tuple[Tensor, Tensor | None]:
        """An image, and its mask where it has one.

        Returns:
            uint8 (3, H, W), the channels of a pixel side by side in memory, and train ids, uint8
            (H, W).
        """
        place = self.place(index)
        image, mask = self.stored(index, place)
        return self._image(index, place, image), self._mask(index, place, mask)

    def mask(self, index: int) -> Tensor | None:
        """The mask alone, as `read` gives it."""
        place = self.place(index)
        return self._mask(index, place, self.stored(index, place)[1])

    def stored(self, index: int, place: Place) -> tuple[np.ndarray, np.ndarray | None]:
        """The bytes of an image and those of its mask, uint8, not to be written into."""
        image = self._bytes(place.shard, place.at, place.bytes)
        if not place.mask_bytes:
            return image, None
        return image, self._bytes(place.shard, place.mask_at, place.mask_bytes)

    def _image(self, index: int, place: Place, stored: np.ndarray) -> Tensor:
        if not self.is_raw:
            return read_image(stored.tobytes(), self.name_of(index))
        # a copy, since a transform may write into it
        pixels = stored.reshape(place.height, place.width, 3).copy()
        return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))

    def _mask(self, index: int, place: Place, stored: np.ndarray | None) -> Tensor | None:
        if stored is None:
            return None
        if not self.is_raw:
            return read_mask(stored.tobytes(), f"the mask of {self.name_of(index)}")
        return torch.from_numpy(stored.reshape(place.height, place.width).copy())

    def _bytes(self, shard: int, at: int, count: int) -> np.ndarray:
        return np.frombuffer(self._map(shard), np.uint8, count, at)

    def _map(self, shard: int) -> mmap.mmap:
        if shard not in self._maps:
            with open(self.folder / self.about.shards[shard]["file"], "rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[shard]


class StreamedFiles(PackedFiles):
    """The same, read a row group at a time in an order that keeps its images together.

    For folders on a disk or a network that is slow to find single images.

    Args:
        num_interleaved: number of interleaved row groups, see `ParquetTable`.
    """

    def __init__(self, folder: Path, split: str, manifest: Manifest, num_interleaved: int):
        super().__init__(folder, split, manifest)
        from trainkit.data.datasets.parquet import ParquetTable  # pyarrow and fsspec

        files = [folder / shard["file"] for shard in self.about.shards]
        columns = ["image", "mask"] if manifest.task == SEGMENTATION else ["image"]
        self.table = ParquetTable(files, num_interleaved).select_columns(columns)
        self.locality = self.table.locality

    def stored(self, index: int, place: Place) -> tuple[np.ndarray, np.ndarray | None]:
        """See `PackedFiles`."""
        row = self.table[index]
        found = {
            name: np.frombuffer(value if self.is_raw else value["bytes"], np.uint8)
            for name, value in row.items()
        }
        return found["image"], found.get("mask")


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
        image, _ = self.files.read(index)
        if self.transform is not None:
            image = self.transform(image)
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
