"""Orders of images that are stored in groups: drawn whole, or computed where needed."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from trainkit.data.seeding import fold


@dataclass(frozen=True)
class Locality:
    """Images stored in groups that are read whole, and an order that needs few groups at a time.

    Args:
        lengths: images of each group, in the order of their indices.
        num_interleaved: number of interleaved groups.
    """

    lengths: tuple[int, ...]
    num_interleaved: int

    def permutation(self, batch_size: int, generator: torch.Generator) -> torch.Tensor:
        """Every index once: int64 (sum of lengths,).

        The groups are shuffled uniformly and dealt out to interleaved sequences; a sequence has its
        groups one after another, each with its images shuffled. All sequences advance alike, so
        that a batch has an equal part of each, and lists its images sequence by sequence: a
        process's slice of every batch is of the same few sequences. The order is not fully uniform:
        images of one group lie within a span of about as many groups' images as there are
        sequences.

        Args:
            batch_size: images of a batch over all processes.
            generator: draws the order.
        """
        lengths = torch.tensor(self.lengths)
        # of each image's group
        rank = torch.randperm(len(lengths), generator=generator).repeat_interleave(lengths)
        order = torch.randperm(len(rank), generator=generator)
        rank = rank[order]
        sequence = rank % self.num_interleaved
        by_sequence = (sequence * len(lengths) + rank).argsort(stable=True)
        order, sequence = order[by_sequence], sequence[by_sequence]
        size = sequence.bincount(minlength=self.num_interleaved)
        place = torch.arange(len(sequence)) - (size.cumsum(0) - size)[sequence]  # in its sequence
        alike = ((place.double() + 0.5) / size[sequence]).argsort(stable=True)
        batch = torch.arange(len(sequence)).div(batch_size, rounding_mode="floor")
        return order[alike][(batch * self.num_interleaved + sequence[alike]).argsort(stable=True)]

    def computed(self, batch_size: int, key: int) -> "LocalOrder":
        """Another such order, computed for the places asked for; it follows from `key` alone."""
        return _local_order(self, batch_size, key)


class LocalOrder:
    """A `Locality`'s order, laid out as `Locality.permutation` says, for the places asked for.

    What is drawn whole is the order of the groups; the images of a group are shuffled by a
    generator of its own when one of them is asked for. How far each sequence is at the beginning
    of a batch is found from the sequences' sizes alone.

    Args:
        locality: the groups.
        batch_size: images of a batch over all processes.
        key: of seed and epoch, below 2^64.
    """

    def __init__(self, locality: Locality, batch_size: int, key: int):
        self._batch_size, self._key = batch_size, key
        lengths, number = np.array(locality.lengths, dtype=np.int64), locality.num_interleaved
        generator = torch.Generator().manual_seed(key)
        by_rank = torch.randperm(len(lengths), generator=generator).numpy()
        # groups one sequence after the other: (G,), and where each ends
        self._groups = np.concatenate([by_rank[sequence::number] for sequence in range(number)])
        self._lengths = lengths
        self._first = lengths.cumsum() - lengths  # index of each group's first image
        self._ends = lengths[self._groups].cumsum()
        bounds = np.cumsum([0, *(len(by_rank[each::number]) for each in range(number))])
        self._bounds = np.concatenate([[0], self._ends])[bounds]  # of the sequences: (S + 1,)
        self._sizes = np.diff(self._bounds)  # images of each sequence: (S,)
        self._num_images = int(self._bounds[-1])
        self._within = lru_cache(maxsize=2 * number)(self._draw_within)

    def at(self, places: np.ndarray) -> np.ndarray:
        """The image indices at `places` of the order: int64 of the same shape (P,)."""
        batches, inverse = np.unique(places // self._batch_size, return_inverse=True)
        before, sizes = self._of_batches(batches)
        ends = sizes.cumsum(1)
        shift = self._bounds[:-1] + before - (ends - sizes)
        place = places - (batches * self._batch_size)[inverse]
        sequence = (ends[inverse] <= place[:, None]).sum(1)
        return self._images(place + shift[inverse, sequence])

    def places_of(self, images: np.ndarray) -> np.ndarray:
        """The places where `images` are: the inverse of `at`."""
        return np.array([self._place_of(image) for image in images.tolist()], dtype=np.int64)

    def _place_of(self, image: int) -> int:
        group = int((self._first + self._lengths).searchsorted(image, "right"))
        within = int(np.flatnonzero(self._within(group) == image - self._first[group])[0])
        position = int(np.flatnonzero(self._groups == group)[0])
        along = int(self._ends[position] - self._lengths[group]) + within
        sequence = int(self._bounds[1:].searchsorted(along, "right"))
        place = along - int(self._bounds[sequence])
        number = self._num_before(sequence, place) // self._batch_size
        before, sizes = self._of_batches(np.array([number]))
        first = int(sizes[0, :sequence].sum()) - int(before[0, sequence])
        return number * self._batch_size + first + place

    def _draw_within(self, group: int) -> np.ndarray:
        """The order of a group's images: int32 or int64 (length,)."""
        generator = torch.Generator().manual_seed(fold(self._key, group))
        length = int(self._lengths[group])
        dtype = torch.int32 if length < 2**31 else torch.int64
        return torch.randperm(length, generator=generator, dtype=dtype).numpy()

    def _images(self, along: np.ndarray) -> np.ndarray:
        """The images at these places of all sequences one after the other."""
        positions, inverse = np.unique(self._ends.searchsorted(along, "right"), return_inverse=True)
        groups = self._groups[positions]
        lengths = self._lengths[groups]
        orders = np.concatenate([self._within(group) for group in groups.tolist()])
        within = along - (self._ends[positions] - lengths)[inverse]
        return self._first[groups][inverse] + orders[(lengths.cumsum() - lengths)[inverse] + within]

    def _of_batches(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How far each sequence is before each batch, and its images in it: (B, S) each."""
        begin = numbers * self._batch_size
        end = np.minimum(begin + self._batch_size, self._num_images)
        before, after = np.split(self._advanced(np.concatenate([begin, end])), 2)
        return before, after - before

    def _advanced(self, counts: np.ndarray) -> np.ndarray:
        """How many images each sequence has among the first so many: (P,) to (P, S).

        Image j of a sequence of n has the time (j + 0.5) / n, and the order is by time, of equal
        ones by sequence. Up to a time t there are t n images of each sequence, to one: most are
        counted so, and the rest, of about twice as many images as there are sequences, is sorted.
        """
        sizes, number = self._sizes, len(self._sizes)
        time = np.maximum(0, (counts - number - 1) / self._num_images)[:, None]
        found = np.clip(np.ceil(time * sizes - 0.5), 0, sizes).astype(np.int64)
        rest = counts - found.sum(1)
        # more of each sequence than there can be among as many images
        candidates = np.ceil((rest.max() + number) * (sizes / self._num_images)) + 2
        candidates = np.minimum(candidates.astype(np.int64), sizes)
        sequence = np.arange(number).repeat(candidates)  # (M,)
        along = np.arange(len(sequence)) - (candidates.cumsum() - candidates)[sequence]
        place = found[:, sequence] + along  # (P, M)
        times = np.where(place < sizes[sequence], (place + 0.5) / sizes[sequence], np.inf)
        by_time = times.argsort(1, kind="stable")  # they are sequence by sequence
        taken = np.empty(times.shape, dtype=np.int64)
        np.put_along_axis(taken, by_time, np.arange(len(sequence))[None] < rest[:, None], 1)
        upto = np.pad(taken.cumsum(1), ((0, 0), (1, 0)))
        ends = candidates.cumsum()
        return found + upto[:, ends] - upto[:, ends - candidates]

    def _num_before(self, sequence: int, place: int) -> int:
        """How many images are before image `place` of a sequence, see `_advanced`."""
        time = (place + 0.5) / self._sizes[sequence]
        present = np.flatnonzero(self._sizes)
        sizes = self._sizes[present, None]
        near = np.clip(np.ceil(time * sizes - 0.5), 0, sizes).astype(np.int64) - 2
        places = np.maximum(near, 0) + np.arange(5)  # (S, 5)
        times = (places + 0.5) / sizes
        earlier = (times < time) | ((times == time) & (present[:, None] < sequence))
        earlier &= places < sizes
        return int(np.maximum(near, 0).sum() + earlier.sum())


@lru_cache(maxsize=2)
def _local_order(locality: Locality, batch_size: int, key: int) -> LocalOrder:
    """Kept for the next call, as an order of so many groups takes a while to lay out."""
    return LocalOrder(locality, batch_size, key)
