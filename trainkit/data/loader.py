"""Batches from a dataset, read by data-loading workers."""

from collections.abc import Callable, Iterable
from itertools import chain

import torch
from torch import Tensor
from torch.utils.data import default_collate

from trainkit.data.dataset_info import SizedDataset, opened
from trainkit.data.on_device import OnDevice
from trainkit.data.reader import Reader
from trainkit.data.workers import Loader
from trainkit.errors import UserError


def make_loader(
    data: SizedDataset,
    seed: int,
    batches: Iterable,
    workers: int,
    device: torch.device,
    check: Callable[[Tensor], str | None] | None = None,
    replacement: Callable[[int, int], int] | None = None,
    remedy: str = "",
) -> Loader:
    """Make a loader of the (epoch, index) keys in `batches`: images, targets, faults.

    Images held on the device are read by this process.

    Args:
        data: the dataset.
        seed: of the run.
        batches: lists of keys, one a batch.
        workers: data-loading workers; 0: none.
        device: that batches go to.
        check: see `Reader`.
        replacement: see `Reader`.
        remedy: see `Reader`.
    """
    data = opened(data)
    held = isinstance(data, OnDevice)
    if isinstance(data, OnDevice):
        data.to(device)
    return Loader(
        Reader(data, seed, check, replacement, remedy),
        batch_sampler=batches,
        num_workers=0 if held else workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda" and not held,
    )


def collate(
    rows: list[tuple] | tuple[Tensor, Tensor, list[str]],
) -> tuple[Tensor, Tensor, list[str]]:
    """Stack (image, target, faults) rows.

    Images whose pixels have their channels side by side in memory keep them so in the batch
    (torch's channels_last).

    Raises:
        UserError: images differ in shape.
    """
    if isinstance(rows, tuple):  # of images held on a device: a batch as it is
        return rows
    images, targets, faults = map(list, zip(*rows))
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise UserError(
            f"images of one batch have unlike shapes {sorted(map(tuple, shapes))[:4]}; crop them to"
            " one size in the transform, or evaluate one at a time with eval_batch_size=1"
        )
    if all(image.ndim == 3 and image.stride(0) == 1 for image in images):
        images = default_collate([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
    else:
        images = default_collate(images)
    return images, default_collate(targets), list(chain.from_iterable(faults))
