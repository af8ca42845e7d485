"""MINC-2500: 23 materials, 2,500 photographs of 362x362 each (Bell et al., 2015, section 5.4).

Files, as in minc-2500.tar.gz: categories.txt, the classes in the order of their ids;
images/<class>/<class>_NNNNNN.jpg; and labels/{train,validate,test}{1..5}.txt, one image a line
("images/brick/brick_002089.jpg"): five random splits of 2,125, 125 and 250 images of each class.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainkit.data.datasets.folder import ClassFiles, FileList
from trainkit.data.text_files import read_lines
from trainkit.errors import MissingFileError, UserError

SOURCE = "http://opensurfaces.cs.cornell.edu/static/minc/minc-2500.tar.gz"
SPLITS = ("train", "validate", "test")


class MINC(ClassFiles):
    """One list of one of MINC's five splits: index -> (uint8 image (3, H, W), class id).

    PyTorch-Encoding reports Deep-TEN's accuracy (Zhang et al., 2017) on train and test of the
    first.

    Args:
        root: the folder of the files above.
        split: "train", "validate" or "test".
        number: which of the five splits, 1 to 5.
        transform: of the image.

    Raises:
        MissingFileError: a file is missing.
        UserError: the split is unknown.
    """

    def __init__(
        self, root: Path, split: str, number: int = 1, transform: Callable[[Any], Any] | None = None
    ):
        if split not in SPLITS:
            raise UserError(f"MINC: split is {split!r}; it is one of {', '.join(SPLITS)}")
        if not 1 <= number <= 5:
            raise UserError(f"MINC: number is {number}; its splits are numbered 1 to 5")
        root = Path(root)
        listed = root / "labels" / f"{split}{number}.txt"
        for file in (root / "categories.txt", listed):
            if not file.is_file():
                raise MissingFileError(
                    f"no MINC-2500 at {root.resolve()} (looked for {file.relative_to(root)}). Get"
                    f" {SOURCE}, unpack it, and pass its folder minc-2500"
                )
        classes = [name for line in read_lines(root / "categories.txt") for name in line.split()]
        ids = {name: index for index, name in enumerate(classes)}
        paths = read_lines(listed)
        if not paths:
            raise UserError(f"{listed} is empty; unpack minc-2500.tar.gz again")
        targets = []
        for line, path in enumerate(paths, 1):
            folder, _, name = path.removeprefix("images/").partition("/")
            if folder not in ids or not name:
                raise UserError(
                    f"{listed}, line {line}: {path!r} is not images/<class>/<file> with a class of "
                    "categories.txt; unpack minc-2500.tar.gz again"
                )
            targets.append(ids[folder])
        super().__init__(FileList(root, paths), targets, classes, transform)
        self.split = f"{split}{number}"
