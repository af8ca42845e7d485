"""What a dataset of class folders takes for an image before it is read.

Trainkit against torchvision's ImageFolder, whose images are a pixel at hand: the file's name,
its class, seeding, collating, and the way from the workers.

    python benchmarks/index_reads.py                                    # a minute, two cores
    python benchmarks/index_reads.py --images 1000 --workers 0 --rounds 1  # to see that it runs

Empty files in 100 folders; each way reads an epoch in an order of its own, round after round in
turn. "seeded" is trainkit with a transform: the generators of torch, Python and NumPy are then
seeded for each image, for whatever it may draw. The processor's time is that of all processes.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from _results import Results, add_option
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from trainkit.data.datasets.folder import ClassFolder
from trainkit.data.loader import make_loader

BATCH = 256
PIXEL = torch.zeros(3, 2, 2, dtype=torch.uint8)


class Named(ClassFolder):
    """A class folder whose images are all the same."""

    def read(self, file: str) -> Tensor:
        return PIXEL


def batches_of(data: ClassFolder, number: int, workers: int) -> Iterable[Any]:
    """An epoch of trainkit's, in a random order."""
    order = torch.randperm(len(data)).tolist()
    keys = [
        [(number, index) for index in order[begin : begin + BATCH]]
        for begin in range(0, len(order), BATCH)
    ]
    return make_loader(data, 0, keys, workers, torch.device("cpu"), unless_declared=True)


def processor() -> float:
    """Seconds of this process and those that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    """All three ways."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 4])
    parser.add_argument("--rounds", type=int, default=5)
    add_option(parser)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(
        "index_reads", "torch", "torchvision", rounds=asked.rounds, baseline="torchvision"
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number in range(asked.images):
            file = root / f"class_{number % 100:03}" / f"image_{number:09}.jpg"
            file.parent.mkdir(exist_ok=True)
            file.touch()
        theirs = ImageFolder(root, loader=lambda file: PIXEL)
        plain, seeded = Named(root), Named(root, lambda image: image)
        for workers in asked.workers:
            ways: dict[str, Callable[[int], Iterable[Any]]] = {
                "torchvision": lambda number, workers=workers: DataLoader(
                    theirs, BATCH, shuffle=True, num_workers=workers
                ),
                "trainkit": lambda number, workers=workers: batches_of(plain, number, workers),
                "trainkit, seeded": lambda number, workers=workers: batches_of(
                    seeded, number, workers
                ),
            }
            race(ways, workers, asked, results)
    results.write(asked.results)


def race(
    ways: dict[str, Callable[[int], Iterable[Any]]],
    workers: int,
    asked: argparse.Namespace,
    results: Results,
) -> None:
    """Record seconds of an epoch of each way: on the clock, and of the processors."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(asked.rounds + 1):
        for name, epoch in ways.items():
            used, begun = processor(), time.perf_counter()
            count = sum(len(images) for images, *_ in epoch(number))
            assert count == asked.images
            if number:  # the first warms up
                taken[name].append((time.perf_counter() - begun, processor() - used))
    columns = [f"{workers} workers, on the clock", f"{workers} workers, processor's time"]
    medians = {
        name: [sorted(each)[len(each) // 2] for each in zip(*rounds)]
        for name, rounds in taken.items()
    }
    for name, rounds in taken.items():
        for place, (column, seconds) in enumerate(zip(columns, zip(*rounds))):
            ratio = medians[name][place] / medians["torchvision"][place]
            results.add(name, column, "s", seconds, ratio)
            print(f"{name:20} {column:30} {medians[name][place]:7.3f} s, {ratio:5.2f} x")


if __name__ == "__main__":
    main()
