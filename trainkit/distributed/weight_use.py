"""Where a network uses its weights: inside of the calls of which modules.

A module can be gathered on its own only if its weights are used while it is being called. Not all
are: stages that are iterated over, backbones of which a method is called that is not `forward`,
layers whose weight is read by the module around them (timm's BEiT, EVA and Swin V2).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as AnyBatchNorm
from torch.overrides import TorchFunctionMode

# What tells of a weight and not its numbers: it is right of a part of one, too.
TOLD = frozenset({
    "size", "dim", "ndimension", "numel", "nelement", "element_size", "stride", "storage_offset",
    "is_contiguous", "get_device", "is_floating_point", "is_complex", "is_signed", "__len__",
    "__repr__", "__hash__", "requires_grad_",
})  # fmt: skip
READ_AS = frozenset({"data", "T", "mT", "H", "mH", "real", "imag"})  # attributes that are numbers


class WeightUse(TorchFunctionMode):
    """For each weight that was used, by its id, the modules that were being called each time."""

    def __init__(self, root: nn.Module):
        super().__init__()
        # by their memory, which views of a weight have, too
        self.weights: dict[int, list[int]] = {}
        for weight in root.parameters():
            self.weights.setdefault(_memory(weight), []).append(id(weight))
        self.under_way: list[nn.Module] = []
        self.inside: dict[int, set[nn.Module]] = {}

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if not _tells(func, args):
            for tensor in _tensors((args, kwargs or {})):
                for weight in self.weights.get(_memory(tensor), ()):
                    now = set(self.under_way)
                    self.inside[weight] = self.inside.get(weight, now) & now
        return func(*args, **(kwargs or {}))

    def allows(self, module: nn.Module, weights: Iterable[Tensor]) -> bool:
        """Whether some of these weights were used, and none outside of the module's calls."""
        used = [self.inside[id(weight)] for weight in weights if id(weight) in self.inside]
        return bool(used) and all(module in inside for inside in used)


def weight_use(
    root: nn.Module, forward: Callable[[], object], modes: Iterable[bool] = (True, False)
) -> WeightUse:
    """Run forward passes, and see where weights are used; no state is left behind.

    Args:
        root: whose weights and modules.
        forward: a pass.
        modes: of the passes, one of each: True for training mode, in which batch norm stays in
            evaluation mode, as an image may be alone.

    Raises:
        Exception: what `forward` raises.
    """
    use = WeightUse(root)

    def enter(module: nn.Module, _: Any) -> None:
        use.under_way.append(module)

    def leave(module: nn.Module, _: Any, __: Any) -> None:
        use.under_way.pop()

    with ExitStack() as stack:
        stack.enter_context(_as_it_was(root))
        for module in root.modules():
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(use)
        for training in modes:
            root.train(training)
            for module in root.modules():
                if isinstance(module, AnyBatchNorm):
                    module.eval()
            forward()
    return use


@contextmanager
def _as_it_was(root: nn.Module) -> Iterator[None]:
    """Context manager: modes, buffers and the state of torch's generator are as before."""
    modes = {module: module.training for module in root.modules()}
    buffers = [(module, dict(module._buffers)) for module in root.modules()]
    values = {each: each.detach().clone() for each in root.buffers()}
    try:
        with torch.random.fork_rng([]):  # of the CPU; each step seeds every device
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for module, held in buffers:
            module._buffers.update(held)
        with torch.no_grad():
            for buffer, value in values.items():
                if not torch.equal(buffer, value):  # an expanded one cannot be written to
                    buffer.copy_(value)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tells(func: Callable, args: tuple) -> bool:
    name = getattr(func, "__name__", "")
    if name == "type":
        return len(args) == 1  # with a second one it converts
    if name == "__get__":  # an attribute
        return getattr(getattr(func, "__self__", None), "__name__", "") not in READ_AS
    return name in TOLD


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)
