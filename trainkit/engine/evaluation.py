"""An evaluation: every image of the validation data exactly once, on any number of processes."""

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from trainkit.data.dataset_info import opened
from trainkit.data.loader import make_loader
from trainkit.data.sampler import EVALUATION, evaluation_batches
from trainkit.data.seeding import seed_step
from trainkit.data.to_device import ToDevice
from trainkit.data.workers import choose_workers, worker_deaths_told
from trainkit.display.terminal import Display
from trainkit.distributed.accelerator import allow_tf32, lost_processes_told, start_accelerator
from trainkit.distributed.fsdp import agree_on_buffers, prepare, reshard
from trainkit.engine.ema import EMA
from trainkit.engine.introduction import introduce
from trainkit.engine.label_warnings import WITHOUT, classes_without_targets, evaluation_warnings
from trainkit.engine.metric_trial import try_metrics
from trainkit.engine.precise_bn import PreciseBatchNorm
from trainkit.engine.sliding_window import SlidingWindowInferer
from trainkit.engine.task_module import TaskModule, set_step, uncompiled
from trainkit.errors import MissingFileError, UserError, may_fail_alone, shortage_told
from trainkit.metrics.base import declared, each_metric
from trainkit.metrics.bootstrap import interval
from trainkit.models.outputs import refusals_told
from trainkit.recipe import Recipe, Task
from trainkit.storage import checkpoint
from trainkit.storage.lookup import COUNTED, find_weights, read_precise_bn, trained_steps
from trainkit.storage.weights import named_as, take_weights

# Names beside the metrics in a row of the log, and in results.json.
IN_ROWS = (
    "event", "step", "epoch", "best", "best_step", "split", "protocol", "precise_bn", "num_images",
    WITHOUT
)  # fmt: skip
RESERVED = frozenset((*IN_ROWS, "checkpoint", "sha256", "settings"))


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
    precise_bn: int | None = None
    """training images to re-estimate BatchNorm statistics from; None: keep those of training"""
    on_bad_image: str = "stop"
    """for these training images, as in training: "stop", or "skip" for the next in the order"""
    thorough: bool = False
    """also compute a 95 % bootstrap interval of the headline metric, and the metrics' details"""

    @may_fail_alone()
    def run(
        self, stop: Callable[[], int] = lambda: 0, steps: tuple[int, int] | None = None
    ) -> dict[str, Any] | None:
        """Evaluate the current weights, and the EMA weights where there are any.

        Metrics with `counts` are summed over the processes once, at the end. Others, from
        `evaluate`, get the plain labels of all processes batch by batch.

        Args:
            stop: called after each batch; the evaluation ends early where it returns something
                other than 0.
            steps: training steps of the weights and total steps, for `Task.at_step`; None: it has
                been called.

        Returns:
            `split`, `protocol`, `num_images` and the task's metrics, those of the EMA weights as
            "ema_..."; `precise_bn` too, where BatchNorm statistics were re-estimated. None where
            `stop` ended it.

        Raises:
            RuntimeError: not every image was seen exactly once.
            MemoryError: out of memory (OOM).
        """
        with shortage_told("the evaluation"), refusals_told(self.recipe.model):
            return self._of_all_weights(stop, steps)

    def _of_all_weights(
        self, stop: Callable[[], int], steps: tuple[int, int] | None
    ) -> dict[str, Any] | None:
        batch_norm = PreciseBatchNorm(
            recipe=self.recipe,
            task_module=self.task_module,
            accelerator=self.accelerator,
            to_device=self.to_device,
            seed=self.seed,
            workers=self.workers,
            num_images=self.precise_bn,
            on_bad_image=self.on_bad_image,
        )
        set_step(self.recipe.task, self.recipe.model, steps)
        with batch_norm.estimated():
            results = self._measure(stop)
        if results is not None and self.ema is not None:
            with self.ema.swapped():
                set_step(
                    self.recipe.task, self.recipe.model, steps
                )  # it may write into what is averaged
                with batch_norm.estimated():
                    averaged = self._measure(stop)
            if averaged is None:
                return None
            of_the_data = ("num_images", WITHOUT)
            results |= {
                f"ema_{name}": value for name, value in averaged.items() if name not in of_the_data
            }
        if results is None:
            return None
        how: dict[str, Any] = {"split": self.recipe.split, "protocol": self.recipe.protocol}
        if batch_norm.norms:  # those of frozen layers keep their statistics
            how["protocol"] += f", precise BN of {self.precise_bn:,} training images"
            how["precise_bn"] = self.precise_bn
        return {**how, **results}

    @torch.no_grad()
    def _measure(self, stop: Callable[[], int]) -> dict[str, Any] | None:
        recipe, accelerator = self.recipe, self.accelerator
        task_module = uncompiled(self.task_module, recipe.task)
        metrics = recipe.task.metrics()
        if self.thorough:
            metrics = [*metrics, *recipe.task.thorough_metrics()]
        single = [one for metric in metrics for one in each_metric(metric)]
        counting = [metric for metric in single if hasattr(metric, "counts")]
        others = [metric for metric in single if not hasattr(metric, "counts")]
        # A metric of the recipe's own need not know its images one by one; the result then has no
        # interval.
        known = [
            metric for metric in counting[:1] if self.thorough and hasattr(metric, "per_image")
        ]
        images = [metric.per_image(recipe.task.headline) for metric in known]
        was_training, num_images = task_module.training, 0
        task_module.eval()
        agree_on_buffers(task_module)
        for found in self._passes(task_module):
            for predictions, targets in found:
                num_images += len(targets)
                for metric in (*counting, *images):
                    metric.add_batch(predictions=predictions, references=targets)
            if others:
                _add_gathered(
                    others, [(recipe.task.labels(each), targets) for each, targets in found]
                )
            if stop():
                reshard(task_module)
                return None
        task_module.train(was_training)
        reshard(task_module)

        num_images = int(
            accelerator.reduce(torch.tensor(num_images, device=accelerator.device), "sum")
        )
        if num_images != len(recipe.val_data):
            raise RuntimeError(f"the evaluation saw {num_images} images of {len(recipe.val_data)}")
        for metric in counting:
            metric.counts = accelerator.reduce(metric.counts.to(accelerator.device), "sum")
        results: dict[str, Any] = {"num_images": num_images}
        for each in images:
            rows = torch.cat([part for part in gather_object([each.rows()]) if len(part)])
            results |= {
                f"{recipe.task.headline}_95": interval(rows, each.statistic),
                **each.details(rows),
            }
        for metric in counting:
            if hasattr(metric, "class_counts"):
                results |= classes_without_targets(metric.class_counts().cpu(), recipe.task)
                break
        for metric in metrics:
            more = metric.details() if self.thorough and hasattr(metric, "details") else {}
            results |= _free(metric, metric.compute() | more)
        if results.get(recipe.task.headline) is None:  # and so it has no interval
            results.pop(f"{recipe.task.headline}_95", None)
        return _plain(results)

    def _passes(self, task_module: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Yield predictions and targets of the images that each forward pass finished.

        There are as many passes in every process.
        """
        recipe, accelerator = self.recipe, self.accelerator
        together = 1 if recipe.inference is not None else recipe.eval_batch_size
        batches, valid = evaluation_batches(
            len(recipe.val_data), together, accelerator.process_index, accelerator.num_processes
        )
        loader = self._seeded(
            make_loader(
                recipe.val_data,
                self.seed,
                batches,
                self.workers,
                accelerator.device,
                recipe.task.own_check,
            )
        )
        if recipe.inference is not None:
            read = (
                self.to_device(images, targets)
                for (images, targets, _), count in zip(loader, valid)
                if count
            )
            for done in SlidingWindowInferer(
                recipe.inference, task_module, accelerator, self.to_device.black
            ).infer(read):
                yield [(recipe.task.from_scores(scores), targets) for scores, targets in done]
            return
        for (images, targets, _), count in zip(loader, valid):
            images, targets = self.to_device(images, targets)
            # beyond `count`: a padding sample, see evaluation_batches
            predictions = task_module(images, targets)
            rows = recipe.task.rows_per_image
            if len(predictions) != rows * len(targets):
                raise UserError(
                    f"task {type(recipe.task.given).__name__}: predict gave {len(predictions)} rows"
                    f" for {len(targets)} images, and rows_per_image is {rows}"
                )
            yield [(predictions[: count * rows], targets[:count])] if count else []

    def _seeded(self, loader: Iterable) -> Iterator:
        """Yield the batches of a loader, and seed what a model may draw from after each."""
        for number, batch in enumerate(loader):
            seed_step(self.seed, EVALUATION - number, self.accelerator.process_index)
            yield batch


@lost_processes_told()
def evaluate(
    recipe: Recipe,
    weights: Path,
    *,
    seed: int = 0,
    workers: int | None = None,
    precise_bn: int | None = None,
    weights_key: str | None = None,
    channels_last: bool = False,
    tf32: bool = False,
    partial: bool = False,
    keep: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Measure `recipe` on its validation images with the weights at `weights`.

    Args:
        recipe: what was trained.
        weights: a run's folder, of which the best checkpoint is taken, a checkpoint, or a file of
            weights.
        seed: of what is random in the validation data, and of the images of `precise_bn`.
        workers: data-loading workers of each process; None: its share of the cores, up to 8.
        precise_bn: re-estimate BatchNorm's statistics from so many training images; None: take
            those of the weights.
        weights_key: which set of weights in a file that holds several; None: the usual one.
        channels_last: hold images and weights with the channels last.
        tf32: on GPUs: multiply float32 in TF32.
        partial: weights that do not fit are left out and reported.
        keep: called with the metrics in the main process, before they are shown.

    Returns:
        The metrics, as in results.json.

    Raises:
        UserError: the weights do not fit the model.
        MissingFileError: there are none.
    """
    weights, run = find_weights(Path(weights))
    require_free_names(recipe.task)
    try_metrics(recipe.task)
    if precise_bn is not None:
        _require_training_images(recipe)
    accelerator = start_accelerator()
    allow_tf32(tf32)
    if channels_last:
        recipe.model.to(memory_format=torch.channels_last)
    display = Display(accelerator.is_main_process)
    for line in take_weights(recipe.model, weights, weights_key, partial, averaged=False):
        display.note(line)
    if unsound := [
        name for name, value in recipe.model.state_dict().items() if not value.isfinite().all()
    ]:
        display.note(
            f"{len(unsound)} weights contain NaN/Inf ({unsound[0]}): results are meaningless"
        )
    task_module = prepare(accelerator, TaskModule(recipe.model, recipe.task))
    ema = None if recipe.ema is None or not weights.is_dir() else EMA(recipe.model, recipe.ema)
    if ema is not None:
        averages = checkpoint.load(weights)[1]["ema"]
        if averages is None:
            raise UserError(
                f"ema is {recipe.ema}, and {weights} holds no EMA weights: evaluate with --ema None"
            )
        by_name = named_as(recipe.model, averages["averages"])
        ema.load_state_dict(averages | {"averages": by_name}, strict=False)
    to_device = ToDevice(accelerator.device, recipe.mean, recipe.std, channels_last)
    introduce(recipe, display.note)
    if precise_bn is None and (number := read_precise_bn(run, weights)):
        display.note(COUNTED.format(number))
    evaluator = Evaluator(
        recipe=recipe,
        task_module=task_module,
        accelerator=accelerator,
        to_device=to_device,
        seed=seed,
        workers=choose_workers(workers, accelerator.num_processes),
        ema=ema,
        precise_bn=precise_bn,
        thorough=True,
    )
    with worker_deaths_told():
        results = evaluator.run(steps=trained_steps(recipe.task, run, weights))
    assert results is not None  # nothing stops it
    if keep is not None and accelerator.is_main_process:
        keep(results)
    show_results(display, f"evaluation of {weights}", results, False, recipe)
    for line in evaluation_warnings(results, recipe.task):
        display.note(f"warning: {line}")
    return results


def _require_training_images(recipe: Recipe) -> None:
    try:
        opened(recipe.train_data)
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{error}. Batch norm's statistics are estimated from training images (--precise-bn),"
            " as the run's own evaluations did; --precise-bn 0 measures with those that training"
            " counted, and gives other results"
        ) from error


def show_results(
    display: Display, title: str, results: Mapping[str, Any], best: bool, recipe: Recipe
) -> None:
    """Show the results as the task's metrics declare their units."""
    percent, per_class = (declared(recipe.task, what) for what in ("percent", "per_class"))
    # the protocol says it in words
    results = {name: value for name, value in results.items() if name != "precise_bn"}
    display.results(title, results, best, percent, per_class)


def require_free_names(task: Task) -> None:
    """Check before the first step that no metric computes a reserved name of log or results.json.

    A metric tells its names by what it declares (`percent`, `per_class`), or computes of no image;
    a copy of it is asked, for what it counts must not change. One that needs images to compute, as
    those of `evaluate` do, the first evaluation refuses.

    Raises:
        UserError: one does, or the task lacks `labels` that a metric takes; the message has the
            names of metric and result.
    """
    metrics = [*task.metrics(), *task.thorough_metrics()]
    for metric in (one for each in metrics for one in each_metric(each)):
        if not hasattr(metric, "counts") and not task.provides("labels"):
            raise UserError(
                f"task {type(task.given).__name__} lacks labels, which metric {_name(metric)}"
                " takes, as it has no `counts`: see trainkit.recipe.Task"
            )
        names = {
            *getattr(metric, "percent", ()),
            *getattr(metric, "per_class", ()),
            *_results_of_nothing(metric),
        }
        _free(metric, dict.fromkeys(names))


def _name(metric: Any) -> str:
    return getattr(metric, "name", type(metric).__name__)


def _results_of_nothing(metric: Any) -> set[str]:
    """Names of what a metric computes of no image; none where it cannot, as with a quotient."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as NumPy's for the mean of nothing
        try:
            return set(copy.deepcopy(metric).compute())
        except (
            Exception
        ):  # whatever a foreign metric raises; an error is reported once it has images
            return set()


def _free(metric: Any, results: dict[str, Any]) -> dict[str, Any]:
    """A metric's results.

    Raises UserError where one has a reserved name of the log or of results.json.
    """
    taken = sorted(RESERVED & results.keys())
    if taken:
        raise UserError(
            f"metric {_name(metric)} computes {', '.join(taken)}, which the log needs "
            f"for itself: name it otherwise, such as my_{taken[0]}"
        )
    return results


def _plain(value: Any) -> Any:
    """Arrays, tensors and their numbers as Python values for JSON; None for NaN/Inf."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _add_gathered(metrics: list, found: list[tuple[Tensor, Tensor]]) -> None:
    """Give metrics that cannot be summed over processes the labels of all of them."""
    mine = [(labels.cpu().numpy(), targets.cpu().numpy()) for labels, targets in found]
    for predictions, references in (pair for pairs in gather_object([mine]) for pair in pairs):
        for metric in metrics:
            metric.add_batch(predictions=predictions, references=references)
