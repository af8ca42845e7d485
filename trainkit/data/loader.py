"""Batches from a dataset, read by data-loading workers."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from trainkit.data.buckets import kind_of
from trainkit.data.dataset_info import SizedDataset, opened
from trainkit.data.on_device import OnDevice
from trainkit.data.reader import Reader
from trainkit.data.targets import as_target
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
    unless_declared: bool = False,
    by_kind: bool = False,
) -> Iterable[Any]:
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
        unless_declared: see `Seeded`.
        by_kind: a batch may hold images of unlike shapes: it is what `collate_by_kind` makes of it.
    """
    data = opened(data)
    held = isinstance(data, OnDevice)
    if isinstance(data, OnDevice):
        data.to(device)
    reader = Reader(data, seed, check, replacement, remedy, unless_declared)
    pins = device.type == "cuda" and not held
    if (held or workers == 0) and not pins:
        return OwnBatches(reader, batches, by_kind)
    return Loader(
        reader,
        batch_sampler=batches,
        num_workers=0 if held else workers,
        collate_fn=collate_by_kind if by_kind else collate,
        pin_memory=pins,
    )


class OwnBatches:
    """Batches that this process reads itself: torch's loader around them takes 10 us a batch.

    Args:
        reader: of examples.
        batches: lists of its keys.
        by_kind: see `make_loader`.
    """

    def __init__(self, reader: Reader, batches: Iterable, by_kind: bool = False):
        self.reader, self.batches = reader, batches
        self._collate: Callable[[Any], Any] = collate_by_kind if by_kind else collate

    def __iter__(self) -> Iterator[Any]:
        for keys in self.batches:
            yield self._collate(self.reader.__getitems__(keys))


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
    return _stacked_images(images), _stacked_targets(targets), list(chain.from_iterable(faults))


def collate_by_kind(
    rows: list[tuple] | tuple[Tensor, Tensor, list[str]],
) -> list[tuple[Tensor, Tensor, list[int]]]:
    """Stack (image, target, faults) rows of unlike shapes, those that are alike together.

    Returns:
        Images, targets and their places among the rows, of each kind, that of the first row first.
    """
    if isinstance(rows, tuple):
        images, targets, _ = rows
        return [(images, targets, list(range(len(targets))))]
    places: dict[Hashable, list[int]] = {}
    for place, (image, target, _) in enumerate(rows):
        places.setdefault((kind_of(image), kind_of(target)), []).append(place)
    found = []
    for alike in places.values():
        images, targets, _ = collate([rows[place] for place in alike])
        found.append((images, targets, alike))
    return found


def _stacked_images(images: list[Tensor]) -> Tensor:
    try:
        if all(image.ndim == 3 and image.stride(0) == 1 for image in images):
            return default_collate([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
        return default_collate(images)
    except RuntimeError as error:
        shapes = {image.shape for image in images}
        if len(shapes) == 1:
            raise
        raise UserError(
            f"images of one batch have unlike shapes {sorted(map(tuple, shapes))[:4]}; crop them to"
            " one size in the transform"
        ) from error


def _stacked_targets(targets: list[Any]) -> Any:
    if all(type(target) is int for target in targets):
        # int64 (N,); torch.tensor walks a list in three times the time
        return torch.from_numpy(np.array(targets, np.int64))
    return default_collate([as_target(target) for target in targets])
