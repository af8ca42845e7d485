"""Errors of a number for each pixel: RMSE, relative ones, and the shares within a factor."""

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from trainkit.errors import UserError
from trainkit.metrics.base import Gathered
from trainkit.metrics.bootstrap import interval
from trainkit.metrics.resampling import bounds_or_reason

FACTOR = 1.25  # of delta1; its square and cube of delta2 and delta3


Region = Literal["nyu_eigen", "kitti_eigen", "kitti_garg"]
REGIONS: tuple[Region, ...] = ("nyu_eigen", "kitti_eigen", "kitti_garg")
NYU_SIZE = 480, 640  # height and width of its maps
# top, bottom, left and right, as shares of height and width, cut to whole pixels
_SHARES = {
    "kitti_eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
    "kitti_garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
}


def region_of(name: Region, height: int, width: int) -> tuple[slice, slice]:
    """The rows and columns of a map that a published protocol measures.

    Args:
        name: nyu_eigen: rows 45 to 470 and columns 41 to 600 of NYU Depth v2's 480 x 640 pixels;
            kitti_eigen, kitti_garg: of KITTI's images of any size.
        height: of the map.
        width: of the map.

    Raises:
        UserError: the map is of another size than NYU Depth v2's.

    Source:
        Eigen et al., 2014; Garg et al., 2016; numbers as in the evaluation code of BTS (Lee et al.,
        2019) and Monodepth2 (Godard et al., 2019).
    """
    if name == "nyu_eigen":
        if (height, width) != NYU_SIZE:
            raise UserError(
                f"eval_region is nyu_eigen, of maps of {NYU_SIZE[1]}x{NYU_SIZE[0]} pixels, and one"
                f" is {width}x{height}: give NYU Depth v2 at its own size, or leave eval_region out"
            )
        return slice(45, 471), slice(41, 601)
    top, bottom, left, right = _SHARES[name]
    return slice(int(top * height), int(bottom * height)), slice(
        int(left * width), int(right * width)
    )


def within_region(maps: Tensor, name: Region | None) -> Tensor:
    """Maps (N, H, W), NaN outside of the region; None: as they are."""
    if name is None:
        return maps
    rows, columns = region_of(name, *maps.shape[-2:])
    kept = torch.full_like(maps, torch.nan)
    kept[..., rows, columns] = maps[..., rows, columns]
    return kept


def scaled_by_median(predictions: Tensor, references: Tensor) -> Tensor:
    """Predictions (N, H, W), each map times median(reference) / median(prediction).

    The medians are of the valid pixels of the map, of an even number the mean of the two in the
    middle. A map without one, or whose median is not above 0, stays as it is.

    Source:
        Zhou et al., 2017, Unsupervised Learning of Depth and Ego-Motion from Video.
    """
    scaled = []
    for found, wanted in zip(predictions.double(), references.double()):
        valid = wanted.isfinite()
        own, theirs = _median(found[valid]), _median(wanted[valid])
        usable = own > 0  # not of NaN
        scaled.append(found * torch.where(usable, theirs / own, 1.0))
    return torch.stack(scaled) if scaled else predictions.double()


def _median(values: Tensor) -> Tensor:
    """The median of values (n,), NaN of none."""
    if not len(values):
        return values.new_tensor(torch.nan)
    ordered = values.sort().values
    return (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2


class MapErrors(Gathered):
    """Errors of values by Eigen et al., over all valid pixels of the split.

    "rmse" and "mae" are in the unit of the targets. Of pixels with a target t above 0, None where
    there is none: "abs_rel" and "sq_rel" are the means of |p - t| / t and (p - t)² / t, "rmse_log"
    is the root of the mean of (ln p - ln t)², "log10" the mean of |log10 p - log10 t|, "delta1" the
    share whose p and t differ by a factor below 1.25 (its square, its cube). Where a prediction p
    is not above 0, or NaN, its logarithm is none, and "rmse_log" and "log10" are None. Predictions
    (N, H, W), references likewise, NaN where nothing is known. Sums of each image, in float64, are
    kept; their sum is exact, whatever the order of images and processes.

    Args:
        headline: of which `details` gives the interval.

    Source:
        Eigen et al., 2014, whose means are over all pixels of the test images; log10 as in Saxena
        et al., 2009, Make3D.
    """

    name = "map_errors"
    percent = ("delta1", "delta2", "delta3", "abs_rel")
    higher_is_better = ("delta1", "delta2", "delta3")

    def __init__(self, headline: str = "rmse"):
        super().__init__()
        self.headline = headline

    def _kept(self, predictions: Tensor, references: Tensor) -> tuple[Tensor, ...]:
        if predictions.shape != references.shape or predictions.ndim != 3:
            raise UserError(
                f"MapErrors: predictions are {tuple(predictions.shape)} and references"
                f" {tuple(references.shape)}; both must be (N, H, W)"
            )
        found, wanted = predictions.double().flatten(1), references.double().flatten(1)
        valid = wanted.isfinite()
        positive = valid & (wanted > 0)
        error = torch.where(valid, found - wanted, 0)
        safe = torch.where(positive, wanted, 1)
        guess = torch.where(positive, found, 1)
        # a prediction that is not above 0 is within no factor
        ratio = torch.where(guess > 0, torch.maximum(guess / safe, safe / guess), torch.inf)
        columns = [valid, error.abs(), error.square(), positive, error.abs() / safe * positive]
        columns += [positive & (ratio < FACTOR**power) for power in (1, 2, 3)]
        log = torch.where(guess > 0, guess / safe, 1).log()  # 0 where it is not counted
        columns += [error.square() / safe * positive, log.square(), log.abs() / math.log(10)]
        columns.append(positive & ~(guess > 0))  # not of NaN
        return (torch.stack([each.double().sum(1) for each in columns], 1),)  # (N, WIDTH)

    def _rows(self) -> np.ndarray:
        kept = self.all_kept()
        return np.zeros((0, WIDTH)) if kept is None else kept[0]

    def _results(self) -> dict:
        sums = np.array([math.fsum(column) for column in self._rows().T])
        return {name: _value(name, sums) for name in _PLACES}

    def details(self) -> dict:
        """The 95 % interval of the headline metric, by the bootstrap over images."""
        rows = self._rows()
        if self.headline not in _PLACES or _has_no_logarithm(self.headline, rows.sum(0)):
            return {}

        def statistic(sums: Tensor) -> Tensor:
            above, below = _PLACES[self.headline]
            found = sums[:, above] / sums[:, below].clamp(min=1)
            return found.sqrt() if self.headline in ROOTS else found

        return bounds_or_reason(f"{self.headline}_95", interval(torch.from_numpy(rows), statistic))


# the columns of sums whose quotient is a result
_PLACES = {
    "rmse": (2, 0), "mae": (1, 0), "abs_rel": (4, 3), "delta1": (5, 3), "delta2": (6, 3),
    "delta3": (7, 3), "sq_rel": (8, 3), "rmse_log": (9, 3), "log10": (10, 3),
}  # fmt: skip
WIDTH = 12  # columns
ROOTS = ("rmse", "rmse_log")
NO_LOGARITHM = 11  # of the pixels whose prediction is not above 0


def _value(name: str, sums: np.ndarray) -> Any:
    above, below = _PLACES[name]
    if not sums[below] or _has_no_logarithm(name, sums):
        return None
    found = float(sums[above] / sums[below])
    return math.sqrt(found) if name in ROOTS else found


def _has_no_logarithm(name: str, sums: np.ndarray) -> bool:
    return name in ("rmse_log", "log10") and bool(sums[NO_LOGARITHM])
