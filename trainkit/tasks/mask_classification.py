"""Mask classification: segmentation by binary masks, each with a class."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from trainkit.data.seeding import fold
from trainkit.errors import UserError
from trainkit.losses.mask_classification import TERMS, MaskLoss
from trainkit.metrics.confusion import argmax_labels
from trainkit.models.mask_networks import MaskedAttention
from trainkit.models.outputs import main_logits, resized
from trainkit.tasks.base import Task
from trainkit.tasks.segmentation import Segmentation

LOSS = 1  # beside the stream of a network's own draws for an image


class _Seeds:
    """Of the images of the next training pass; None outside of a training."""

    of_images: list[int] | None = None


@dataclass(frozen=True)
class MaskClassification(Segmentation):
    """Losses of matched binary masks; predictions and metrics as of `Segmentation`.

    For the networks of `trainkit.models.mask_networks`: in training they return "layers", logits of
    classes (N, Q, C + 1) and of binary masks (N, Q, h, w) for each layer, and in evaluation "out",
    logits of each pixel. A class that occurs in an image is one binary mask; pixels of the ignored
    label belong to none, and are measured as outside of each, as transformers has it.

    The points at which masks are compared are drawn image by image, by the seed of the run, the
    step and the position of the image in the batch. There is no validation loss: it would need
    another matching, and outputs that sliding windows do not keep.

    Args:
        classes: how many, or their names in the order of their ids.
        num_queries: of the network.
        no_object_weight: weight of a query that is to find nothing, in the cross-entropy.
        class_weight: factor of the cross-entropy of classes, in the loss and in the matching.
        mask_weight: the same of the binary cross-entropy of masks.
        dice_weight: the same of their Dice loss.
        num_points: at which masks are compared.
        oversample_ratio: how many times as many points the uncertain ones are chosen from.
        importance_sample_ratio: share of points that is chosen for uncertainty.
        anneal: EoMT's masked attention fades during the run, see
            `trainkit.models.mask_networks.mask_probabilities`; else it stays as it is.

    Raises:
        UserError: as `Segmentation`, whose loss, aux_weight and se_weight it does not take.
    """

    num_queries: int = 100
    no_object_weight: float = 0.1
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_sample_ratio: float = 0.75
    anneal: bool = True

    terms = TERMS
    # in training there are logits of queries, and none of pixels
    distillation_count = Task.distillation_count
    distillation_loss = Task.distillation_loss

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss != Segmentation.loss or self.aux_weight or self.se_weight:
            raise UserError(
                "MaskClassification has losses of its own: leave out loss, aux_weight and se_weight"
            )
        for name in ("num_queries", "num_points"):
            if getattr(self, name) < 1:
                raise UserError(f"MaskClassification: {name} is {getattr(self, name)}; at least 1")

    @classmethod
    def for_network(cls, network: nn.Module, data: Any, **settings: Any) -> "MaskClassification":
        """Make a task for a network, with the weights of losses that its configuration has.

        Args:
            network: of `trainkit.models.mask_networks`.
            data: the dataset, of trainkit.data, with classes, palette and raw_ids.
            **settings: further arguments of the class, which go before the network's.
        """
        config: Any = network.config
        names = ("num_queries", "no_object_weight", "class_weight", "mask_weight", "dice_weight",
                 "oversample_ratio", "importance_sample_ratio")  # fmt: skip
        said = {name: getattr(config, name) for name in names}
        of_data = {"palette": data.palette, "raw_ids": data.raw_ids}
        of_loss = {**said, "num_points": config.train_num_points}
        return cls(data.classes, **{**of_data, **of_loss, **settings})

    @cached_property
    def _loss(self) -> MaskLoss:
        return MaskLoss(
            num_classes=self.num_classes,
            num_queries=self.num_queries,
            no_object_weight=self.no_object_weight,
            class_weight=self.class_weight,
            mask_weight=self.mask_weight,
            dice_weight=self.dice_weight,
            num_points=self.num_points,
            oversample_ratio=self.oversample_ratio,
            importance_sample_ratio=self.importance_sample_ratio,
        )

    @cached_property
    def _seeds(self) -> _Seeds:
        return _Seeds()

    def at_step(self, model: nn.Module, step: int, total_steps: int) -> None:
        """Set how much of EoMT's attention is masked."""
        if self.anneal and isinstance(model, MaskedAttention):
            model.anneal(step, total_steps)

    def at_images(self, model: nn.Module, seed: int, positions: Sequence[int]) -> None:
        """See `Task`."""
        self._seeds.of_images = [fold(seed, position, LOSS) for position in positions]
        if isinstance(model, MaskedAttention):
            model.draw_masking(seed, positions)

    def counts(self, targets: Tensor) -> Tensor:
        """Count what each term is divided by: weights of queries, and matched binary masks."""
        if targets.ndim != 3:
            raise UserError(
                f"MaskClassification: targets are {tuple(targets.shape)} and not masks (N, H, W);"
                " mixup of masks has no matched ones: leave it out, or take CutmixMasks"
            )
        return self._loss.counts(targets, self.ignore)

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        """Sum each term over layers, weighted: float32 (3,)."""
        layers = outputs.get("layers") if isinstance(outputs, dict) else None
        if not layers:
            raise UserError(
                "MaskClassification takes a network of trainkit.models.mask_networks, which returns"
                f' "layers" in training, and this one returns {type(outputs).__name__}: take the'
                " task Segmentation for others"
            )
        queries, outputs_of_each = layers[0][0].shape[1:]
        if (queries, outputs_of_each) != (self.num_queries, self.num_classes + 1):
            raise UserError(
                f"the network has {queries} queries of {outputs_of_each - 1} classes, and the task"
                f" {self.num_queries} of {self.num_classes}: build both for the same"
            )
        seeds = self._seeds.of_images
        if seeds is not None and len(seeds) != len(targets):  # outside of a training
            seeds = None
        return self._loss.sums(layers, targets, self.ignore, seeds)

    def predict(self, outputs: Any, targets: Tensor) -> Tensor:
        """Predicted masks (N, H, W) at the targets' size, to which the scores are resized."""
        return argmax_labels(resized(main_logits(outputs).exp(), targets.shape[-2:]))

    def evaluated(self, outputs: Any, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Predictions, and no loss."""
        return self.predict(outputs, targets), {}

    def score_losses(self, scores: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """No loss."""
        return {}

    def probabilities(self, scores: Tensor) -> Tensor:
        """See `Segmentation`."""
        return scores / scores.sum(1, keepdim=True)

    def scores(self, outputs: Any, images: Tensor) -> Tensor:
        """Scores of each pixel (N, C, H, W), float32, of any sum, as windows average them."""
        return resized(main_logits(outputs).exp(), images.shape[-2:])
