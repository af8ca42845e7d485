"""Recognition: one class per image. Losses, metrics, predictions and transforms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from trainkit.losses import cross_entropy_sum, num_valid
from trainkit.metrics import TopK


@dataclass(frozen=True)
class Recognition:
    """Cross-entropy over classes; top1 and (with more than five classes) top5.

    classes: how many, or their names. extra_metrics: metrics of `evaluate`, given class ids (N,).
    Outputs of the model: logits (N, C). Targets: ids (N,), negative ones ignored, or probabilities (N, C).
    """

    classes: int | Sequence[str]
    label_smoothing: float = 0.0
    extra_metrics: Sequence[Any] = ()

    terms = ("cross_entropy",)
    headline = "top1"
    higher_is_better = True

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(f"Recognition: {self.num_classes} classes; there must be at least 2")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must be in [0, 1)")

    @property
    def num_classes(self) -> int:
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    def check(self, target: Tensor) -> str | None:
        """What is wrong with one image's class id, or None."""
        if target.ndim == 0 and not target.is_floating_point() and int(target) >= self.num_classes:
            return f"label {int(target)} is outside the {self.num_classes} classes 0 to {self.num_classes - 1}"
        return None

    def counts(self, targets: Tensor) -> Tensor:
        """Images with a class: (1,)."""
        return num_valid(targets)[None]

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Sum of cross-entropies: (1,)."""
        return torch.stack([cross_entropy_sum(outputs, targets, label_smoothing=self.label_smoothing)])

    def predict(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Class ids from the likeliest: (N, 5), or (N, C) with fewer classes."""
        return outputs.topk(min(5, outputs.shape[1]), dim=1).indices

    def labels(self, predictions: Tensor) -> Tensor:
        """The likeliest class: (N,)."""
        return predictions[:, 0]

    def metrics(self) -> list:
        """TopK, then the recipe's own."""
        return [TopK((1, 5) if self.num_classes > 5 else (1,)), *self.extra_metrics]


def train_transform(
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    interpolation: InterpolationMode = InterpolationMode.BILINEAR,
    rand_augment: tuple[int, int] | None = None,
) -> v2.Transform:
    """Random crop of an area in `scale` resized to `size`, flip, RandAugment(number, magnitude): uint8 -> uint8."""
    steps = [
        v2.RandomResizedCrop(size, scale=scale, interpolation=interpolation, antialias=True),
        v2.RandomHorizontalFlip(),
    ]
    if rand_augment is not None:
        steps.append(v2.RandAugment(*rand_augment, interpolation=interpolation))
    return v2.Compose(steps)


def eval_transform(
    size: int, crop_fraction: float = 0.875, interpolation: InterpolationMode = InterpolationMode.BILINEAR
) -> v2.Transform:
    """Short side to size / crop_fraction (224 -> 256), centre crop of `size`: uint8 -> uint8."""
    return v2.Compose(
        [
            v2.Resize(round(size / crop_fraction), interpolation=interpolation, antialias=True),
            v2.CenterCrop(size),
        ]
    )
