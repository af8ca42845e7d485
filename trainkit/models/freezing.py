"""Freezing parts of a network: no gradients, and BatchNorm and dropout in evaluation mode."""

from collections.abc import Iterable
from functools import partial

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as AnyBatchNorm

from trainkit.errors import UserError


def freeze(module: nn.Module, but: Iterable[nn.Module] = ()) -> None:
    """Train nothing of `module`: its parameters take no gradient, and it stays in evaluation mode.

    `requires_grad_(False)` alone leaves batch norm counting and dropout dropping while the rest
    trains. Here `model.train()` skips the module: running statistics stay as they were loaded.
    Names and weights are untouched. Freeze before the optimizer is built, which `param_groups` then
    builds of the rest.

        freeze(network, but=[network.fc])

    Args:
        module: what is frozen.
        but: modules inside that are trained as ever, such as the new head of a fine-tuned network.

    Raises:
        TypeError: an argument is no module.
        UserError: one of `but` is not inside `module`.
    """
    but = [but] if isinstance(but, nn.Module) else list(but)
    for each in (module, *but):
        if not isinstance(each, nn.Module):
            raise TypeError(
                f"freeze takes modules, and got {type(each).__name__}: give network.layer1 or the"
                " like"
            )
    inside = set(module.modules())
    for each in but:
        if each not in inside:
            raise UserError(
                f"but names a {type(each).__name__} that is not inside {type(module).__name__}"
            )
    trained = {part for each in but for part in each.modules()}
    kept = {id(parameter) for each in but for parameter in each.parameters()}
    for part in inside - trained:
        for parameter in part.parameters(recurse=False):
            if id(parameter) not in kept:
                parameter.requires_grad_(False)
        part.training = False
        # of this module alone, in the place of its method; it is copied and pickled with it
        part.train = partial(_stay_evaluating, part)  # type: ignore[method-assign]


def frozen_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Copy the running means of batch norms whose parameters take no gradient, by name."""
    norms = {
        name: module for name, module in model.named_modules() if isinstance(module, AnyBatchNorm)
    }
    return {
        name: norm.running_mean.detach().cpu().clone()
        for name, norm in norms.items()
        if norm.running_mean is not None
        and norm.affine
        and not any(p.requires_grad for p in norm.parameters())
    }


def _stay_evaluating(module: nn.Module, mode: bool = True) -> nn.Module:
    """`nn.Module.train` of a frozen module, which only what is trained inside it follows."""
    for child in module.children():
        child.train(mode)
    return module
