"""Freezing parts of a network: no gradients, and BatchNorm and dropout in evaluation mode."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as AnyBatchNorm
from torch.optim import Optimizer

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


class FrozenPart:
    """Parameters that are not trained before a step, or never: a pure function of the step.

    The optimizer has them from the start. In the steps before, they have no gradient, and the
    `frozen_modules` are in evaluation mode: batch norm keeps its statistics, and nothing is
    dropped.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        until: int | None,
        needs_gradients: bool,
        optimizer: Optimizer | None = None,
    ):
        """Keep the parameters that are frozen for a while.

        Args:
            model: that they are part of.
            parameters: that are frozen.
            until: the first step that trains them, counted from 0; None: none does.
            optimizer: those that it has not are never trained; None: it has all of them.
            needs_gradients: whether all steps compute their gradients, and those before `until`
                drop them, as DDP wants it, which waits for the same gradients in every step.
        """
        self.parameters, self.until = trained_by(optimizer, parameters), until
        self.needs_gradients = needs_gradients and until is not None
        self.modules = frozen_modules(model, parameters)
        if until is None:
            self._require_gradients(False)

    def at_step(self, step: int) -> None:
        """Freeze or release them for a step; nothing is done where they are as they should be."""
        trained = self.is_trained(step)
        for module in self.modules:
            if module.training != trained:
                module.train(trained)
        first = next(iter(self.parameters), None)
        if first is None or self.needs_gradients:
            return
        if first.requires_grad != trained:
            self._require_gradients(trained)

    def drop_gradients(self, step: int) -> None:
        """Leave no gradient where the step does not train them."""
        if self.needs_gradients and not self.is_trained(step):
            for parameter in self.parameters:
                parameter.grad = None

    def is_trained(self, step: int) -> bool:
        """Whether a step, counted from 0, trains them."""
        return self.until is not None and step >= self.until

    def _require_gradients(self, required: bool) -> None:
        for parameter in self.parameters:
            parameter.requires_grad_(required)


def trained_by(
    optimizer: Optimizer | None, parameters: Sequence[nn.Parameter]
) -> list[nn.Parameter]:
    """Those of the parameters that an optimizer has; all of them where it is None."""
    if optimizer is None:
        return list(parameters)
    held = {id(each) for group in optimizer.param_groups for each in group["params"]}
    return [parameter for parameter in parameters if id(parameter) in held]


def frozen_modules(model: nn.Module, parameters: Sequence[nn.Parameter]) -> list[nn.Module]:
    """The modules that are in evaluation mode while these parameters are frozen.

    They are the outermost modules that have some of the parameters, and no others that are trained;
    and modules without parameters that lie beside these, in the order of registration: with nothing
    but frozen parameters before them, and a frozen one after them, such as the dropout between two
    frozen layers of VGG's classifier, or that of position embeddings. A dropout between the last
    frozen layer and the head is the head's, and drops; what holds statistics there, a batch norm
    without parameters, is not.
    """
    frozen = {id(parameter) for parameter in parameters}
    found: list[nn.Module] = []
    between: list[nn.Module] = []  # without parameters, and not known to be before a frozen one
    only_frozen = bool(frozen)
    for module, weights in _parts(model, frozen):
        if weights and not all(_stays(weight, frozen) for weight in weights):
            only_frozen, between = False, []
        elif weights:
            found += between
            between = []
            if module is not None and any(id(weight) in frozen for weight in weights):
                found.append(module)
        elif module is not None and only_frozen:
            has_state = next(module.buffers(), None) is not None
            (found if has_state else between).append(module)
    return found


def _parts(
    module: nn.Module, frozen: set[int]
) -> Iterator[tuple[nn.Module | None, list[nn.Parameter]]]:
    """The outermost modules all or none of whose parameters stay as they are, and these.

    None stands for the parameters of a module around them.
    """
    inside = list(module.parameters())
    if len({_stays(weight, frozen) for weight in inside}) < 2:
        yield module, inside
        return
    own = list(module.parameters(recurse=False))
    if own:
        yield None, own
    for child in module.children():
        yield from _parts(child, frozen)


def _stays(weight: nn.Parameter, frozen: set[int]) -> bool:
    return id(weight) in frozen or not weight.requires_grad


def freeze_unused(network: nn.Module, output: Tensor) -> None:
    """Let parameters on which an output does not depend take no gradient.

    DDP would wait for gradients that never come, such as those of a norm after the last map that a
    head takes.

    Args:
        network: whose parameters.
        output: a scalar, of shape (), computed from all outputs with gradients.
    """
    weights = [each for each in network.parameters() if each.requires_grad]
    found = torch.autograd.grad(output, weights, allow_unused=True)
    for parameter, gradient in zip(weights, found):
        parameter.requires_grad_(gradient is not None)
