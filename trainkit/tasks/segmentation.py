"""Segmentation, one class per pixel: losses, metrics and predictions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trainkit.data.mixup import mixed_masks, weighted_sum
from trainkit.data.targets import as_target
from trainkit.errors import UserError
from trainkit.losses.base import Criterion, side_by_side, weighted
from trainkit.losses.boundary import Boundary
from trainkit.losses.distillation import distillation_sum
from trainkit.losses.functional import (
    check_ignore,
    check_num_outputs,
    num_valid,
    presence_loss_sum,
)
from trainkit.losses.pixelwise import OHEM, CrossEntropy, Focal
from trainkit.losses.region import Dice, Lovasz, Tversky
from trainkit.metrics.boundary import BoundaryIoU
from trainkit.metrics.confusion import argmax_labels
from trainkit.metrics.named import from_confusion
from trainkit.metrics.segmentation import DiceOfClasses, MeanIoU
from trainkit.models.outputs import main_logits, resized, resized_to_targets
from trainkit.tasks.of_losses import TaskOfClasses

Loss = Literal["cross_entropy", "focal", "ohem", "dice", "tversky", "lovasz", "boundary"]


@dataclass(frozen=True)
class Segmentation(TaskOfClasses):
    """Cross-entropy over pixels or other losses, with auxiliary and semantic-encoding terms.

    Outputs of the model: a tensor of logits (N, C, H, W), or a mapping with it as "out" as
    torchvision's models return, or as "logits" as those of transformers do; where they are smaller
    than the targets they are resized to them, in training too. Targets: segmentation masks (N, H,
    W), of any integer type; in training also what `trainkit.data.mixup.MixupMasks` makes of them.

    Args:
        classes: how many, or their names in the order of their ids.
        ignore: the label that is never counted.
        aux_weight: factor of the loss of the output "aux" (logits like "out"); 0: off.
        se_weight: factor of the loss of the output "se" (one logit per class); 0: off.
        absent: see `MeanIoU`.
        extra_metrics: of one's own, `trainkit.metrics.base.Counting`, and of `evaluate`, both
            given masks (N, H, W); and names: "dice", "boundary_iou", and such as
            "torchmetrics:F1Score:average=macro", which are computed from the confusion matrix.
        loss: one of trainkit.losses.pixelwise, trainkit.losses.region or trainkit.losses.boundary,
            or several; the auxiliary term takes the first.
        palette: (red, green, blue) of each class in predictions, 0 to 255; None: Pascal VOC's
            colour map.
        raw_ids: the label of each class in the dataset's own files, which predictions are written
            in; None: train ids.

    Raises:
        UserError: there are fewer than two classes, palette or raw_ids do not fit them, or the
            losses cannot be used, or not together.

    Source:
        Auxiliary loss: Zhao et al., 2017, PSPNet. Semantic-encoding loss: Zhang et al., 2018,
        EncNet.
    """

    classes: int | Sequence[str]
    ignore: int = 255
    aux_weight: float = 0.0
    se_weight: float = 0.0
    absent: str = "skip"
    extra_metrics: Sequence[Any] = ()
    loss: Criterion | Sequence[Criterion] = CrossEntropy()
    palette: Sequence[tuple[int, int, int]] | None = None
    raw_ids: Sequence[int] | None = None

    headline = "mIoU"
    higher_is_better = True

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise UserError(
                f"the number of classes is {self.num_classes}; there must be at least 2, and what"
                " is no object is one too: --classes background,object"
            )
        if 0 <= self.ignore < self.num_classes:
            raise UserError(
                f"ignore is {self.ignore}, one of the {self.num_classes} classes; map the ignored"
                " label in the dataset to an id outside them (255)"
            )
        self._criteria  # noqa: B018  # what cannot work is refused here
        for name, most in (("palette", 255), ("raw_ids", 65535)):
            values = getattr(self, name)
            if values is not None:
                _check_of_classes(name, values, self.num_classes, most)

    @classmethod
    def of(cls, data: Any, **settings: Any) -> "Segmentation":
        """Make a task with classes, palette and raw_ids of a dataset of trainkit.data.

        Args:
            data: the dataset, such as ADE20K.
            **settings: further arguments of the class.
        """
        return cls(data.classes, palette=data.palette, raw_ids=data.raw_ids, **settings)

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the loss's terms."""
        names = [each.name for each in self._criteria]
        return (*names, *(["aux"] if self.aux_weight else []), *(["se"] if self.se_weight else []))

    def check(self, target: Any) -> str | None:
        """Say what is wrong with one segmentation mask; None if nothing."""
        target = as_target(target)
        if not isinstance(target, Tensor) or target.is_floating_point() or target.ndim != 2:
            kind = (
                f"{target.dtype} of shape {tuple(target.shape)}"
                if isinstance(target, Tensor)
                else repr(target)
            )
            return f"mask is {kind}; it is whole numbers (H, W), a class id for each pixel"
        if fault := check_ignore(target, self.ignore):
            return fault
        low, high = map(int, target.masked_fill(target == self.ignore, 0).aminmax())
        if low >= 0 and high < self.num_classes:
            return None
        label = high if high >= self.num_classes else low
        return (
            f"label {label} on {int((target == label).sum())} pixels is outside the"
            f" {self.num_classes} classes 0 to {self.num_classes - 1} (ignored: {self.ignore})"
        )

    def counts(self, targets: Tensor) -> Tensor:
        """Count what each loss divides by: valid pixels, and images times classes for "se"."""
        parts = mixed_masks(targets)
        return weighted_sum([(self._counts(masks), weight) for masks, weight in parts])

    def _counts(self, targets: Tensor) -> Tensor:
        criteria = self._criteria
        counts = {
            each.name: each.count(targets, self.ignore, self.num_classes) for each in criteria
        }
        counts["aux"] = counts[criteria[0].name]
        if self.se_weight:
            counts["se"] = torch.full_like(counts["aux"], float(len(targets) * self.num_classes))
        return side_by_side([counts[term] for term in self.terms])

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        """Sum each term, weighted: float32 (K,)."""
        outputs = {**(outputs if isinstance(outputs, Mapping) else {}), "out": main_logits(outputs)}
        terms = self.terms
        for term in ("aux", "se"):
            if term in terms and term not in outputs:
                raise UserError(
                    f"{term}_weight is above 0, but the model returns {sorted(outputs)} and no"
                    f" {term!r}: build it with that head (torchvision: aux_loss=True) or set"
                    f" {term}_weight=0"
                )
        # a model may return what no loss is asked for
        used = {"out", *({"aux", "se"} & set(terms))}
        for key in used:
            check_num_outputs(outputs[key], self.num_classes, type(self).__name__)
        maps = {key: resized_to_targets(outputs[key], targets) for key in used - {"se"}}
        if "se" in used:
            maps["se"] = outputs["se"]
        parts = mixed_masks(targets)
        return weighted_sum([(self._sums(maps, masks), weight) for masks, weight in parts])

    def _sums(self, maps: Mapping[str, Tensor], targets: Tensor) -> Tensor:
        """Sum each term, weighted, of outputs of the masks' size, and of "se": float32 (K,)."""
        criteria, terms = self._criteria, self.terms
        sums = {
            each.name: weighted(each, each(maps["out"], targets, self.ignore)) for each in criteria
        }
        if "aux" in terms:
            sums["aux"] = self.aux_weight * criteria[0](maps["aux"], targets, self.ignore)
        if "se" in terms:
            sums["se"] = self.se_weight * presence_loss_sum(maps["se"], targets, self.ignore)
        return side_by_side([sums[term] for term in terms])

    def distillation_count(self, targets: Tensor) -> Tensor:
        """See `Task`: valid pixels."""
        parts = mixed_masks(targets)
        return weighted_sum([(num_valid(masks, self.ignore), weight) for masks, weight in parts])

    def distillation_loss(
        self, outputs: Any, teacher: Tensor, targets: Tensor, temperature: float
    ) -> Tensor:
        """See `Task`: T² KL(teacher || student) of valid pixels, both at the targets' size."""
        logits = resized_to_targets(main_logits(outputs), targets)
        teacher = resized(teacher, targets.shape[-2:])
        parts = [
            (distillation_sum(logits, teacher, masks, self.ignore, temperature), weight)
            for masks, weight in mixed_masks(targets)
        ]
        return weighted_sum(parts)

    def predict(self, outputs: Any, targets: Tensor) -> Tensor:
        """Predicted masks (N, H, W) at the targets' size, to which the logits are resized."""
        logits = main_logits(outputs)
        check_num_outputs(logits, self.num_classes, type(self).__name__)
        return argmax_labels(resized(logits, targets.shape[-2:]))

    def evaluated(self, outputs: Any, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task`; each image has its own sums, of logits at the size of its mask."""
        if not self._has_own_losses or type(self).predict is not Segmentation.predict:
            return super().evaluated(outputs, targets)
        given = outputs if isinstance(outputs, Mapping) else {}
        size = targets.shape[-2:]
        logits = main_logits(outputs)
        check_num_outputs(logits, self.num_classes, type(self).__name__)
        logits = resized(logits, size)
        sums = self._image_sums(logits, targets)
        if "aux" in self.terms and "aux" in given:
            first, *_ = self._criteria
            each = _of_each_image(first, resized(given["aux"], size), targets, self.ignore)
            sums["aux"] = self.aux_weight * each
        if "se" in self.terms and "se" in given:
            each = _of_each_image(presence_loss_sum, given["se"], targets, self.ignore)
            sums["se"] = self.se_weight * each
        return argmax_labels(logits), sums

    def score_losses(self, scores: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """See `Task`: the losses of the logarithms, whose softmax the merged probabilities are."""
        if not self._has_own_losses:
            return {}
        return self._image_sums(scores.clamp(min=torch.finfo(scores.dtype).tiny).log(), targets)

    @property
    def _has_own_losses(self) -> bool:
        """Whether `losses` and `scores` are those of this class, and not of one derived from it."""
        kind = type(self)
        return kind.losses is Segmentation.losses and kind.scores is Segmentation.scores

    def _image_sums(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Sums of each image and each term of `loss`: (N,)."""
        return {
            each.name: each.factor * _of_each_image(each, logits, targets, self.ignore)
            for each in self._criteria
        }

    def scores(self, outputs: Any, images: Tensor) -> Tensor:
        """Probabilities (N, C, H, W), float32, at the size of the images, as windows need them."""
        logits = main_logits(outputs)
        check_num_outputs(logits, self.num_classes, type(self).__name__)
        return resized(logits, images.shape[-2:]).float().softmax(1)

    def probabilities(self, scores: Tensor) -> Tensor:
        """Probabilities (N, C, H, W) of merged `scores`, which are such already."""
        return scores

    def from_scores(self, scores: Tensor) -> Tensor:
        """Predicted masks (N, H, W) from probabilities (N, C, H, W)."""
        return argmax_labels(scores)

    def labels(self, predictions: Tensor) -> Tensor:
        """The predicted masks, which hold class ids already."""
        return predictions

    def metrics(self) -> list:
        """MeanIoU, then the recipe's own."""
        names = None if isinstance(self.classes, int) else list(self.classes)
        derived: list[Callable[[Tensor], dict[str, Any]]] = []
        others: list[Any] = []
        for each in self.extra_metrics:
            if each == DiceOfClasses.name:
                derived.append(DiceOfClasses(self.absent, names))
            elif each == BoundaryIoU.name:
                others.append(BoundaryIoU(self.num_classes, self.ignore, class_names=names))
            elif isinstance(each, str):
                derived.append(from_confusion(each, self.num_classes))
            else:
                others.append(each)
        return [MeanIoU(self.num_classes, self.ignore, self.absent, names, derived), *others]


def _of_each_image(
    loss: Callable[[Tensor, Tensor, int], Tensor], logits: Tensor, targets: Tensor, ignore: int
) -> Tensor:
    """The sum of a loss over each image: (N,)."""
    pairs = zip(logits.split(1), targets.split(1))
    return torch.stack([loss(image, target, ignore) for image, target in pairs])


def named_losses(names: Sequence[Loss], weight: Sequence[float] | None = None) -> list[Criterion]:
    """The segmentation losses of these names, each as in its paper.

    Args:
        names: values of a recipe's setting `loss`, such as "cross_entropy" or "dice".
        weight: one per class, for cross_entropy and focal.

    Raises:
        UserError: `weight` is given, and none of the losses takes it.
    """
    kinds: tuple[Any, ...] = (CrossEntropy, Focal, OHEM, Dice, Tversky, Lovasz, Boundary)
    known = {each.name: each for each in kinds}
    weighted = {each.name for each in (CrossEntropy, Focal)} if weight is not None else set()
    if weight is not None and not weighted & set(names):
        raise UserError(
            f"class weights are of cross_entropy and focal, and the loss is {', '.join(names)}"
        )
    return [known[name](weight=weight) if name in weighted else known[name]() for name in names]


def _check_of_classes(name: str, values: Sequence, num_classes: int, most: int) -> None:
    if len(values) != num_classes:
        raise UserError(
            f"{name} has {len(values)} entries for {num_classes} classes; give one for each"
        )
    for value in values:
        numbers = value if name == "palette" else (value,)
        if len(numbers) != (3 if name == "palette" else 1) or not all(
            0 <= number <= most for number in numbers
        ):
            kind = (
                f"three numbers from 0 to {most}"
                if name == "palette"
                else f"a number from 0 to {most}"
            )
            raise UserError(f"{name} holds {value}; each entry is {kind}")
