"""Recognition of any number of classes per image: losses, metrics and predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from trainkit.data.datasets.multi_hot import IGNORED
from trainkit.data.targets import as_target
from trainkit.errors import UserError
from trainkit.losses.base import Criterion, side_by_side, weighted
from trainkit.losses.distillation import binary_distillation_sum, num_known
from trainkit.losses.functional import check_num_outputs
from trainkit.losses.multilabel import BCEWithLogits, PairLoss
from trainkit.metrics.multilabel import MultiLabelAveragePrecision, MultiLabelF1
from trainkit.metrics.named import multilabel_metrics
from trainkit.models.outputs import class_logits
from trainkit.tasks.of_losses import TaskOfClasses

THRESHOLD = 0.5  # probability above which a class is called where no better one is known


@dataclass(frozen=True)
class MultiLabel(TaskOfClasses):
    """Any number of classes per image, none of them too; mAP, and F1 (micro and macro).

    Outputs of the model: logits (N, C), or what holds them, see
    `trainkit.models.outputs.class_logits`. Targets: rows (N, C), 1 where an image is of a class,
    0 where it is not, and -1 (any negative) where that is not known, which counts nowhere; or
    shares in [0, 1]. A row of zeros is a valid negative of all classes. Lists of class ids become
    rows by `trainkit.data.datasets.multi_hot.MultiHot`.

    Args:
        classes: how many, or their names in the order of their ids.
        loss: one of trainkit.losses.multilabel, or several, in place of binary cross-entropy.
        pos_weight: of binary cross-entropy, a weight of the positives of each class; None: all 1.
        label_smoothing: of binary cross-entropy, in [0, 1), see `BCEWithLogits`.
        extra_metrics: of one's own, `trainkit.metrics.base.Counting`, given logits (N, C); others
            given probabilities (N, C); and names such as "torchmetrics:HammingDistance".

    Raises:
        UserError: there is no class, or the losses cannot be used, or not together.
    """

    classes: int | Sequence[str]
    loss: Criterion | Sequence[Criterion] | None = None  # None: BCE
    pos_weight: Sequence[float] | None = None
    label_smoothing: float = 0.0
    extra_metrics: Sequence[Any] = ()

    headline = "mAP"
    higher_is_better = True
    _bce: ClassVar[BCEWithLogits | None] = None  # of the settings, once it is made

    def __post_init__(self) -> None:
        for name in ("pos_weight", "label_smoothing"):
            value = getattr(self, name)
            if self.loss is not None and value:
                raise UserError(f"{name} is {value} beside a loss; give it to BCEWithLogits alone")
        self._check_any_number()

    @property
    def _given_losses(self) -> Criterion | Sequence[Criterion]:
        if self.loss is not None:
            return self.loss
        weight, smoothing = self.pos_weight, self.label_smoothing
        made = self._bce
        # `at_step` of a derived task may have changed its settings
        if made is None or made.pos_weight is not weight or made.label_smoothing != smoothing:
            made = BCEWithLogits(weight, smoothing)
            object.__setattr__(self, "_bce", made)
        return made

    def check(self, target: Any) -> str | None:
        """Say what is wrong with a target, a row (C,); None if nothing."""
        target = as_target(target)
        if not isinstance(target, Tensor) or tuple(target.shape) != (self.num_classes,):
            is_tensor = isinstance(target, Tensor)
            what = f"of shape {tuple(target.shape)}" if is_tensor else f"{target!r:.60}"
            return (
                f"target {what} is no row of {self.num_classes} numbers, 1 for each class that the"
                " image is of, 0 for others, -1 for what is not known; lists of class ids become"
                f" rows by trainkit.data.datasets.multi_hot.MultiHot(data, {self.num_classes})"
            )
        highest = float(target.max())
        if not highest <= 1:
            return f"target holds {highest:g}: a row has 1, 0, and -1 for what is not known"
        return None

    def counts(self, targets: Tensor) -> Tensor:
        """Count what each loss divides by, the valid pairs of image and class: (K,)."""
        counts = [each.count(targets, IGNORED, self.num_classes) for each in self._criteria]
        return side_by_side(counts)

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        """Sum each term, weighted: float32 (K,)."""
        outputs = self._logits(outputs)
        return side_by_side(
            [weighted(each, each(outputs, targets, IGNORED)) for each in self._criteria]
        )

    def distillation_count(self, targets: Tensor) -> Tensor:
        """See `Task`: valid pairs of image and class."""
        return num_known(targets)

    def distillation_loss(
        self, outputs: Any, teacher: Tensor, targets: Tensor, temperature: float
    ) -> Tensor:
        """See `Task`: T² KL(teacher || student) of each class's probability, of valid pairs."""
        return binary_distillation_sum(self._logits(outputs), teacher, targets, temperature)

    def _logits(self, outputs: Any) -> Tensor:
        outputs = class_logits(outputs)
        check_num_outputs(outputs, self.num_classes, type(self).__name__)
        return outputs

    def predict(self, outputs: Any, targets: Tensor) -> Tensor:
        """The logits (N, C), whose sigmoid are the probabilities.

        Where there are several outputs for each target, as of ten crops, their probabilities are
        averaged.
        """
        outputs = self._logits(outputs)
        if len(outputs) != len(targets):
            each = outputs.float().unflatten(0, (len(targets), -1))  # (N, crops, C)
            outputs = F.logsigmoid(each).logsumexp(1) - F.logsigmoid(-each).logsumexp(1)
        return outputs

    def evaluated(self, outputs: Any, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task`; the loss of each image where all losses are of `PairLoss`."""
        kind = type(self)
        if kind.predict is not MultiLabel.predict or kind.losses is not MultiLabel.losses:
            return super().evaluated(outputs, targets)
        predictions = self.predict(outputs, targets)
        criteria = self._criteria
        if not all(isinstance(each, PairLoss) for each in criteria):
            sums = self.losses(predictions, targets)
            return predictions, {term: each[None] for term, each in zip(self.terms, sums)}
        return predictions, {
            each.name: weighted(each, each.of_images(predictions, targets))
            for each in criteria
            if isinstance(each, PairLoss)
        }

    def labels(self, predictions: Tensor) -> Tensor:
        """The probabilities (N, C), which metrics from elsewhere compare with their threshold."""
        return predictions.float().sigmoid()

    def metrics(self) -> list:
        """Make the mean average precision and F1, then the recipe's own."""
        own = multilabel_metrics(self.extra_metrics, self.num_classes)
        return [MultiLabelAveragePrecision(self.classes), MultiLabelF1(self.num_classes), *own]


def called_classes(probabilities: Tensor, thresholds: Sequence[float | None] | None) -> Tensor:
    """Which classes an image is said to be of: those with a probability above the threshold.

    Args:
        probabilities: (N, C).
        thresholds: one per class, None for 0.5; None: 0.5 for all.

    Returns:
        bool (N, C).
    """
    limits = [
        THRESHOLD if each is None else each
        for each in thresholds or [None] * probabilities.shape[1]
    ]
    # float32 would round a threshold to the probability beside it
    return probabilities.double() > torch.tensor(
        limits, dtype=torch.float64, device=probabilities.device
    )
