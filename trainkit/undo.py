"""What a step may change, as it was before, and the way back from a step that failed."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainkit.sharding import local


class Undo:
    """Keeps the model's buffers before each step; with `updates` weights, averages and the optimizer's state too.

    Running out of memory between forward and backward leaves weights alone, but batch norm has counted. To
    leave out an update that is already made takes the rest as well: the cost of `--on-nonfinite skip` is one
    more copy of them.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, updates: bool, averages: Sequence[Tensor] = ()):
        self.optimizer, self.updates = optimizer, updates
        self._buffers = list(model.buffers())
        self._weights = [local(tensor) for tensor in (*model.parameters(), *averages)] if updates else []
        self._copies = [tensor.detach().clone() for tensor in (*self._buffers, *self._weights)]
        self._states: dict[tuple[int, str], Tensor] = {}

    @torch.no_grad()
    def keep(self) -> None:
        """Copy all of it; the device does it, and nothing waits."""
        if self._copies:
            torch._foreach_copy_(self._copies, [*self._buffers, *self._weights])
        if self.updates:
            self._states = {place: tensor.clone() for place, tensor in self._optimizer_state()}

    @torch.no_grad()
    def buffers_back(self) -> None:
        """Put the buffers back."""
        for tensor, copy in zip(self._buffers, self._copies):
            tensor.copy_(copy)

    @torch.no_grad()
    def back_where(self, failed: Tensor) -> None:
        """Put everything back where `failed`, a boolean on the device, is true; nothing waits for it.

        Optimizer state that the step has made anew becomes 0, as torch's optimizers begin.
        """
        for tensor, copy in zip((*self._buffers, *self._weights), self._copies):
            tensor.copy_(torch.where(failed, copy, tensor))
        for place, tensor in self._optimizer_state():
            before = self._states.get(place)
            tensor.copy_(torch.where(failed, torch.zeros_like(tensor) if before is None else before, tensor))

    def _optimizer_state(self) -> Iterator[tuple[tuple[int, str], Tensor]]:
        for weight, state in self.optimizer.state.items():
            for name, value in state.items():
                if not isinstance(value, Tensor) or value.device != weight.device:
                    raise ValueError(
                        f"--on-nonfinite skip cannot take back {name!r} of {type(self.optimizer).__name__}, which is "
                        f"not on {weight.device}: build the optimizer with fused=True or capturable=True"
                    )
                yield (id(weight), name), local(value)
