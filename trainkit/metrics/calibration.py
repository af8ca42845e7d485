"""How far a classifier's probabilities are from how often it is right."""

import torch
from torch import Tensor

from trainkit.metrics.base import Counting

UNIT = 2**30  # confidences are summed as whole numbers of 1 / UNIT, so that no order of images or processes changes it


class CalibrationError(Counting):
    """Expected calibration error: {"calibration_error": ...}, in [0, 1] (Guo et al., 2017).

    The probability of the likeliest class falls into one of `bins` intervals of equal width, open below:
    sum over them of |images right - sum of probabilities| / number of images. Each probability is rounded to 1e-9.

    predictions: logits, or logarithms of probabilities (N, C), whose softmax is what is measured. references: class
    ids (N,); negative ones are not counted.
    """

    name = "calibration_error"
    percent = ("calibration_error",)

    def __init__(self, bins: int = 15):
        if bins < 1:
            raise ValueError(f"CalibrationError: bins is {bins}; it must be at least 1 (15 in the paper)")
        self.bins = bins
        self.counts = torch.zeros(3 * bins, dtype=torch.int64)  # of each bin: images, images right, confidence

    def _count(self, predictions: Tensor, references: Tensor) -> Tensor:
        confidence, called = predictions.float().softmax(1).max(1)  # (N,)
        valid = (references >= 0).long()
        edges = torch.linspace(0, 1, self.bins + 1, device=confidence.device)[1:-1]
        place = torch.bucketize(confidence, edges)  # bin i has edges[i - 1] < confidence <= edges[i]
        whole = (confidence * UNIT).round().long()
        rows = torch.stack([valid, valid * (called == references), valid * whole])  # (3, N)
        counts = torch.zeros(3, self.bins, dtype=torch.int64, device=rows.device)
        return counts.index_add_(1, place, rows).flatten()

    def _results(self) -> dict:
        images, right, confidence = self.counts.view(3, -1).double()
        gap = (right - confidence / UNIT).abs().sum() / images.sum()
        return {"calibration_error": gap.item() if images.any() else None}
