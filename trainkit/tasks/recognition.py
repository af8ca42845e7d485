"""Recognition, one class per image: losses, metrics and predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from trainkit.data.targets import as_target
from trainkit.errors import UserError
from trainkit.losses.base import (
    Criterion,
    side_by_side,
    weighted,
)
from trainkit.losses.distillation import distillation_sum
from trainkit.losses.functional import check_num_outputs, num_valid
from trainkit.losses.pixelwise import CrossEntropy
from trainkit.metrics.named import named_metrics
from trainkit.metrics.recognition import CalibrationError, MacroAverages, TopK
from trainkit.models.outputs import class_logits
from trainkit.tasks.of_losses import TaskOfClasses

IGNORED = -1  # the class id that counts nowhere
MOST_OF_A_ROW = 1.01  # sum of an image's probabilities, which half precision rounds


@dataclass(frozen=True)
class Recognition(TaskOfClasses):
    """Cross-entropy over classes or another loss; top1 and (with more than five classes) top5.

    Outputs of the model: logits (N, C), or what holds them, see
    `trainkit.models.outputs.main_logits`. Targets: ids (N,), negative ones ignored, or
    probabilities (N, C), of which a row that sums to less than 1 counts as much less.

    Args:
        classes: how many, or their names in the order of their ids.
        label_smoothing: of the cross-entropy, in [0, 1).
        extra_metrics: of one's own, `trainkit.metrics.base.Counting`, given logits (N, C); of
            `evaluate`, given class ids (N,); and names such as
            "torchmetrics:F1Score:average=macro", see `trainkit.metrics.named`.
        loss: one of trainkit.losses.pixelwise, or several, in place of cross-entropy.
        class_weights: of cross-entropy, one per class; None: all equal.

    Raises:
        UserError: there are fewer than two classes, or the losses cannot be used, or not together.
    """

    classes: int | Sequence[str]
    label_smoothing: float = 0.0
    extra_metrics: Sequence[Any] = ()
    loss: Criterion | Sequence[Criterion] | None = None
    class_weights: Sequence[float] | None = None

    headline = "top1"
    higher_is_better = True
    _cross_entropy: ClassVar[CrossEntropy | None] = None  # of the settings, once it is made

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise UserError(f"Recognition: {self.num_classes} classes; there must be at least 2")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing is {self.label_smoothing}; it must be in [0, 1)")
        if self.loss is not None and self.class_weights is not None:
            raise UserError("class_weights are given beside a loss; give them to the loss instead")
        if self.loss is not None and self.label_smoothing:
            raise UserError(
                f"label_smoothing is {self.label_smoothing} beside a loss; give it to the loss"
                " instead"
            )
        self._criteria  # noqa: B018  # what cannot work is refused here

    @property
    def _ks(self) -> tuple[int, ...]:
        return (1, 5) if self.num_classes > 5 else (1,)

    @property
    def _given_losses(self) -> Criterion | Sequence[Criterion]:
        if self.loss is not None:
            return self.loss
        weight, smoothing = self.class_weights, self.label_smoothing
        made = self._cross_entropy
        # `at_step` of a derived task may have changed its settings
        if made is None or made.weight is not weight or made.label_smoothing != smoothing:
            made = CrossEntropy(weight, smoothing)
            object.__setattr__(self, "_cross_entropy", made)
        return made

    def check(self, target: Any) -> str | None:
        """Say what is wrong with a target, a class id or probabilities (C,); None if nothing."""
        target = as_target(target)
        if isinstance(target, Tensor) and target.dtype == torch.int64 and target.ndim == 0:
            label = int(target)
            return None if label < self.num_classes else self._outside(label)
        if not isinstance(target, Tensor) or (target.ndim == 0 and target.is_floating_point()):
            return (
                f"target {target} is no class id: a whole number from 0 to {self.num_classes - 1}, "
                "below 0 if ignored"
            )
        if tuple(target.shape) != (self.num_classes,):
            return (
                f"target of shape {tuple(target.shape)} is neither a class id nor a row of"
                f" {self.num_classes} probabilities"
            )
        if not target.is_floating_point() or float(target.sum()) > MOST_OF_A_ROW:
            return (
                f"target is a row of {self.num_classes} numbers, {int((target > 0).sum())} of them"
                " above 0 (multi-hot), and Recognition is of one class for each image. Give its"
                " class id, or probabilities that sum to 1; for several classes per image there is"
                " the task MultiLabel (trainkit.tasks.multilabel; trainkit recog_multilabel)"
            )
        if not float(target.min()) >= 0:
            return f"target holds {float(target.min())}: probabilities are not below 0"
        return None

    def _outside(self, label: int) -> str:
        return (
            f"label {label} is outside the {self.num_classes} classes 0 to {self.num_classes - 1}"
        )

    def counts(self, targets: Tensor) -> Tensor:
        """Count what each loss divides by, images with a class for cross-entropy: (K,)."""
        criteria = self._criteria
        if len(criteria) == 1 and _counts_images(criteria[0], targets):
            # as below, in two operations of the device where that takes four
            return (targets >= 0).sum(0, keepdim=True, dtype=torch.float32)
        targets = _one_ignored(targets)
        return side_by_side([each.count(targets, IGNORED, self.num_classes) for each in criteria])

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        """Sum each term, weighted: float32 (K,)."""
        outputs = class_logits(outputs)
        check_num_outputs(outputs, self.num_classes, type(self).__name__)
        targets = _one_ignored(targets)
        return side_by_side(
            [weighted(each, each(outputs, targets, IGNORED)) for each in self._criteria]
        )

    def distillation_count(self, targets: Tensor) -> Tensor:
        """See `Task`: images with a class, whatever the weight of their classes."""
        return num_valid(_one_ignored(targets), IGNORED)

    def distillation_loss(
        self, outputs: Any, teacher: Tensor, targets: Tensor, temperature: float
    ) -> Tensor:
        """See `Task`: T² KL(teacher || student) of the images that have a class."""
        targets = _one_ignored(targets)
        return distillation_sum(class_logits(outputs), teacher, targets, IGNORED, temperature)

    def predict(self, outputs: Any, targets: Tensor) -> Tensor:
        """The logits (N, C), whose softmax are the probabilities.

        Where there are several outputs for each target, as of ten crops, their probabilities are
        averaged.
        """
        outputs = class_logits(outputs)
        check_num_outputs(outputs, self.num_classes, type(self).__name__)
        if len(outputs) != len(targets):
            outputs = outputs.float().log_softmax(1).unflatten(0, (len(targets), -1)).logsumexp(1)
        return outputs

    def evaluated(self, outputs: Any, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task`; the loss is of the predictions, the mean of several crops too."""
        kind = type(self)
        if kind.predict is not Recognition.predict or kind.losses is not Recognition.losses:
            return super().evaluated(outputs, targets)
        predictions = self.predict(outputs, targets)
        sums = self.losses(predictions, targets)
        return predictions, {term: each[None] for term, each in zip(self.terms, sums)}

    def labels(self, predictions: Tensor) -> Tensor:
        """The most probable (top-1) class, (N,).

        Of tied ones, frequent in bfloat16, it is the one that top1 counts.
        """
        return predictions.topk(max(self._ks), dim=1).indices[:, 0]

    def metrics(self) -> list:
        """Make TopK and MacroAverages, then the recipe's own."""
        own = named_metrics(self.extra_metrics, self.num_classes)
        averages = MacroAverages(self.num_classes, max(self._ks))
        return [TopK(self._ks, self.classes), averages, *own]

    def thorough_metrics(self) -> list:
        """Make the expected calibration error."""
        return [CalibrationError()]


def _counts_images(criterion: Criterion, targets: Tensor) -> bool:
    """Whether the count is the number of images with a class, which float32 holds exactly."""
    is_plain = type(criterion) is CrossEntropy and criterion.weight is None
    return is_plain and targets.dtype == torch.int64 and targets.ndim == 1 and len(targets) < 2**24


def _one_ignored(targets: Tensor) -> Tensor:
    """Set all negative ids to one."""
    return targets if targets.is_floating_point() else targets.long().clamp(min=IGNORED)
