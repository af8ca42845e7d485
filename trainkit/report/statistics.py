"""Numbers of a report that the run's folder does not hold: intervals, calibration, differences."""

from typing import NamedTuple

import numpy as np

from trainkit.metrics.resampling import bounds_or_reason, in_order, resamples
from trainkit.report.evaluation_data import EvaluationData, counts_of_headline

BINS = 15  # of the calibration error, as in trainkit.metrics.recognition.CalibrationError


class Bin(NamedTuple):
    """Images whose probability of the predicted class lies between two bounds."""

    low: float
    high: float
    num_images: int
    confidence: float
    """mean probability"""
    accuracy: float
    """share of images that are right"""


class Difference(NamedTuple):
    """A metric of one run less that of another, on the same images."""

    value: float
    low: float
    high: float

    @property
    def within_noise(self) -> bool:
        """Whether the 95 % interval holds 0."""
        return self.low <= 0 <= self.high


def headline_interval(data: EvaluationData, headline: str) -> tuple[float, float] | None:
    """95 % bootstrap interval of the headline metric over the images, as `trainkit evaluate` has.

    Returns:
        None where there are no images, the metric does not follow from what is kept of each, or all
        have the same score.
    """
    found = counts_of_headline(data, headline)
    if found is None or not len(found[0]):
        return None
    counts, statistic = found
    counts = counts[in_order(counts)]
    values = np.concatenate([statistic(times @ counts) for times in resamples(len(counts))])
    low, high = np.quantile(values, [0.025, 0.975]).tolist()
    share = None
    if data.task == "recognition":
        share = int(counts[:, 1].sum()), int(counts[:, 0].sum())
    return bounds_or_reason(headline, (low, high), share).get(headline)


def headline_value(data: EvaluationData, headline: str) -> float | None:
    """The headline metric itself, from what is kept of each image; None as for its interval."""
    found = counts_of_headline(data, headline)
    if found is None or not len(found[0]):
        return None
    counts, statistic = found
    return float(statistic(counts.sum(0)[None])[0])


def different_images(one: EvaluationData, other: EvaluationData) -> str | None:
    """Why two evaluations are not of the same images in the same order; None where they are."""
    if one.num_images != other.num_images:
        return f"{one.num_images:,} images against {other.num_images:,}"
    for name, what in (
        ("ids", "ids of the images"),
        ("names", "names of the images"),
        ("target", "true classes"),
        ("true_pixels", "pixels of the true classes"),
    ):
        mine, theirs = one.arrays.get(name), other.arrays.get(name)
        if mine is None or theirs is None:
            if (mine is None) != (theirs is None) and name != "names":
                return f"only one of them has the {what}"
            continue
        if not np.array_equal(mine, theirs):
            return f"the {what} differ"
    return None


def paired_difference(
    one: EvaluationData, other: EvaluationData, headline: str
) -> Difference | None:
    """Headline metric of `other` less that of `one`, with a paired bootstrap over the images.

    Each resample takes the same images of both, so that what makes an image hard is not noise.

    Returns:
        None where the metric does not follow from what is kept of each image.

    Raises:
        ImagesDiffer: they were not measured on the same images.
    """
    why = different_images(one, other)
    if why is not None:
        raise ImagesDiffer(why)
    found = [counts_of_headline(each, headline) for each in (one, other)]
    if found[0] is None or found[1] is None or not len(found[0][0]):
        return None
    (mine, statistic), (theirs, _) = found[0], found[1]
    together = np.concatenate([mine, theirs], axis=1)
    together = together[in_order(together)]
    differences = []
    for times in resamples(len(together)):
        sums_of_one, sums_of_other = np.split(times @ together, [mine.shape[1]], axis=1)
        differences.append(statistic(sums_of_other) - statistic(sums_of_one))
    low, high = np.quantile(np.concatenate(differences), [0.025, 0.975])
    value = statistic(theirs.sum(0)[None]) - statistic(mine.sum(0)[None])
    return Difference(float(value[0]), float(low), float(high))


class ImagesDiffer(Exception):
    """Two evaluations are not of the same images; the message says in what."""


def reliability(data: EvaluationData) -> tuple[list[Bin], float] | None:
    """Bins of a reliability diagram, and the expected calibration error (ECE) in [0, 1].

    As `trainkit.metrics.recognition.CalibrationError`: 15 bins of equal width, open below.

    Returns:
        Bins that hold images; None where no probabilities are kept, or there is no image.

    Source:
        Guo et al., 2017, On Calibration of Modern Neural Networks.
    """
    arrays = data.arrays
    if not {"target", "predicted", "probability"} <= arrays.keys():
        return None
    probability = arrays["probability"]
    valid = (arrays["target"] >= 0) & np.isfinite(probability)
    if not valid.any():
        return None
    confidence = probability[valid].astype(np.float64)
    right = (arrays["predicted"] == arrays["target"])[valid]
    edges = np.linspace(0, 1, BINS + 1, dtype=np.float32)
    place = np.searchsorted(edges[1:-1], probability[valid].astype(np.float32))
    counts = np.bincount(place, minlength=BINS)
    sums = np.bincount(place, weights=confidence, minlength=BINS)
    hits = np.bincount(place, weights=right, minlength=BINS)
    error = float(np.abs(hits - sums).sum() / counts.sum())
    bins = [
        Bin(
            float(edges[each]),
            float(edges[each + 1]),
            int(counts[each]),
            float(sums[each] / counts[each]),
            float(hits[each] / counts[each]),
        )
        for each in range(BINS)
        if counts[each]
    ]
    return bins, error
