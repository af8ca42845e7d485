"""Batches of images of one size, put together from images of all sizes, without padding any.

A padded image would have other scores: its border pixels, pooling and attention would see the
padding.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LOOK_AHEAD = 8  # batches of images that may wait for others of their size


@dataclass(frozen=True)
class Alike:
    """Images of one shape and type, with targets of one shape and type."""

    images: Tensor
    """as read: (n, C, H, W), of several crops (n, crops, C, H, W)"""
    targets: Tensor
    """(n, ...)"""
    indices: Sequence[int]
    """of the images in their dataset"""

    @property
    def kind(self) -> Hashable:
        """What images share that may be in one batch."""
        return kind_of(self.images[0]), kind_of(self.targets[0])

    def part(self, first: int, last: int) -> "Alike":
        """Some of them."""
        part = slice(first, last)
        return Alike(self.images[part], self.targets[part], self.indices[part])


def kind_of(value: Any) -> Any:
    """Shape and type of a tensor or array, the type alone of anything else: a key of a dict."""
    if hasattr(value, "shape"):
        return tuple(value.shape), value.dtype
    return type(value)


class Buckets:
    """Collects images by their kind, and gives those of one kind together.

    A batch is given as soon as it is full. Where more than `LOOK_AHEAD` batches of images wait,
    those go, be they few, whose first one has waited longest: so many images, as they were read,
    is what this holds at most, with those of the batch that was added last.

    Args:
        batch_size: images of a batch.
    """

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self._waiting: dict[Hashable, list[Alike]] = {}  # the one that has waited longest first
        self._number = 0

    def add(self, read: Iterable[Alike]) -> Iterator[list[Alike]]:
        """Add images, and yield each batch that is to go, in parts."""
        for alike in read:
            kind, begin = alike.kind, 0
            while begin < len(alike.indices):
                line = self._waiting.setdefault(kind, [])
                room = self.batch_size - _number(line)
                part = alike.part(begin, begin + room)
                line.append(part)
                begin += len(part.indices)
                self._number += len(part.indices)
                if len(part.indices) == room:
                    yield self._taken(kind)
        while self._number > LOOK_AHEAD * self.batch_size:
            yield self._taken(next(iter(self._waiting)))

    def rest(self) -> Iterator[list[Alike]]:
        """Yield all that wait."""
        while self._waiting:
            yield self._taken(next(iter(self._waiting)))

    def _taken(self, kind: Hashable) -> list[Alike]:
        parts = self._waiting.pop(kind)
        self._number -= _number(parts)
        return parts


def _number(parts: Sequence[Alike]) -> int:
    """How many images they are."""
    return sum(len(part.indices) for part in parts)


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of unlike lengths as one; a single one as it is."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
