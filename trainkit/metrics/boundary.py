"""Boundary IoU: how well the outlines of segmentation masks match."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from trainkit.errors import UserError
from trainkit.metrics.base import Counting
from trainkit.metrics.segmentation import mean_and_each

OUTSIDE = -1  # of the image, and what is ignored


class BoundaryIoU(Counting):
    """Mean intersection over union of the pixels near the outlines of each class.

    A pixel is near the outline of its class where a pixel of another class, an ignored one or the
    border of the image is at most `width` times the image's diagonal away, along either side
    (chessboard distance, at least one pixel). Such pixels of prediction and reference are counted
    over the whole split; pixels whose reference is ignored are taken out of both first.

    Predictions and references are class ids (N, H, W). Results: "mBoundaryIoU", the mean over
    classes that occur in prediction or reference; "BoundaryIoU", one per class, None where it
    occurs in neither.

    Args:
        num_classes: how many classes there are.
        ignore: the reference that is not counted.
        width: share of the diagonal; 0.02 in the paper, 0.005 for Cityscapes.
        class_names: names for "BoundaryIoU".

    Raises:
        UserError: `width` is out of range.

    Source:
        Cheng et al., 2021, Boundary IoU: Improving Object-Centric Image Segmentation Evaluation.
    """

    name = "boundary_iou"
    percent = ("mBoundaryIoU", "BoundaryIoU")
    per_class = ("BoundaryIoU",)
    higher_is_better = ("mBoundaryIoU",)

    def __init__(
        self,
        num_classes: int,
        ignore: int = 255,
        width: float = 0.02,
        class_names: Sequence[str] | None = None,
    ):
        if not 0 < width < 1:
            raise UserError(f"BoundaryIoU: width is {width}; it is a share of the diagonal: 0.02")
        self.num_classes, self.ignore, self.width = num_classes, ignore, width
        self.class_names = class_names
        self.counts = torch.zeros(3 * num_classes, dtype=torch.int64)

    def _count(self, predictions: Tensor, references: Tensor) -> Tensor:
        """Pixels of each class: in both boundaries, in that of the reference, of the prediction."""
        distance = self._distance(references)
        valid = (references >= 0) & (references < self.num_classes) & (references != self.ignore)
        truth = torch.where(valid, references.long(), OUTSIDE)
        found = torch.where(valid, predictions.long(), OUTSIDE)
        of_truth, of_found = near_outline(truth, distance), near_outline(found, distance)
        both = of_truth & of_found & (truth == found)
        groups = ((truth, both), (truth, of_truth), (found, of_found))
        return torch.cat([self._per_class(labels, which) for labels, which in groups])

    def _distance(self, references: Tensor) -> int:
        """How far from an outline a pixel still is near it."""
        height, width = references.shape[-2:]
        return max(1, round(self.width * math.hypot(height, width)))

    def _per_class(self, labels: Tensor, which: Tensor) -> Tensor:
        """How many pixels of each class are in `which`: (C,); nothing waits for a GPU."""
        counts = torch.zeros(self.num_classes, dtype=torch.int64, device=labels.device)
        ids = labels.clamp(0, self.num_classes - 1)
        return counts.scatter_add_(0, ids.flatten(), (which & (ids == labels)).flatten().long())

    def _results(self) -> dict:
        both, truth, found = self.counts.view(3, -1)
        return mean_and_each("BoundaryIoU", both, truth + found - both, False, self.class_names)


def near_outline(labels: Tensor, distance: int) -> Tensor:
    """Where a pixel of another label is at most `distance` away along either side.

    Args:
        labels: (N, H, W), of integers below 2^24, from -1; beyond the border all are -1.
        distance: in pixels, at least 1.

    Returns:
        Booleans (N, H, W).
    """
    size = 2 * distance + 1
    padded = F.pad(labels.float(), (distance,) * 4, value=OUTSIDE)
    largest, smallest = (
        F.max_pool2d(F.max_pool2d(each, (size, 1), 1), (1, size), 1) for each in (padded, -padded)
    )
    return (largest != labels) | (-smallest != labels)
