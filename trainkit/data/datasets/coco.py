"""COCO 2017 with Pascal VOC's 20 classes and background, as used to train before VOC.

Files, as in {train,val}2017.zip and annotations_trainval2017.zip: {train,val}2017/*.jpg and
annotations/instances_{train,val}2017.json. Masks are drawn from the instances: polygons, and run
lengths for crowds. The first object of the file wins where several overlap. Images with fewer than
1,000 pixels of the 20 classes are left out, as in PyTorch-Encoding and torchvision's references, by
the areas that COCO states.

Source:
    Lin et al., 2014, Microsoft COCO: Common Objects in Context.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from trainkit.data.bands import read_image_like
from trainkit.data.datasets.coco_index import Progress, masks_of, name_of, open_index
from trainkit.data.datasets.label_tables import IGNORED
from trainkit.data.datasets.segmentation import MaskDataset
from trainkit.data.datasets.source_files import require
from trainkit.data.datasets.voc import CLASSES, PALETTE
from trainkit.display.terminal import of_launcher
from trainkit.errors import UserError

SOURCE = "https://cocodataset.org/#download"

# COCO's category of each of VOC's classes, 0 for background: aeroplane is 5, bicycle 2, ...
RAW_IDS = np.array(
    [0, 5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72], dtype=np.uint8
)


class COCO(MaskDataset):
    """One split of COCO: index -> (uint8 image (3, H, W), train ids of VOC, uint8 (H, W)).

    Args:
        root: the folder with train2017/, val2017/ and annotations/.
        split: "train" or "val".
        transform: of image and mask.
        min_pixels: images with fewer pixels of the 20 classes are left out; 0 keeps all.
        overlap: where objects of several instances meet, the "first" one of the file, or "ignore".
        crowd: regions of many objects of one class are of that "class", or "ignore"d.
        cache: folder for the index of the annotations; None:
            `trainkit.data.datasets.cache.default_folder`.
        progress: called while they are read for the first time, with the characters read and their
            number; None: shown on the screen.

    Raises:
        MissingFileError: a file or folder is missing.
        UserError: an argument is unknown, or the annotations are not COCO's.
    """

    classes, palette, raw_ids = CLASSES, PALETTE, RAW_IDS
    upright = False  # polygons lie on the images as stored

    def __init__(
        self,
        root: Path,
        split: str,
        transform: Callable[..., Any] | None = None,
        min_pixels: int = 1000,
        overlap: Literal["first", "ignore"] = "first",
        crowd: Literal["class", "ignore"] = "class",
        cache: Path | None = None,
        progress: Progress | None = None,
    ):
        if split not in ("train", "val"):
            raise UserError(f"COCO: split is {split!r}; it is 'train' or 'val'")
        for name, value, known in (
            ("overlap", overlap, ("first", "ignore")),
            ("crowd", crowd, ("class", "ignore")),
        ):
            if value not in known:
                raise UserError(f"COCO: {name} is {value!r}; it is {known[0]!r} or {known[1]!r}")
        annotations = f"annotations/instances_{split}2017.json"
        require(
            "COCO 2017", root, [f"{split}2017", annotations],
            f"Get the images and annotations from {SOURCE}, unpack them into one folder, and pass"
            " it with --data",
        )  # fmt: skip
        super().__init__(len(CLASSES), transform)
        self.folder, self.annotations = Path(root) / f"{split}2017", Path(root) / annotations
        self.split, self.overlap, self.crowd = split, overlap, crowd
        with of_launcher().progress(f"reading {self.annotations}, characters") as shown:
            self.index = open_index(
                self.annotations, RAW_IDS[1:].tolist(), cache, progress or shown
            )
        self.kept = np.flatnonzero(self.index["areas"] >= min_pixels).astype(np.uint32)
        if not len(self.kept):
            raise UserError(
                f"no image of {self.annotations} has {min_pixels} pixels of the classes: lower"
                " min_pixels"
            )

    def __len__(self) -> int:
        return len(self.kept)

    def name_of(self, index: int) -> Path:
        """The image's file."""
        return self.folder / name_of(self.index, int(self.kept[index]))

    def mask_name(self, index: int) -> str:
        """The annotations of the image's file."""
        return f"{self.name_of(index).name} in {self.annotations}"

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """The image, and its segmentation mask drawn from the instances."""
        try:
            labels = self._paint(int(self.kept[index]))
        except ValueError as error:
            raise UserError(f"{self.mask_name(index)}: {error}") from error
        return read_image_like(self.name_of(index), labels.shape, self.upright), torch.from_numpy(
            labels
        )

    def _paint(self, image: int) -> np.ndarray:
        size = int(self.index["heights"][image]), int(self.index["widths"][image])
        labels, taken = np.zeros(size, dtype=np.uint8), np.zeros(size, dtype=bool)
        for label, is_crowd, mask in masks_of(self.index, image):
            shown = IGNORED if is_crowd and self.crowd == "ignore" else label
            labels[mask & ~taken] = shown
            if self.overlap == "ignore":
                labels[mask & taken] = IGNORED
            taken |= mask
        return labels
