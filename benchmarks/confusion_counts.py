"""From logits to segmentation masks to confusion counts.

Trainkit, torch and torchvision's reference training, torchmetrics and OpenCV.

    python benchmarks/confusion_counts.py                 # [4, 512, 512], 150 classes
    python benchmarks/confusion_counts.py --patch 32      # labels in patches of 32 x 32
    python benchmarks/confusion_counts.py --threads 1 --processor-time    # on a busy machine
    python benchmarks/confusion_counts.py --size 64 --rounds 1

A tenth of the pixels is ignored. torchmetrics takes `pip install ".[benchmarks]"`, OpenCV
`pip install opencv-python-headless`; a row is left out where its library is missing. All masks and
counts are compared. The ways of a table run in turn, round after round.
"""

import argparse
import time
from collections.abc import Callable
from importlib.util import find_spec
from statistics import median

import numpy as np
import torch
from _results import Results, add_option
from _timing import in_words, interleaved, versions
from torch import Tensor

from trainkit.metrics.confusion import argmax_labels
from trainkit.metrics.segmentation import MeanIoU
from trainkit.tasks.segmentation import Segmentation

IGNORE = 255


def of_references(predictions: Tensor, targets: Tensor, classes: int) -> Tensor:
    """As the ConfusionMatrix of torchvision's references/segmentation counts.

    A mask, the valid pixels, bincount.
    """
    targets, predictions = targets.flatten(), predictions.flatten()
    valid = (targets >= 0) & (targets < classes)
    cells = classes * targets[valid].to(torch.int64) + predictions[valid]
    return torch.bincount(cells, minlength=classes**2).view(classes, classes)


def of_trainkit(predictions: Tensor, targets: Tensor, classes: int) -> Tensor:
    """As an evaluation of trainkit counts."""
    metric = MeanIoU(classes, IGNORE)
    metric.add_batch(predictions=predictions, references=targets)
    return metric.confusion()


def of_torchmetrics(predictions: Tensor, targets: Tensor, classes: int) -> Tensor:
    """As torchmetrics counts, without its check of the input, which it calls slow."""
    from torchmetrics.classification import MulticlassConfusionMatrix

    metric = MulticlassConfusionMatrix(classes, ignore_index=IGNORE, validate_args=False)
    metric.update(predictions, targets)
    return metric.confmat


def of_opencv(predictions: Tensor, targets: Tensor, classes: int) -> Tensor:
    """As OpenCV's histogram of two channels counts; float32, exact below 2^24."""
    import cv2

    maps = [each.numpy().astype(np.uint8).reshape(-1, 1) for each in (targets, predictions)]
    found = cv2.calcHist(maps, [0, 1], None, [classes, classes], [0, classes, 0, classes])
    return torch.from_numpy(found).long()


def main() -> None:
    """Tables: logits to masks, masks to counts, logits to counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=512, help="height and width of a mask")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--patch", type=int, default=1, help="pixels of one label, down and across")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, help="of torch and trainkit; default: all cores")
    parser.add_argument(
        "--processor-time", action="store_true", help="of this process, in place of the clock's"
    )
    add_option(parser)
    asked = parser.parse_args()
    if asked.threads is not None:
        torch.set_num_threads(asked.threads)
    clock = time.process_time if asked.processor_time else time.perf_counter
    torch.manual_seed(0)
    logits = torch.randn(asked.images, asked.classes, asked.size, asked.size)
    few = -(-asked.size // asked.patch)
    targets = torch.randint(asked.classes, (asked.images, few, few))
    targets = targets.repeat_interleave(asked.patch, 1).repeat_interleave(asked.patch, 2)
    targets = targets[:, : asked.size, : asked.size].contiguous()
    predictions = torch.where(torch.rand(targets.shape) < 0.7, targets, logits.argmax(1))
    targets[torch.rand(targets.shape) < 0.1] = IGNORE
    counters = {
        "torchvision references": of_references,
        "torchmetrics": of_torchmetrics,
        "OpenCV": of_opencv,
        "trainkit": of_trainkit,
    }
    for name, module in (("torchmetrics", "torchmetrics"), ("OpenCV", "cv2")):
        if find_spec(module) is None:
            del counters[name]
    last = logits.contiguous(memory_format=torch.channels_last)
    print(f"{versions('torch', 'torchmetrics')}; {torch.get_num_threads()} threads")

    task = Segmentation(asked.classes, IGNORE)
    tables: dict[str, dict[str, Callable[[], Tensor]]] = {
        "logits to segmentation masks": {
            "torch, NCHW": lambda: logits.argmax(1),
            "torch, channels_last": lambda: last.argmax(1),
            "trainkit": lambda: argmax_labels(logits),
            "trainkit, channels_last": lambda: argmax_labels(last),
        },
        "segmentation masks to counts": {
            name: lambda count=count: count(predictions, targets, asked.classes)
            for name, count in counters.items()
        },
        "logits (NCHW) to counts": {
            "torchvision references": lambda: of_references(
                logits.argmax(1), targets, asked.classes
            ),
            "trainkit": lambda: of_trainkit(task.predict(logits, targets), targets, asked.classes),
        },
    }
    results = Results(
        "confusion_counts", "torch", "torchmetrics", rounds=asked.rounds, baseline="trainkit"
    )
    for title, ways in tables.items():
        counts = [work() for work in ways.values()]
        assert all(torch.equal(counts[0], other) for other in counts[1:]), title
        taken = interleaved(ways, asked.rounds, clock)
        ours = median(taken["trainkit"])
        for name, seconds in taken.items():
            milliseconds = [1e3 * each for each in seconds]
            results.add(name, title, "ms", milliseconds, median(seconds) / ours)
            ratio = median(seconds) / ours
            print(f"{in_words(f'{title}, {name}', seconds)}, {ratio:.1f} x trainkit's time")
    results.write(asked.results)


if __name__ == "__main__":
    main()
