"""Metrics of segmentation with overlapping classes: IoU and Dice of each class's own mask."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainkit.errors import UserError
from trainkit.metrics.base import Counting, PerImage
from trainkit.metrics.boundary import OUTSIDE, BoundaryIoU, near_outline
from trainkit.metrics.segmentation import mean_and_each


class OverlappingIoU(Counting):
    """IoU and Dice of each class over all pixels of a split, and their means over classes.

    Predictions and references are masks (N, C, H, W): above 0 where a pixel is of a class, 0 where
    it is not; references below 0 are not counted, of that class alone. Results: "mIoU" and "mDice",
    the means over classes that occur in prediction or reference; "IoU" and "Dice", one per class,
    None where it occurs in neither; "num_classes", how many the means counted. Details: "pixels" of
    each class in the references and "predicted_pixels".

    Args:
        num_classes: how many classes there are.
        class_names: names for "IoU", "Dice" and the details.
    """

    name = "overlapping_iou"
    percent = ("mIoU", "mDice", "IoU", "Dice")
    per_class = ("IoU", "Dice", "pixels", "predicted_pixels")
    higher_is_better = ("mIoU", "mDice")

    def __init__(self, num_classes: int, class_names: Sequence[str] | None = None):
        self.num_classes = num_classes
        self.class_names = list(class_names) if class_names is not None else None
        # of each class: pixels in both, in the prediction, in the reference
        self.counts = torch.zeros(3 * num_classes, dtype=torch.int64)

    def _count(self, predictions: Tensor, references: Tensor) -> Tensor:
        return self.of_images(predictions, references).sum(0)

    def of_images(self, predictions: Tensor, references: Tensor) -> Tensor:
        """Pixels of each image and class in both, in the prediction, in the reference.

        Returns:
            int64 (N, 3 C), the first C in both.

        Raises:
            UserError: the masks are no (N, C, H, W), or not of one shape.
        """
        _check_masks(self, predictions, references)
        there = references > 0
        found = (predictions > 0) & (references >= 0)
        parts = (there & found, found, there)
        return torch.cat([each.sum((2, 3)) for each in parts], 1)

    def per_image(self, name: str) -> PerImage:
        """Counts of each image for the metric `name`, with a statistic where it is this one's."""

        def statistic(sums: Tensor) -> Tensor:
            hits, found, there = sums.view(len(sums), 3, -1).unbind(1)  # (B, C)
            both = found + there
            above, below = (hits, both - hits) if name == "mIoU" else (2 * hits, both)
            counted = below > 0
            ratio = above / below.clamp(min=1)
            return (ratio * counted).sum(1) / counted.sum(1).clamp(min=1)

        return PerImage(self.of_images, statistic if name in self.higher_is_better else None)

    def class_counts(self) -> Tensor:
        """Pixels of each class of the references counted so far: int64 (C,)."""
        return self.counts.view(3, -1)[2]

    def _results(self) -> dict:
        hits, found, there = self.counts.view(3, -1)
        both = found + there
        return {
            **mean_and_each("IoU", hits, both - hits, False, self.class_names),
            **mean_and_each("Dice", 2 * hits, both, False, self.class_names),
            "num_classes": int((both > 0).sum()),
        }

    def details(self) -> dict:
        """Pixels of each class: "pixels" in the references, "predicted_pixels"."""
        _, found, there = self.counts.view(3, -1).tolist()
        return {"pixels": self._named(there), "predicted_pixels": self._named(found)}

    def _named(self, values: list[int]) -> Any:
        return values if self.class_names is None else dict(zip(self.class_names, values))


class OverlappingBoundaryIoU(BoundaryIoU):
    """`BoundaryIoU` of each class's own mask, and its mean over classes.

    A pixel of a class is near its outline where a pixel that is not of it, one that is not known or
    the border of the image is as near as there. Predictions and references are as of
    `OverlappingIoU`.

    Args:
        num_classes: how many classes there are.
        class_names: names for "BoundaryIoU".
        width: as of `BoundaryIoU`.
    """

    name = "overlapping_boundary_iou"

    def __init__(
        self, num_classes: int, class_names: Sequence[str] | None = None, width: float = 0.02
    ):
        super().__init__(num_classes, width=width, class_names=class_names)

    def _count(self, predictions: Tensor, references: Tensor) -> Tensor:
        _check_masks(self, predictions, references)
        valid = references >= 0
        truth, found = (
            torch.where(valid, (each > 0).long(), OUTSIDE) for each in (references, predictions)
        )
        distance = self._distance(references)
        of_truth, of_found = (
            (near_outline(each.flatten(0, 1), distance).view(each.shape)) & (each == 1)
            for each in (truth, found)
        )
        parts = (of_truth & of_found, of_truth, of_found)
        return torch.cat([each.sum((0, 2, 3)) for each in parts])


def _check_masks(
    metric: OverlappingIoU | OverlappingBoundaryIoU, predictions: Tensor, references: Tensor
) -> None:
    """Raise UserError where these are no masks (N, C, H, W) of one shape."""
    shape = tuple(references.shape)
    if predictions.shape != references.shape or len(shape) != 4 or shape[1] != metric.num_classes:
        raise UserError(
            f"{type(metric).__name__}: predictions are {tuple(predictions.shape)} and references"
            f" {shape}; both must be (N, {metric.num_classes}, H, W), a mask for each class"
        )
