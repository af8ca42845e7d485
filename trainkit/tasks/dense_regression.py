"""Dense regression: a number for each pixel, such as depth or height."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trainkit.data.targets import as_target
from trainkit.errors import UserError
from trainkit.losses.base import Criterion, side_by_side, weighted
from trainkit.losses.dense_regression import L1, MapLoss
from trainkit.losses.functional import check_num_outputs
from trainkit.metrics.dense_regression import (
    REGIONS,
    MapErrors,
    Region,
    scaled_by_median,
    within_region,
)
from trainkit.metrics.named import ValueMetric, value_metrics
from trainkit.models.outputs import main_logits, resized, resized_to_targets
from trainkit.tasks.of_losses import TaskOfLosses

LARGEST_LOG = 20.0  # e^20 is 5e8, of any unit


@dataclass(frozen=True)
class DenseRegression(TaskOfLosses):
    """A number for each pixel; RMSE, MAE, AbsRel, and the shares within factors of 1.25.

    Outputs of the model: one map (N, 1, h, w), resized to the targets. Targets: float (N, H, W),
    NaN (or infinite) where nothing is known, which counts nowhere. Windows, flips and scales are
    averaged as values.

    Args:
        loss: one of trainkit.losses.dense_regression, or several.
        output: "linear": the output is the value; "log": it is the value's logarithm, so that all
            values are positive.
        limits: least and largest value: targets beyond count nowhere, and predictions are moved to
            the nearer one where they are measured and written; None: none.
        scale: value of one step of 16-bit PNG, in which predictions are then written; None: they
            are written as .npy.
        extra_metrics: of one's own, `trainkit.metrics.base.Counting`, given values (N, H, W), or
            names, such as torchmetrics:R2Score: see `trainkit.metrics.named.ValueMetric`.
        eval_region: part of a map that metrics are of, by a published protocol, see
            `trainkit.metrics.dense_regression.region_of`; None: all of it. The loss is of all.
        median_scaling: metrics are of predictions times median(target) / median(prediction) of each
            image, for depth whose scale is not known; the limits are applied after that.

    Raises:
        UserError: the losses cannot be used, or a value is out of range.
    """

    loss: Criterion | Sequence[Criterion] = L1()
    output: Literal["linear", "log"] = "linear"
    limits: tuple[float, float] | None = None
    scale: float | None = None
    extra_metrics: Sequence[Any] = ()
    eval_region: Region | None = None
    median_scaling: bool = False

    headline = "rmse"
    higher_is_better = False

    def __post_init__(self) -> None:
        if self.output not in ("linear", "log"):
            raise UserError(f"output is {self.output!r}; it is linear or log")
        if self.limits is not None and (
            len(self.limits) != 2 or not self.limits[0] < self.limits[1]
        ):
            raise UserError(f"limits are {self.limits}; give the least and the largest value")
        if self.scale is not None and not self.scale > 0:
            raise UserError(f"scale is {self.scale}; it must be above 0, such as 0.001")
        if self.eval_region is not None and self.eval_region not in REGIONS:
            raise UserError(
                f"eval_region is {self.eval_region!r}; it is one of {', '.join(REGIONS)}, or None"
            )
        if self.output == "linear" and any(each.name == "silog" for each in self._criteria):
            raise UserError(
                "the loss is silog, of logarithms of positive values, and output linear, which may"
                " be negative: give output log"
            )

    @property
    def _num_outputs(self) -> int:
        return 1

    def check(self, target: Any) -> str | None:
        """Say what is wrong with the map of one image; None if nothing."""
        target = as_target(target)
        if not isinstance(target, Tensor) or not target.is_floating_point() or target.ndim != 2:
            kind = (
                f"{target.dtype} of shape {tuple(target.shape)}"
                if isinstance(target, Tensor)
                else repr(target)
            )
            return f"target is {kind}; it is floats (H, W), NaN where nothing is known"
        return None

    def _known(self, targets: Tensor) -> Tensor:
        """The targets, NaN where they are beyond the limits."""
        targets = targets.float()
        if self.limits is None:
            return targets
        low, high = self.limits
        return torch.where((targets >= low) & (targets <= high), targets, torch.nan)

    def _values(self, maps: Tensor) -> Tensor:
        """What outputs (N, 1, H, W) say, float32."""
        maps = maps.float()
        return maps if self.output == "linear" else maps.clamp(-LARGEST_LOG, LARGEST_LOG).exp()

    def _limited(self, values: Tensor) -> Tensor:
        # scaled first, the metrics limit them
        limits = None if self.median_scaling else self.limits
        return values if limits is None else values.clamp(*limits)

    def _map(self, outputs: Any) -> Tensor:
        logits = main_logits(outputs)
        check_num_outputs(logits, 1, type(self).__name__)
        return logits

    def counts(self, targets: Tensor) -> Tensor:
        """Count what each loss divides by, valid pixels of most: (K,)."""
        known = self._known(targets)
        return side_by_side([each.count(known, 0, 1) for each in self._criteria])

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        """Sum each term, weighted: float32 (K,)."""
        values = self._values(resized_to_targets(self._map(outputs), targets))[:, 0]
        known = self._known(targets)
        return side_by_side([weighted(each, each(values, known, 0)) for each in self._criteria])

    def predict(self, outputs: Any, targets: Tensor) -> Tensor:
        """Values (N, H, W) at the targets' size, within the limits."""
        values = self._values(resized(self._map(outputs), targets.shape[-2:]))
        return self.from_scores(values)

    def evaluated(self, outputs: Any, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task`; each image has its own sums."""
        kind = type(self)
        if kind.predict is not DenseRegression.predict or kind.losses is not DenseRegression.losses:
            return super().evaluated(outputs, targets)
        values = self._values(resized(self._map(outputs), targets.shape[-2:]))
        return self.from_scores(values), self.score_losses(values, targets)

    def scores(self, outputs: Any, images: Tensor) -> Tensor:
        """Values (N, 1, H, W), float32, at the size of the images, as windows need them."""
        return self._values(resized(self._map(outputs), images.shape[-2:]))

    def score_losses(self, scores: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """See `Task`: the losses of the averaged values."""
        if not all(isinstance(each, MapLoss) for each in self._criteria):
            return {}
        known = self._known(targets)
        return {
            each.name: weighted(each, each.of_images(scores[:, 0], known))
            for each in self._criteria
            if isinstance(each, MapLoss)
        }

    def from_scores(self, scores: Tensor) -> Tensor:
        """Values (N, H, W), within the limits."""
        return self._limited(scores[:, 0])

    def labels(self, predictions: Tensor) -> Tensor:
        """The values."""
        return predictions

    def metrics(self) -> list:
        """Make the errors of values, then the recipe's own."""
        own = value_metrics(self.extra_metrics, self.limits)
        return [_OfKnown(self), *(_prepared(self, each) for each in own)]

    def measured(self, predictions: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
        """Values and targets (N, H, W) as metrics compare them, NaN where nothing is measured."""
        known = within_region(self._known(references), self.eval_region)
        if self.median_scaling:
            predictions = scaled_by_median(predictions, known)
            predictions = predictions if self.limits is None else predictions.clamp(*self.limits)
        return predictions, known


class _OfKnown(MapErrors):
    """`MapErrors` of the targets within a task's limits."""

    def __init__(self, task: DenseRegression):
        super().__init__(task.headline)
        self._task = task

    def _kept(self, predictions: Tensor, references: Tensor) -> tuple[Tensor, ...]:
        return super()._kept(*self._task.measured(predictions, references))


def _prepared(task: DenseRegression, metric: Any) -> Any:
    """A named metric of what the task measures; others are given values and targets as they are."""
    if isinstance(metric, ValueMetric):
        metric.prepare = task.measured
    return metric
