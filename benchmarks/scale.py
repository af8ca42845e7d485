"""What grows with the number of images and of processes, without having them: figures of docs/scale.md.

python benchmarks/scale.py                    # orders up to 10^8 images, a checkpoint of 1 GB
python benchmarks/scale.py --images 5 --gb 0.01
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from trainkit import checkpoint
from trainkit.data.order import TrainOrder


def seconds(work: Callable[[], object], rounds: int = 5) -> float:
    """Median of so many rounds."""
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return median(taken)


def orders(largest: int) -> None:
    """An epoch's order: its memory, and how long it takes to draw."""
    for exponent in range(4, largest + 1):
        order = TrainOrder(10**exponent, 1024, seed=0)
        drawn = seconds(lambda order=order: order.epoch(0), 3)
        mib = 8 * 10**exponent / 2**20
        print(f"order of 10^{exponent} images: {mib:10.1f} MiB in each process, drawn in {drawn:8.4f} s per epoch")


def host_work() -> None:
    """Arithmetic of one step in one process: its share of the batch, its passes, its keys."""
    for processes in (1, 8, 64, 512):
        order = TrainOrder(10**6, 64 * processes, 0, processes, micro_batch=32)

        def step(order: TrainOrder = order, processes: int = processes) -> None:
            order.passes(7, processes - 1)
            order.share(7, processes - 1)
            order.num_images_of(7)

        taken = 1e6 * seconds(step, 101)
        print(f"{processes:4} processes, batch {64 * processes:6}: {taken:8.1f} us of host arithmetic a step")


def saving(gb: float) -> None:
    """Seconds to write one checkpoint, flushed and hashed, and to read and verify it."""
    weights = {f"layer{i}": torch.randn(int(gb * 1e9 / 4 / 64)) for i in range(64)}
    with tempfile.TemporaryDirectory() as folder:
        written = seconds(lambda: checkpoint.save(Path(folder), 1, weights, {}), 3)
        path = checkpoint.checkpoint_path(Path(folder), 1)
        read = seconds(lambda: (checkpoint.verify(path), checkpoint.load(path)), 3)
    print(f"checkpoint: {written / gb:6.2f} s per GB to write, {read / gb:6.2f} s per GB to verify and read")


def main() -> None:
    """All three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8, help="largest power of ten")
    parser.add_argument("--gb", type=float, default=1.0, help="size of the checkpoint")
    asked = parser.parse_args()
    orders(asked.images)
    host_work()
    saving(asked.gb)


if __name__ == "__main__":
    main()
