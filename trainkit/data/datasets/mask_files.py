"""Base of segmentation datasets whose images and masks are files of their own."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision import tv_tensors

from trainkit.data.bands import read_image_like
from trainkit.data.datasets.segmentation import MaskDataset
from trainkit.data.first_crop import (
    begins_with_pairs_crop,
    jpeg_regions,
    may_read_regions,
    pair_of_first_crop,
)
from trainkit.data.image_io import read_with


class MaskFiles(MaskDataset):
    """Images and masks as two lists of files of one length.

    A class attribute `upright` says whether the EXIF orientation is applied to images before they
    are matched with their masks. Where only the other setting gives the mask's size, it is used.

    Args:
        images: files of the images.
        masks: files of the masks.
        num_classes: how many classes there are.
        transform: of image and mask.
        draw: reads the JSON files among the masks, whose polygons it draws as train ids.
        **settings: as of `MaskDataset`.
    """

    upright = True
    used_warnings: list[str]  # of those that look for their files

    def __init__(
        self,
        images: Sequence[Path],
        masks: Sequence[Path],
        num_classes: int,
        transform: Callable[..., Any] | None = None,
        draw: partial[Tensor] | None = None,
        **settings: Any,
    ):
        super().__init__(num_classes, transform, **settings)
        self.images, self.masks, self.draw = images, masks, draw

    def __len__(self) -> int:
        return len(self.images)

    def name_of(self, index: int) -> Path:
        """The image's file."""
        return self.images[index]

    def mask_name(self, index: int) -> str:
        """The mask's file."""
        return str(self.masks[index])

    def read_labels(self, file: Path) -> Tensor:
        """The labels of one mask file."""
        if self.draw is not None and file.suffix.startswith(".json"):
            return self.draw(file)
        return self.decode_labels(file)

    def labels_of(self, index: int) -> Tensor:
        """See `MaskDataset`."""
        return self.read_labels(self.masks[index])

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """See `MaskDataset`."""
        labels = self.labels_of(index)
        return self._image(self.images[index], labels), labels

    def _image(self, source: Path | bytes, labels: Tensor, name: str | None = None) -> Tensor:
        size = tuple(labels.shape)
        return read_image_like(source, size, self.upright, name, self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        own = type(self).read is MaskFiles.read and self.pixels.usual
        if not (own and begins_with_pairs_crop(self.transform) and may_read_regions()):
            return super().__getitem__(index)
        labels, name = self.labels_of(index), str(self.images[index])
        content = read_with(self.images[index], bytes)
        found = jpeg_regions(content, name)
        if found is None or found[:2] != tuple(labels.shape):
            return self.item_of(self._image(content, labels, name), labels, index)
        mask = tv_tensors.Mask(self.train_ids(labels.as_subclass(Tensor), index))
        image, mask = pair_of_first_crop(found[2], mask, self.transform)
        return image.as_subclass(Tensor), mask.as_subclass(Tensor)
