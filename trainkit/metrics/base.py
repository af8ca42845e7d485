"""Metrics as streaming counts with the interface of `evaluate`: `add_batch`, then `compute` once.

Counts stay on the device of the predictions, in one int64 tensor `counts`, so a sum over processes
is one reduction at the end. The classes work without the `evaluate` package and offline, and go
into `evaluate.combine([...])` with any of its metrics.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Counting:
    """Base class of trainkit's metrics, and of your own: streaming counts.

    A subclass has a `name`, makes `counts` in `__init__`, and defines `_count` and `_results`;
    docs/extending.md has an example, and the names of results that a row of the log needs for
    itself.
    """

    name: str
    counts: Tensor  # int64, one dimension
    percent: tuple[str, ...] = ()
    """results that are fractions in [0, 1], shown as percent; others are shown as plain numbers"""
    per_class: tuple[str, ...] = ()
    """results, details among them, that hold one value for each class, in the order of their ids"""
    higher_is_better: bool | tuple[str, ...] | None = None
    """whether more of its results is better, or of which; None: not stated, see --headline"""

    def _feature_names(self) -> list[str]:
        return ["predictions", "references"]

    def _count(self, predictions: Tensor, references: Tensor) -> Tensor:
        """Counts of one batch, int64, shaped as `counts`: to be defined by a subclass.

        A sum of floats is rounded to whole parts, so that no order of images or processes changes
        it.
        """
        raise NotImplementedError

    def _results(self) -> dict:
        """Results by name from `counts`, which are on the CPU: to be defined by a subclass."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget all batches."""
        self.counts = torch.zeros_like(self.counts)

    def add_batch(self, *, predictions: Tensor, references: Tensor, **_: object) -> None:
        """Count one batch.

        Args:
            predictions: tensors on any one device, or what `torch.as_tensor` takes; see the class.
            references: the ground truth, see the class.
        """
        predictions, references = torch.as_tensor(predictions), torch.as_tensor(references)
        self.counts = self.counts.to(predictions.device) + self._count(predictions, references)

    def add(self, *, prediction: Tensor, reference: Tensor, **_: object) -> None:
        """Count one image; arguments as for `add_batch`, without the batch dimension.

        Args:
            prediction: of the image.
            reference: of the image.
        """
        self.add_batch(
            predictions=torch.as_tensor(prediction)[None],
            references=torch.as_tensor(reference)[None],
        )

    def compute(self, *, predictions: Any = None, references: Any = None, **_: object) -> dict:
        """Results over all batches counted since the last `compute`, which are then forgotten.

        Args:
            predictions: one more batch to be counted first, or None.
            references: of these predictions.

        Returns:
            Metrics by name, fractions in [0, 1].
        """
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        self.counts = self.counts.cpu()
        results = self._results()
        self.reset()
        return results


class Gathered:
    """Base class of metrics that need all images at once, such as one that ranks them.

    A subclass has a `name`, and defines `_kept` and `_results`. Tensors stay on their device until
    the end of an evaluation; then every process gets those of all processes, once.
    """

    name: str
    percent: tuple[str, ...] = ()
    """as of `Counting`"""
    per_class: tuple[str, ...] = ()
    higher_is_better: bool | tuple[str, ...] | None = None

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, ...]] = []
        self._gathered: tuple[np.ndarray, ...] | None = None  # of all processes, () for no image

    def _kept(self, predictions: Tensor, references: Tensor) -> tuple[Tensor, ...]:
        """What is kept of a batch, tensors with a row for each image."""
        raise NotImplementedError

    def _results(self) -> dict:
        """Results by name, from `all_kept`."""
        raise NotImplementedError

    def add_batch(self, *, predictions: Tensor, references: Tensor, **_: object) -> None:
        """Keep one batch; waits for nothing."""
        self._batches.append(self._kept(torch.as_tensor(predictions), torch.as_tensor(references)))

    def parts(self) -> tuple[np.ndarray, ...] | None:
        """What this process kept, on the CPU; None for no image. Waits for the device."""
        if not self._batches:
            return None
        return tuple(torch.cat(column).cpu().numpy() for column in zip(*self._batches))

    def take_up(self, parts: Sequence[tuple[np.ndarray, ...] | None]) -> None:
        """Replace what was kept by the `parts` of all processes."""
        known = [part for part in parts if part is not None]
        self._batches = []
        self._gathered = tuple(np.concatenate(column) for column in zip(*known))

    def all_kept(self) -> tuple[np.ndarray, ...] | None:
        """What was kept since the last `compute`, a row for each image; None for no image."""
        return self.parts() if self._gathered is None else self._gathered or None

    def compute(self, *, predictions: Any = None, references: Any = None, **_: object) -> dict:
        """Results over all images since the last `compute`, which are then forgotten."""
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        results = self._results()
        self._batches, self._gathered = [], None
        return results


class PerImage:
    """One row of counts per image, whose sum gives a metric, for its confidence interval.

    Args:
        count: predictions and references of a batch -> int64 (N, S).
        statistic: sums (B, S) -> metric (B,); None where that is another's.
        details: further results from the rows of all images.
        is_share: each image counts or not, in the first column, and is a hit or not, in the second;
            the metric is hits over images that count.
    """

    def __init__(
        self,
        count: Callable[[Tensor, Tensor], Tensor],
        statistic: Callable[[Tensor], Tensor] | None,
        details: Callable[[Tensor], dict] = lambda rows: {},
        is_share: bool = False,
    ):
        self.count, self.statistic, self.details = count, statistic, details
        self.is_share = is_share
        self._rows: list[Tensor] = []

    def add_batch(self, *, predictions: Tensor, references: Tensor) -> None:
        """Count each image of a batch."""
        self._rows.append(self.count(predictions, references).cpu())

    def rows(self) -> Tensor:
        """The counts of all images: int64 (N, S)."""
        return torch.cat(self._rows) if self._rows else torch.zeros(0, 1, dtype=torch.int64)


def each_metric(metric: object) -> list:
    """The metrics inside `evaluate.combine(...)`, or the one itself."""
    return list(getattr(metric, "evaluation_modules", [metric]))


def declared(task: Any, what: str) -> frozenset[str]:
    """Names of results that a task, or one of its metrics, declares by an attribute.

    Args:
        task: the task.
        what: the attribute, "percent" or "per_class".
    """
    metrics = [*task.metrics(), *task.thorough_metrics()]
    holders = [task, *(one for metric in metrics for one in each_metric(metric))]
    return frozenset(name for holder in holders for name in getattr(holder, what, ()))
