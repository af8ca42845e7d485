"""Deterministic per-sample and per-step seeding.

Seeds are arithmetic on (seed, epoch, step, image): there is no state to save, and the number of
workers or processes cannot change what an image looks like.

- The augmentation of image i in epoch e draws from generators seeded by (seed, e, i).
- The model's own randomness (dropout) in step s draws from generators seeded by (seed, s, process).
- What a task draws for one image of a batch, see `Task.at_images`, is seeded by (seed, s, position
  of the image in the batch over all processes).
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial, reduce
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from trainkit.data.dataset_info import DatasetInfo, SizedDataset
from trainkit.data.generators import find_generators

# streams of random numbers that must not meet
ORDER, IMAGE, STEP, MIX, DRAW, PREPARE, POSITION = range(7)

HAS_MPS = torch.backends.mps.is_available()


def fold(*numbers: int) -> int:
    """Fold several integers into one 64-bit seed (splitmix64, once per integer).

    Source:
        Steele et al., 2014, Fast Splittable Pseudorandom Number Generators.
    """
    return _folded(_before(numbers[:-1]), numbers[-1])


@lru_cache(maxsize=1024)
def _before(numbers: tuple[int, ...]) -> int:
    """The state before the last number is folded in: the same for all images of an epoch."""
    return reduce(_folded, numbers, 0)


def _folded(state: int, number: int) -> int:
    mask = 0xFFFFFFFFFFFFFFFF
    state = (state ^ (number & mask)) + 0x9E3779B97F4A7C15 & mask
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & mask
    state = (state ^ state >> 27) * 0x94D049BB133111EB & mask
    return state ^ state >> 31


def uniform(seed: int, epoch: int, indices: Sequence[int], draws: int) -> np.ndarray:
    """Random numbers of each image in an epoch.

    Number k of image i is that of `fold(seed, DRAW, epoch, i, k)`, for all of them at once: 10 us
    for a batch.

    Args:
        seed: of the run.
        epoch: from 0.
        indices: of the N images.
        draws: how many numbers each image has.

    Returns:
        float32 (N, draws) in [0, 1), of 24 bits.
    """
    state = np.full((len(indices), draws), fold(seed, DRAW, epoch), np.uint64)
    for numbers in (np.array(indices, np.uint64)[:, None], np.arange(draws, dtype=np.uint64)):
        state = (state ^ numbers) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ state >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ state >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return (state >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def seed_host(*numbers: int) -> None:
    """Seed Python's, NumPy's and torch's CPU generators by `fold(*numbers)`, in microseconds."""
    _seed_host(fold(*numbers))


def _seed_host(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Context manager: what is drawn inside changes no later draw from the global generators."""
    before = GeneratorStates()
    try:
        yield
    finally:
        before.restore()


class GeneratorStates:
    """States of the global generators, of the host and of the current device, as they are now."""

    def __init__(self) -> None:
        self.host, self.arrays = random.getstate(), np.random.get_state()
        self.tensors = torch.get_rng_state()
        self.generator = _device_generator()
        self.device = None if self.generator is None else self.generator.get_state()

    def restore(self) -> None:
        """Set the generators to these states."""
        random.setstate(self.host)
        np.random.set_state(self.arrays)
        torch.set_rng_state(self.tensors)
        if self.generator is not None and self.device is not None:
            self.generator.set_state(self.device)


def seed_step(seed: int, step: int, process: int, stream: int = STEP) -> None:
    """Seed what the model, or mixing, may draw from in a step: host and current device.

    Args:
        seed: of the run.
        step: number of steps done.
        process: rank.
        stream: tells uses of one step apart.
    """
    folded = _folded(_folded(_before((seed, stream)), step), process)
    _seed_host(folded)
    _seed_device(folded)


def seed_torch(seed: int) -> None:
    """Seed torch's generators of host and current device alone; nothing waits for the device."""
    torch.default_generator.manual_seed(seed)
    _seed_device(seed)


def _seed_device(seed: int) -> None:
    generator = _device_generator()
    if generator is not None:
        generator.manual_seed(seed)


def _device_generator() -> torch.Generator | None:
    """The generator of the current device.

    None where there is the CPU alone, or where nothing has been computed on it yet.
    """
    # one generator: torch's manual_seed_all would walk all devices
    for backend in (torch.cuda, torch.xpu):
        if backend.is_initialized():
            return backend.default_generators[backend.current_device()]
    return torch.mps._get_default_mps_generator() if HAS_MPS else None


def reads_in_epoch(data: SizedDataset) -> Callable[[int, int], Any]:
    """A function that reads item `index` in an epoch, by `in_epoch` where data changes with it."""
    return DatasetInfo.of(data).in_epoch or partial(_in_any_epoch, data)


def _in_any_epoch(data: SizedDataset, epoch: int, index: int) -> Any:
    return data[index]


class Seeded(Dataset):
    """A dataset read by (epoch, index), with every generator seeded by (seed, epoch, index) first.

    That takes 6 us an image, which only data with `DatasetInfo.draws_nothing` can do without.

    These are the global ones of `seed_host`, and those that the dataset and its transforms hold
    (`find_generators`). Without workers the model in this process draws from the same generators:
    seed them before it does (`seed_step`).

    Args:
        data: the dataset.
        seed: of the run.
        unless_declared: seed nothing for data that say of themselves that they draw nothing, and
            hold no generator.
    """

    def __init__(self, data: SizedDataset, seed: int, unless_declared: bool = False):
        self.data, self.seed = data, seed
        self._num_images = len(data)
        self._in_epoch = DatasetInfo.of(data).in_epoch
        self.held = find_generators(data)
        declared = unless_declared and DatasetInfo.of(data).draws_nothing
        self._seeds = bool(self.held) or not declared

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        return self.read(*key)

    def read(self, epoch: int, index: int) -> Any:
        """The item of a key, without packing one."""
        if self._seeds:
            seed_host(self.seed, IMAGE, epoch, index)
            for number, seed_held in enumerate(self.held):
                seed_held(fold(self.seed, IMAGE, epoch, index, number))
        # a later draw of an image in an epoch has a seed of its own, see `sampler.Balanced`
        image = index % self._num_images
        return self.data[image] if self._in_epoch is None else self._in_epoch(epoch, image)
