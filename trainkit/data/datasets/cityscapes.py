"""Cityscapes: 19 classes, 2,975 training and 500 validation images of 2048x1024.

Files, as in leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip:
leftImg8bit/{train,val}/<city>/<name>_leftImg8bit.png and
gtFine/{train,val}/<city>/<name>_gtFine_labelIds.png; coarse labels, as in gtCoarse.zip and
leftImg8bit_trainextra.zip: gtCoarse/{train,train_extra,val}/<city>/<name>_gtCoarse_labelIds.png.
Labels in the files are 0 to 33, and -1 (255) for licence plates; 19 of them are classes and the
rest is ignored. The benchmark's server wants labels as in the files: `RAW_IDS`.

Source:
    Cordts et al., 2016, The Cityscapes Dataset.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from trainkit.data.datasets.folder import FileList
from trainkit.data.datasets.label_tables import IGNORED, label_table, look_up
from trainkit.data.datasets.mask_files import MaskFiles
from trainkit.data.datasets.source_files import require
from trainkit.errors import MissingFileError, UserError

SOURCE = "https://www.cityscapes-dataset.com"
NUM_RAW = 34

# Train id -> name, label in the files, colour: the official cityscapesScripts/helpers/labels.py.
_LABELS = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
CLASSES = tuple(name for name, _, _ in _LABELS)
RAW_IDS = np.array([raw for _, raw, _ in _LABELS], dtype=np.uint8)
PALETTE = np.array([colour for _, _, colour in _LABELS], dtype=np.uint8)
_TABLE = label_table(RAW_IDS, [*sorted(set(range(NUM_RAW)) - set(RAW_IDS.tolist())), IGNORED])


def to_train_ids(labels: Tensor) -> Tensor:
    """Map labels in the files to 0..18 and 255, uint8."""
    return look_up(labels, _TABLE)


class Cityscapes(MaskFiles):
    """One split of Cityscapes: index -> (uint8 image (3, H, W), train ids, uint8 (H, W)).

    Args:
        root: the folder with leftImg8bit/ and gtFine/ or gtCoarse/.
        split: "train" or "val", with coarse labels also "train_extra".
        transform: of image and mask.
        labels: "fine", or "coarse" polygons.

    Raises:
        MissingFileError: a file or folder is missing.
        UserError: the split is unknown.
    """

    classes, palette, raw_ids = CLASSES, PALETTE, RAW_IDS
    expects = f"Cityscapes' labels are 0 to {NUM_RAW - 1} in the files *_labelIds.png"

    def __init__(
        self,
        root: Path,
        split: str,
        transform: Callable[..., Any] | None = None,
        labels: Literal["fine", "coarse"] = "fine",
    ):
        splits = {"fine": ("train", "val"), "coarse": ("train", "train_extra", "val")}
        if labels not in splits:
            raise UserError(f"Cityscapes: labels is {labels!r}; it is 'fine' or 'coarse'")
        if split not in splits[labels]:
            raise UserError(
                f"Cityscapes: split is {split!r}; with {labels} labels it is one of"
                f" {splits[labels]}"
            )
        kind = "gtFine" if labels == "fine" else "gtCoarse"
        get = (
            f"Get its zip files from {SOURCE}, unpack them into one folder, and pass it with --data"
        )
        require("Cityscapes", root, [f"leftImg8bit/{split}", f"{kind}/{split}"], get)
        folders = Path(root) / "leftImg8bit" / split, Path(root) / kind / split
        ends = "_leftImg8bit.png", f"_{kind}_labelIds.png"
        images, masks = (
            {str(path.relative_to(folder)).removesuffix(end) for path in folder.glob(f"*/*{end}")}
            for folder, end in zip(folders, ends)
        )
        if not images or images - masks:
            missing = sorted(images - masks)[:3]
            raise MissingFileError(
                f"{len(images - masks)} of {len(images)} images <city>/*{ends[0]} in {folders[0]}"
                f" have no <city>/*{ends[1]} in {folders[1]}"
                + (f": {', '.join(missing)}" if missing else f". {get}")
            )
        image_files, mask_files = (
            FileList(folder, [name + end for name in sorted(images)])
            for folder, end in zip(folders, ends)
        )
        super().__init__(
            image_files, mask_files, len(CLASSES), transform, to_train_ids=to_train_ids
        )
        self.split = split
