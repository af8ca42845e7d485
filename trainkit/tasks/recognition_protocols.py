"""Recognition evaluated by other protocols: among some of the classes, and of several labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainkit.errors import UserError
from trainkit.metrics.recognition import ListedTop1
from trainkit.models.outputs import class_logits
from trainkit.tasks.base import Task
from trainkit.tasks.recognition import Recognition


@dataclass(frozen=True)
class AmongSome(Recognition):
    """Recognition whose predictions are restricted to some of the classes, as of ImageNet-A and -R.

    The logits of the others are -inf, before several crops are averaged. There is no validation
    loss, which is of all classes.

    Args:
        allowed: ids of the classes that may be predicted.

    Raises:
        UserError: there are fewer than two.

    Source:
        Hendrycks et al., 2021, Natural Adversarial Examples, and The Many Faces of Robustness.
    """

    allowed: Sequence[int] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.allowed) < 2:
            raise UserError(
                f"the images to evaluate are of {len(self.allowed)} class: there must be at least"
                " 2, among which a network can choose"
            )

    @property
    def evaluation_words(self) -> str:
        """See `Task`."""
        return f"predictions among {len(self.allowed)} of {self.num_classes} classes"

    @property
    def _ks(self) -> tuple[int, ...]:
        return (1, 5) if len(self.allowed) > 5 else (1,)

    def predict(self, outputs: Any, targets: Tensor) -> Tensor:
        """See `Recognition`."""
        logits = class_logits(outputs)
        allowed = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
        allowed[torch.as_tensor(self.allowed, device=logits.device)] = True
        return super().predict(logits.masked_fill(~allowed, -torch.inf), targets)

    def evaluated(self, outputs: Any, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task`; without a loss."""
        return self.predict(outputs, targets), {}


@dataclass(frozen=True)
class OfListedLabels(Task):
    """A classifier evaluated on images with any number of right classes, as ImageNet-ReaL.

    Targets: rows (N, C) with 1 for each right class. A prediction is right where it is one of
    them. There is no validation loss.

    Args:
        recognition: the task of the training.
        file: that the labels are of, for the protocol.

    Source:
        Beyer et al., 2020, Are we done with ImageNet?
    """

    recognition: Recognition
    file: str

    headline = "top1"
    higher_is_better = True

    @property
    def terms(self) -> tuple[str, ...]:
        """Those of the training."""
        return self.recognition.terms

    @property
    def classes(self) -> int | Sequence[str]:
        """Those of the training."""
        return self.recognition.classes

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return self.recognition.num_classes

    @property
    def evaluation_words(self) -> str:
        """See `Task`."""
        return f"labels of {self.file}, images without one left out"

    def counts(self, targets: Tensor) -> Tensor:
        """See `Recognition`, of training images."""
        return self.recognition.counts(targets)

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        """See `Recognition`, of training images."""
        return self.recognition.losses(outputs, targets)

    def predict(self, outputs: Any, targets: Tensor) -> Tensor:
        """See `Recognition`."""
        return self.recognition.predict(outputs, targets)

    def evaluated(self, outputs: Any, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task`; without a loss."""
        return self.predict(outputs, targets), {}

    def metrics(self) -> list:
        """Make ListedTop1."""
        return [ListedTop1()]
