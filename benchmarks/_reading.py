"""Reads pairs of an image and its mask as one commit does, until it is stopped.

    python benchmarks/_reading.py decoded FOLDER --stamps FILE

compare_commits.py runs it for each of two. What commits before a rename call otherwise is found
under either name.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from types import ModuleType

sys.path.insert(0, os.environ.get("TRAINKIT_SIDE", str(Path(__file__).parent.parent)))

import torch
from _turns import Stamps

BATCH, CROP = 16, 480


def first_of(*names: str) -> ModuleType:
    """The first of these modules that this commit has."""
    return import_module(next(name for name in names if find_spec(name) is not None))


def use_whole_host() -> None:
    """As every command does before it reads."""
    module = first_of("trainkit.launch", "trainkit.distributed.accelerator")
    getattr(module, "use_whole_host", module.start_accelerator)()
    torch.set_num_threads(1)


def decoded(root: Path, anew: bool) -> Iterator[None]:
    """Reads each image and its mask, and no more.

    Args:
        root: of the folders `images` and `masks`.
        anew: every time as if it had not been read before.
    """
    image_io = first_of("trainkit.data.images", "trainkit.data.image_io")
    decoder = sys.modules.get("trainkit.data.png_decoder")
    pairs = list(zip(sorted((root / "images").iterdir()), sorted((root / "masks").iterdir())))
    while True:
        for image, mask in pairs:
            yield
            image_io.read_image(image)
            image_io.read_mask(mask)
        if anew and decoder is not None:
            decoder._sound.clear()


class Noted:
    """A dataset that notes when each image is asked for."""

    def __init__(self, data: torch.utils.data.Dataset, stamps: Stamps):
        self.data, self.stamps = data, stamps

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple:
        self.stamps.add()
        return self.data[index]


def make_batches(root: Path, long_side: int, stamps: Stamps) -> None:
    """Reads, scales, crops and puts together training batches."""
    folder = first_of("trainkit.data.folder", "trainkit.data.datasets.folder")
    transforms = first_of("trainkit.segmentation", "trainkit.data.transforms.segmentation")
    make_loader = import_module("trainkit.data.loader").make_loader
    transform = transforms.train_transform(long_side, CROP)
    data = Noted(folder.MaskFolder(root / "images", root / "masks", 254, transform), stamps)
    keys = (
        [(epoch, index) for index in torch.randperm(len(data)).tolist()[:BATCH]]
        for epoch in count()
    )
    for _ in make_loader(data, 0, keys, 0, torch.device("cpu")):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["decoded", "anew", "batches"])
    parser.add_argument("root", type=Path)
    parser.add_argument("--long-side", type=int, default=520)
    parser.add_argument("--stamps", type=Path, required=True)
    asked = parser.parse_args()
    use_whole_host()
    torch.manual_seed(0)
    stamps = Stamps(asked.stamps)
    if asked.part == "batches":
        make_batches(asked.root, asked.long_side, stamps)
    for _ in decoded(asked.root, asked.part == "anew"):
        stamps.add()


if __name__ == "__main__":
    main()
