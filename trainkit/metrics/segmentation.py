"""Metrics of segmentation: mean intersection over union and pixel accuracy."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from trainkit.errors import UserError
from trainkit.metrics.base import Counting, PerImage
from trainkit.metrics.class_details import details_of_classes
from trainkit.metrics.confusion import count_pairs

MEANS = ("mIoU", "pixAcc", "mAcc", "fwIoU")  # results that are one number


class MeanIoU(Counting):
    """Pixel accuracy and mean intersection over union, from one confusion matrix of a split.

    Predictions and references are class ids (N, H, W) or any equal shapes. References equal to
    `ignore` are not counted; any other id outside [0, num_classes) is an error.

    Results: "pixAcc"; "mIoU", the mean over classes that occur in prediction or reference; "IoU",
    one per class, None where it occurs in neither; "num_classes", how many the mean counted;
    "mAcc", the mean recall over classes of the references; "fwIoU", IoU weighted by the classes'
    pixels.

    Args:
        num_classes: how many classes there are.
        ignore: the reference that is not counted.
        absent: "skip", or "zero": a class that occurs nowhere scores 0 and is counted, as in the
            official ADE20K script and PyTorch-Encoding; on a full split there is no difference.
        class_names: names for "IoU" and the details.
        derived: further results from the confusion matrix (C, C), a row for each reference; what
            they have as `percent`, `per_class` and `higher_is_better` counts as this metric's.

    Raises:
        UserError: `absent` is another word, there is not one name for each class, or, by `compute`,
            an id outside the classes was counted.
    """

    name = "mean_iou"
    percent = ("mIoU", "pixAcc", "mAcc", "fwIoU", "IoU", "accuracy")
    per_class = ("IoU", "accuracy")
    higher_is_better = ("mIoU", "pixAcc", "mAcc", "fwIoU")

    def __init__(
        self,
        num_classes: int,
        ignore: int = 255,
        absent: str = "skip",
        class_names: Sequence[str] | None = None,
        derived: Sequence[Callable[[Tensor], dict[str, Any]]] = (),
    ):
        if absent not in ("skip", "zero"):
            raise UserError(f"MeanIoU: absent is {absent!r}; it is 'skip' or 'zero'")
        if class_names is not None and len(class_names) != num_classes:
            raise UserError(f"MeanIoU: {len(class_names)} class_names for {num_classes} classes")
        self.num_classes, self.ignore, self.absent = num_classes, ignore, absent
        self.class_names = list(class_names) if class_names is not None else None
        self.derived = tuple(derived)
        for stated in ("percent", "per_class", "higher_is_better"):
            further = [name for each in derived for name in getattr(each, stated, None) or ()]
            if further:
                setattr(self, stated, (*getattr(self, stated), *further))
        # as `count_pairs` says
        self.counts = torch.zeros((num_classes + 2) * (num_classes + 1), dtype=torch.int64)

    def _count(self, predictions: Tensor, references: Tensor) -> Tensor:
        if predictions.shape != references.shape:
            raise UserError(
                f"MeanIoU: predictions are {tuple(predictions.shape)} and references"
                f" {tuple(references.shape)}; bring the prediction to the size of the untouched"
                " mask"
            )
        return count_pairs(predictions, references, self.num_classes, self.ignore).flatten()

    def per_image(self, name: str) -> PerImage:
        """Counts of each image for the metric `name`, with a statistic where it is this one's."""

        def count(predictions: Tensor, references: Tensor) -> Tensor:
            rows = []
            for pair in zip(predictions, references):
                confusion = count_pairs(*pair, self.num_classes, self.ignore)[:-2, :-1]
                rows.append(torch.stack([confusion.diagonal(), confusion.sum(1), confusion.sum(0)]))
            return torch.stack(rows).flatten(1)  # (N, 3 C): true positives, ground truth, predicted

        def statistic(sums: Tensor) -> Tensor:
            hits, references, predictions = sums.view(len(sums), 3, -1).unbind(1)  # (B, C)
            present = references > 0
            if name == "pixAcc":
                return hits.sum(1) / references.sum(1).clamp(min=1)
            if name == "mAcc":
                accuracy = hits / references.clamp(min=1)
                return (accuracy * present).sum(1) / present.sum(1).clamp(min=1)
            union = references + predictions - hits
            iou = hits / union.clamp(min=1)
            if name == "fwIoU":
                return (iou * references).sum(1) / references.sum(1).clamp(min=1)
            counted = (
                union > 0 if self.absent == "skip" else torch.ones_like(union, dtype=torch.bool)
            )
            return (iou * counted).sum(1) / counted.sum(1).clamp(min=1)

        return PerImage(count, statistic if name in MEANS else None)

    def confusion(self) -> Tensor:
        """Pixels of each (reference, prediction) pair so far: int64 (C, C).

        Raises:
            UserError: an id outside the classes was counted.
        """
        cells = self.counts.view(self.num_classes + 2, self.num_classes + 1)
        stray_references, stray_predictions = int(cells[-1].sum()), int(cells[:-2, -1].sum())
        if stray_references or stray_predictions:
            raise UserError(
                f"MeanIoU: {stray_references} references and {stray_predictions} predictions are"
                f" outside 0..{self.num_classes - 1} (ignored: {self.ignore}); map the dataset's"
                " labels to these ids"
            )
        return cells[: self.num_classes, : self.num_classes]

    def class_counts(self) -> Tensor:
        """Pixels of each class of the references counted so far: int64 (C,)."""
        return self.counts.view(self.num_classes + 2, self.num_classes + 1)[: self.num_classes].sum(
            1
        )

    def _results(self) -> dict:
        confusion = self.confusion()
        intersection = confusion.diagonal().double()
        union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
        occurs = union > 0
        iou = intersection / union.clamp(min=1)
        counted = occurs if self.absent == "skip" else torch.ones_like(occurs)
        num_pixels = int(confusion.sum())
        per_class = [value if here else None for value, here in zip(iou.tolist(), counted.tolist())]
        of_class = confusion.sum(1)
        accuracy = intersection / of_class.clamp(min=1)
        derived = [each(confusion) for each in self.derived]
        return {
            "mIoU": iou[counted].mean().item() if counted.any() else None,
            "pixAcc": intersection.sum().item() / num_pixels if num_pixels else None,
            "mAcc": accuracy[of_class > 0].mean().item() if num_pixels else None,
            "fwIoU": (iou * of_class).sum().item() / num_pixels if num_pixels else None,
            "num_classes": int(counted.sum()),
            "IoU": dict(zip(self.class_names, per_class)) if self.class_names else per_class,
            **{name: value for results in derived for name, value in results.items()},
        }

    def details(self) -> dict:
        """Results too large for a row of the log: "accuracy" of each class and "confusion".

        Accuracy is None where a class does not occur. The confusion holds pixels: a row for each
        class of the references, a column for each class predicted; see `details_of_classes`.
        """
        counts = self.confusion().cpu().flatten()
        cells = counts.nonzero()[:, 0]
        return details_of_classes(cells, counts[cells], self.num_classes, self.class_names)


class DiceOfClasses:
    """The Dice score of each class and their mean, from the confusion matrix of a split.

    2 tp / (2 tp + fp + fn), which is the F1 score of a class's pixels over the whole split; not the
    mean over images.

    Args:
        absent: see `MeanIoU`, of classes that occur in neither prediction nor reference.
        class_names: names for "Dice".
    """

    name = "dice"
    percent = ("mDice", "Dice")
    per_class = ("Dice",)
    higher_is_better = ("mDice",)

    def __init__(self, absent: str = "skip", class_names: Sequence[str] | None = None):
        self.absent, self.class_names = absent, class_names

    def __call__(self, confusion: Tensor) -> dict[str, Any]:
        """Results from pixels of each (reference, prediction) pair: int64 (C, C)."""
        hits, sizes = confusion.diagonal(), confusion.sum(0) + confusion.sum(1)
        return mean_and_each("Dice", 2 * hits, sizes, self.absent == "zero", self.class_names)


def mean_and_each(
    name: str,
    numerator: Tensor,
    denominator: Tensor,
    counts_absent: bool,
    class_names: Sequence[str] | None,
) -> dict[str, Any]:
    """Ratios of the classes under `name`, None where it is 0 / 0, and their mean under "m" + it.

    Args:
        name: of the results.
        numerator: int64 (C,).
        denominator: int64 (C,).
        counts_absent: whether 0 / 0 counts as 0 instead.
        class_names: of the classes; None: a list.
    """
    counted = (denominator > 0) | counts_absent
    ratio = numerator.double() / denominator.clamp(min=1)
    each = [value if here else None for value, here in zip(ratio.tolist(), counted.tolist())]
    return {
        f"m{name}": ratio[counted].mean().item() if counted.any() else None,
        name: each if class_names is None else dict(zip(class_names, each)),
    }
