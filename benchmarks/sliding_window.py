"""Evaluation in windows: many of them in a pass, against one at a time.

    python benchmarks/sliding_window.py                 # ResNet-18-sized FCN, windows of 160
    python benchmarks/sliding_window.py --images 1 --rounds 1 --window 32

Six images of unlike size. Interleaved; medians. Scales 0.75, 1 and 1.5, flipped too. The same
machine does the same work; only the batch differs.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import torch
from _results import Results, add_option

sys.path.insert(0, str(Path(__file__).parent.parent))

from trainkit.distributed.accelerator import start_accelerator, use_whole_host
from trainkit.engine.sliding_window import SlidingWindowInferer
from trainkit.engine.task_module import TaskModule
from trainkit.inference import Inference
from trainkit.models.small import small_fcn
from trainkit.tasks.segmentation import Segmentation


def column_of(batch: int) -> str:
    """As the table heads it."""
    return f"{batch} window{'s' if batch > 1 else ''} per forward pass"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--window",
        type=int,
        default=160,
        help="side of a window; images are 1.5 to 2 times as large",
    )
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    add_option(parser)
    asked = parser.parse_args()
    use_whole_host()
    accelerator = start_accelerator()
    task_module = (
        TaskModule(small_fcn(asked.classes), Segmentation(asked.classes))
        .eval()
        .to(accelerator.device)
    )
    tenth = asked.window / 10
    sizes = [
        (int(tenth * (15 + i % 3)), int(tenth * (20 - 1.5 * (i % 4)))) for i in range(asked.images)
    ]
    samples = [
        (torch.randn(1, 3, *size), torch.zeros(1, *size, dtype=torch.uint8)) for size in sizes
    ]
    samples = [
        (image.to(accelerator.device), target.to(accelerator.device)) for image, target in samples
    ]
    black = torch.zeros(3, 1, 1, device=accelerator.device)
    taken: dict[int, list[float]] = {batch: [] for batch in asked.batches}
    with torch.no_grad():
        for _ in range(asked.rounds + 1):
            for batch, seconds in taken.items():
                way = Inference(
                    scales=(0.75, 1.0, 1.5), flip=True, window=asked.window, window_batch=batch
                )
                begun = time.perf_counter()
                found = [
                    pair
                    for done in SlidingWindowInferer(way, task_module, accelerator, black).infer(
                        samples
                    )
                    for pair in done
                ]
                if accelerator.device.type == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - begun)
                assert len(found) == len(samples)
    alone = median(taken[asked.batches[0]][1:])  # the first round warms up
    first = column_of(asked.batches[0])
    results = Results(
        f"sliding_window-{asked.window}", "torch", rounds=asked.rounds, baseline=first
    )
    for batch, seconds in taken.items():
        rates = [asked.images / each for each in seconds[1:]]
        column = column_of(batch)
        row = f"windows of {asked.window} pixels"
        results.add(row, column, "images/s", rates, alone / median(seconds[1:]))
        here, low, high = median(seconds[1:]), min(seconds[1:]), max(seconds[1:])
        each = f"{asked.images / here:6.2f} images/s ({low:.2f} to {high:.2f} s)"
        print(f"{batch:3} windows per forward pass: {each}, {alone / here:.2f} x the first")
    results.write(asked.results)


if __name__ == "__main__":
    main()
