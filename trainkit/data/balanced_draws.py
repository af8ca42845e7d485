"""Draws of images with replacement, all classes alike: drawn whole, or computed where needed."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from trainkit.data.permutation import hashed
from trainkit.data.seeding import fold

MOST_IMAGES = 3_037_000_499  # n draws of n images each have an index below n * n, within 63 bits


@dataclass(frozen=True)
class Balanced:
    """Draws with replacement: a class, all alike, then one of its images, all alike.

    Args:
        images: those of the first class, then of the next, and so on: int64 (M,).
        members: how many images each class has: int64 (C,); one without an image is not drawn.
        name: what a resume must find again.
    """

    images: torch.Tensor
    members: torch.Tensor
    name: str = "balanced"

    def draw(self, num_images: int, generator: torch.Generator) -> torch.Tensor:
        """As many indices as there are images, int64 (num_images,).

        Draw k of image i, counted from 0, is i + k * num_images: as the seed of an image is drawn
        from its index, draws of one image are augmented differently.
        """
        present = self.members.nonzero()[:, 0]
        starts = self.members.cumsum(0) - self.members
        chosen = present[torch.randint(len(present), (num_images,), generator=generator)]
        share = torch.rand(num_images, generator=generator, dtype=torch.float64)
        images = self.images[starts[chosen] + (share * self.members[chosen]).long()]
        by_image = images.argsort(stable=True)
        counts = images.bincount(minlength=num_images)
        first = (counts.cumsum(0) - counts).repeat_interleave(counts)
        earlier = torch.empty_like(images)
        earlier[by_image] = torch.arange(num_images) - first
        return images + earlier * num_images

    def computed(self, num_images: int, key: int) -> "ComputedDraws":
        """As many other draws, computed for the places asked for; they follow from `key` alone."""
        return ComputedDraws(self, num_images, key)

    @cached_property
    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the images of each class that has some begin, and how many these are: (C,) each."""
        present = (self.members > 0).numpy()
        starts = (self.members.cumsum(0) - self.members).numpy()
        return starts[present], self.members.numpy()[present]


class ComputedDraws:
    """Draws of an epoch, each by hashes of its place.

    A draw's index is i + place * num_images, i its image: a draw of the same image at another place
    is augmented differently, without counting how many came before.

    Args:
        balanced: classes and their images.
        num_images: of the dataset, and draws of an epoch, at most `MOST_IMAGES`.
        key: of seed and epoch, below 2^64.
    """

    def __init__(self, balanced: Balanced, num_images: int, key: int):
        self.num_images = num_images
        self._images = balanced.images
        self._starts, self._members = balanced.table
        self._keys = [fold(key, number) for number in range(2)]

    def at(self, places: np.ndarray) -> np.ndarray:
        """The indices at `places`: int64 of the same shape (P,)."""
        chosen = (self._shares(0, places) * len(self._members)).astype(np.int64)
        within = (self._shares(1, places) * self._members[chosen]).astype(np.int64)
        images = self._images[torch.from_numpy(self._starts[chosen] + within)].numpy()
        return images + places * self.num_images

    def after(self, index: int) -> int:
        """The draw after `index`; after the last comes the first."""
        place = (index // self.num_images + 1) % self.num_images
        return int(self.at(np.array([place]))[0])

    def _shares(self, number: int, places: np.ndarray) -> np.ndarray:
        """Numbers from 0 to below 1, of 53 bits: float64 (P,)."""
        return (hashed(places.astype(np.uint64), self._keys[number]) >> np.uint64(11)) * 2.0**-53
