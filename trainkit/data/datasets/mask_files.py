"""Base of segmentation datasets whose images and masks are files of their own."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from trainkit.data.bands import read_image_like
from trainkit.data.datasets.segmentation import MaskDataset


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
        size, file = tuple(labels.shape), self.images[index]
        return read_image_like(file, size, self.upright, pixels=self.pixels), labels
