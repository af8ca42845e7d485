"""Checks before the first step that an optimizer updates sharded weights as whole ones.

An update that goes number by number is the same on a part of a weight. A norm, a product of
matrices or a sum over all weights may be of this process's part alone, and the training would be
another one without a word. No list of names knows a user's own optimizer, so each is tried: one
copy of it updates whole weights, another the same weights sharded.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MethodType
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.optim import Optimizer

from trainkit.distributed.fsdp import Sharding, take_parts
from trainkit.distributed.sharded_tensors import gathered, unsharded_state
from trainkit.engine.optimizer_state import has_modes, set_lr, switch_mode, to_weights
from trainkit.errors import UserError, is_out_of_memory

# RAdam, Lookahead and preconditioners do something else in every fifth, sixth or tenth one
UPDATES = 11
# timm's: products of sharded tensors by einsum, of which a single update takes minutes
NEVER_TRIED = {"Kron"}
# difference, as a part of the largest change: sums of parts round otherwise than a whole sum
ALLOWED = 1e-4
# the smallest rate of the trial: the change of a smaller one is within the weights' own rounding
LEAST_LR = 0.01
# groups that differ in these alone update alike
OF_RATES = ("params", "param_names", "lr", "initial_lr", "lr_scale")

Value = TypeVar("Value")


class _Differs(Exception):
    """What the trial has found; reported in all processes."""


def require_same_updates(optimizer: Optimizer, accelerator: Accelerator) -> None:
    """Try an optimizer on one weight of each shape where FSDP was asked for.

    Call it before weights are sharded; nothing changes.

    Raises:
        UserError: in all processes, where updates of sharded weights fail, or give other weights or
            state.
    """
    if Sharding.asked() is None or accelerator.num_processes == 1:
        return
    slow = NEVER_TRIED & {type(each).__name__ for each in (optimizer, *_inside(optimizer))}
    if slow:
        raise UserError(
            f"optimizer {slow.pop()} is not for weights that FSDP has sharded: take AdamW or SGD,"
            " or launch without FSDP"
        )
    cuda = [accelerator.device.index or 0] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        trial = _together(optimizer, partial(_Trial, optimizer, accelerator), "cannot be copied")
        for stage in (trial.update, trial.require_sharded_state, trial.compare):
            _together(
                optimizer,
                stage,
                "does not update weights that FSDP has sharded as it does whole ones",
            )


def _together(optimizer: Optimizer, stage: Callable[[], Value], amiss: str) -> Value:
    """What `stage` returns; another process would wait for one that has failed.

    Raises UserError in all processes where one of them raised any error.
    """
    returned: list[Value] = []
    problem: str | None = None
    shortage: Exception | None = None
    try:
        returned.append(stage())
    except _Differs as error:
        problem = str(error)
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        problem = f"{type(error).__name__}: {first_line[:300]}"
        shortage = error if is_out_of_memory(error) else None
    found = gather_object([(problem, shortage is not None)])
    if shortage is not None:
        raise shortage
    name = type(optimizer).__name__
    if any(short for _, short in found):
        raise UserError(
            f"optimizer {name} was tried on sharded weights, and another process ran out of memory"
            " (OOM) there: launch with more processes"
        )
    problems = [each for each, _ in found if each is not None]
    if problems:
        raise UserError(
            f"optimizer {name} {amiss} ({problems[0]}): take AdamW or SGD, or launch without FSDP"
        )
    return returned[0]


class _Trial:
    """Two copies of an optimizer, one over whole weights and one over the same sharded."""

    def __init__(self, optimizer: Optimizer, accelerator: Accelerator):
        self.device = accelerator.device
        self.mesh = init_device_mesh(self.device.type, (accelerator.num_processes,))
        generator = torch.Generator().manual_seed(0)
        self.values = [
            0.02 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
            for weight in _one_of_each(optimizer)
        ]
        self.whole, self.weights = _copied(optimizer, [self._there(each) for each in self.values])
        self.sharded, unsharded = _copied(optimizer, [self._there(each) for each in self.values])
        self.parts = [nn.Parameter(self._part(weight.detach())) for weight in unsharded]
        take_parts(self.sharded, {id(one): part for one, part in zip(unsharded, self.parts)})

    def _there(self, value: Tensor) -> Tensor:
        return value.to(self.device, copy=True)

    def _part(self, value: Tensor) -> Tensor:
        return distribute_tensor(self._there(value), self.mesh, [Shard(0)], src_data_rank=None)

    def update(self) -> None:
        """Update both alike."""
        _update(self.whole, self.weights, self.values, self._there)
        _update(self.sharded, self.parts, self.values, self._part)

    def require_sharded_state(self) -> None:
        """Raise _Differs for state of this process's part that is not laid out as the part is."""
        name = unsharded_state(self.sharded)
        if name is not None:
            raise _Differs(
                f"its {name!r} is not sharded as its weights are, so that no checkpoint can hold it"
            )

    def compare(self) -> None:
        """Raise _Differs where weights, state or groups are not the same."""
        found, way = [], 0.0  # all of it is compared, for the processes gather together
        for value, weight, part in zip(self.values, self.weights, self.parts):
            of = f"of a weight of shape {list(value.shape)}"
            moved = (weight - self._there(value)).abs().max().item() if value.numel() else 0.0
            way = max(way, moved)
            if not _close(gathered(part), weight, moved):
                found.append(f"its update {of} differs")
            states = (self.whole.state.get(weight, {}), self.sharded.state.get(part, {}))
            found += [f"its {name!r} {of} differs" for name in _unequal(*map(_numbers, states))]
        pairs = zip(self.whole.param_groups, self.sharded.param_groups)
        for pair in (*pairs, (_of_all_weights(self.whole), _of_all_weights(self.sharded))):
            found += [f"its {name!r} differs" for name in _unequal(*map(_numbers, pair))]
        if way == 0.0 and self.values:
            found.append(f"{UPDATES} updates move no weight, which shows nothing")
        if found:
            raise _Differs(found[0])


def _one_of_each(optimizer: Optimizer) -> list[nn.Parameter]:
    """A trained weight of each shape, and for each way in which the groups are updated."""
    found: dict[Any, nn.Parameter] = {}
    for group in optimizer.param_groups:
        way = str({name: value for name, value in group.items() if name not in OF_RATES})
        for weight in group["params"]:
            if weight.ndim and weight.requires_grad:
                found.setdefault((weight.shape, weight.dtype, way), weight)
    return list(found.values())


def _copied(optimizer: Optimizer, values: list[Tensor]) -> tuple[Optimizer, list[nn.Parameter]]:
    """Copy an optimizer over `values` alone, in place of the weights of `_one_of_each`."""
    weights = [nn.Parameter(value) for value in values]
    chosen = _one_of_each(optimizer)
    memo: dict[int, Any] = {id(weight): own for weight, own in zip(chosen, weights)}
    dropped = nn.Parameter(torch.empty(0))
    for group in optimizer.param_groups:
        memo |= {id(weight): dropped for weight in group["params"] if id(weight) not in memo}
    made = _copied_object(optimizer, memo)
    for group in made.param_groups:
        group["params"] = [weight for weight in group["params"] if weight is not dropped]
        if (group["lr"] or 0.0) < LEAST_LR:  # such as of a warm-up's begin, or under layer decay
            set_lr(group, LEAST_LR)
    to_weights(made)
    return made, weights


def _copied_object(optimizer: Any, memo: dict[int, Any]) -> Any:
    """Copy an optimizer with all of its attributes, and so optimizers in it.

    Torch's own way to copy one leaves attributes out.
    """
    made = memo[id(optimizer)] = object.__new__(type(optimizer))
    attributes = {
        name: _own_hooks(name, value, optimizer) for name, value in vars(optimizer).items()
    }
    for inner in _inside(optimizer):
        if id(inner) not in memo:
            _copied_object(inner, memo)
    state = attributes.get("state")
    if state is not None and id(state) not in memo:
        memo[id(state)] = defaultdict(dict)
        memo[id(state)].update(
            (memo.get(id(key), key), copy.deepcopy(kept, memo))
            for key, kept in state.items()
            if _is_kept(key, memo)
        )
    vars(made).update(copy.deepcopy(attributes, memo))
    return made


def _inside(optimizer: Any) -> Iterator[Any]:
    """Optimizers that it holds, as Lookahead does, also in lists and mappings."""
    for value in vars(optimizer).values():
        held = value.values() if isinstance(value, Mapping) else value
        for each in held if isinstance(value, (Mapping, list, tuple)) else (value,):
            if hasattr(each, "param_groups"):
                yield each


def _own_hooks(name: str, value: Any, optimizer: Any) -> Any:
    """An attribute; of hooks only those that are its methods: others reach what is not copied."""
    if not (name.endswith("_hooks") and isinstance(value, Mapping)):
        return value
    kind: Any = type(value)
    return kind(
        (key, hook)
        for key, hook in value.items()
        if isinstance(hook, MethodType) and hook.__self__ is optimizer
    )


def _is_kept(key: Any, memo: dict[int, Any]) -> bool:
    """Whether a copy has state for this key: of weights of the trial, and of what is no weight."""
    return not isinstance(key, Tensor) or (id(key) in memo and memo[id(key)].numel() > 0)


def _update(
    optimizer: Optimizer,
    weights: list[nn.Parameter],
    values: list[Tensor],
    place: Callable[[Tensor], Tensor],
) -> None:
    """Make some updates from the same gradients each time; `place` puts one to its weight."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    if has_modes(optimizer):
        switch_mode(optimizer, training=True)
    for _ in range(UPDATES):
        for weight, value in zip(weights, values):
            drawn = torch.randn(value.shape, generator=generator, dtype=value.dtype)
            weight.grad = place(0.1 * drawn)
        optimizer.step()
    if has_modes(optimizer):
        switch_mode(optimizer, training=False)


def _numbers(values: Any) -> dict[str, Any]:
    """What of a weight's state, or of a group, can be compared."""
    return {
        name: value for name, value in values.items() if isinstance(value, (int, float, Tensor))
    }


def _of_all_weights(optimizer: Optimizer) -> dict[str, Any]:
    """State that it keeps by names of its own, and not by weight."""
    found: dict[str, Any] = {}
    for key, state in optimizer.state.items():
        if not isinstance(key, Tensor):
            found |= state if isinstance(state, Mapping) else {key: state}
    return found


def _unequal(ones: dict[str, Any], others: dict[str, Any]) -> list[str]:
    """Names of what is not the same; those that one alone has come first."""
    found = sorted(ones.keys() ^ others.keys())
    for name in sorted(ones.keys() & others.keys()):
        one, other = (gathered(torch.as_tensor(each[name])) for each in (ones, others))
        if not one.is_floating_point():
            one, other = one.double(), other.double()  # counts and flags
        if one.shape != other.shape or not _close(
            other, one, one.abs().max().item() if one.numel() else 0.0
        ):
            found.append(name)
    return found


def _close(found: Tensor, right: Tensor, scale: float) -> bool:
    """Within rounding of the right value, and within a part of `scale`."""
    eps = torch.finfo(right.dtype).eps if right.is_floating_point() else 0.0
    found = found.to(right.device, right.dtype)
    return torch.allclose(
        found, right, rtol=4 * eps, atol=max(ALLOWED, 8 * eps) * scale, equal_nan=True
    )
