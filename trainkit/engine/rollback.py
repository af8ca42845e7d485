"""Snapshot of what a step may change, and rollback of a step that failed."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainkit.distributed.sharded_tensors import local


class StepSnapshot:
    """Keeps the model's buffers before each step, with `updates` weights and optimizer state too.

    OOM between forward and backward leaves weights alone, but batch norm has counted. To leave out
    an update that is already made, `--on-nonfinite skip`, takes the rest as well: one more copy of
    it. That is for torch's own optimizers, whose whole state is tensors by weight.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, updates: bool):
        self.optimizer, self.updates = optimizer, updates
        self._buffers = list(model.buffers())
        groups = optimizer.param_groups if updates else ()
        self._weights = [local(weight.detach()) for group in groups for weight in group["params"]]
        self._kept = [*self._buffers, *self._weights]
        self._copies = [tensor.detach().clone() for tensor in self._kept]
        self._states: dict[Tensor, dict[str, Any]] = {}

    def keep(self) -> None:
        """Copy all of it, on the device; nothing waits."""
        if self._copies:
            with torch.no_grad():
                torch._foreach_copy_(self._copies, self._kept)
        if self.updates:
            self._states = {
                weight: {
                    name: value.clone() if isinstance(value, Tensor) else value
                    for name, value in state.items()
                }
                for weight, state in self.optimizer.state.items()
            }

    @torch.no_grad()
    def restore_buffers(self) -> None:
        """Restore the buffers."""
        for tensor, copy in zip(self._buffers, self._copies):
            tensor.copy_(copy)

    @torch.no_grad()
    def restore_where(self, failed: Tensor) -> None:
        """Restore everything where `failed`, a boolean on the device, is true.

        Nothing waits for it, but for a step that has made state, such as the first one: this state
        is removed again, for what an optimizer begins with differs from one to the next. State on
        the host waits in each step.
        """
        for tensor, copy in zip(self._kept, self._copies):
            tensor.copy_(torch.where(failed, copy, tensor))
        states = self.optimizer.state
        if any(
            _tensors(state) != _tensors(self._states.get(weight, {}))
            for weight, state in states.items()
        ):
            if failed:
                for weight in [weight for weight in states if weight not in self._states]:
                    del states[weight]
                states.update(self._states)
            return
        for weight, state in states.items():
            for name in _tensors(state):
                tensor, before = local(state[name]), local(self._states[weight][name])
                tensor.copy_(torch.where(failed.to(tensor.device), before, tensor))


def _tensors(state: dict[str, Any]) -> set[str]:
    return {name for name, value in state.items() if isinstance(value, Tensor)}
