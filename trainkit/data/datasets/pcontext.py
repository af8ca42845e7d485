"""Pascal-Context, 59 classes: 4,998 training and 5,105 validation images of VOC 2010.

Files, in one folder: JPEGImages/*.jpg from VOC 2010 (VOCdevkit/VOC2010/JPEGImages serves too),
trainval/*.mat with a variable LabelMap as in trainval.tar.gz (or trainval/*.png with the same
labels, 16 bits deep), the lists train.txt and val.txt, and labels.txt. Labels in the files are 1 to
459, numbered in labels.txt, and 0; the 59 most frequent are classes, in the order of their labels,
and the rest is background, which is ignored.

Source:
    Mottaghi et al., 2014, The Role of Context.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from trainkit.data.datasets.folder import FileList
from trainkit.data.datasets.label_tables import label_table, look_up
from trainkit.data.datasets.mask_files import MaskFiles
from trainkit.data.datasets.source_files import read_mat, read_names, require, require_files
from trainkit.data.palette import colour_map
from trainkit.data.text_files import read_lines
from trainkit.errors import UserError

SOURCE = "https://cs.stanford.edu/~roozbeh/pascal-context/"
NUM_RAW = 460  # labels 0 to 459

# Label in the files and name of each class; train ids are their places here.
_LABELS = """
    2 aeroplane, 9 bag, 18 bed, 19 bedclothes, 22 bench, 23 bicycle, 25 bird, 31 boat, 33 book,
    34 bottle, 44 building, 45 bus, 46 cabinet, 59 car, 65 cat, 68 ceiling, 72 chair, 80 cloth,
    85 computer, 98 cow, 104 cup, 105 curtain, 113 dog, 115 door, 144 fence, 158 floor, 159 flower,
    162 food, 187 grass, 189 ground, 207 horse, 220 keyboard, 232 light, 258 motorbike,
    259 mountain, 260 mouse, 284 person, 295 plate, 296 platform, 308 pottedplant, 324 road,
    326 rock, 347 sheep, 349 shelves, 354 sidewalk, 355 sign, 360 sky, 366 snow, 368 sofa,
    397 table, 415 track, 416 train, 420 tree, 424 truck, 427 tvmonitor, 440 wall, 445 water,
    454 window, 458 wood
"""
_PAIRS = [entry.split() for entry in _LABELS.split(",")]
CLASSES = tuple(name for _, name in _PAIRS)
RAW_IDS = np.array([int(raw) for raw, _ in _PAIRS], dtype=np.uint16)
PALETTE = colour_map(len(CLASSES) + 1)[1:]  # none of them black
_TABLE = label_table(RAW_IDS, sorted(set(range(NUM_RAW)) - set(RAW_IDS.tolist())), NUM_RAW)


def to_train_ids(labels: Tensor) -> Tensor:
    """Map labels in the files to 0..58 and 255, uint8."""
    return look_up(labels, _TABLE)


class PascalContext(MaskFiles):
    """One split of Pascal-Context: index -> (uint8 image (3, H, W), train ids, uint8 (H, W)).

    Where labels.txt is there, it must number the 59 classes as expected.

    Args:
        root: the folder of the files above.
        split: "train" or "val".
        transform: of image and mask.

    Raises:
        MissingFileError: a file or folder is missing.
        UserError: the split is unknown, or labels.txt numbers a class otherwise.
    """

    classes, palette, raw_ids = CLASSES, PALETTE, RAW_IDS
    upright = False  # masks lie on the images as stored
    expects = f"Pascal-Context's labels are 0 to {NUM_RAW - 1}"

    def __init__(self, root: Path, split: str, transform: Callable[..., Any] | None = None):
        if split not in ("train", "val"):
            raise UserError(f"PascalContext: split is {split!r}; it is 'train' or 'val'")
        root, inside = Path(root), "VOCdevkit/VOC2010/JPEGImages"
        inside = inside if (root / inside).is_dir() else "JPEGImages"
        require(
            "Pascal-Context", root, [inside, "trainval", f"{split}.txt"],
            f"Get trainval.tar.gz and the lists from {SOURCE} and the images from VOC 2010, and"
            " pass their folder with --data",
        )  # fmt: skip
        _check_numbers(root / "labels.txt")
        names = read_names(root / f"{split}.txt")
        suffix = ".mat" if any((root / "trainval").glob("*.mat")) else ".png"
        images, masks = [f"{name}.jpg" for name in names], [f"{name}{suffix}" for name in names]
        images = require_files(images, root / inside, f"{split}.txt")
        masks = require_files(masks, root / "trainval", f"{split}.txt")
        files = FileList(root / inside, images), FileList(root / "trainval", masks)
        super().__init__(*files, len(CLASSES), transform, to_train_ids=to_train_ids)
        self.split = split

    def read_labels(self, file: Path) -> Tensor:
        """Read the labels 0 to 459 of a MATLAB file or PNG."""
        return read_mat(file, "LabelMap") if file.suffix == ".mat" else super().read_labels(file)


def _check_numbers(file: Path) -> None:
    """Raise UserError where labels.txt, lines of "number: name", gives a class another number."""
    if not file.is_file():
        return
    entries = [line.partition(":") for line in read_lines(file) if ":" in line]
    numbers = {name.replace(" ", ""): int(number) for number, _, name in entries}
    for name, raw in zip(CLASSES, RAW_IDS.tolist()):
        if numbers.get(name) != raw:
            raise UserError(
                f"{file} gives {name!r} the label {numbers.get(name)}; in Pascal-Context of CVPR"
                f" 2014 it is {raw}: these are files of another release"
            )
