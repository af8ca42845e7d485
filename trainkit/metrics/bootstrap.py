"""Confidence interval of a metric by the bootstrap over images."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainkit.metrics.base import PerImage
from trainkit.metrics.resampling import bounds_or_reason, in_order, resamples


def interval(
    rows: Tensor, statistic: Callable[[Tensor], Tensor] | None, seed: int = 0
) -> tuple[float, float] | None:
    """95 % bootstrap confidence interval over 1000 resamples of the images with replacement.

    The images are sorted first, so that neither their order nor the number of processes changes the
    resamples.

    Args:
        rows: counts of each image (N, S), whose sum gives the metric.
        statistic: sums (B, S) -> metric (B,); None where there is none.
        seed: of the resamples.

    Returns:
        Lower and upper bound; None for no images, and without a statistic.

    Source:
        Efron, 1979, Bootstrap Methods: Another Look at the Jackknife.
    """
    if statistic is None or not len(rows):
        return None
    counts = rows.cpu().numpy().astype(np.float64)
    counts = counts[in_order(counts)]
    found = [statistic(torch.from_numpy(times @ counts)) for times in resamples(len(counts), seed)]
    low, high = (
        torch.cat(found).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    )
    return low, high


def interval_of(headline: str, rows: Tensor, images: PerImage) -> dict[str, Any]:
    """The result of `interval` for a metric, by its name; see `bounds_or_reason`.

    Args:
        headline: the metric.
        rows: of all images of all processes.
        images: how they were counted.
    """
    share = None
    if images.is_share and len(rows):
        share = int(rows[:, 1].sum()), int(rows[:, 0].sum())
    return bounds_or_reason(f"{headline}_95", interval(rows, images.statistic), share)
