"""Batches from a dataset, read by worker processes."""

import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from trainkit.data.reading import Reader
from trainkit.signals import worker_outlives_the_signal


def make_loader(
    data: Dataset,
    seed: int,
    batches: Iterable,
    workers: int,
    device: torch.device,
    check: Callable[[Tensor], str | None] | None = None,
    neighbour: Callable[[int, int], int] | None = None,
) -> DataLoader:
    """A loader of the (epoch, index) keys in `batches`: images, targets, and a line about each one replaced.

    check, neighbour: see `Reader`.
    """
    return DataLoader(
        Reader(data, seed, check, neighbour),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=worker_outlives_the_signal,
        pin_memory=device.type == "cuda",
    )


def choose_workers(asked: int | None, num_processes: int) -> int:
    """Reading processes for each of `num_processes`: as asked, or its share of the cores less one, up to 8."""
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(1, cores // num_processes - 1))


def collate(rows: list[tuple]) -> tuple[Tensor, Tensor, list[str]]:
    """Stack (image, target, faults) rows. Raises ValueError where images differ in shape."""
    shapes = sorted({tuple(image.shape) for image, _, _ in rows})
    if len(shapes) > 1:
        raise ValueError(
            f"images of one batch have unlike shapes {shapes[:4]}; crop them to one size in the transform, or "
            "evaluate one at a time with eval_batch_size=1"
        )
    images, targets = default_collate([(image, target) for image, target, _ in rows])
    return images, targets, [fault for _, _, faults in rows for fault in faults]


@contextmanager
def worker_deaths_told() -> Iterator[None]:
    """Say what became of a worker process that died. torch raises its own short error anywhere in the main thread.

    Raises ChildProcessError in its place.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "DataLoader worker" not in text or "Caught" in text:
            raise
        raise ChildProcessError(_cause_of_death(text)) from error


def _cause_of_death(text: str) -> str:
    process = " ".join(re.findall(r"\d+", text.partition(")")[0])) or "of unknown number"
    named = re.search(r"killed by signal: ([\w ]+)", text)
    killed = {signal.strsignal(number): number.name for number in (signal.SIGKILL, signal.SIGBUS, signal.SIGSEGV)}
    name = killed.get(named.group(1).strip()) if named else None
    cause, remedy = {
        "SIGKILL": (
            "was killed by SIGKILL, most often by the system because memory ran out (`dmesg` tells)",
            "start fewer with --workers, or read smaller images",
        ),
        "SIGBUS": ("was killed by SIGBUS: shared memory is full", "enlarge /dev/shm, or start fewer with --workers"),
    }.get(name, (f"ended by itself ({text.strip()})", "--workers 0 shows the cause where the images themselves do it"))
    return f"process {process}, which read images, {cause}; {remedy}. The same command goes on from the last checkpoint"
