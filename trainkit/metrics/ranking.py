"""Average precision and thresholds of ranked scores, exact; without torch, for reports of runs."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainkit.metrics.resampling import in_order, resamples

MOST_PAIRS = 1 << 26  # images times classes, of which an interval is computed


@dataclass(frozen=True)
class ClassRanking:
    """The images of one class by falling score, those whose target is known.

    Attributes:
        order: their indices.
        present: whether each is of the class, in this order.
        ends: the last place of each distinct score.
    """

    order: np.ndarray
    present: np.ndarray
    ends: np.ndarray

    @property
    def num_present(self) -> int:
        """Images of the class."""
        return int(self.present.sum())

    def average_precision(self) -> float | None:
        """Sum over distinct scores of (rise of the recall) x precision; None without a positive.

        The same as scikit-learn's `average_precision_score`: equal scores are one step, and nothing
        is interpolated.
        """
        total = self.num_present
        if not total:
            return None
        hits = self.present.cumsum()[self.ends]
        precision = hits / (self.ends + 1)
        return float((np.diff(hits, prepend=0) * precision).sum() / total)

    def average_precisions(self, times: np.ndarray) -> np.ndarray:
        """The same of resamples of the images; NaN where one has no positive.

        Args:
            times: how often each image is drawn (B, N).

        Returns:
            float64 (B,).
        """
        hits = self.present.cumsum()[self.ends]
        cuts = self.ends[np.diff(hits, prepend=0) > 0]  # where recall rises
        if not len(cuts):
            return np.full(len(times), np.nan)
        begins = np.concatenate([[0], cuts[:-1] + 1])
        upto = self.order[: cuts[-1] + 1]
        drawn = np.add.reduceat(times[:, upto], begins, axis=1).cumsum(1)
        places = np.flatnonzero(self.present)
        firsts = np.searchsorted(places, begins)
        rises = np.add.reduceat(times[:, self.order[places]], firsts, axis=1)
        precision = rises.cumsum(1) / np.maximum(drawn, 1)
        total = rises.sum(1)
        found = (rises * precision).sum(1) / np.maximum(total, 1)
        return np.where(total > 0, found, np.nan)


def ranking(scores: np.ndarray, targets: np.ndarray) -> ClassRanking:
    """Rank the images of one class: scores (N,), targets (N,), those below 0 left out."""
    known = np.flatnonzero(targets >= 0)
    order = known[np.argsort(-scores[known], kind="stable")]
    falling = scores[order]
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True)) if len(order) else order
    return ClassRanking(order, targets[order] > 0, ends)


def average_precisions(scores: np.ndarray, targets: np.ndarray) -> list[float | None]:
    """The average precision of each class.

    Args:
        scores: (N, C), of which the order alone matters.
        targets: (N, C), above 0 where an image is of the class, below 0 where that is not known.

    Returns:
        One per class; None where it has no positive, NaN where a score is none.
    """
    found: list[float | None] = []
    for of_class, wanted in zip(scores.T, targets.T):
        if np.isnan(of_class[wanted >= 0]).any():
            found.append(float("nan"))
        else:
            found.append(ranking(of_class, wanted).average_precision())
    return found


def best_thresholds(
    probabilities: np.ndarray, targets: np.ndarray
) -> tuple[list[float | None], list[float | None]]:
    """The threshold of each class with the highest F1, and that F1.

    Images whose probability is above the threshold are called of the class. It lies halfway
    between two probabilities; of several with one F1 it is the highest.

    Args:
        probabilities: (N, C) in [0, 1].
        targets: as of `average_precisions`.

    Returns:
        One per class; None where it has no positive, or a probability is NaN.
    """
    thresholds: list[float | None] = []
    scores: list[float | None] = []
    for of_class, wanted in zip(probabilities.T, targets.T):
        ranked = ranking(of_class, wanted)
        if not ranked.num_present or np.isnan(of_class[wanted >= 0]).any():
            thresholds.append(None)
            scores.append(None)
            continue
        called = ranked.ends + 1
        f1 = 2 * ranked.present.cumsum()[ranked.ends] / (called + ranked.num_present)
        best = int(f1.argmax())
        levels = np.append(of_class[ranked.order[ranked.ends]].astype(np.float64), 0.0)
        thresholds.append(float(levels[best] + levels[best + 1]) / 2)
        scores.append(float(f1[best]))
    return thresholds, scores


def mean_interval(
    scores: np.ndarray, targets: np.ndarray, seed: int = 0
) -> tuple[float, float] | None:
    """95 % bootstrap interval of the mean average precision, over 1000 resamples of the images.

    The images are sorted first, as in `trainkit.metrics.bootstrap.interval`. In each resample the
    mean is over the classes that have a positive in it.

    Args:
        scores: as of `average_precisions`.
        targets: likewise.
        seed: of the resamples.

    Returns:
        Lower and upper bound; None for no positive, for NaN, and for more than 2^26 pairs.
    """
    if not scores.size or scores.size > MOST_PAIRS or np.isnan(scores).any():
        return None
    order = in_order(np.concatenate([scores, targets], 1))
    scores, targets = scores[order], targets[order]
    ranked = [ranking(scores[:, each], targets[:, each]) for each in range(scores.shape[1])]
    ranked = [each for each in ranked if each.num_present]
    if not ranked:
        return None
    found = np.concatenate(list(_means(ranked, len(scores), seed)))
    low, high = np.nanquantile(found, (0.025, 0.975))
    return float(low), float(high)


def _means(ranked: list[ClassRanking], num_images: int, seed: int) -> Iterator[np.ndarray]:
    """The mean over classes of each resample, 50 at a time."""
    for times in resamples(num_images, seed):
        drawn = times.astype(np.int32)
        sums, known = np.zeros(len(drawn)), np.zeros(len(drawn))
        for each in ranked:
            values = each.average_precisions(drawn)
            there = ~np.isnan(values)
            sums[there] += values[there]
            known += there
        with np.errstate(invalid="ignore"):  # a resample without any positive
            yield sums / known
