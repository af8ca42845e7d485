"""Resamples of images, for the bootstrap, and what takes its place where it says nothing.

Without torch, for reports of runs.
"""

from collections.abc import Iterator
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np

DRAWS, TOGETHER = 1000, 50
Z = NormalDist().inv_cdf(0.975)  # 1.96
NO_INTERVAL = "no_interval"  # of results: why there is none
SAME = "every image has the same score, so that resamples of them say nothing"


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


def wilson(hits: int, number: int) -> tuple[float, float]:
    """95 % interval of a share of images, by Wilson's score.

    Of 10 of 10 images it is 72.2 % to 100 %, where a bootstrap has 100 % to 100 %.

    Args:
        hits: images that are right.
        number: all of them, at least 1.

    Source:
        Wilson, 1927, Probable Inference, the Law of Succession, and Statistical Inference; Brown,
        Cai and DasGupta, 2001, Interval Estimation for a Binomial Proportion.
    """
    share = hits / number
    weight = Z**2 / number
    centre = (share + weight / 2) / (1 + weight)
    half = Z * sqrt(share * (1 - share) / number + weight / (4 * number)) / (1 + weight)
    # at 0 and 1 it ends there, but for rounding
    low = 0.0 if hits == 0 else centre - half
    return low, 1.0 if hits == number else centre + half


def bounds_or_reason(
    name: str, bounds: tuple[float, float] | None, share: tuple[int, int] | None = None
) -> dict[str, Any]:
    """The result of a bootstrap by its name; where it says nothing, what takes its place, or why.

    Args:
        name: of the result, such as top1_95.
        bounds: of the bootstrap, which are one number where every image has the same score.
        share: hits and number of images, where the metric is their quotient: it gets the interval
            of `wilson` in that case.

    Returns:
        The result, None where `bounds` is, or NO_INTERVAL with the reason.
    """
    if bounds is None or bounds[0] < bounds[1]:
        return {name: bounds}
    if share is not None and share[1]:
        return {name: wilson(*share)}
    return {NO_INTERVAL: SAME}
