"""Batches from a dataset, read by worker processes."""

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from trainkit.data.order import Seeded
from trainkit.signals import worker_outlives_the_signal


def make_loader(data: Dataset, seed: int, batches: Iterable, workers: int, device: torch.device) -> DataLoader:
    """A loader of the (epoch, index) keys in `batches`, each image read under its own seed."""
    return DataLoader(
        Seeded(data, seed),
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


def collate(rows: list[tuple]) -> Any:
    """Stack (image, target) rows. Raises ValueError where images differ in shape."""
    shapes = sorted({tuple(image.shape) for image, _ in rows})
    if len(shapes) > 1:
        raise ValueError(
            f"images of one batch have unlike shapes {shapes[:4]}; crop them to one size in the transform, or "
            "evaluate one at a time with eval_batch_size=1"
        )
    return default_collate(rows)
