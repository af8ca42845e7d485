"""The order of an epoch that is computed for the places asked for, not drawn whole."""

from typing import Protocol

import numpy as np

from trainkit.data.permutation import Permutation
from trainkit.data.seeding import ORDER, fold

ROUNDS = 12


class Places(Protocol):
    """A permutation of images, and its inverse."""

    def at(self, places: np.ndarray, /) -> np.ndarray:
        """The images at places, int64 (P,) both."""

    def places_of(self, images: np.ndarray, /) -> np.ndarray:
        """The places of images, int64 (P,) both."""


class ComputedOrder:
    """An epoch's order of any number of images: a `Permutation` keyed by (seed, epoch), uniform.

    Args:
        num_images: of the dataset, with the copies of `repeats`.
        batch_size: images of a batch over all processes.
        repeats: how often an image is in a batch, which has its images once, then once more.
        seed: of the run.
        epoch: from 0.
        permutation: of the images without copies, in place of that one.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        repeats: int,
        seed: int,
        epoch: int,
        permutation: Places | None = None,
    ):
        self.num_images, self.batch_size, self.repeats = num_images, batch_size, repeats
        self._distinct, self._together = num_images // repeats, batch_size // repeats
        if permutation is None:
            keys = [fold(seed, ORDER, epoch, number) for number in range(ROUNDS)]
            permutation = Permutation(self._distinct, keys)
        self._permutation = permutation

    def at(self, places: np.ndarray) -> np.ndarray:
        """The image indices at `places` of the order: int64 of the same shape (P,)."""
        if self.repeats == 1:
            return self._permutation.at(places)
        batch, place = np.divmod(places, self.batch_size)
        first = batch * self._together
        copy, place = np.divmod(place, np.minimum(self._together, self._distinct - first))
        return self._permutation.at(first + place) + self._distinct * copy

    def after(self, index: int) -> int:
        """The image after `index` in the order; after the last comes the first."""
        return int(self.at(np.array([(self._place_of(index) + 1) % self.num_images]))[0])

    def _place_of(self, index: int) -> int:
        copy, image = divmod(index, self._distinct)
        found = int(self._permutation.places_of(np.array([image]))[0])
        batch, place = divmod(found, self._together)
        size = min(self._together, self._distinct - batch * self._together)
        return batch * self.batch_size + copy * size + place
