"""Metrics of images with any number of classes: mean average precision and F1.

References are rows (N, C): above 0 where an image is of a class, 0 where it is not, below 0 where
that is not known, which counts nowhere.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainkit.errors import UserError
from trainkit.metrics.base import Counting, Gathered
from trainkit.metrics.ranking import average_precisions, best_thresholds, mean_interval
from trainkit.metrics.resampling import bounds_or_reason

Classes = int | Sequence[str]


class MultiLabelF1(Counting):
    """F1 at a probability of 0.5: {"micro_f1": ..., "macro_f1": ...}.

    Micro: of all pairs together. Macro: the mean over the classes that occur among predictions or
    references. Predictions are logits (N, C): a class is called where its logit is above 0.

    Args:
        num_classes: how many classes there are.
    """

    name = "multilabel_f1"
    percent = ("micro_f1", "macro_f1")
    higher_is_better = True

    def __init__(self, num_classes: int):
        self.num_classes = num_classes
        # of each class: images of it, images called it, both
        self.counts = torch.zeros(3 * num_classes, dtype=torch.int64)

    def _count(self, predictions: Tensor, references: Tensor) -> Tensor:
        _require_pairs(self, predictions, references)
        present = references > 0
        called = (predictions > 0) & (references >= 0)
        return torch.stack([present.sum(0), called.sum(0), (present & called).sum(0)]).flatten()

    def class_counts(self) -> Tensor:
        """Images of each class counted so far: int64 (C,)."""
        return self.counts[: self.num_classes]

    def _results(self) -> dict:
        images, called, hits = self.counts.view(3, -1).double()
        occurs = (images > 0) | (called > 0)
        if not occurs.any():
            return dict.fromkeys(self.percent)
        of_class = 2 * hits / (images + called).clamp(min=1)
        micro = 2 * hits.sum() / (images + called).sum()
        return {"micro_f1": micro.item(), "macro_f1": of_class[occurs].mean().item()}


class MultiLabelAveragePrecision(Gathered):
    """Mean average precision over the classes that have a positive: {"mAP": ...}.

    "AP" of each class is exact, from the scores of all images, with equal scores as one step (see
    `trainkit.metrics.ranking`). "num_classes" says how many have a positive. "thresholds" has the
    probability of each class above which its F1 is highest on these images, and
    "macro_f1_best" the mean of these F1; it is optimistic, as the thresholds were chosen on the
    same images. Predictions are logits (N, C).

    It keeps 5 bytes for each pair in every process, 40 MB for 100,000 images of 80 classes, and
    about three times as much while all processes' pairs are put together.

    Args:
        classes: how many, or their names.
    """

    name = "multilabel_average_precision"
    percent = ("mAP", "AP", "macro_f1_best")
    per_class = ("AP", "thresholds", "positives")
    higher_is_better = ("mAP", "macro_f1_best")

    def __init__(self, classes: Classes):
        self.classes = classes
        self.num_classes = classes if isinstance(classes, int) else len(classes)
        super().__init__()

    def _kept(self, predictions: Tensor, references: Tensor) -> tuple[Tensor, ...]:
        _require_pairs(self, predictions, references)
        known = (references > 0).to(torch.int8) - (references < 0).to(torch.int8)
        return predictions.float(), known

    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        found = self.all_kept()
        if found is None:
            empty = np.zeros((0, self.num_classes), dtype=np.float32)
            return empty, empty.astype(np.int8)
        logits, targets = found
        return logits, targets

    def _results(self) -> dict:
        logits, targets = self._pairs()
        of_class = average_precisions(logits, targets)
        # as predictions have them: what float32 does not tell apart, no threshold can
        probabilities = torch.from_numpy(logits).sigmoid().numpy()
        thresholds, f1 = best_thresholds(probabilities, targets)
        return {
            "mAP": _mean(of_class),
            "num_classes": sum(value is not None for value in of_class),
            "macro_f1_best": _mean(f1),
            "AP": self._by_name(of_class),
            "thresholds": self._by_name(thresholds),
        }

    def details(self) -> dict:
        """The interval "mAP_95", see `mean_interval`, and "positives", images of each class."""
        scores, targets = self._pairs()
        positives = (targets > 0).sum(0).tolist()
        bounds = bounds_or_reason("mAP_95", mean_interval(scores, targets))
        return {**bounds, "positives": self._by_name(positives)}

    def _by_name(self, values: Sequence[Any]) -> Any:
        return list(values) if isinstance(self.classes, int) else dict(zip(self.classes, values))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _require_pairs(metric: Any, predictions: Tensor, references: Tensor) -> None:
    if predictions.shape != references.shape or predictions.ndim != 2:
        raise UserError(
            f"{type(metric).__name__}: predictions are {tuple(predictions.shape)} and references"
            f" {tuple(references.shape)}; both must be (N, C), a number for each image and class"
        )
