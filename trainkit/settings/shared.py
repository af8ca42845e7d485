"""Settings that all recipes share, as frozen dataclasses whose fields are flags of their own.

A parameter `optimizer: OptimizerSettings = OptimizerSettings(lr=0.1)` of `recipe` is given as
`--lr`, and stands in settings.json as "lr": see `trainkit.settings.variants.flat_signature`. What
the docstring of `recipe` says about a field goes before what stands here.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from trainkit.errors import UserError
from trainkit.optim import named_parts, param_groups
from trainkit.settings.optimizers import named_optimizer
from trainkit.settings.schedules import named_schedule


class SharedSettings:
    """Base class of dataclasses whose fields are settings of the recipe, not a group in them."""


@dataclass(frozen=True)
class OptimizerSettings(SharedSettings):
    """The optimizer by name, and what else happens to weights in a step.

    Attributes:
        lr: learning rate at its highest
        weight_decay: of every parameter
        head_lr_mult: factor of the learning rate of the head, or outside the backbone; 1: none
        layer_decay: factor of the learning rate from each layer to the one before it, such as 0.75;
            1: none
        clip_norm: largest norm of the gradient, to which larger ones are scaled down; None for no
            clipping
        clip_value: largest size of each value of the gradient, in place of clip_norm; None for no
            clipping
        clip_agc: adaptive gradient clipping, in place of clip_norm: largest ratio of the norms of
            gradient and weights, such as 0.01, of each output of a layer but the last; None for
            none
        ema: decay of a moving average of the weights, such as 0.9999; None for none
        optimizer: sgd, nesterov, adamw or another of torch's, schedulefree, prodigy, or one of
            timm's by its name, such as lion, lamb, muon; further arguments after a colon:
            adamw:eps=1e-6,amsgrad=True
        momentum: of an optimizer that has it; None: 0.9 for SGD, others' own
        betas: of an optimizer that has them, such as 0.9 0.95; None: its own
        freeze: parts that are not trained at first: backbone, which is all but the head, or modules
            of the network, such as layer1 layer2
        unfreeze_epoch: epoch from which on they are, counted from 0 (fractions allowed); None:
            never
    """

    lr: float
    weight_decay: float = 1e-4
    head_lr_mult: float = 1.0
    layer_decay: float = 1.0
    clip_norm: float | None = None
    clip_value: float | None = None
    clip_agc: float | None = None
    ema: float | None = None
    optimizer: str = "sgd"
    momentum: float | None = None
    betas: tuple[float, ...] | None = None
    freeze: tuple[str, ...] = ()
    unfreeze_epoch: float | None = None

    def build(self, model: nn.Module, decay_vectors: bool = True) -> dict[str, Any]:
        """The fields of a `Recipe` that follow: optimizer, clipping, ema and frozen.

            Recipe(..., **optimizer.build(model))

        The optimizer has the parameters that are frozen for a while, too.

        Args:
            model: says by `backbone` or `head_names` which part is its head, see `param_groups`;
                its frozen parameters are left out.
            decay_vectors: False exempts norms and biases from weight decay.

        Raises:
            UserError: `head_lr_mult` or `layer_decay` is not 1, and the model does not say which
                parts these are of; it has adapters, and `layer_decay` or `freeze` is asked for;
                there is no such optimizer, or it has no such option; there is nothing of the name
                that is to be frozen.
        """
        if getattr(model, "adapters", None) is not None:
            self._require_no_other_freezing()
        groups = param_groups(
            model,
            self.lr,
            self.weight_decay,
            self.head_lr_mult,
            decay_vectors=decay_vectors,
            layer_decay=self.layer_decay,
        )
        optimizer = named_optimizer(self.optimizer, groups, self.lr, self.momentum, self.betas)
        if self.unfreeze_epoch is not None and not self.freeze:
            raise UserError(
                f"unfreeze_epoch is {self.unfreeze_epoch:g}, and nothing is frozen: give --freeze,"
                " such as --freeze backbone"
            )
        return {
            "optimizer": optimizer,
            "clip_norm": self.clip_norm,
            "clip_value": self.clip_value,
            "clip_agc": self.clip_agc,
            "ema": self.ema,
            "frozen": named_parts(model, self.freeze) if self.freeze else (),
            "unfreeze_epoch": self.unfreeze_epoch,
        }

    def _require_no_other_freezing(self) -> None:
        """Raise UserError for what does not hold where adapters and head alone are trained."""
        if self.freeze:
            raise UserError(
                f"freeze is {' '.join(self.freeze)}, and with lora all but the adapters and the"
                " head is frozen for the whole run: leave one of the two out"
            )
        if self.layer_decay != 1:
            raise UserError(
                f"layer_decay is {self.layer_decay}, and with lora the layers themselves are"
                " frozen: leave one of the two out"
            )


@dataclass(frozen=True)
class ClassSettings(SharedSettings):
    """How classes are measured, weighted and drawn.

    Attributes:
        class_weights: of cross_entropy and focal, one per class; auto: those that balance the
            training images, or the square root of that for pixels; None: all equal
        sampler: shuffle: each training image once an epoch; balanced: as many draws with
            replacement, of all classes alike
        metrics: further ones, such as torchmetrics:F1Score:average=macro or
            evaluate:PATH_OR_NAME:average=macro; for segmentation dice, boundary_iou and those of
            torchmetrics that follow from the confusion matrix
    """

    metrics: tuple[str, ...] = ()
    class_weights: Literal["auto"] | tuple[float, ...] | None = None
    sampler: Literal["shuffle", "balanced"] = "shuffle"


@dataclass(frozen=True)
class OrientationSettings(SharedSettings):
    """Further orientations of training images that have no top, such as aerial or medical ones.

    Attributes:
        vflip: probability that top and bottom change sides in training, such as 0.5
        rotate90: probability of a turn by 90, 180 or 270 degrees in training; 0.75: all directions
            alike
    """

    vflip: float = 0.0
    rotate90: float = 0.0


@dataclass(frozen=True)
class ScheduleSettings(SharedSettings):
    """How long a training is, and how its learning rate changes.

    Attributes:
        epochs: passes over the training images
        warmup_epochs: of linear warm-up from 0
        schedule: of the learning rate: cos, poly, linear, constant, one_cycle, wsd,
            step:every_epochs=30 or multistep:milestones=[30,60]; further arguments as there:
            poly:power=0.5,end=0.01
    """

    epochs: float
    warmup_epochs: float = 0
    schedule: str = "cos"

    def build(self, **usual: Any) -> dict[str, Any]:
        """The fields of a `Recipe` that follow: epochs and schedule.

            Recipe(..., **schedule.build())

        Args:
            **usual: arguments of the recipe's own schedule that are other settings of it, such as
                milestones; what `schedule` says itself goes before them, and a schedule that has no
                such argument goes without.

        Raises:
            UserError: there is no such schedule, or it does not take what it is given.
        """
        schedule = named_schedule(self.schedule, self.warmup_epochs, **usual)
        return {"schedule": schedule, "epochs": self.epochs}
