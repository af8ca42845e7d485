"""Keeps what an evaluation says of each image, a row each, for reports and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainkit.metrics.overlapping import OverlappingIoU
from trainkit.metrics.ranking import MOST_PAIRS
from trainkit.metrics.segmentation import MeanIoU
from trainkit.tasks.base import Task
from trainkit.tasks.multilabel import MultiLabel
from trainkit.tasks.multilabel_segmentation import MultiLabelSegmentation
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.segmentation import Segmentation

MOST_COUNTS = 1 << 26  # images times classes, of which counts are kept
LARGEST_CONFUSION = 1000  # classes of a recognition, of which the matrix is kept


@dataclass(frozen=True)
class Measured:
    """What one forward pass of an evaluation finished."""

    predictions: Tensor
    targets: Tensor
    losses: Mapping[str, Tensor]
    """sums by the name of each term, see `Task.evaluated`"""
    indices: Sequence[int]
    """of the images in the validation data"""


class ImageRows:
    """Rows of this process's images, on the device until the end of the evaluation.

    Args:
        task: what the rows are of.
        metrics: that count, the task's first.
        num_images: of the whole split.
    """

    def __init__(self, task: Task, metrics: Sequence[Any], num_images: int):
        self.task = task
        self.num_classes = task.known_num_classes or 0
        first = metrics[0] if metrics else None
        one_each = task.rows_per_image == 1
        self._of_classes = one_each and isinstance(task, Recognition)
        self._of_labels = one_each and isinstance(task, MultiLabel)
        self._of_labels &= num_images * self.num_classes <= MOST_PAIRS
        # counts pixels, image by image
        self.masks: MeanIoU | OverlappingIoU | None = None
        if one_each and num_images * self.num_classes <= MOST_COUNTS:
            if isinstance(task, Segmentation) and isinstance(first, MeanIoU):
                self.masks = first
            if isinstance(task, MultiLabelSegmentation) and isinstance(first, OverlappingIoU):
                self.masks = first
        self.ids: list[int] = []
        self._parts: dict[str, list[Tensor]] = {}

    def add(self, found: Measured) -> None:
        """Add the images of a forward pass; pixels are counted by `count`. Waits for nothing."""
        self.ids += found.indices
        targets = found.targets
        is_ids = targets.ndim == 1 and not targets.is_floating_point()
        logits = found.predictions
        if self._of_classes and is_ids and logits.ndim == 2 and logits.is_floating_point():
            self._add_classes(logits, targets.long())
            return
        if self._of_labels and logits.ndim == 2:
            self._put("score", logits.float())
            known = (targets > 0).to(torch.int8) - (targets < 0).to(torch.int8)
            self._put("target", known)
        losses = self._losses(found)
        if losses is not None:
            self._put("loss", losses)

    def count(self, found: Measured) -> None:
        """Have the metric `masks` count a forward pass, and keep each image's part."""
        metric = self.masks
        assert metric is not None  # of masks alone
        if isinstance(metric, OverlappingIoU):
            metric.add_batch(predictions=found.predictions, references=found.targets)
            counts = metric.of_images(found.predictions, found.targets)
            self._put("counts", counts.unflatten(1, (3, -1)).int())
            return
        for image, target in zip(found.predictions.split(1), found.targets.split(1)):
            before = metric.counts
            metric.add_batch(predictions=image, references=target)
            cells = metric.counts - before.to(metric.counts.device)
            size = self.num_classes
            confusion = cells.view(size + 2, size + 1)[:size, :size]
            parts = (confusion.diagonal(), confusion.sum(0), confusion.sum(1))
            self._put("counts", torch.stack(parts)[None].int())

    def _add_classes(self, logits: Tensor, targets: Tensor) -> None:
        logs = logits.float().log_softmax(1)
        ranked = logits.topk(5 if self.num_classes > 5 else 1, dim=1).indices  # as top1 counts
        called, own = ranked[:, :1], targets[:, None]
        losses = -logs.gather(1, own.clamp(min=0, max=logits.shape[1] - 1))[:, 0]
        self._put("target", targets)
        self._put("predicted", called[:, 0])
        self._put("top5_hit", (ranked == own).any(1))
        self._put("probability", logs.gather(1, called)[:, 0].exp())
        self._put("loss", torch.where(targets < 0, torch.nan, losses))

    def _losses(self, found: Measured) -> Tensor | None:
        """The loss of each image, the sum of its terms; None where batches have it alone."""
        number = len(found.targets)
        if not found.losses or any(len(sums) != number for sums in found.losses.values()):
            return None
        places = [place for place, term in enumerate(self.task.terms) if term in found.losses]
        counts = [self.task.counts(target).float() for target in found.targets.split(1)]
        sums = torch.stack([found.losses[self.task.terms[place]].float() for place in places], 1)
        means = sums / torch.stack(counts)[:, places]  # 0 / 0 for a term without a target
        return torch.where(means.isnan().all(1), torch.nan, means.nansum(1))

    def _put(self, name: str, part: Tensor) -> None:
        self._parts.setdefault(name, []).append(part)

    def arrays(self) -> dict[str, np.ndarray]:
        """The rows so far, by name, in the order they came. Waits for the device."""
        found = {name: torch.cat(parts).cpu().numpy() for name, parts in self._parts.items()}
        return {"ids": np.array(self.ids, dtype=np.int64), **found}


def merged(parts: Sequence[Mapping[str, np.ndarray]], num_classes: int) -> dict[str, np.ndarray]:
    """Rows of all images in the order of their ids, from those of each process.

    Args:
        parts: of each process, see `ImageRows.arrays`.
        num_classes: of the task; 0 where it has none.

    Returns:
        The rows by name, without those that a process lacks; counts of masks as "intersection",
        "predicted_pixels" and "true_pixels", int32 (n, C); "confusion" of a recognition; of any
        number of classes per image "score", logits, and "target", (n, C).
    """
    parts = [part for part in parts if len(part["ids"])]
    names = [name for name in parts[0] if all(name in part for part in parts)]
    rows = {name: np.concatenate([part[name] for part in parts]) for name in names}
    order = rows["ids"].argsort(kind="stable")
    rows = {name: values[order] for name, values in rows.items() if len(values) == len(order)}
    if "counts" in rows:
        columns = rows.pop("counts")  # (n, 3, C)
        for place, name in enumerate(("intersection", "predicted_pixels", "true_pixels")):
            rows[name] = columns[:, place]
    if "predicted" in rows and num_classes <= LARGEST_CONFUSION:
        target, predicted = rows["target"], rows["predicted"]
        known = (target >= 0) & (target < num_classes) & (predicted < num_classes)
        cells = target[known] * num_classes + predicted[known]
        rows["confusion"] = np.bincount(cells, minlength=num_classes**2).reshape(num_classes, -1)
    return rows
