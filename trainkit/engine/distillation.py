"""Knowledge distillation: a trained model that a run also learns from."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainkit.data.dataset_info import DatasetInfo
from trainkit.engine.task_module import set_step
from trainkit.errors import UserError, first_line, is_shortage
from trainkit.losses.functional import check_num_outputs
from trainkit.models.outputs import main_logits, run_padded, size_divisor
from trainkit.options import Options
from trainkit.recipe import Recipe
from trainkit.storage.checkpoint import digest
from trainkit.storage.lookup import COUNTED, read_precise_bn, trained_steps
from trainkit.storage.stored_model import StoredModel
from trainkit.storage.weights import take_weights
from trainkit.tasks.base import Task
from trainkit.tasks.multilabel import MultiLabel
from trainkit.tasks.multilabel_segmentation import MultiLabelSegmentation
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.segmentation import Segmentation

TERM = "distillation"  # of the loss, in the log
WEIGHT = 0.5  # where --distill is not given
TEMPERATURE = 2.0


class Distillation:
    """The loss (1 - a) x the task's + a x T² KL(teacher || student), a teacher's part in it.

    The teacher is no part of the module that is trained: DDP and FSDP neither broadcast nor shard
    it, and no checkpoint, average or optimizer has it. It is always in evaluation mode, sees the
    images of each micro-batch as the student does, after mixing, in its own normalisation, and in
    the precision of the student's forward pass. With a = 0 it is not asked.

    Attributes:
        weight: a.
        temperature: T.
        notes: lines about the teacher, to be shown.
    """

    def __init__(self, recipe: Recipe, options: Options):
        """Load the teacher that the options name.

        Raises:
            MissingFileError: it is not there.
            UserError: it cannot be built, or does not fit the student.
        """
        assert options.teacher is not None  # else there is no distillation
        self.weight = WEIGHT if options.distill is None else options.distill
        self.temperature = TEMPERATURE if options.temperature is None else options.temperature
        self._task = recipe.task
        self._named = options.teacher
        _require_distillable(recipe.task)
        stored = StoredModel.at(options.teacher)
        network, task = stored.network(options.trust_recipe), stored.task()
        classes = task.known_classes
        self._classes = classes if isinstance(classes, int | None) else list(classes)
        order = _class_order(task, recipe.task, self._named)
        self._class_order = None if order is None else torch.tensor(order)
        _require_same_pixels(stored.known(), recipe, self._named)
        self.notes = take_weights(network, stored.weights)
        counted = read_precise_bn(stored.run, stored.weights)
        if counted:
            self.notes.append(f"teacher {self._named}: {COUNTED.format(counted)}")
        set_step(task, network, trained_steps(task, stored.run, stored.weights))
        # a tuple: no module that holds this object has the teacher among its own
        self._teacher = (network.requires_grad_(False).eval(),)
        if options.channels_last:
            network.to(memory_format=torch.channels_last)
        self._divisor = size_divisor(network) if recipe.task.is_dense else 1
        self._rescaling = _rescaling(recipe, stored.known())
        self.sha256 = digest(stored.weights)

    @classmethod
    def asked(cls, recipe: Recipe, options: Options) -> "Distillation | None":
        """That of the options; None where they name no teacher."""
        return None if options.teacher is None else cls(recipe, options)

    @property
    def teacher(self) -> nn.Module:
        """The teacher's network."""
        (network,) = self._teacher
        return network

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the loss's terms, the task's own first."""
        return (*self._task.terms, *([TERM] if self.weight else []))

    @property
    def resume_invariants(self) -> dict[str, Any]:
        """What a resume must keep of it, see `TrainPlan.resume_invariants`."""
        return {
            "teacher": self.sha256,
            "teacher_classes": self._classes,
            "distill": self.weight,
            "temperature": self.temperature,
        }

    @property
    def as_recorded(self) -> dict[str, Any]:
        """What the report of a failed step says of it, by which the step can be repeated."""
        named = self._named.resolve() if self._named.exists() else self._named
        return {
            "named": str(named),
            "sha256": self.sha256,
            "distill": self.weight,
            "temperature": self.temperature,
        }

    def begin(self, device: torch.device, read: Tensor, images: Tensor) -> None:
        """Move the teacher to the device, and try it on images as the student gets them.

        Args:
            device: of the training.
            read: images as they were read, see `ToDevice`.
            images: the same as the student gets them, (N, C, H, W), on the device.

        Raises:
            UserError: the teacher does not take them, or not by its own normalisation.
        """
        self.teacher.to(device)
        if self._class_order is not None:
            self._class_order = self._class_order.to(device)  # once, not with each batch
        if self._rescaling is not None:
            if read.is_floating_point():
                raise UserError(
                    f"teacher is {self._named}, with another mean and std than the student, and the"
                    " images are numbers that the data have normalised: let the data give uint8"
                    " images, which are normalised for each of the two"
                )
            scale, shift = self._rescaling
            self._rescaling = scale.to(device), shift.to(device)
        try:
            found = self._logits(images)
        except Exception as error:
            if is_shortage(error):
                raise
            raise UserError(
                f"teacher {self._named} does not take the student's images, of shape"
                f" {tuple(images.shape[1:])}: {first_line(error)}"
            ) from error
        num_classes = self._task.known_num_classes
        if num_classes is not None:
            check_num_outputs(found, num_classes, f"the teacher {self._named}")

    def counts(self, targets: Tensor) -> Tensor:
        """The task's counts, and the targets that the teacher's term is divided by: (K,)."""
        counts = self._task.counts(targets)
        if not self.weight:
            return counts
        return torch.cat([counts, self._task.distillation_count(targets).view(1).to(counts)])

    def losses(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Run the student, and sum each term, weighted: float32 (K,)."""
        if not self.weight:
            return self._task.losses(model(images), targets)
        teacher = self._logits(images)  # first, so that it needs no memory beside the student's
        outputs = model(images)
        own = self._task.losses(outputs, targets)
        distance = self._task.distillation_loss(outputs, teacher, targets, self.temperature)
        return torch.cat([(1 - self.weight) * own, (self.weight * distance).view(1)])

    @torch.no_grad()
    def _logits(self, images: Tensor) -> Tensor:
        """The teacher's logits, its classes in the student's order."""
        if self._rescaling is not None:
            scale, shift = self._rescaling
            images = images * scale + shift
        logits = main_logits(run_padded(self.teacher, images, self._divisor))
        return logits if self._class_order is None else logits[:, self._class_order]


def _require_distillable(task: Task) -> None:
    if not (task.provides("distillation_loss") and task.provides("distillation_count")):
        raise UserError(
            f"--teacher does not work with task {type(task.given).__name__}: distillation is of"
            " recognition and of segmentation by pixels, of one class or of any number; a task of"
            " one's own has methods distillation_count and distillation_loss"
        )
    if TERM in task.terms:
        raise UserError(
            f"task {type(task.given).__name__} has a term {TERM!r} of its own, as --teacher adds"
            " one: call it otherwise"
        )


def _class_order(teacher: Task, student: Task, named: Path) -> list[int] | None:
    """The teacher's class ids in the order of the student's; None where they are the same.

    Raises:
        UserError: the two do different things, or their classes differ.
    """
    for kind in (Recognition, Segmentation, MultiLabel, MultiLabelSegmentation):
        if isinstance(teacher, kind) != isinstance(student.given, kind):
            raise UserError(
                f"teacher {named} is of task {type(teacher).__name__}, and this is"
                f" {type(student.given).__name__}: a teacher does what its student learns"
            )
    theirs, ours = teacher.known_classes, student.known_classes
    if theirs == ours:
        return None
    if isinstance(theirs, int | None) or isinstance(ours, int | None):
        raise UserError(
            f"teacher {named} has {_in_words(theirs)}, and the student {_in_words(ours)}: they must"
            " be the same, by their names"
        )
    theirs, ours = [str(name) for name in theirs], [str(name) for name in ours]
    if theirs == ours:
        return None
    if len(set(ours)) == len(ours) and sorted(theirs) == sorted(ours):
        return [theirs.index(name) for name in ours]
    lacks = [name for name in ours if name not in theirs]
    more = [name for name in theirs if name not in ours]
    raise UserError(
        f"teacher {named} has other classes than the student: it lacks"
        f" {', '.join(lacks[:4]) or 'none'}, and has {', '.join(more[:4]) or 'none'} that the"
        f" student has not ({len(theirs)} and {len(ours)} in all). Give a teacher of the same"
        " classes; their order may be another"
    )


def _in_words(classes: Any) -> str:
    if classes is None or isinstance(classes, int):
        return f"{classes or 'unknown'} classes without names"
    return f"{len(classes)} classes by name"


def _require_same_pixels(described: dict[str, Any], recipe: Recipe, named: Path) -> None:
    pixels = DatasetInfo.of(recipe.train_data).pixels
    for name in ("channels", "bits"):
        theirs, ours = described.get(name), getattr(pixels, name)
        if theirs is not None and theirs != ours:
            raise UserError(
                f"teacher {named} takes images of {theirs} {name}, and the student's have {ours}:"
                " give one that was trained on such images"
            )


def _rescaling(recipe: Recipe, described: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Scale and shift (C, 1, 1) from the student's normalisation to the teacher's; None: none."""
    ours, theirs = (recipe.mean, recipe.std), (described["mean"], described["std"])
    (mean, std), (their_mean, their_std) = (
        [torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in each]
        for each in (ours, theirs)
    )
    scale, shift = std / their_std, (mean - their_mean) / their_std
    if bool((scale == 1).all()) and bool((shift == 0).all()):
        return None
    return scale.float(), shift.float()
