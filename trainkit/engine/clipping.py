"""Clipping of gradients: by their norm, by value, or adaptively by the weights' norms (AGC).

It is done once a step, with the gradient of the whole batch, after fp16's scaling was undone.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from trainkit.distributed.sharded_tensors import gathered, local
from trainkit.optim import last_layer
from trainkit.recipe import Recipe

LEAST_WEIGHTS = 1e-3  # a smaller norm of weights counts as this, so that those of 0 can change
LEAST_GRADIENT = 1e-6  # of a norm by which is divided


def clipper(recipe: Recipe) -> Callable[[Sequence[nn.Parameter], Tensor], None] | None:
    """The clipping that a recipe asks for.

    Returns:
        A function of the parameters, all with gradients, and of the gradient's norm over all of
        them, which changes the gradients in place; None where nothing is clipped.
    """
    if recipe.clip_norm is not None:
        limit = recipe.clip_norm
        return lambda weights, norm: clip_grads_with_norm_(weights, limit, norm)
    if recipe.clip_value is not None:
        value = recipe.clip_value
        return lambda weights, norm: clip_by_value(weights, value)
    if recipe.clip_agc is not None:
        factor = recipe.clip_agc
        exempt = last_layer(recipe.model)

        def clip(weights: Sequence[nn.Parameter], norm: Tensor) -> None:
            clip_adaptively([each for each in weights if id(each) not in exempt], factor)

        return clip
    return None


@torch.no_grad()
def clip_by_value(weights: Sequence[nn.Parameter], value: float) -> None:
    """Set what is above `value` or below -`value` in the gradients to it, in place."""
    gradients = [local(_gradient(weight)) for weight in weights]
    torch._foreach_clamp_min_(gradients, -value)
    torch._foreach_clamp_max_(gradients, value)


@torch.no_grad()
def clip_adaptively(weights: Sequence[nn.Parameter], factor: float) -> None:
    """Adaptive gradient clipping, in place and by the same arithmetic as timm's.

    The gradient of each output of a layer, a row of its weight, is scaled down to `factor` times
    the norm of that row; of a bias or a norm's scale the whole vector is.

    Args:
        weights: with gradients; sharded ones on all processes.
        factor: largest ratio of the norms of gradient and weights, such as 0.01.

    Source:
        Brock et al., 2021, High-Performance Large-Scale Image Recognition Without Normalization.
    """
    for weight in weights:
        largest = _norm_by_output(weight).clamp_(min=LEAST_WEIGHTS).mul_(factor)
        norm = _norm_by_output(_gradient(weight))
        gradient = local(_gradient(weight))
        clipped = gradient * (largest / norm.clamp(min=LEAST_GRADIENT))
        gradient.copy_(torch.where(norm < largest, gradient, clipped))


def _norm_by_output(tensor: Tensor) -> Tensor:
    """Norms of the rows that this process holds, (rows, 1, ...), or of a whole vector, ()."""
    if tensor.ndim <= 1:
        return torch.linalg.vector_norm(gathered(tensor))
    held = local(tensor)  # sharded by rows, which stay whole
    return torch.linalg.vector_norm(held, dim=tuple(range(1, held.ndim)), keepdim=True)


def _gradient(weight: nn.Parameter) -> Tensor:
    assert weight.grad is not None
    return weight.grad
