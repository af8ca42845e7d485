"""Batches from a dataset, read by worker processes."""

import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from trainkit.data.on_device import OnDevice
from trainkit.data.reading import Reader
from trainkit.signals import worker_outlives_the_signal, workers_outlive_the_signal


class _Loader(DataLoader):
    """Its workers are ended by this process alone, from their first moment on."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        with workers_outlive_the_signal():
            return super().__iter__()


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

    check, neighbour: see `Reader`. Images held on the device are read by this process.
    """
    held = isinstance(data, OnDevice)
    if held:
        data.to(device)
    return _Loader(
        Reader(data, seed, check, neighbour),
        batch_sampler=batches,
        num_workers=0 if held else workers,
        collate_fn=collate,
        worker_init_fn=worker_outlives_the_signal,
        pin_memory=device.type == "cuda" and not held,
    )


def choose_workers(asked: int | None, num_processes: int, cores: int | None = None) -> int:
    """Reading processes for each of `num_processes`: as asked, or its share of the cores less one, up to 8.

    Only processes of this host share its cores: the launcher says how many there are. cores: None for those that this
    process may use.
    """
    if asked is not None:
        return asked
    if cores is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    here = min(num_processes, int(os.environ.get("LOCAL_WORLD_SIZE", num_processes)))
    return min(8, max(1, cores // here - 1))


def collate(rows: list[tuple] | tuple[Tensor, Tensor, list[str]]) -> tuple[Tensor, Tensor, list[str]]:
    """Stack (image, target, faults) rows. Raises ValueError where images differ in shape.

    Images whose pixels have their channels side by side in memory keep them so in the batch (torch's channels_last).
    """
    if isinstance(rows, tuple):  # of images held on a device: a batch as it is
        return rows
    shapes = sorted({tuple(image.shape) for image, _, _ in rows})
    if len(shapes) > 1:
        raise ValueError(
            f"images of one batch have unlike shapes {shapes[:4]}; crop them to one size in the transform, or "
            "evaluate one at a time with eval_batch_size=1"
        )
    images, targets = [image for image, _, _ in rows], default_collate([target for _, target, _ in rows])
    if all(image.ndim == 3 and image.stride(0) == 1 for image in images):
        images = default_collate([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
    else:
        images = default_collate(images)
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
    """torch says the signal, or, where it noticed by itself, only that the process is gone."""
    process = " and ".join(re.search(r"\(pid(?:\(s\))? ([\d, ]+)\)", text).group(1).split(", "))
    named = re.search(r"killed by signal: ([\w ]+)", text)
    numbers = signal.SIGKILL, signal.SIGBUS, signal.SIGSEGV, signal.SIGTERM
    known = {signal.strsignal(number): number for number in numbers}
    number = known.get(named.group(1).strip()) if named else None
    told = f"process {process}, which read images, died" + (f" of {number.name}" if number else "")
    if number == signal.SIGBUS:
        told += ": shared memory is full. Enlarge /dev/shm, or start fewer such processes with --workers"
    elif number == signal.SIGSEGV:
        told += ": a library crashed on an image. --workers 0 shows on which"
    elif number == signal.SIGTERM:
        told += ": another process ended it"
    else:
        told += (
            ", most often killed by the system because memory ran out (`dmesg` tells). Start fewer such processes with "
            "--workers, or read smaller images"
        )
    return f"{told}. The same command goes on from the last checkpoint"
