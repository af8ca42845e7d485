"""The files of images and masks that `trainkit pack` wrote, read from where they lie."""

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from trainkit.data.bands import USUAL
from trainkit.data.datasets.packed_format import RAW, SEGMENTATION, Manifest
from trainkit.data.first_crop import begins_with_crop, of_first_crop, read_transformed
from trainkit.data.image_io import read_image, read_mask
from trainkit.data.sampler import Locality


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

    def transformed(self, index: int, transform: Callable[[Any], Any] | None) -> Tensor:
        """An image alone, changed by a transform, of which no more is read than it begins with."""
        place = self.place(index)
        stored, _ = self.stored(index, place)
        if not self.is_raw:
            return read_transformed(stored.tobytes(), USUAL, transform, self.name_of(index))
        if not begins_with_crop(transform):
            image = self._image(index, place, stored)
            return image if transform is None else transform(image)
        pixels = stored.reshape(place.height, place.width, 3)

        def region(top: int, left: int, height: int, width: int) -> Tensor:
            part = pixels[top : top + height, left : left + width]
            return torch.from_numpy(part.copy()).permute(2, 0, 1)

        return of_first_crop(place.height, place.width, region, transform)

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
