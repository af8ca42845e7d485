"""The parameters, groups, state and modes of an optimizer, whoever wrote it.

Its state is opaque: what is in it is saved and restored whole.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, SparseAdam

from trainkit.distributed.sharded_tensors import parts_of_optimizer
from trainkit.errors import UserError


def require_supported(optimizer: Optimizer, model: nn.Module) -> None:
    """Check that one update from one gradient suffices an optimizer.

    Raises:
        UserError: it does not, or has parameters that are not the model's; the message has its
            name.
    """
    name = type(optimizer).__name__
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UserError(
            f"optimizer {name} computes the loss again in its step (a closure): an update here is"
            " of one gradient. Take one whose step needs no closure"
        )
    if getattr(optimizer, "is_second_order", False):
        raise UserError(
            f"optimizer {name} needs second derivatives, which are not computed here: take"
            " another one"
        )
    if isinstance(optimizer, SparseAdam):
        raise UserError(
            f"optimizer {name} is for sparse gradients, and those of images are dense: take AdamW"
        )
    known = {id(weight) for weight in model.parameters()}
    strange = [
        weight
        for group in optimizer.param_groups
        for weight in group["params"]
        if id(weight) not in known
    ]
    if strange:
        shapes = ", ".join(str(list(weight.shape)) for weight in strange[:3])
        raise UserError(
            f"optimizer {name} has {len(strange)} parameters that are not the model's (of shapes"
            f" {shapes}): build it after the model is complete, such as after its head was replaced"
        )


def of_torch(optimizer: Optimizer) -> bool:
    """Whether an optimizer is torch's own, whose whole state is tensors by weight.

    Others count in their groups too.
    """
    return type(optimizer).__module__.startswith("torch.optim.")


def trained_and_others(
    model: nn.Module, optimizer: Optimizer
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The optimizer's parameters in the model's order, and others of it that get gradients."""
    chosen = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    weights = list(model.parameters())
    others = [weight for weight in weights if id(weight) not in chosen and weight.requires_grad]
    return [weight for weight in weights if id(weight) in chosen], others


def group_values(optimizer: Optimizer) -> list[dict[str, Any]]:
    """What each group holds besides its parameters, a learning rate always as a number."""
    return [
        {
            name: (
                float(value)
                if name == "lr"
                else value.clone()
                if isinstance(value, Tensor)
                else value
            )
            for name, value in group.items()
            if name != "params"
        }
        for group in optimizer.param_groups
    ]


def state_of(optimizer: Optimizer, groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The state for `take_up`; `groups` are their values as the recipe set them."""
    return {
        "type": type(optimizer).__name__,
        "groups": list(groups),
        "state_dict": optimizer.state_dict(),
    }


@torch.no_grad()
def take_up(
    optimizer: Optimizer, saved: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]
) -> None:
    """Restore what `state_of` gave: all state, and all values that the recipe has not changed.

    Some optimizers count or estimate in their groups.

    Args:
        optimizer: whose state is restored.
        saved: of `state_of`.
        groups: the values as the recipe sets them now.

    Raises:
        UserError: the optimizer is another one, or has other groups.
    """
    name = type(optimizer).__name__
    if "groups" not in saved:  # of an earlier version, which did not keep how they were set
        if not of_torch(optimizer):
            raise UserError(
                "the checkpoint was written by an earlier version of trainkit, which did not keep"
                f" what {name} has in its groups: the run cannot be resumed. Begin another one from"
                " its weights with --init-from"
            )
        saved = {"type": name, "groups": saved["param_groups"], "state_dict": saved}
    if saved["type"] != name:
        raise UserError(
            f"the checkpoint is of optimizer {saved['type']}, and the recipe has {name}: give the"
            " same"
        )
    state = saved["state_dict"]
    were, are = (
        [len(group["params"]) for group in each]
        for each in (state["param_groups"], optimizer.param_groups)
    )
    if were != are:
        raise UserError(
            f"the groups of optimizer {name} had {were} parameters, and have {are}: give the same"
        )
    restored = []
    for group, before, now, live in zip(
        state["param_groups"], saved["groups"], groups, optimizer.param_groups
    ):
        changed = {
            key: value
            for key, value in now.items()
            if key not in before or not _same(before[key], value)
        }
        values = {**group, **changed}
        for key, value in values.items():
            if isinstance(value, Tensor) and isinstance(live.get(key), Tensor):
                values[key] = value.to(live[key].device)
        restored.append(values)
    optimizer.load_state_dict(parts_of_optimizer({**state, "param_groups": restored}, optimizer))
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for number, kept in state["state"].items():
        if isinstance(number, int):  # else of all weights together
            _as_saved(weights[number], optimizer.state.get(weights[number], {}), kept)


def _as_saved(weight: Tensor, state: dict[str, Any], saved: Mapping[str, Any]) -> None:
    """Undo torch's cast of all state to the weight's type, integers too.

    A checkpoint keeps no memory format either, though fused kernels walk weights and state side by
    side as they lie.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor) or name not in saved:
            continue
        if value.dtype != saved[name].dtype:
            value = state[name] = saved[name].to(value.device)
        if value.shape == weight.shape and value.stride() != weight.stride():
            state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def to_weights(optimizer: Optimizer) -> None:
    """Move state that was made with the optimizer, such as Adagrad's, to the weights' device."""
    tensors = [
        (weight, value)
        for weight, state in optimizer.state.items()
        if isinstance(weight, Tensor)
        for value in state.values()
    ]
    if any(
        isinstance(value, Tensor) and value.device != weight.device for weight, value in tensors
    ):
        # torch knows which of it stays on the host
        optimizer.load_state_dict(optimizer.state_dict())


def set_lr(group: dict[str, Any], lr: float) -> None:
    """Set a group's learning rate.

    A tensor stays the same tensor, which a compiled update has read.
    """
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def has_modes(optimizer: Optimizer) -> bool:
    """Whether it trains other weights than are measured and saved, as schedule-free ones do."""
    return callable(getattr(optimizer, "train", None)) and callable(
        getattr(optimizer, "eval", None)
    )


def switch_mode(optimizer: Any, training: bool) -> None:
    """Switch a model between the weights in training and those to be measured (`has_modes`)."""
    if training:
        optimizer.train()
    else:
        optimizer.eval()


@contextmanager
def evaluation_mode(optimizer: Optimizer) -> Iterator[list[Tensor] | None]:
    """Context manager: the model has the weights to be measured and saved.

    Yields those in training, None where they are the same. Afterwards it has the latter bit for
    bit, which the optimizer's own way back would round.
    """
    if not has_modes(optimizer):
        yield None
        return
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    in_training = [weight.detach().clone() for weight in weights]
    switch_mode(optimizer, training=False)
    try:
        yield in_training
    finally:
        train_with(optimizer, in_training)


@torch.no_grad()
def train_with(optimizer: Optimizer, in_training: Sequence[Tensor]) -> None:
    """Return to training with these weights."""
    switch_mode(optimizer, training=True)
    weights = (weight for group in optimizer.param_groups for weight in group["params"])
    for weight, value in zip(weights, in_training):
        weight.copy_(value)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return (
            isinstance(one, Tensor)
            and isinstance(other, Tensor)
            and torch.equal(one.cpu(), other.cpu())
        )
    return one == other
