"""An exponential moving average of a model's weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from trainkit.sharding import local, part


class EMA:
    """Averages weights and floating-point buffers: A <- d A + (1 - d) W after each step.

    d = min(decay, (1 + n) / (10 + n)) after n steps, so that the weights drawn at random are soon forgotten. n is
    counted on the host: `torch.optim.swa_utils.AveragedModel` asks the device for it at each step. Other buffers
    are those of the model.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.count = decay, 0
        named = [*model.named_parameters(), *model.named_buffers()]  # tied weights come once
        self._names = [name for name, _ in named]
        self._weights = [tensor.detach() for _, tensor in named]
        self.averages = [tensor.clone() for tensor in self._weights]
        self._groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for pair in zip(self.averages, self._weights):
            average, weight = map(local, pair)
            for one, other in zip(self._groups.setdefault(weight.dtype, ([], [])), (average, weight)):
                one.append(other)

    @torch.no_grad()
    def update(self) -> None:
        """Take up the weights after a step."""
        average = get_ema_multi_avg_fn(min(self.decay, (1 + self.count) / (10 + self.count)))
        for dtype, (averages, weights) in self._groups.items():
            if dtype.is_floating_point:
                average(averages, weights, self.count)
            else:
                torch._foreach_copy_(averages, weights)
        self.count += 1

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The model has the averages meanwhile, under whatever it is wrapped in, and then its weights again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, average in zip(self._weights, self.averages):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes up: the averages by name, and how many steps they have seen."""
        return {"count": self.count, "averages": dict(zip(self._names, self.averages))}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state of the same model."""
        self.count = state["count"]
        for name, average in zip(self._names, self.averages):
            average.copy_(part(state["averages"][name], average))
