"""Pascal VOC 2012, 20 classes and background, and VOC-aug, its usual larger training set.

Files, as in VOCtrainval_11-May-2012.tar: VOCdevkit/VOC2012/{JPEGImages,SegmentationClass}, and the
lists ImageSets/Segmentation/{train,val,trainval}.txt: 1,464, 1,449 and 2,913 images. Masks are PNGs
with a palette whose indices are the labels: 0 background, 1 to 20, and 255 on the borders of
objects, which is ignored.

VOC-aug adds the masks of SBD (benchmark.tgz): benchmark_RELEASE/dataset/{img/*.jpg, cls/*.mat,
train.txt, val.txt}, MATLAB files without void borders. Its 10,582 training images are all of SBD
and of VOC's train that are not in VOC's val; where both have a mask, VOC's is taken.

Source:
    Everingham et al., 2010, VOC; Hariharan et al., 2011, SBD.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from trainkit.data.datasets.folder import FileList
from trainkit.data.datasets.mask_files import MaskFiles
from trainkit.data.datasets.source_files import read_mat, read_names, require, require_files
from trainkit.data.palette import colour_map
from trainkit.errors import UserError

SOURCE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
SBD_SOURCE = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz"
VOC_FOLDER, SBD_FOLDER = "VOCdevkit/VOC2012", "benchmark_RELEASE/dataset"

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
PALETTE = colour_map(len(CLASSES))
RAW_IDS = np.arange(len(CLASSES), dtype=np.uint8)  # train ids are the labels in the files


class VOC(MaskFiles):
    """One split of Pascal VOC: index -> (uint8 image (3, H, W), train ids, uint8 (H, W)).

    Args:
        root: the folder with VOCdevkit/.
        split: "train", "val" or "trainval".
        transform: of image and mask.

    Raises:
        MissingFileError: a file or folder is missing.
        UserError: the split is unknown.
    """

    classes, palette, raw_ids = CLASSES, PALETTE, RAW_IDS
    upright = False  # masks lie on the images as stored
    expects = "Pascal VOC's labels are 0 to 20, and 255 for borders"

    def __init__(self, root: Path, split: str, transform: Callable[..., Any] | None = None):
        if split not in ("train", "val", "trainval"):
            raise UserError(f"VOC: split is {split!r}; it is 'train', 'val' or 'trainval'")
        names = _voc_names(Path(root), split)
        super().__init__(*_voc_files(Path(root), names), len(CLASSES), transform)
        self.split = split


class VOCAug(MaskFiles):
    """One split of VOC-aug: "train", VOC's and SBD's images without VOC's val, or VOC's "val".

    Args:
        root: the folder with VOCdevkit/ and benchmark_RELEASE/.
        split: "train" or "val".
        transform: of image and mask.
        sbd: the folder with benchmark_RELEASE/, if elsewhere.

    Raises:
        MissingFileError: a file or folder is missing.
        UserError: the split is unknown.
    """

    classes, palette, raw_ids = CLASSES, PALETTE, RAW_IDS
    upright = False
    expects = VOC.expects

    def __init__(
        self,
        root: Path,
        split: str,
        transform: Callable[..., Any] | None = None,
        sbd: Path | None = None,
    ):
        if split not in ("train", "val"):
            raise UserError(f"VOCAug: split is {split!r}; it is 'train' or 'val'")
        root, sbd, self.split = Path(root), Path(root if sbd is None else sbd), split
        if split == "val":
            super().__init__(*_voc_files(root, _voc_names(root, "val")), len(CLASSES), transform)
            return
        require(
            "SBD", sbd, [f"{SBD_FOLDER}/{each}" for each in ("img", "cls", "train.txt", "val.txt")],
            f"Get {SBD_SOURCE}, unpack it, and pass the folder with benchmark_RELEASE/",
        )  # fmt: skip
        own, held_out = set(_voc_names(root, "train")), set(_voc_names(root, "val"))
        more = {
            name
            for part in ("train", "val")
            for name in read_names(sbd / SBD_FOLDER / f"{part}.txt")
        }
        more -= own | held_out
        (voc_images, voc_masks), sbd = _voc_files(root, sorted(own)), sbd / SBD_FOLDER
        require_files([f"{name}.jpg" for name in sorted(more)], sbd / "img", "SBD's lists")
        require_files([f"{name}.mat" for name in sorted(more)], sbd / "cls", "SBD's lists")
        names = sorted(own | more)
        images = [
            str((voc_images.root if name in own else sbd / "img") / f"{name}.jpg") for name in names
        ]
        masks = [
            str(voc_masks.root / f"{name}.png" if name in own else sbd / f"cls/{name}.mat")
            for name in names
        ]
        super().__init__(FileList(Path(), images), FileList(Path(), masks), len(CLASSES), transform)

    def read_labels(self, file: Path) -> Tensor:
        """Read VOC's PNG, or SBD's MATLAB file."""
        return (
            read_mat(file, "GTcls", "Segmentation")
            if file.suffix == ".mat"
            else super().read_labels(file)
        )


def _voc_names(root: Path, split: str) -> list[str]:
    folders = ("JPEGImages", "SegmentationClass", f"ImageSets/Segmentation/{split}.txt")
    require(
        "Pascal VOC 2012", root, [f"{VOC_FOLDER}/{each}" for each in folders],
        f"Get {SOURCE}, unpack it, and pass the folder with VOCdevkit/ with --data",
    )  # fmt: skip
    return read_names(root / VOC_FOLDER / "ImageSets" / "Segmentation" / f"{split}.txt")


def _voc_files(root: Path, names: list[str]) -> tuple[FileList, FileList]:
    images, masks = root / VOC_FOLDER / "JPEGImages", root / VOC_FOLDER / "SegmentationClass"
    files = [f"{name}.jpg" for name in names], [f"{name}.png" for name in names]
    return (
        FileList(images, require_files(files[0], images, "VOC's lists")),
        FileList(masks, require_files(files[1], masks, "VOC's lists")),
    )
