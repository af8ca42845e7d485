"""Settings that all recipes share, as frozen dataclasses.

Parameters of `recipe` whose fields are flags of their own.

A parameter `optimizer: OptimizerSettings = OptimizerSettings(lr=0.1)` is given as `--lr`, and
stands in settings.json as "lr": see `trainkit.variants.flat_signature`. What the docstring of
`recipe` says about a field goes before what stands here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import SGD

from trainkit.optim import param_groups
from trainkit.schedules import Schedule


class SharedSettings:
    """A dataclass derived from it is flat.

    Its fields are settings of the recipe, and not a group within them.
    """


@dataclass(frozen=True)
class OptimizerSettings(SharedSettings):
    """SGD with momentum, and what else happens to weights in a step.

    Attributes:
        lr: learning rate at its highest
        weight_decay: of every parameter
        head_lr_mult: factor of the learning rate of the head, or outside the backbone; 1: none
        layer_decay: factor of the learning rate from each layer to the one before it, such as 0.75;
            1: none
        clip_norm: largest norm of the gradient, to which larger ones are scaled down; None for no
            clipping
        ema: decay of a moving average of the weights, such as 0.9999; None for none
    """

    lr: float
    weight_decay: float = 1e-4
    head_lr_mult: float = 1.0
    layer_decay: float = 1.0
    clip_norm: float | None = None
    ema: float | None = None

    def build(
        self, model: nn.Module, decay_vectors: bool = True, nesterov: bool = False
    ) -> dict[str, Any]:
        """The fields of a `Recipe` that follow: `Recipe(..., **optimizer.build(model))`.

        They are the optimizer over the parameters of `model` that are not frozen, clip_norm and
        ema.

        Args:
            model: says by `backbone` or `head_names` which part is its head, see `param_groups`.
            decay_vectors: False exempts norms and biases from weight decay.
            nesterov: Nesterov's momentum.

        Raises:
            UserError: `head_lr_mult` or `layer_decay` is not 1, and the model does not say which
                parts these are of.
        """
        groups = param_groups(
            model,
            self.lr,
            self.weight_decay,
            self.head_lr_mult,
            decay_vectors=decay_vectors,
            layer_decay=self.layer_decay,
        )
        sgd = SGD(groups, lr=self.lr, momentum=0.9, nesterov=nesterov, fused=True)
        return {"optimizer": sgd, "clip_norm": self.clip_norm, "ema": self.ema}


@dataclass(frozen=True)
class ScheduleSettings(SharedSettings):
    """How long a training is, and how its learning rate begins.

    Attributes:
        epochs: passes over the training images
        warmup_epochs: of linear warm-up from 0
    """

    epochs: float
    warmup_epochs: float = 0

    def build(self, curve: Callable[..., Schedule]) -> dict[str, Any]:
        """The fields of a `Recipe` that follow: `Recipe(..., **schedule.build(cos))`.

        They are epochs, and as schedule what `curve` of trainkit.schedules gives after the warm-up.
        """
        return {"schedule": curve(warmup_epochs=self.warmup_epochs), "epochs": self.epochs}
