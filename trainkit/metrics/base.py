"""Metrics as streaming counts with the interface of `evaluate`: `add_batch`, then `compute` once.

Counts stay on the device of the predictions, in one int64 tensor `counts`, so a sum over processes is one
reduction at the end. The classes work without the `evaluate` package and offline, and go into
`evaluate.combine([...])` with any of its metrics.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from trainkit.metrics.confusion import count_pairs


class Counting:
    """What the metrics below share: `counts`, and the names by which `evaluate.combine` calls a metric."""

    name: str
    counts: Tensor  # int64, one dimension
    percent: tuple[str, ...] = ()
    """results that are fractions in [0, 1], shown as percent; others are shown as plain numbers"""
    per_class: tuple[str, ...] = ()
    """results, details among them, that hold one value for each class, in the order of their ids"""

    def _feature_names(self) -> list[str]:
        return ["predictions", "references"]

    def _count(self, predictions: Tensor, references: Tensor) -> Tensor:
        """Counts of one batch, shaped as `counts`."""
        raise NotImplementedError

    def _results(self) -> dict:
        """Figures from `counts`, which are on the CPU."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget all batches."""
        self.counts = torch.zeros_like(self.counts)

    def add_batch(self, *, predictions: Tensor, references: Tensor, **_: object) -> None:
        """Count one batch; tensors on any one device, or what `torch.as_tensor` takes."""
        predictions, references = torch.as_tensor(predictions), torch.as_tensor(references)
        self.counts = self.counts.to(predictions.device) + self._count(predictions, references)

    def add(self, *, prediction: Tensor, reference: Tensor, **_: object) -> None:
        """Count one image."""
        self.add_batch(predictions=torch.as_tensor(prediction)[None], references=torch.as_tensor(reference)[None])

    def compute(self, *, predictions: Tensor | None = None, references: Tensor | None = None, **_: object) -> dict:
        """Figures over all batches counted since the last `compute` (fractions in [0, 1])."""
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        self.counts = self.counts.cpu()
        results = self._results()
        self.reset()
        return results


class PerImage:
    """One row of counts for each image, of which their sum gives one figure: what an interval is drawn from.

    details: what else the rows of all images tell.
    """

    def __init__(
        self,
        count: Callable[[Tensor, Tensor], Tensor],
        figures: Callable[[Tensor], Tensor],
        details: Callable[[Tensor], dict] = lambda rows: {},
    ):
        self.count, self.figures, self.details = count, figures, details
        self._rows: list[Tensor] = []

    def add_batch(self, *, predictions: Tensor, references: Tensor) -> None:
        """Count each image of a batch."""
        self._rows.append(self.count(predictions, references).cpu())

    def rows(self) -> Tensor:
        """(N, S) int64."""
        return torch.cat(self._rows) if self._rows else torch.zeros(0, 1, dtype=torch.int64)


class TopK(Counting):
    """Fraction of images whose class is among the k likeliest: {"top1": ..., "top5": ...}.

    predictions: scores (N, C) as floats, class ids ranked from the likeliest (N, K) with K >= max(ks), or
    class ids (N,), which give the top 1 alone. references: class ids (N,); negative ones are not counted.
    """

    name = "topk"
    per_class = ("accuracy",)

    def __init__(self, ks: Sequence[int] = (1, 5), classes: int | Sequence[str] | None = None):
        if not ks or min(ks) < 1:
            raise ValueError(f"TopK: ks is {tuple(ks)}; give whole numbers from 1")
        self.ks, self.classes = tuple(ks), classes
        self.percent = (*(f"top{k}" for k in self.ks), "accuracy")
        self.num_classes = len(classes) if isinstance(classes, Sequence) else classes or 0
        # images, hits of each k, images of each class
        self.counts = torch.zeros(1 + len(self.ks) + self.num_classes, dtype=torch.int64)

    def _count(self, predictions: Tensor, references: Tensor) -> Tensor:
        valid, hits = self._hits(predictions, references)
        of_class = torch.zeros(self.num_classes + 1, dtype=torch.int64, device=valid.device)  # the last: of none
        known = valid & (references < self.num_classes)
        of_class.scatter_add_(0, torch.where(known, references, self.num_classes).long(), valid.long())
        return torch.cat([torch.stack([valid.sum(), *(hits[:, :k].sum() for k in self.ks)]), of_class[:-1]])

    def class_counts(self) -> Tensor:
        """Images of each class counted so far: int64 (C,)."""
        return self.counts[1 + len(self.ks) :]

    def _hits(self, predictions: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each image counts (N,), and which of its ranked classes is its own (N, K)."""
        if references.ndim != 1 or references.is_floating_point():
            raise ValueError(
                f"TopK: references are {references.dtype} of shape {tuple(references.shape)}; give one class id for "
                "each image"
            )
        ranked = self._ranked(predictions)
        if self._ranks(ranked.shape[1]) == 0:
            raise ValueError(f"TopK: ks is {self.ks}, but the predictions rank {ranked.shape[1]} classes")
        valid = references >= 0
        return valid, (ranked == references[:, None]) & valid[:, None]

    def _ranked(self, predictions: Tensor) -> Tensor:
        """Class ids from the likeliest: (N, K)."""
        if predictions.is_floating_point():
            return predictions.topk(min(max(self.ks), predictions.shape[1]), dim=1).indices
        return predictions if predictions.ndim > 1 else predictions[:, None]

    def per_image(self, name: str) -> PerImage:
        """Counts of each image for the figure `name`, such as "top1"."""
        k = self.ks[[f"top{k}" for k in self.ks].index(name)]

        def count(predictions: Tensor, references: Tensor) -> Tensor:
            valid, hits = self._hits(predictions, references)
            called = self._ranked(predictions)[:, 0]
            return torch.stack([valid, hits[:, :k].any(1), references, called], 1).long()  # (N, 4)

        return PerImage(count, lambda sums: sums[:, 1] / sums[:, 0].clamp(min=1), self._details)

    def _details(self, rows: Tensor) -> dict:
        """Accuracy of each class, None where it does not occur; confusion, a row for each class of the references."""
        if self.classes is None:
            return {}
        num_classes = self.classes if isinstance(self.classes, int) else len(self.classes)
        cells = rows[rows[:, 0] > 0, 2:] @ torch.tensor([num_classes, 1])
        return _of_classes(torch.bincount(cells, minlength=num_classes**2).view(num_classes, -1), self.classes)

    def _ranks(self, num_ranked: int) -> int:
        return sum(k <= num_ranked for k in self.ks)

    def _results(self) -> dict:
        num_images, *hits = self.counts[: 1 + len(self.ks)].tolist()
        return {f"top{k}": hit / num_images if num_images else None for k, hit in zip(self.ks, hits)}


class MeanIoU(Counting):
    """Pixel accuracy and mean intersection over union, from one confusion matrix over the whole split.

    predictions, references: class ids (N, H, W) or any equal shapes. References equal to `ignore` are not
    counted; any other id outside [0, num_classes) is an error.

    Results: "pixAcc"; "mIoU", the mean over classes that occur in prediction or reference; "IoU", one per
    class, None where it occurs in neither; "num_classes", how many the mean counted; "mAcc", the mean over classes of
    the references of the part of them that was found; "fwIoU", IoU weighted by the classes' pixels. With
    absent="zero" a class that occurs nowhere scores 0 and is counted, as the official ADE20K script and
    PyTorch-Encoding do; on a full split there is no difference.
    """

    name = "mean_iou"
    percent = ("mIoU", "pixAcc", "mAcc", "fwIoU", "IoU", "accuracy")
    per_class = ("IoU", "accuracy")

    def __init__(
        self,
        num_classes: int,
        ignore: int = 255,
        absent: str = "skip",
        class_names: Sequence[str] | None = None,
    ):
        if absent not in ("skip", "zero"):
            raise ValueError(f"MeanIoU: absent is {absent!r}; it is 'skip' or 'zero'")
        if class_names is not None and len(class_names) != num_classes:
            raise ValueError(f"MeanIoU: {len(class_names)} class_names for {num_classes} classes")
        self.num_classes, self.ignore, self.absent = num_classes, ignore, absent
        self.class_names = list(class_names) if class_names is not None else None
        self.counts = torch.zeros((num_classes + 2) * (num_classes + 1), dtype=torch.int64)  # as `count_pairs` says

    def _count(self, predictions: Tensor, references: Tensor) -> Tensor:
        if predictions.shape != references.shape:
            raise ValueError(
                f"MeanIoU: predictions are {tuple(predictions.shape)} and references {tuple(references.shape)}; "
                "bring the prediction to the size of the untouched mask"
            )
        return count_pairs(predictions, references, self.num_classes, self.ignore).flatten()

    def per_image(self, name: str) -> PerImage:
        """Counts of each image for the figure `name`, which is "mIoU" or "pixAcc"."""

        def count(predictions: Tensor, references: Tensor) -> Tensor:
            rows = []
            for pair in zip(predictions, references):
                confusion = count_pairs(*pair, self.num_classes, self.ignore)[:-2, :-1]
                rows.append(torch.stack([confusion.diagonal(), confusion.sum(1), confusion.sum(0)]))
            return torch.stack(rows).flatten(1)  # (N, 3 C): pixels right, of the class, called so

        def figures(sums: Tensor) -> Tensor:
            hits, references, predictions = sums.view(len(sums), 3, -1).unbind(1)  # (B, C)
            if name == "pixAcc":
                return hits.sum(1) / references.sum(1).clamp(min=1)
            union = references + predictions - hits
            counted = union > 0 if self.absent == "skip" else torch.ones_like(union, dtype=torch.bool)
            return (hits / union.clamp(min=1) * counted).sum(1) / counted.sum(1).clamp(min=1)

        return PerImage(count, figures)

    def confusion(self) -> Tensor:
        """Pixels of each (reference, prediction) pair so far: int64 (C, C).

        Raises ValueError where an id outside the classes was counted.
        """
        cells = self.counts.view(self.num_classes + 2, self.num_classes + 1)
        stray_references, stray_predictions = int(cells[-1].sum()), int(cells[:-2, -1].sum())
        if stray_references or stray_predictions:
            raise ValueError(
                f"MeanIoU: {stray_references} references and {stray_predictions} predictions are outside "
                f"0..{self.num_classes - 1} (ignored: {self.ignore}); map the dataset's labels to these ids"
            )
        return cells[: self.num_classes, : self.num_classes]

    def class_counts(self) -> Tensor:
        """Pixels of each class of the references counted so far: int64 (C,)."""
        return self.counts.view(self.num_classes + 2, self.num_classes + 1)[: self.num_classes].sum(1)

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
        return {
            "mIoU": iou[counted].mean().item() if counted.any() else None,
            "pixAcc": intersection.sum().item() / num_pixels if num_pixels else None,
            "mAcc": accuracy[of_class > 0].mean().item() if num_pixels else None,
            "fwIoU": (iou * of_class).sum().item() / num_pixels if num_pixels else None,
            "num_classes": int(counted.sum()),
            "IoU": dict(zip(self.class_names, per_class)) if self.class_names else per_class,
        }

    def details(self) -> dict:
        """Too much for a row of the log: "accuracy" of each class, None where it does not occur, and "confusion".

        confusion: pixels, a row for each class of the references, a column for each class predicted.
        """
        return _of_classes(self.confusion().cpu(), self.class_names)


def _of_classes(confusion: Tensor, names: int | Sequence[str] | None) -> dict:
    of_class = confusion.sum(1)
    found = (confusion.diagonal() / of_class.clamp(min=1)).tolist()
    found = [value if here else None for value, here in zip(found, (of_class > 0).tolist())]
    named = names is not None and not isinstance(names, int)
    return {"accuracy": dict(zip(names, found)) if named else found, "confusion": confusion.tolist()}


def each_metric(metric: object) -> list:
    """The metrics inside `evaluate.combine(...)`, or the one itself."""
    return list(getattr(metric, "evaluation_modules", [metric]))


def declared(task: Any, what: str) -> frozenset[str]:
    """Names of results that a task, or one of its metrics, declares by an attribute: "percent" or "per_class"."""
    metrics = [*task.metrics(), *(task.thorough_metrics() if hasattr(task, "thorough_metrics") else ())]
    holders = [task, *(one for metric in metrics for one in each_metric(metric))]
    return frozenset(name for holder in holders for name in getattr(holder, what, ()))
