"""Metrics of recognition: top-k accuracy and calibration error."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainkit.errors import UserError
from trainkit.metrics.base import Counting, PerImage
from trainkit.metrics.class_details import details_of_classes

# confidences are summed as whole numbers of 1 / UNIT, so that no order of images or processes
# changes it
UNIT = 2**30


class TopK(Counting):
    """Fraction of images whose class is among the k most probable: {"top1": ..., "top5": ...}.

    Predictions are scores (N, C) as floats, class ids ranked by probability (N, K) with K >=
    max(ks), or class ids (N,), which give the top 1 alone. References are class ids (N,); negative
    ones are not counted.

    Args:
        ks: the values of k, in rising order.
        classes: how many, or their names, for the accuracy and confusion of each class.
    """

    name = "topk"
    per_class = ("accuracy",)
    higher_is_better = True

    def __init__(self, ks: Sequence[int] = (1, 5), classes: int | Sequence[str] | None = None):
        if not ks or min(ks) < 1:
            raise UserError(f"TopK: ks is {tuple(ks)}; give whole numbers from 1")
        self.ks, self.classes = tuple(ks), classes
        self.percent = (*(f"top{k}" for k in self.ks), "accuracy")
        self.num_classes = len(classes) if isinstance(classes, Sequence) else classes or 0
        # images, hits of each k, images of each class
        self.counts = torch.zeros(1 + len(self.ks) + self.num_classes, dtype=torch.int64)

    def _count(self, predictions: Tensor, references: Tensor) -> Tensor:
        valid, hits = self._hits(predictions, references)
        # the last: of none
        of_class = torch.zeros(self.num_classes + 1, dtype=torch.int64, device=valid.device)
        known = valid & (references < self.num_classes)
        of_class.scatter_add_(
            0, torch.where(known, references, self.num_classes).long(), valid.long()
        )
        return torch.cat(
            [torch.stack([valid.sum(), *(hits[:, :k].sum() for k in self.ks)]), of_class[:-1]]
        )

    def class_counts(self) -> Tensor:
        """Images of each class counted so far: int64 (C,)."""
        return self.counts[1 + len(self.ks) :]

    def _hits(self, predictions: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each image counts (N,), and which of its ranked classes is its own (N, K)."""
        if references.ndim != 1 or references.is_floating_point():
            raise UserError(
                f"TopK: references are {references.dtype} of shape {tuple(references.shape)}; give"
                " one class id for each image"
            )
        ranked = self._ranked(predictions)
        if self._ranks(ranked.shape[1]) == 0:
            raise UserError(
                f"TopK: ks is {self.ks}, but the predictions rank {ranked.shape[1]} classes"
            )
        valid = references >= 0
        return valid, (ranked == references[:, None]) & valid[:, None]

    def _ranked(self, predictions: Tensor) -> Tensor:
        """Class ids, the most probable first: (N, K)."""
        if predictions.is_floating_point():
            return predictions.topk(min(max(self.ks), predictions.shape[1]), dim=1).indices
        return predictions if predictions.ndim > 1 else predictions[:, None]

    def per_image(self, name: str) -> PerImage:
        """Counts of each image for the metric `name`, with a statistic where it is this one's."""
        of_name = {f"top{k}": k for k in self.ks}
        k = of_name.get(name, 1)

        def count(predictions: Tensor, references: Tensor) -> Tensor:
            valid, hits = self._hits(predictions, references)
            called = self._ranked(predictions)[:, 0]
            return torch.stack([valid, hits[:, :k].any(1), references, called], 1).long()  # (N, 4)

        def share(sums: Tensor) -> Tensor:
            return sums[:, 1] / sums[:, 0].clamp(min=1)

        statistic = share if name in of_name else None
        return PerImage(count, statistic, self._details, is_share=name in of_name)

    def _details(self, rows: Tensor) -> dict:
        """Accuracy of each class, None where it does not occur, and the confusion matrix."""
        if self.classes is None:
            return {}
        names = None if isinstance(self.classes, int) else self.classes
        num_classes = self.classes if isinstance(self.classes, int) else len(self.classes)
        cells = rows[rows[:, 0] > 0, 2:] @ torch.tensor([num_classes, 1])
        pairs, counts = cells.unique(return_counts=True)
        return details_of_classes(pairs, counts, num_classes, names)

    def _ranks(self, num_ranked: int) -> int:
        return sum(k <= num_ranked for k in self.ks)

    def _results(self) -> dict:
        num_images, *hits = self.counts[: 1 + len(self.ks)].tolist()
        return {
            f"top{k}": hit / num_images if num_images else None for k, hit in zip(self.ks, hits)
        }


class MacroAverages(Counting):
    """Means over classes: {"macro_precision": ..., "macro_recall": ..., "macro_f1": ...}.

    Of each class the precision, the recall and their harmonic mean (F1), 0 where it has no
    prediction, or no image; the means are over classes that occur among predictions or references.
    Predictions are scores (N, C) as floats, class ids ranked by probability (N, K), or class ids
    (N,). References are class ids (N,); negative ones are not counted.

    Args:
        num_classes: how many classes there are.
        ranked: how many classes are ranked, of which the first is taken: the largest k of `TopK`,
            which settles ties alike.
    """

    name = "macro_averages"
    percent = ("macro_precision", "macro_recall", "macro_f1")
    higher_is_better = True

    def __init__(self, num_classes: int, ranked: int = 1):
        self.num_classes, self.ranked = num_classes, ranked
        # of each class: images, predictions, hits
        self.counts = torch.zeros(3 * num_classes, dtype=torch.int64)

    def _count(self, predictions: Tensor, references: Tensor) -> Tensor:
        called = predictions
        if predictions.is_floating_point():
            called = predictions.topk(min(self.ranked, predictions.shape[1]), dim=1).indices
        called = called[:, 0] if called.ndim > 1 else called
        valid = references >= 0
        known = valid & (references < self.num_classes)
        counts = torch.zeros(3, self.num_classes + 1, dtype=torch.int64, device=valid.device)
        nowhere = self.num_classes  # the last column
        places = torch.stack(
            [
                torch.where(known, references, nowhere),
                torch.where(valid, called, nowhere),
                torch.where(valid & (called == references), called, nowhere),
            ]
        ).long()
        counts.scatter_add_(1, places, torch.ones_like(places))
        return counts[:, :-1].flatten()

    def _results(self) -> dict:
        images, called, hits = self.counts.view(3, -1).double()
        occurs = (images > 0) | (called > 0)
        if not occurs.any():
            return dict.fromkeys(self.percent)
        of_class = (
            hits / called.clamp(min=1),
            hits / images.clamp(min=1),
            2 * hits / (images + called).clamp(min=1),
        )
        return {name: each[occurs].mean().item() for name, each in zip(self.percent, of_class)}


class ListedTop1(Counting):
    """Fraction of images whose most probable class is one of several right ones: {"top1": ...}.

    Predictions are scores (N, C). References are rows (N, C), above 0 for each right class; images
    without one are not counted.

    Source:
        Beyer et al., 2020, Are we done with ImageNet?
    """

    name = "listed_top1"
    percent = ("top1",)
    higher_is_better = True

    def __init__(self) -> None:
        self.counts = torch.zeros(2, dtype=torch.int64)  # images, hits

    def _rows(self, predictions: Tensor, references: Tensor) -> Tensor:
        """Whether each image counts, and is a hit: int64 (N, 2)."""
        right = references > 0
        called = predictions.topk(1, dim=1).indices
        return torch.stack([right.any(1), right.gather(1, called)[:, 0]], 1).long()

    def _count(self, predictions: Tensor, references: Tensor) -> Tensor:
        return self._rows(predictions, references).sum(0)

    def per_image(self, name: str) -> PerImage:
        """Counts of each image, with a statistic where `name` is this metric."""

        def share(sums: Tensor) -> Tensor:
            return sums[:, 1] / sums[:, 0].clamp(min=1)

        is_own = name == "top1"
        return PerImage(self._rows, share if is_own else None, is_share=is_own)

    def _results(self) -> dict:
        images, hits = self.counts.tolist()
        return {"top1": hits / images if images else None}


class CalibrationError(Counting):
    """Expected calibration error: {"calibration_error": ...}, in [0, 1].

    The probability of the top-1 class falls into one of `bins` intervals of equal width, open
    below: sum over them of |correct images - sum of probabilities| / number of images. Each
    probability is rounded to 1e-9. Predictions are logits, or logarithms of probabilities (N, C),
    whose softmax is what is measured. References are class ids (N,); negative ones are not counted.

    Args:
        bins: number of intervals.

    Source:
        Guo et al., 2017, On Calibration of Modern Neural Networks.
    """

    name = "calibration_error"
    percent = ("calibration_error",)
    higher_is_better = False

    def __init__(self, bins: int = 15):
        if bins < 1:
            raise UserError(
                f"CalibrationError: bins is {bins}; it must be at least 1 (15 in the paper)"
            )
        self.bins = bins
        # of each bin: images, images right, confidence
        self.counts = torch.zeros(3 * bins, dtype=torch.int64)

    def _count(self, predictions: Tensor, references: Tensor) -> Tensor:
        confidence, called = predictions.float().softmax(1).max(1)  # (N,)
        valid = (references >= 0).long()
        edges = torch.linspace(0, 1, self.bins + 1, device=confidence.device)[1:-1]
        # bin i has edges[i - 1] < confidence <= edges[i]
        place = torch.bucketize(confidence, edges)
        whole = (confidence * UNIT).round().long()
        rows = torch.stack([valid, valid * (called == references), valid * whole])  # (3, N)
        counts = torch.zeros(3, self.bins, dtype=torch.int64, device=rows.device)
        return counts.index_add_(1, place, rows).flatten()

    def _results(self) -> dict:
        images, right, confidence = self.counts.view(3, -1).double()
        gap = (right - confidence / UNIT).abs().sum() / images.sum()
        return {"calibration_error": gap.item() if images.any() else None}
