"""An exponential moving average of a model's weights."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainkit.distributed.sharded_tensors import local, part
from trainkit.errors import UserError

STATISTICS = ("running_mean", "running_var")  # of batch norm: the buffers that are averaged


class EMA:
    """Averages weights and batch norm's statistics: A <- d A + (1 - d) W after each step.

    d = min(decay, (1 + n) / (10 + n)) after n steps, so that the weights drawn at random are soon
    forgotten. All other buffers are the model's own: counters, masks and tables have no mean. What
    was not finite at the start, such as a mask of -inf that is a parameter, stays the model's own
    too.

    n is a number on the host as long as no step can be skipped:
    `torch.optim.swa_utils.AveragedModel` asks the device for it at each step.

    Raises:
        UserError: a parameter is not in `model.state_dict()`, whose names the average has.
    """

    def __init__(
        self, model: nn.Module, decay: float, trained: Iterable[nn.Parameter] | None = None
    ):
        """Begin with the weights as they are.

        Args:
            model: whose weights are averaged.
            decay: d, at most.
            trained: the parameters that change, such as the optimizer's; others are their own
                average. None: all may.
        """
        changing = None if trained is None else set(map(id, trained))
        self.decay = decay
        self.count: int | Tensor = 0  # steps that were taken up
        self._model = model
        averaged: list[Tensor] = [
            weight
            for weight in model.parameters()
            if (changing is None or id(weight) in changing)
            and _has_mean(weight)
            and weight.isfinite().all()
        ]
        averaged += [
            buffer
            for name, buffer in model.named_buffers()
            if name.rpartition(".")[2] in STATISTICS and buffer.is_floating_point()
        ]
        names: dict[int, list[str]] = {}  # a tied weight has several
        for name, tensor in model.state_dict(keep_vars=True).items():
            names.setdefault(id(tensor), []).append(name)
        absent = [name for name, weight in model.named_parameters() if id(weight) not in names]
        if absent:
            raise UserError(
                f"{type(model).__name__}.state_dict() lacks {len(absent)} parameters"
                f" ({', '.join(absent[:3])}): an average of them cannot be saved. Take out what"
                " keeps them from it, or train with ema=None"
            )
        # not in it: not persistent
        self._weights = [tensor.detach() for tensor in averaged if id(tensor) in names]
        self._names = [names[id(tensor)] for tensor in averaged if id(tensor) in names]
        self.averages = [tensor.clone() for tensor in self._weights]
        self._groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for pair in zip(self.averages, self._weights):
            average, weight = (_real(local(tensor)) for tensor in pair)
            for one, other in zip(
                self._groups.setdefault(weight.dtype, ([], [])), (average, weight)
            ):
                one.append(other)

    @torch.no_grad()
    def update(self, skipped: Tensor | None = None) -> None:
        """Take up the weights after a step.

        Args:
            skipped: boolean on the weights' device, true where the step left them as they were:
                neither the average nor its count moves then, and nothing waits for it. None where
                no step can be skipped.
        """
        steps = self.count
        if not isinstance(steps, Tensor):
            if skipped is None:
                weight = 1 - min(self.decay, (1 + steps) / (10 + steps))
                for averages, weights in self._groups.values():
                    torch._foreach_lerp_(averages, weights, weight)
                self.count = steps + 1
                return
            steps = torch.tensor(steps, device=skipped.device)
        # it has no float64
        precise = torch.float32 if steps.device.type == "mps" else torch.float64
        count = steps.to(precise)
        moves = 1 - ((1 + count) / (10 + count)).clamp(max=self.decay)
        if skipped is not None:
            moves = moves * ~skipped
        for dtype, (averages, weights) in self._groups.items():
            torch._foreach_lerp_(averages, weights, [moves.to(dtype)] * len(averages))
        self.count = steps + (1 if skipped is None else ~skipped)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Context manager: the model has the EMA weights, under whatever it is wrapped in."""
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
        """The state for `load_state_dict`: an averaged state dict of the model, and the steps seen.

        Waits for the device.
        """
        averaged = {
            name: average for names, average in zip(self._names, self.averages) for name in names
        }
        whole = {
            name: averaged.get(name, value) for name, value in self._model.state_dict().items()
        }
        return {"count": int(self.count), "averages": whole}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Load a state of the same model.

        Args:
            state: as `state_dict` gives it, of whole tensors.
            strict: the names must be those of the model. False is for measuring only: earlier
                versions left out the second name of a tied weight and had buffers that are not
                persistent.

        Raises:
            UserError: names or shapes are not the model's.
        """
        saved = state["averages"]
        ours = self._model.state_dict().keys()
        if strict and saved.keys() != ours:
            unknown, missing = sorted(saved.keys() - ours), sorted(ours - saved.keys())
            differences = [
                f"{len(names)} {kind} ({', '.join(names[:3])})"
                for kind, names in (("unknown to the model", unknown), ("missing", missing))
                if names
            ]
            raise UserError(
                f"the EMA weights have other names than the model: {'; '.join(differences)}. An"
                " earlier version of trainkit wrote them, or the model is another one: they can be"
                " evaluated, and not be trained on. Begin another run from them with --init-from"
            )
        for names, average in zip(self._names, self.averages):
            value = next((saved[name] for name in names if name in saved), None)
            if value is None or value.shape != average.shape:
                found = "missing" if value is None else f"of shape {list(value.shape)}"
                raise UserError(
                    f"EMA weights: {names[0]} is {found}, the model's has {list(average.shape)}"
                )
            average.copy_(part(value, average))
        self.count = state["count"]


def _has_mean(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _real(tensor: Tensor) -> Tensor:
    """The same memory as real numbers."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
