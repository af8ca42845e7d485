"""Plans before the first step how long a run is, the images of each step, and its rates."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from trainkit.data.class_counts import count_classes
from trainkit.data.dataset_info import DatasetInfo
from trainkit.data.loader import make_loader
from trainkit.data.sampler import DRAWN, Balanced, Batches, TrainOrder
from trainkit.data.to_device import ToDevice
from trainkit.engine.metric_checks import chosen
from trainkit.engine.optimizer_state import group_values
from trainkit.errors import UserError
from trainkit.models.freezing import trained_by
from trainkit.options import Options
from trainkit.recipe import Recipe

REMEDY = "--on-bad-image skip trains without such images and lists them; trainkit doctor finds all"
MOST_STEPS = 999_999_999  # the names of checkpoints have nine digits, and are sorted


class TrainPlan:
    """Order, length and schedule of a run.

    Nothing in it changes but the micro-batch, after OOM.

    Attributes:
        recipe: that is trained.
        order: which images each step has, in each process.
        total_steps: optimizer updates of the whole run.
        groups: the optimizer's groups without their parameters, as the recipe set them.
    """

    def __init__(self, recipe: Recipe, options: Options, num_processes: int):
        """Plan the run of `recipe` on so many processes.

        Raises:
            UserError: settings that cannot work.
        """
        info = DatasetInfo.of(recipe.train_data)
        self.recipe = recipe
        self._options = options
        order = TrainOrder(
            len(recipe.train_data),
            recipe.batch_size,
            options.seed,
            num_processes,
            options.micro_batch,
            unit=2 if recipe.mix is not None else 1,
            drop_last=recipe.drop_last,
            repeats=info.repeats,
            locality=info.locality,
            balanced=_balanced(recipe),
        )
        self.order = order = replace(order, version=order.newest_version)
        self.groups = group_values(recipe.optimizer)
        if not 0 < recipe.epochs * order.steps_per_epoch <= MOST_STEPS:
            raise UserError(
                f"epochs is {recipe.epochs:g}, of {order.steps_per_epoch} steps each: a run can"
                f" have up to {MOST_STEPS:,} steps, and must have some"
            )
        self.total_steps = max(1, round(recipe.epochs * order.steps_per_epoch))
        self.multipliers(0)  # a warm-up longer than the run is refused here

    def multiplier(self, step: int) -> float:
        """Factor of the first group's learning rate in `step`, of all where there is one curve."""
        first, *_ = self._schedules
        return first(step, self.total_steps, self.order.steps_per_epoch)

    def multipliers(self, step: int) -> list[float]:
        """Factor of each group's learning rate in `step`."""
        found = [
            schedule(step, self.total_steps, self.order.steps_per_epoch)
            for schedule in self._schedules
        ]
        return found if len(found) > 1 else found * len(self.groups)

    @property
    def _schedules(self) -> Sequence[Callable[..., float]]:
        schedule = self.recipe.schedule
        return schedule if isinstance(schedule, Sequence) else [schedule]

    def epoch(self, step: int) -> float:
        """Epochs done after `step` steps."""
        return step / self.order.steps_per_epoch

    @property
    def unfreeze_step(self) -> int | None:
        """The first step that trains what the recipe has frozen, counted from 0; None for never."""
        epoch = self.recipe.unfreeze_epoch
        return None if epoch is None else max(1, round(epoch * self.order.steps_per_epoch))

    def _frozen_in_words(self) -> str | None:
        if not self.recipe.frozen:
            return None
        until = "the end" if self.unfreeze_step is None else f"step {self.unfreeze_step}"
        frozen = trained_by(self.recipe.optimizer, self.recipe.frozen)
        return f"{sum(weight.numel() for weight in frozen)} weights until {until}"

    def use_micro_batch(self, micro_batch: int) -> None:
        """Use at most so many images in a forward pass from now on.

        Steps and images stay the same.
        """
        self.order = replace(self.order, micro_batch=micro_batch)

    def use_order(self, version: int) -> None:
        """Take the order of a run that began with this version, see `TrainOrder.version`."""
        self.order = replace(self.order, version=version)

    @property
    def replacement(self) -> Callable[[int, int], int] | None:
        """Which image takes the place of one that cannot be used; None where that stops the run."""
        return self.order.replacement if self._options.on_bad_image == "skip" else None

    def loader(
        self, start: int, stop: int, accelerator: Accelerator, workers: int
    ) -> Iterable[Any]:
        """This process's batches of the steps from `start` up to `stop`: images, targets, faults.

        Args:
            start: the first step, counted from 0.
            stop: the step after the last one.
            accelerator: of this process.
            workers: data-loading workers; 0: this process reads.
        """
        batches = Batches(self.order, start, stop, accelerator.process_index)
        return self._loader(batches, accelerator.device, workers)

    def first_image(self, device: torch.device) -> Tensor:
        """The first training image as the model gets it: (1, C, H, W)."""
        return self.first_images(device)[1]

    def first_images(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The first training image as it is read, and as the model gets it: (1, C, H, W) each."""
        key, *_ = self.order.keys(0)
        images, targets, _ = next(iter(self._loader([[key]], device, workers=0)))
        recipe, channels_last = self.recipe, self._options.channels_last
        to_device = ToDevice(device, recipe.mean, recipe.std, channels_last)
        return images, to_device(images, targets)[0]

    def _loader(self, batches: Iterable, device: torch.device, workers: int) -> Iterable[Any]:
        """Training images by (epoch, index)."""
        return make_loader(
            self.recipe.train_data,
            self._options.seed,
            batches,
            workers,
            device,
            self.recipe.task.own_check,
            self.replacement,
            REMEDY,
            unless_declared=True,
        )

    def _curves(self) -> list[Any]:
        """Nine points of the schedule, or of each group's where the groups have their own."""
        steps = [self.total_steps * part // 8 for part in range(9)]
        if not isinstance(self.recipe.schedule, Sequence):
            return [self.multiplier(step) for step in steps]
        return [list(curve) for curve in zip(*map(self.multipliers, steps))]

    def resume_invariants(self) -> dict[str, Any]:
        """Settings that affect the result, which a resume must keep.

        The schedule is kept as nine points of its curve.
        """
        locality = self.order.locality
        kept = {
            "num_images": self.order.num_images,
            "batch_size": self.recipe.batch_size,
            "drop_last": self.recipe.drop_last,
            "interleaved_row_groups": None if locality is None else locality.num_interleaved,
            "classes": _names(self.recipe),
            "label_values": self.recipe.label_values,
            "train_data": DatasetInfo.of(self.recipe.train_data).fingerprint,
            "total_steps": self.total_steps,
            "schedule": self._curves(),
            "model": f"{type(self.recipe.model).__name__} of {_num_weights(self.recipe)} weights",
            "ema": self.recipe.ema,
            "headline": None if self.recipe.best_by is None else chosen(self.recipe.best_by),
            "frozen": self._frozen_in_words(),
            "sampler": None if self.order.balanced is None else self.order.balanced.name,
            "input": dict(self.recipe.input),
            "lrs": [float(group["lr"]) for group in self.recipe.optimizer.param_groups],
            # by which the best checkpoint was chosen, and is to be
            "evaluation_protocol": self.recipe.protocol,
            "evaluation_split": self.recipe.split,
            "evaluation_images": len(self.recipe.val_data),
            "precise_bn": self._options.precise_bn,
        }
        if self.order.version != DRAWN:  # which runs have that record none
            kept["order"] = self.order.version
        return kept


def _balanced(recipe: Recipe) -> Balanced | None:
    """What draws all classes alike; None for a recipe that shuffles.

    Raises:
        UserError: the data do not say their classes, or have an order of their own.
    """
    if recipe.sampler != "balanced":
        return None
    info = DatasetInfo.of(recipe.train_data)
    if info.repeats > 1 or info.locality is not None:
        what = "repeated" if info.repeats > 1 else "streamed"
        raise UserError(
            f"sampler is balanced, and the training images are {what}, in an order of their own:"
            " give one of the two"
        )
    num_classes = recipe.task.known_num_classes
    if num_classes is None:
        raise UserError(
            f"sampler is balanced, and task {type(recipe.task.given).__name__} has no num_classes"
        )
    counts = count_classes(recipe.train_data, num_classes)
    if not len(counts.images):
        raise UserError("sampler is balanced, and no training image has a class")
    return Balanced(counts.images, counts.members, f"balanced, classes {counts.digest}")


def _names(recipe: Recipe) -> list[str] | int | None:
    """The classes by name, in the order of their ids, or how many."""
    classes = recipe.task.known_classes
    return classes if classes is None or isinstance(classes, int) else list(classes)


def _num_weights(recipe: Recipe) -> int:
    return sum(weight.numel() for weight in recipe.model.parameters())
