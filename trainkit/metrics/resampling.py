"""Resamples of images, for the bootstrap; without torch, for reports of runs."""

from collections.abc import Iterator

import numpy as np

DRAWS, TOGETHER = 1000, 50


def resamples(num_images: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield how often each image is drawn, with replacement: int64 (50, num_images) at a time.

    There are 1000 resamples, the same ones for a seed.

    Args:
        num_images: of which as many are drawn.
        seed: of the resamples.
    """
    generator = np.random.default_rng(seed)
    share = np.full(num_images, 1 / num_images)
    for _ in range(0, DRAWS, TOGETHER):
        yield generator.multinomial(num_images, share, size=TOGETHER)


def in_order(counts: np.ndarray) -> np.ndarray:
    """Indices that sort rows of counts (N, S), so that the order of images changes no resample."""
    return np.lexsort(counts.T[::-1])
