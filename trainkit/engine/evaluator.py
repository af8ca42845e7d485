"""An evaluation: every image of the validation data exactly once, on any number of processes."""

import copy
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.optim import Optimizer

from trainkit.data.to_device import ToDevice
from trainkit.distributed.fsdp import agree_on_buffers, reshard
from trainkit.distributed.unwrapping import without_wrappers
from trainkit.engine.ema import EMA
from trainkit.engine.evaluation_module import EvaluationModule
from trainkit.engine.forward_passes import ForwardPasses
from trainkit.engine.image_rows import ImageRows, Measured, merged
from trainkit.engine.label_warnings import WITHOUT, classes_without_targets
from trainkit.engine.metric_checks import without_reserved_names
from trainkit.engine.optimizer_state import evaluation_mode
from trainkit.engine.precise_bn import PreciseBatchNorm
from trainkit.engine.results import as_plain
from trainkit.engine.task_module import TaskModule, set_step
from trainkit.engine.validation_loss import ValidationLoss, loss_results
from trainkit.errors import may_fail_alone, shortage_reported
from trainkit.metrics.base import each_metric
from trainkit.metrics.bootstrap import interval_of
from trainkit.metrics.resampling import NO_INTERVAL
from trainkit.metrics.segmentation import MeanIoU
from trainkit.models.outputs import refusals_reported
from trainkit.recipe import Recipe

Keep = Callable[[Mapping[str, np.ndarray], Mapping[str, Any]], None]
Results = Generator[None, None, dict[str, Any] | None]
"""pauses after each turn, and returns the results"""


@dataclass(frozen=True)
class Evaluator:
    """Measures the weights that a recipe's model has at the time."""

    recipe: Recipe
    task_module: nn.Module  # as prepared for processes and precision
    accelerator: Accelerator
    to_device: ToDevice
    seed: int
    workers: int
    ema: EMA | None
    optimizer: Optimizer | None = None
    """that trains the weights, and may evaluate other ones than it trains"""
    precise_bn: int | None = None
    """training images to re-estimate BatchNorm statistics from; None: keep those of training"""
    order: int | None = None
    """version of the order they are the first of; None: that of a new run"""
    on_bad_image: str = "stop"
    """for these training images, as in training: "stop", or "skip" for the next in the order"""
    thorough: bool = False
    """also compute a 95 % bootstrap interval of the headline metric, and the metrics' details"""
    reading: Callable[[Callable[[], Iterable]], Iterable] | None = None
    """given what makes a loader: batches that are read once for several evaluators; None: it is
    made"""

    @property
    def loss_fault(self) -> str | None:
        """Why the last evaluation has no validation loss, in words; None for no fault.

        It is the same in all processes.
        """
        return self.module.loss_fault

    @cached_property
    def runner(self) -> EvaluationModule:
        """What evaluations call."""
        is_dense = self.recipe.task.is_dense
        return EvaluationModule(self.task_module, self.accelerator, is_dense)

    @property
    def module(self) -> TaskModule:
        """Model and task, without what prepares them for processes and precision."""
        module = without_wrappers(self.task_module)
        assert isinstance(module, TaskModule)
        return module

    @may_fail_alone()
    def run(
        self,
        stop: Callable[[], int] = lambda: 0,
        steps: tuple[int, int] | None = None,
        keep: Keep | None = None,
    ) -> dict[str, Any] | None:
        """Evaluate the current weights, and the EMA weights where there are any.

        Metrics with `counts` are summed over the processes once, at the end, and those that need
        all images gathered (`Gathered`). Others, from `evaluate`, get the plain labels of all
        processes batch by batch.

        Args:
            stop: called after each turn; the evaluation ends early where it returns something
                other than 0.
            steps: training steps of the weights and total steps, for `Task.at_step`; None: it has
                been called.
            keep: called in all processes with the rows of all images, see `image_rows.merged`, and
                the results, while the model has the weights that decide which is best, in
                evaluation mode.

        Returns:
            `split`, `protocol`, `num_images`, the task's metrics and the validation loss, those of
            the EMA weights as "ema_..."; `precise_bn` too, where BatchNorm statistics were
            re-estimated. None where `stop` ended it.

        Raises:
            RuntimeError: not every image was seen exactly once.
            MemoryError: out of memory (OOM).
        """
        return ended(self.by_batches(stop, steps, keep))

    def by_batches(
        self,
        stop: Callable[[], int] = lambda: 0,
        steps: tuple[int, int] | None = None,
        keep: Keep | None = None,
    ) -> Results:
        """The same as a generator, which pauses after each turn: several can take turns."""
        self.module.loss_fault = None  # of an earlier one: a resume would not know of it
        evaluated = nullcontext() if self.optimizer is None else evaluation_mode(self.optimizer)
        with evaluated, shortage_reported("the evaluation"), refusals_reported(self.recipe.model):
            return (yield from self._of_all_weights(stop, steps, keep))

    def _of_all_weights(
        self, stop: Callable[[], int], steps: tuple[int, int] | None, keep: Keep | None
    ) -> Results:
        batch_norm = PreciseBatchNorm(self)

        def kept(arrays: Mapping[str, np.ndarray], results: Mapping[str, Any]) -> None:
            if keep is not None:
                keep(arrays, {**self._how(batch_norm), **results})

        asked = None if keep is None else kept
        set_step(self.recipe.task, self.recipe.model, steps)
        with batch_norm.estimated():
            results = yield from self._measure(stop, asked if self.ema is None else None)
        if results is not None and self.ema is not None:
            with self.ema.swapped():
                # it may write into what is averaged
                set_step(self.recipe.task, self.recipe.model, steps)
                with batch_norm.estimated():
                    averaged = yield from self._measure(stop, asked)
            if averaged is None:
                return None
            of_the_data = ("num_images", WITHOUT)
            results |= {
                f"ema_{name}": value for name, value in averaged.items() if name not in of_the_data
            }
        if results is None:
            return None
        return {**self._how(batch_norm), **results}

    def _how(self, batch_norm: PreciseBatchNorm) -> dict[str, Any]:
        """On which images it measures, and in which way."""
        how: dict[str, Any] = {"split": self.recipe.split, "protocol": self.recipe.protocol}
        if batch_norm.norms:  # those of frozen layers keep their statistics
            how["protocol"] += f", precise BN of {self.precise_bn:,} training images"
            how["precise_bn"] = self.precise_bn
        return how

    def _measure(self, stop: Callable[[], int], keep: Keep | None) -> Results:
        # What a network keeps of a pass in inference mode, such as a table of positions, could not
        # be trained with afterwards; FSDP2 counts the versions of its tensors.
        trains = self.optimizer is not None or self.runner.is_sharded
        mode = torch.no_grad() if trains else torch.inference_mode()
        return mode(self._measured)(stop, keep)  # which does not last while the generator pauses

    def _measured(self, stop: Callable[[], int], keep: Keep | None) -> Results:
        recipe, accelerator = self.recipe, self.accelerator
        task_module = self.task_module
        metrics = recipe.task.metrics()
        if self.thorough:
            metrics = [*metrics, *recipe.task.thorough_metrics()]
        if self.reading is not None:  # a recipe may give several runs one object, which counts
            metrics = copy.deepcopy(metrics)
        single = [one for metric in metrics for one in each_metric(metric)]
        counting = [metric for metric in single if hasattr(metric, "counts")]
        gathered = [metric for metric in single if hasattr(metric, "take_up")]
        others = [
            metric for metric in single if not hasattr(metric, "counts") and metric not in gathered
        ]
        # A metric of the recipe's own need not know its images one by one; the result then has no
        # interval.
        known = [
            metric for metric in counting[:1] if self.thorough and hasattr(metric, "per_image")
        ]
        images = [metric.per_image(recipe.task.headline) for metric in known]
        was_training, num_images = task_module.training, 0
        loss = ValidationLoss(recipe.task)
        rows = None
        if keep is not None:
            rows = ImageRows(recipe.task, counting, len(recipe.val_data))
        task_module.eval()
        agree_on_buffers(task_module)
        for turn in ForwardPasses(self).turns():
            labels = []
            for each in turn:
                num_images += len(each.targets)
                _count(each, [*counting, *gathered, *images], rows)
                loss.add(each.losses, each.targets)
                if others:
                    labels.append((recipe.task.labels(each.predictions), each.targets))
            if others:
                _add_gathered(others, labels)
            if stop():
                reshard(task_module)
                return None
            yield
        num_images = int(
            accelerator.reduce(torch.tensor(num_images, device=accelerator.device), "sum")
        )
        if num_images != len(recipe.val_data):
            raise RuntimeError(f"the evaluation saw {num_images} images of {len(recipe.val_data)}")
        self._put_together([*counting, *gathered])
        results: dict[str, Any] = {"num_images": num_images}
        for each in images:
            counts = torch.cat([part for part in gather_object([each.rows()]) if len(part)])
            results |= interval_of(recipe.task.headline, counts, each) | each.details(counts)
        arrays = self._arrays(rows) if rows is not None else {}
        for metric in counting:
            if hasattr(metric, "class_counts"):
                results |= classes_without_targets(metric.class_counts().cpu(), recipe.task)
                break
        for metric in metrics:
            more = metric.details() if self.thorough and hasattr(metric, "details") else {}
            results |= without_reserved_names(metric, metric.compute() | more)
        results |= loss_results(recipe.task, self._totals(loss))
        results = as_plain(_without_missing_interval(results, recipe.task.headline))
        if keep is not None:
            keep(arrays, results)
        task_module.train(was_training)
        reshard(task_module)
        return results

    def _put_together(self, metrics: Sequence[Any]) -> None:
        """Give the metrics of each process what those of all of them counted, or kept."""
        for metric in metrics:
            if hasattr(metric, "take_up"):
                metric.take_up(gather_object([metric.parts()]))
            else:
                counts = metric.counts.to(self.accelerator.device)
                metric.counts = self.accelerator.reduce(counts, "sum")

    def _totals(self, loss: ValidationLoss) -> list[dict[str, tuple[float, float]]]:
        """Totals of the loss of every process; a fault that one had is from now on that of all."""
        found = gather_object([(loss.totals(), self.loss_fault)])
        faults = [fault for _, fault in found if fault is not None]
        if faults:
            self.module.loss_fault = faults[0]
        return [totals for totals, _ in found]

    def _arrays(self, rows: ImageRows) -> dict[str, np.ndarray]:
        """The rows of all processes, and the confusion matrix where there is one."""
        arrays = merged(gather_object([rows.arrays()]), self.recipe.task.known_num_classes or 0)
        if isinstance(rows.masks, MeanIoU):
            arrays["confusion"] = rows.masks.confusion().cpu().numpy()
        return arrays


def ended(results: Results) -> dict[str, Any] | None:
    """What a generator returns, which is run to its end."""
    while True:
        try:
            next(results)
        except StopIteration as end:
            return end.value


def _without_missing_interval(results: dict[str, Any], headline: str) -> dict[str, Any]:
    """The results without an interval that is None, or of a metric that is."""
    left_out = []
    if results.get(headline) is None:
        left_out = [f"{headline}_95", NO_INTERVAL]
    elif results.get(f"{headline}_95") is None:
        left_out = [f"{headline}_95"]
    return {name: value for name, value in results.items() if name not in left_out}


def _count(found: Measured, metrics: Sequence[Any], rows: ImageRows | None) -> None:
    """Have metrics count a forward pass, and keep a row of each of its images."""
    for metric in metrics:
        if rows is not None and metric is rows.masks:
            rows.count(found)
        else:
            metric.add_batch(predictions=found.predictions, references=found.targets)
    if rows is not None:
        rows.add(found)


def _add_gathered(metrics: list, found: list[tuple[Tensor, Tensor]]) -> None:
    """Give metrics that cannot be summed over processes the labels of all of them."""
    mine = [(labels.cpu().numpy(), targets.cpu().numpy()) for labels, targets in found]
    for predictions, references in (pair for pairs in gather_object([mine]) for pair in pairs):
        for metric in metrics:
            metric.add_batch(predictions=predictions, references=references)
