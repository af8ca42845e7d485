"""Evaluates weights that were trained, for the command and for Python."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from accelerate import Accelerator

from trainkit.data.dataset_info import opened
from trainkit.data.loader import make_loader
from trainkit.data.sampler import EVALUATION
from trainkit.data.to_device import ToDevice
from trainkit.data.workers import choose_workers, worker_deaths_reported
from trainkit.display.terminal import Display
from trainkit.distributed.accelerator import allow_tf32, lost_processes_reported, start_accelerator
from trainkit.distributed.fsdp import prepare
from trainkit.distributed.weight_use import WeightUse, weight_use
from trainkit.engine.ema import EMA
from trainkit.engine.evaluation_record import EvaluationRecord
from trainkit.engine.evaluator import Evaluator, Results, ended
from trainkit.engine.introduction import Introduction
from trainkit.engine.label_warnings import evaluation_warnings
from trainkit.engine.metric_checks import require_free_names, try_metrics
from trainkit.engine.results import show_results
from trainkit.engine.task_module import TaskModule
from trainkit.engine.validation_loss import NO_LOSS
from trainkit.errors import MissingFileError, UserError, may_fail_alone
from trainkit.models.outputs import first_window
from trainkit.recipe import Recipe
from trainkit.storage import checkpoint
from trainkit.storage.checkpoint import is_checkpoint_name, step_of
from trainkit.storage.lookup import COUNTED, find_weights, read_precise_bn, trained_steps
from trainkit.storage.recorded import read_order
from trainkit.storage.weights import named_as, take_weights


@dataclass(frozen=True, kw_only=True)
class How:
    """How weights are measured; see `evaluate`."""

    seed: int = 0
    workers: int | None = None
    precise_bn: int | None = None
    weights_key: str | None = None
    channels_last: bool = False
    tf32: bool = False
    partial: bool = False
    out: Path | None = None
    pictures: bool = True


@dataclass(frozen=True)
class Loaded:
    """A recipe whose model has the weights that are measured; nothing has been read of its data."""

    recipe: Recipe
    weights: Path
    """a checkpoint folder or a file"""
    run: Path | None
    """the run that they are of"""
    how: How

    @classmethod
    def of(cls, recipe: Recipe, weights: Path, how: How, note: Callable[[str], None]) -> Self:
        """Load weights into the recipe's model, and say through `note` what differs.

        Raises:
            UserError: the weights do not fit the model.
            MissingFileError: there are none, or no training images that are needed.
        """
        weights, run = find_weights(Path(weights))
        require_free_names(recipe.task)
        try_metrics(recipe.task)
        if how.precise_bn is not None:
            _require_training_images(recipe)
        if how.channels_last:
            recipe.model.to(memory_format=torch.channels_last)
        for line in take_weights(
            recipe.model, weights, how.weights_key, how.partial, averaged=False
        ):
            note(line)
        state = recipe.model.state_dict()
        unsound = [name for name, value in state.items() if not value.isfinite().all()]
        if unsound:
            note(f"{len(unsound)} weights contain NaN/Inf ({unsound[0]}): results are meaningless")
        return cls(recipe, weights, run, how)

    def evaluator(self, accelerator: Accelerator, note: Callable[[str], None]) -> Evaluator:
        """What measures the model, on the device; it is introduced through `note`."""
        recipe, how = self.recipe, self.how
        module = TaskModule(recipe.model, recipe.task)
        find_use = partial(self._weight_use, module, accelerator.device)
        task_module = prepare(accelerator, module, find_use=find_use, note=note)
        Introduction(recipe, note).say()
        if how.precise_bn is None and (number := read_precise_bn(self.run, self.weights)):
            note(COUNTED.format(number))
        device = accelerator.device
        return Evaluator(
            recipe=recipe,
            task_module=task_module,
            accelerator=accelerator,
            to_device=ToDevice(device, recipe.mean, recipe.std, how.channels_last),
            seed=how.seed,
            workers=choose_workers(how.workers, accelerator.num_processes),
            ema=self.averages(),
            precise_bn=how.precise_bn,
            order=None if self.run is None else read_order(self.run),
            thorough=True,
        )

    def _weight_use(self, module: TaskModule, device: torch.device) -> WeightUse:
        """Where weights are used in a pass of the first validation image, or its first window."""
        recipe, seed, keys = self.recipe, self.how.seed, [[(EVALUATION, 0)]]
        (images, targets, _), *_ = make_loader(recipe.val_data, seed, keys, 0, device)
        to_device = ToDevice(device, recipe.mean, recipe.std, self.how.channels_last)
        images = to_device(images, targets)[0]
        if recipe.inference is not None and recipe.inference.sides is not None:
            images = first_window(images, recipe.inference.sides)
        return weight_use(module, partial(module.outputs, images), modes=[False])

    def averages(self) -> EMA | None:
        """The EMA weights; None where the recipe has none, or the weights are a file's.

        Raises:
            UserError: the recipe has EMA weights, and the checkpoint none.
        """
        return _load_ema(self.recipe, self.weights)

    def by_batches(self, evaluator: Evaluator, note: Callable[[str], None]) -> Results:
        """The evaluation, which writes a row of each image, and pictures, where `out` is given."""
        rows = None
        if self.how.out is not None:
            record = EvaluationRecord(evaluator, self.how.out, note, self.how.pictures)
            rows = record.of_command(self.step)
        steps = trained_steps(self.recipe.task, self.run, self.weights)
        return evaluator.by_batches(steps=steps, keep=rows)

    @property
    def step(self) -> int | None:
        """The training step of a checkpoint; None where its name does not say it."""
        return step_of(self.weights) if is_checkpoint_name(self.weights.name) else None

    def warnings(self, evaluator: Evaluator, results: Mapping[str, Any]) -> list[str]:
        """What to say about results, a line each."""
        lines = list(evaluation_warnings(results, self.recipe.task))
        if evaluator.loss_fault is not None:
            lines.append(NO_LOSS.format(evaluator.loss_fault))
        return [f"warning: {line}" for line in lines]


@lost_processes_reported()
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
    out: Path | None = None,
    pictures: bool = True,
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
        out: an existing folder that gets a row of each image, and pictures, see
            docs/run-folder.md; None: nothing is written.
        pictures: whether pictures are drawn there.

    Returns:
        The metrics, as in results.json.

    Raises:
        UserError: the weights do not fit the model.
        MissingFileError: there are none.
    """
    how = How(
        seed=seed,
        workers=workers,
        precise_bn=precise_bn,
        weights_key=weights_key,
        channels_last=channels_last,
        tf32=tf32,
        partial=partial,
        out=out,
        pictures=pictures,
    )
    accelerator = start_accelerator()
    allow_tf32(tf32)
    display = Display(accelerator.is_main_process)
    loaded = Loaded.of(recipe, weights, how, display.note)
    evaluator = loaded.evaluator(accelerator, display.note)
    passes = loaded.by_batches(evaluator, display.note)
    with worker_deaths_reported(), may_fail_alone():
        results = ended(passes)
    assert results is not None  # nothing stops it
    if keep is not None and accelerator.is_main_process:
        keep(results)
    show_results(display, f"evaluation of {loaded.weights}", results, False, recipe)
    for line in loaded.warnings(evaluator, results):
        display.note(line)
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


def _load_ema(recipe: Recipe, weights: Path) -> EMA | None:
    """The EMA weights of a checkpoint; None where the recipe has none, or `weights` is a file."""
    if recipe.ema is None or not weights.is_dir():
        return None
    averages = checkpoint.load(weights)[1]["ema"]
    if averages is None:
        raise UserError(
            f"ema is {recipe.ema}, and {weights} holds no EMA weights: evaluate with --ema None"
        )
    ema = EMA(recipe.model, recipe.ema)
    by_name = named_as(recipe.model, averages["averages"])
    ema.load_state_dict(averages | {"averages": by_name}, strict=False)
    return ema
