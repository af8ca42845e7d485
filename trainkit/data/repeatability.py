"""Checks that images read twice under one seed are equal, which a bit-equal resume needs.

A few images are read twice, since some sources of randomness cannot be found by inspection: a
generator inside a library, the clock, or a counter in the dataset.
"""

import hashlib
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from trainkit.data.dataset_info import DatasetInfo, SizedDataset, opened
from trainkit.data.on_device import OnDevice
from trainkit.data.reader import is_unusable
from trainkit.data.seeding import IMAGE, Seeded, seed_host
from trainkit.data.spawning import forks
from trainkit.data.workers import Loader
from trainkit.distributed.host import usable_cores
from trainkit.errors import DataError

# a transform with a probability of 0.1 shows in one of them with a probability of 0.8 or more
NUM_IMAGES = 16
SECONDS = 2.0  # for reading them once


class _Digests(Dataset):
    """A list of indices -> the digest of each image and target, until the time is over."""

    def __init__(self, data: SizedDataset, seed: int):
        self.seeded = Seeded(data, seed)

    def __getitem__(self, indices: Sequence[int]) -> dict[int, bytes]:
        return {index: value_digest(item) for index, item in _read(self.seeded, indices)}


def _read(seeded: Seeded, indices: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """Yield each index with its item in epoch 0, at least two, until the time is over."""
    until = time.monotonic() + SECONDS
    num_read = 0
    for index in indices:
        try:
            item = seeded[0, index]
        except Exception as error:  # the training or the doctor says what is wrong with it
            if not is_unusable(error):
                raise
        else:
            num_read += 1
            yield index, item
        if num_read > 1 and time.monotonic() > until:
            break


def find_unrepeatable(
    data: SizedDataset, seed: int, workers: int, in_process: bool = False
) -> str | None:
    """Find images of `data` that differ when they are read again under the same seed.

    Up to 16 images of epoch 0 are read twice, the second time in another order, so that a generator
    that continues from read to read gives other pixels: by two fresh workers, or in this process
    where a training reads without workers. It takes at most about 2 s for each reading. Images held
    on a device draw from no generator.

    Args:
        data: the dataset.
        seed: of the run.
        workers: data-loading workers of the run; 0: none.
        in_process: read them in this process the first time, and by a fresh worker the second.

    Returns:
        A message; None where they are equal.
    """
    data = opened(data)
    if isinstance(data, OnDevice) or len(data) == 0:
        return None
    indices = (
        _spread(len(data))
        if DatasetInfo.of(data).locality is None
        else list(range(min(len(data), NUM_IMAGES)))
    )
    other = [
        indices[place ^ 1] if place ^ 1 < len(indices) else indices[place]
        for place in range(len(indices))
    ]
    other = [other[-1], *other]  # one read more: the first of a single image would be the same
    digests = _Digests(data, seed)
    # a worker that is not forked imports everything anew
    if not forks() or (workers == 0 and not in_process):
        once, again = digests[indices], digests[other]
    elif in_process:
        once = digests[indices]
        (again,) = _by_workers(digests, [other])
    else:
        once, again = _by_workers(digests, [indices, other])
    both = [index for index in once if index in again]
    unequal = [index for index in both if once[index] != again[index]]
    return _describe(data, unequal, len(both)) if unequal else None


def require_drawing_nothing(data: SizedDataset, seed: int) -> None:
    """Hold data that declare `draws_nothing` to it.

    Up to 16 images are read under two seeds. No global generator may have moved, as one does also
    where a transform changes an image in a thousand; and pixels and targets must be equal, which
    finds a read that draws and puts the generator back. Generators that the data hold are no
    matter: data that hold one are seeded whatever they declare, see `Seeded`.

    Raises:
        DataError: an image draws random numbers.
    """
    data = opened(data)
    info = DatasetInfo.of(data)
    if not info.draws_nothing or isinstance(data, OnDevice):
        return
    indices = _spread(len(data))
    once: dict[int, bytes] = {}
    drawing: list[int] = []
    for index, item in _read(Seeded(data, seed), indices):
        once[index] = value_digest(item)
        left = _next_numbers()
        seed_host(seed, IMAGE, 0, index)
        if left != _next_numbers():
            drawing.append(index)
    again = _Digests(data, seed + 1)[indices]
    drawing += [index for index in again if again[index] != once.get(index, again[index])]
    if drawing:
        raise DataError(
            f"{type(data).__name__} declares draws_nothing = True, and {len(set(drawing))} of"
            f" {len(once)} training images draw random numbers when they are read"
            f" ({info.name_of(drawing[0])}): take the attribute away, so that each image is seeded"
        )


def _next_numbers() -> tuple[float, float, int]:
    """What the global generators of the host give next."""
    return random.random(), np.random.random(), int(torch.randint(2**62, ()))


def _spread(length: int) -> list[int]:
    number = min(length, NUM_IMAGES)
    return [length * place // number for place in range(number)]


def _by_workers(digests: _Digests, lists: list[list[int]]) -> list[dict[int, bytes]]:
    """Read each list of indices by a worker of its own; on a single core one after the other."""
    # A generator of its own: the loader's base seed must not be drawn from the global one.
    loader = Loader(
        digests,
        batch_size=None,
        sampler=lists,
        num_workers=min(len(lists), usable_cores()),
        generator=torch.Generator(),
    )
    return list(loader)


def _describe(data: SizedDataset, unequal: list[int], num_read: int) -> str:
    info = DatasetInfo.of(data)
    of_what = f"dataset {type(data if info.transformed is None else info.transformed).__name__}"
    if info.transform is not None:
        of_what += f" with transform {_short(info.transform)}"
    return (
        f"{len(unequal)} of {num_read} training images differ when they are read again under the"
        f" same seed ({info.name_of(unequal[0])}; {of_what}): their randomness comes from a"
        " generator that is not seeded for each image, so a resumed run is not bit-equal and"
        " workers may draw the same numbers. Draw from torch's, NumPy's or Python's global"
        " generator, or keep the generator as an attribute of the transform, where it is found and"
        " seeded"
    )


def _short(transform: Any) -> str:
    text = " ".join(repr(transform).split())
    return text if len(text) <= 120 else f"{text[:117]}..."


def value_digest(value: Any) -> bytes:
    """Hash any item: tensors and arrays by their bytes, others by how they print.

    Lists, tuples and dicts are hashed by what they hold: 16 bytes of BLAKE2b.
    """
    hashed = hashlib.blake2b(digest_size=16)
    for part in _leaves(value):
        if isinstance(part, Tensor):
            # NumPy has no bfloat16
            part = part.to_dense() if part.layout != torch.strided else part
            part = part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        elif not isinstance(part, (np.ndarray, bytes)):
            part = np.asarray(part)
            part = part if part.dtype != object else repr(part).encode()
        hashed.update(part.tobytes() if isinstance(part, np.ndarray) else part)
    return hashed.digest()


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    return (
        [leaf for item in value for leaf in _leaves(item)]
        if isinstance(value, (list, tuple))
        else [value]
    )
