"""Segmentation with overlapping classes: any number of classes per pixel."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trainkit.data.datasets.multi_hot import IGNORED
from trainkit.data.targets import as_target
from trainkit.errors import UserError
from trainkit.losses.base import Criterion, side_by_side, weighted
from trainkit.losses.boundary import Boundary
from trainkit.losses.distillation import binary_distillation_sum, num_known
from trainkit.losses.functional import check_num_outputs
from trainkit.losses.multilabel import AsymmetricLoss, BCEWithLogits, SigmoidFocal
from trainkit.losses.pixelwise import OHEM, CrossEntropy, Focal
from trainkit.losses.region import Dice, Lovasz, Tversky
from trainkit.metrics.boundary import BoundaryIoU
from trainkit.metrics.named import multilabel_metrics
from trainkit.metrics.overlapping import OverlappingBoundaryIoU, OverlappingIoU
from trainkit.models.outputs import main_logits, resized, resized_to_targets
from trainkit.tasks.of_losses import TaskOfClasses

OverlappingLoss = Literal["bce", "dice", "tversky", "focal", "asl", "boundary"]
THRESHOLD = 0.5
# of one class per pixel, whose softmax means nothing here
OF_ONE_CLASS = (CrossEntropy, Focal, OHEM, Lovasz)


@dataclass(frozen=True)
class MultiLabelSegmentation(TaskOfClasses):
    """Any number of classes per pixel, none of them too, such as organs and the lesions in them.

    Each class has a mask of its own, by the sigmoid of its logit. Results: IoU and Dice of each
    class over the pixels of the whole split, and their means.

    Outputs of the model: as of `Segmentation`, logits (N, C, H, W), which are resized to the
    targets where they are smaller. Targets: masks (N, C, H, W) of whole numbers, 1 where a pixel is
    of a class, 0 where it is not, and -1 (any negative) where that is not known, which counts
    nowhere; of that class alone, so that images may be labelled for some of the classes.

    Args:
        classes: how many, or their names in the order of their ids; one will do.
        loss: of trainkit.losses.multilabel, `Dice`, `Tversky` or `Boundary`, or several.
        threshold: probability above which a pixel is of a class.
        palette: (red, green, blue) of each class in pictures, 0 to 255; None: colours of ours.
        extra_metrics: of one's own, `trainkit.metrics.base.Counting`, given masks (N, C, H, W), and
            names: "boundary_iou", and such as "torchmetrics:HammingDistance".

    Raises:
        UserError: there is no class, a value is out of range, or the losses cannot be used.
    """

    classes: int | Sequence[str]
    loss: Criterion | Sequence[Criterion] = (BCEWithLogits(), Dice())
    threshold: float = THRESHOLD
    palette: Sequence[tuple[int, int, int]] | None = None
    extra_metrics: Sequence[Any] = ()

    headline = "mIoU"
    higher_is_better = True

    def __post_init__(self) -> None:
        self._check_any_number()
        if not 0 < self.threshold < 1:
            raise UserError(f"threshold is {self.threshold}; it must be between 0 and 1")
        if self.palette is not None and len(self.palette) != self.num_classes:
            raise UserError(
                f"palette has {len(self.palette)} entries for {self.num_classes} classes; give one"
                " for each"
            )
        for each in self._criteria:
            if isinstance(each, OF_ONE_CLASS):
                raise UserError(
                    f"loss {each.name} is of one class per pixel, and classes overlap here: take"
                    " bce, dice, tversky, boundary, focal (SigmoidFocal) or asl (AsymmetricLoss)"
                )

    def check(self, target: Any) -> str | None:
        """Say what is wrong with the masks of one image; None if nothing."""
        target = as_target(target)
        if (
            not isinstance(target, Tensor)
            or target.is_floating_point()
            or target.ndim != 3
            or len(target) != self.num_classes
        ):
            kind = (
                f"{target.dtype} of shape {tuple(target.shape)}"
                if isinstance(target, Tensor)
                else f"{target!r:.60}"
            )
            return (
                f"target is {kind}; it is whole numbers ({self.num_classes}, H, W), a mask for each"
                " class, 1 where a pixel is of it, 0 where not, -1 for what is not known"
            )
        highest = int(target.max())
        if highest > 1:
            return (
                f"target holds {highest} on {int((target == highest).sum())} pixels: a mask has 1,"
                " 0, and -1 for what is not known"
            )
        return None

    def counts(self, targets: Tensor) -> Tensor:
        """Count what each loss divides by: valid pairs of pixel and class, of most: (K,)."""
        return side_by_side(
            [each.count(targets, IGNORED, self.num_classes) for each in self._criteria]
        )

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        """Sum each term, weighted: float32 (K,)."""
        logits = resized_to_targets(self._logits(outputs), targets)
        return side_by_side(
            [weighted(each, each(logits, targets, IGNORED)) for each in self._criteria]
        )

    def distillation_count(self, targets: Tensor) -> Tensor:
        """See `Task`: valid pairs of pixel and class."""
        return num_known(targets)

    def distillation_loss(
        self, outputs: Any, teacher: Tensor, targets: Tensor, temperature: float
    ) -> Tensor:
        """See `Task`: T² KL(teacher || student) of each class's mask, at the targets' size."""
        logits = resized_to_targets(self._logits(outputs), targets)
        teacher = resized(teacher, targets.shape[-2:])
        return binary_distillation_sum(logits, teacher, targets, temperature)

    def _logits(self, outputs: Any) -> Tensor:
        logits = main_logits(outputs)
        check_num_outputs(logits, self.num_classes, type(self).__name__)
        return logits

    def predict(self, outputs: Any, targets: Tensor) -> Tensor:
        """Predicted masks, uint8 (N, C, H, W), at the targets' size."""
        return self.from_scores(self.scores(outputs, targets))

    def evaluated(self, outputs: Any, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task`; each image has its own sums, of logits at the size of its masks."""
        kind = type(self)
        ours = MultiLabelSegmentation
        if kind.predict is not ours.predict or kind.losses is not ours.losses:
            return super().evaluated(outputs, targets)
        logits = resized(self._logits(outputs), targets.shape[-2:])
        return self.from_scores(logits.float().sigmoid()), self._image_sums(logits, targets)

    def score_losses(self, scores: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """See `Task`: the losses of the merged probabilities' logits."""
        kind = type(self)
        ours = MultiLabelSegmentation
        if kind.scores is not ours.scores or kind.losses is not ours.losses:
            return {}
        return self._image_sums(scores.logit(eps=torch.finfo(scores.dtype).eps), targets)

    def _image_sums(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Sums of each image and each term: (N,)."""
        pairs = list(zip(logits.split(1), targets.split(1)))
        return {
            each.name: weighted(each, torch.stack([each(*pair, IGNORED) for pair in pairs]))
            for each in self._criteria
        }

    def scores(self, outputs: Any, images: Tensor) -> Tensor:
        """Probabilities (N, C, H, W), float32, at the size of the images, as windows need them."""
        return resized(self._logits(outputs), images.shape[-2:]).float().sigmoid()

    def from_scores(self, scores: Tensor) -> Tensor:
        """Predicted masks, uint8 (N, C, H, W), from probabilities."""
        return (scores > self.threshold).to(torch.uint8)

    def labels(self, predictions: Tensor) -> Tensor:
        """The predicted masks."""
        return predictions

    def metrics(self) -> list:
        """IoU and Dice of each class, then the recipe's own."""
        names = None if isinstance(self.classes, int) else list(self.classes)
        others = [
            OverlappingBoundaryIoU(self.num_classes, names) if each == BoundaryIoU.name else each
            for each in self.extra_metrics
        ]
        own = multilabel_metrics(others, self.num_classes)
        return [OverlappingIoU(self.num_classes, names), *own]


def named_losses(
    names: Sequence[OverlappingLoss], pos_weight: Sequence[float] | None = None
) -> list[Criterion]:
    """The losses of these names, each as in its paper.

    Args:
        names: values of a recipe's setting `loss`.
        pos_weight: of bce, a weight of the positives of each class.

    Raises:
        UserError: `pos_weight` is given without bce.
    """
    if pos_weight is not None and "bce" not in names:
        raise UserError(f"pos_weight is of bce, and the loss is {', '.join(names)}: leave it out")
    known: dict[str, Criterion] = {
        "bce": BCEWithLogits(pos_weight),
        "dice": Dice(),
        "tversky": Tversky(),
        "focal": SigmoidFocal(),
        "asl": AsymmetricLoss(),
        "boundary": Boundary(),
    }
    return [known[name] for name in names]
