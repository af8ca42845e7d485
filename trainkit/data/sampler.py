"""Deterministic, resumable batch sampler.

Everything here is arithmetic on (seed, epoch, step): there is no state to save, so resuming at step
s is a seek.

- Epoch e's order is a permutation drawn from (seed, e); batch b of it is the slice [b B, (b + 1)
  B). It is uniform, or for data that is read in groups a `Locality`'s.
- Of many images it is computed for the places that a process reads, see `TrainOrder.version`.
- A process takes its contiguous slice of each batch, split again into the micro-batches of gradient
  accumulation.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import numpy as np
import torch

from trainkit.data.balanced_draws import MOST_IMAGES, Balanced, ComputedDraws
from trainkit.data.computed_order import ComputedOrder
from trainkit.data.local_order import Locality
from trainkit.data.seeding import ORDER, fold
from trainkit.errors import UserError

EVALUATION = -1  # the "epoch" of an evaluation
DRAWN, COMPUTED = 1, 2  # versions of the order
MOST_DRAWN = 2**22  # images whose order is drawn whole in a new run: 16 MiB, under 0.1 s an epoch
AT_ONCE = 4096  # images whose places are computed together, for a share of some steps


def split(num_images: int, parts: int, unit: int = 1) -> list[int]:
    """Sizes of `parts` contiguous parts as even as whole `unit`s allow, larger ones first.

    Only the last non-empty part may hold a broken unit. Parts are empty where there are too few
    units.
    """
    ends = [_end(num_images, parts, unit, number) for number in range(parts + 1)]
    return [end - start for start, end in zip(ends, ends[1:])]


def _end(num_images: int, parts: int, unit: int, number: int) -> int:
    """Images of the first `number` of these parts."""
    whole, rest = divmod(-(-num_images // unit), parts)
    return min(num_images, unit * (whole * number + min(number, rest)))


@dataclass(frozen=True)
class TrainOrder:
    """The order of a whole run: batch -> process -> micro-batch.

    The last batch of an epoch is shorter where `batch_size` does not divide, or left out with
    `drop_last`.

    Args:
        num_images: images of the dataset.
        batch_size: images of one optimizer step over all processes.
        seed: of the run.
        num_processes: of the run.
        micro_batch: images of one forward pass in one process; None: the whole slice.
        unit: as many images are never split up (2 where mixup pairs neighbours).
        drop_last: leave out an epoch's last batch where it is shorter.
        repeats: how often an image is in a batch (see `trainkit.data.datasets.repeated`): index i +
            k n is then copy k of image i of n.
        locality: of data that is stored in groups.
        balanced: draws with replacement.
        version: how an order is made. 1: drawn whole in each process. 2: computed for the places
            asked for alone, see `ComputedOrder`, `LocalOrder` and `ComputedDraws`. A run keeps its
            version; a new one has `newest_version`.

    Raises:
        UserError: a value is out of range, or they do not fit together.
    """

    num_images: int
    batch_size: int
    seed: int
    num_processes: int = 1
    micro_batch: int | None = None
    unit: int = 1
    drop_last: bool = False
    repeats: int = 1
    locality: Locality | None = None
    balanced: Balanced | None = None
    version: int = DRAWN

    def __post_init__(self) -> None:
        if self.version not in (DRAWN, COMPUTED):
            raise UserError(
                f"the run's settings.json has order {self.version}, and this trainkit knows"
                f" {DRAWN} and {COMPUTED}: resume it with the version that began it, or a newer one"
            )
        if self.num_images < 1:
            raise UserError("train_data is empty: there is nothing to train on")
        if self.batch_size < self.unit * self.num_processes:
            raise UserError(
                f"batch_size is {self.batch_size} for {self.num_processes} processes: each needs at"
                f" least {self.unit} of its images; raise batch_size or start fewer processes"
            )
        if self.micro_batch is not None and self.micro_batch < self.unit:
            raise UserError(
                f"micro_batch is {self.micro_batch}; it must be at least {self.unit} here"
            )
        if self.balanced is not None and self.num_images > MOST_IMAGES:
            raise UserError(
                f"train_data has {self.num_images:,} images, and sampler balanced draws from"
                f" {MOST_IMAGES:,} at most: leave it out"
            )
        if self.batch_size % self.repeats:
            raise UserError(
                f"batch_size is {self.batch_size}, and each image is in a batch {self.repeats}"
                f" times: make it a multiple of {self.repeats}"
            )

    @cached_property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        whole, rest = divmod(self.num_images, self.batch_size)
        return whole if self.drop_last and whole else whole + bool(rest)

    @property
    def newest_version(self) -> int:
        """The version of a new run: 2 above 2^22 different images, else 1."""
        return COMPUTED if self.num_images // self.repeats > MOST_DRAWN else DRAWN

    @property
    def _is_computed(self) -> bool:
        return self.version == COMPUTED

    def num_images_of(self, step: int) -> int:
        """Images in the batch of `step`, over all processes."""
        return min(self.batch_size, self.num_images - step % self.steps_per_epoch * self.batch_size)

    def passes(self, step: int, process: int) -> list[int]:
        """Images of each micro-batch of `process` in `step`.

        Every process has as many micro-batches, so 0 occurs.
        """
        num_images = self.num_images_of(step)
        if self.num_processes == 1 and self.micro_batch is None:
            return [num_images]
        share = self._part(num_images, process)
        largest = self._part(num_images, 0).stop
        if self.micro_batch is None or self.micro_batch >= largest:
            return [share.stop - share.start]
        num_passes = -(-largest // (self.micro_batch // self.unit * self.unit))
        return split(share.stop - share.start, num_passes, self.unit)

    def _part(self, num_images: int, process: int) -> slice:
        """A process's part of so many images, as `split` has it, in constant time."""
        sizes = num_images, self.num_processes, self.unit
        return slice(_end(*sizes, process), _end(*sizes, process + 1))

    def epoch(self, epoch: int) -> torch.Tensor:
        """The permutation of an epoch: image indices (num_images,), int32 where that holds them.

        The numbers are the same in either type; int32 takes half the memory and less time. With
        `repeats` a batch has its images once, then once more: neighbours, which mixing pairs, are
        not copies.
        """
        if self._is_computed:
            return torch.from_numpy(self._computed(epoch).at(np.arange(self.num_images)))
        generator = torch.Generator().manual_seed(fold(self.seed, ORDER, epoch))
        if self.balanced is not None:
            return self.balanced.draw(self.num_images, generator)
        distinct, together = self.num_images // self.repeats, self.batch_size // self.repeats
        if self.locality is None:
            dtype = torch.int32 if self.num_images < 2**31 else torch.int64
            order = torch.randperm(distinct, generator=generator, dtype=dtype)
        else:
            order = self.locality.permutation(together, generator)
        if self.repeats == 1:
            return order
        batches = order.split(together)
        return torch.cat(
            [batch + distinct * copy for batch in batches for copy in range(self.repeats)]
        )

    def indices(self, epoch: int, places: np.ndarray) -> list[int]:
        """The image indices at `places` of an epoch's order, int64 (P,)."""
        if self._is_computed:
            return self._computed(epoch).at(places).tolist()
        return self.epoch(epoch)[torch.from_numpy(places)].tolist()

    def _computed(self, epoch: int) -> ComputedOrder | ComputedDraws:
        if self.balanced is not None:
            return self.balanced.computed(self.num_images, fold(self.seed, ORDER, epoch))
        sizes = self.num_images, self.batch_size, self.repeats
        if self.locality is None:
            return ComputedOrder(*sizes, self.seed, epoch)
        key = fold(self.seed, ORDER, epoch)
        local = self.locality.computed(self.batch_size // self.repeats, key)
        return ComputedOrder(*sizes, self.seed, epoch, local)

    def replacement(self, epoch: int, index: int) -> int:
        """The image after `index` in the order of `epoch`; after the last comes the first."""
        if self._is_computed:
            return self._computed(epoch).after(index)
        order = self.epoch(epoch)
        place = int((order == index).nonzero())
        return int(order[(place + 1) % self.num_images])

    def share(self, step: int, process: int) -> slice:
        """The slice of the batch of `step` that `process` reads; never empty, see `batches`."""
        num_images = self.num_images_of(step)
        if self.num_processes == 1:
            return slice(0, num_images)
        part = self._part(num_images, process)
        return part if part.stop > part.start else slice(0, 1)

    def keys(self, step: int) -> list[tuple[int, int]]:
        """The (epoch, index) keys of the whole batch of `step`, over all processes."""
        return next(replace(self, num_processes=1).batches(step, step + 1, 0))

    def batches(self, start: int, stop: int, process: int) -> Iterator[list[tuple[int, int]]]:
        """The (epoch, index) keys of `process` for steps [start, stop).

        A process left without an image gets the batch's first one as a padding sample, so that all
        processes do the same forward passes; `passes` gives 0 for it, and the loop counts it
        nowhere.
        """
        while start < stop:
            epoch, batch = divmod(start, self.steps_per_epoch)
            end = min(stop, start - batch + self.steps_per_epoch)
            for indices in self._shares(epoch, range(start, end), process):
                yield [(epoch, index) for index in indices]
            start = end

    def _shares(self, epoch: int, steps: range, process: int) -> Iterator[list[int]]:
        """The indices that `process` reads in each of these steps of an epoch."""
        if not self._is_computed:
            order = self.epoch(epoch)
            for step in steps:
                yield order[self._place_of_share(step, process)].tolist()
            return
        computed, share = self._computed(epoch), self.share(steps.start, process)
        together = max(1, AT_ONCE // (share.stop - share.start))
        for begin in range(0, len(steps), together):
            slices = [self._place_of_share(step, process) for step in steps[begin:][:together]]
            places = np.concatenate([np.arange(each.start, each.stop) for each in slices])
            indices = iter(computed.at(places).tolist())
            for each in slices:
                yield list(islice(indices, each.stop - each.start))

    def _place_of_share(self, step: int, process: int) -> slice:
        """Where in its epoch's order `process` reads in a step."""
        share = self.share(step, process)
        first = step % self.steps_per_epoch * self.batch_size
        return slice(first + share.start, first + share.stop)


class Batches:
    """`TrainOrder.batches` as the batch sampler of a DataLoader."""

    def __init__(self, order: TrainOrder, start: int, stop: int, process: int):
        self.order, self.start, self.stop, self.process = order, start, stop, process

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self.order.batches(self.start, self.stop, self.process)


def evaluation_batches(
    num_images: int, batch_size: int, process: int, num_processes: int
) -> tuple[list[list[tuple[int, int]]], list[int]]:
    """A process's share of an evaluation: the keys of its batches, and how many of each count.

    Every image is in exactly one process's share. All processes get the same number of batches;
    where one would have none left it gets image 0 once more, of which 0 count.

    Args:
        num_images: of the dataset.
        batch_size: images of a batch in one process.
        process: rank of this one.
        num_processes: how many there are.
    """
    shares = split(num_images, num_processes)
    first = sum(shares[:process])
    batches, valid = [], []
    for begin in range(0, max(shares), batch_size):
        count = min(batch_size, max(0, shares[process] - begin))
        indices = range(first + begin, first + begin + count) if count else range(1)
        batches.append([(EVALUATION, index) for index in indices])
        valid.append(count)
    return batches, valid
