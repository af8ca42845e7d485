"""Whether an optimizer updates sharded weights as it does whole ones, tried before the first step.

An update that goes number by number is the same on a part of a weight. A norm, a product of
matrices or a sum over all weights may be of this process's part alone, and the training would be
another one without a word. No list of names knows a user's own optimizer, so each is tried: one
copy of it updates whole weights, another the same weights sharded.
"""

import copy
from collections import defaultdict
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.optim import Optimizer

from trainkit.distributed.fsdp import Sharding, gathered, take_parts, unsharded_state
from trainkit.engine.optimizer_state import has_modes, switch_mode, to_weights
from trainkit.errors import UserError, is_out_of_memory

# RAdam, Lookahead and preconditioners do something else in every fifth, sixth or tenth one
UPDATES = 11
# timm's: products of sharded tensors by einsum, of which a single update takes minutes
NEVER_TRIED = {"Kron"}
# difference, as a part of the largest change: sums of parts round otherwise than a whole sum
ALLOWED = 1e-4
# groups that differ in these alone update alike
OF_RATES = ("params", "param_names", "lr", "initial_lr", "lr_scale")


def require_same_updates(optimizer: Optimizer, accelerator: Accelerator) -> None:
    """Try it on one weight of each shape where FSDP was asked for.

    Call it before weights are sharded; nothing changes.

    Raises UserError, in all processes, where updates of sharded weights fail, or give other weights
    or state.
    """
    if Sharding.asked() is None or accelerator.num_processes == 1:
        return
    if type(optimizer).__name__ in NEVER_TRIED:
        raise UserError(
            f"optimizer {type(optimizer).__name__} is not for weights that FSDP has sharded: take"
            " AdamW or SGD, or launch without FSDP"
        )
    problem = None
    cuda = [accelerator.device.index or 0] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        try:
            problem = _difference(optimizer, accelerator)
        except Exception as error:  # whatever a foreign optimizer raises; it is reported below
            if is_out_of_memory(error):
                raise
            told = str(error).splitlines() or [""]
            problem = f"{type(error).__name__}: {told[0][:300]}"
    problems = [each for each in gather_object([problem]) if each is not None]
    if problems:
        raise UserError(
            f"optimizer {type(optimizer).__name__} does not update weights that FSDP has sharded as"
            f" it does whole ones ({problems[0]}): take AdamW or SGD, or launch without FSDP"
        )


def _difference(optimizer: Optimizer, accelerator: Accelerator) -> str | None:
    """What differs after a few updates; None where nothing does."""
    generator = torch.Generator().manual_seed(0)
    values = [
        0.02 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        for weight in _one_of_each(optimizer)
    ]
    whole, weights = _copied(
        optimizer, [value.to(accelerator.device, copy=True) for value in values]
    )
    sharded, unsharded = _copied(
        optimizer, [value.to(accelerator.device, copy=True) for value in values]
    )
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))

    def part(value: Tensor) -> Tensor:
        return distribute_tensor(
            value.to(accelerator.device, copy=True), mesh, [Shard(0)], src_data_rank=None
        )

    parts = [nn.Parameter(part(weight.detach())) for weight in unsharded]
    take_parts(sharded, {id(weight): each for weight, each in zip(unsharded, parts)})
    gradients = [
        [0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype) for value in values]
        for _ in range(UPDATES)
    ]
    _update(
        whole,
        weights,
        [[each.to(accelerator.device, copy=True) for each in row] for row in gradients],
    )
    _update(sharded, parts, [[part(each) for each in row] for row in gradients])

    name = unsharded_state(sharded)
    if name is not None:
        return f"its {name!r} is not sharded as its weights are, so that no checkpoint can hold it"
    found = []  # all of it is compared, for the processes gather together
    for value, weight, each in zip(values, weights, parts):
        of = f"of a weight of shape {list(value.shape)}"
        moved = (weight - value.to(weight.device)).abs().max().item()
        if not _close(gathered(each), weight, moved):
            found.append(f"its update {of} differs")
        states = (
            _numbers(instance.state.get(key, {}))
            for instance, key in ((whole, weight), (sharded, each))
        )
        found += [f"its {name!r} {of} differs" for name in _unequal(*states)]
    for one, other in zip(whole.param_groups, sharded.param_groups):
        found += [f"its {name!r} differs" for name in _unequal(_numbers(one), _numbers(other))]
    return found[0] if found else None


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
    """A copy of the optimizer over `values` in place of the weights of `_one_of_each`, and over
    nothing else."""
    weights = [nn.Parameter(value) for value in values]
    chosen = _one_of_each(optimizer)
    memo: dict[int, Any] = {id(weight): own for weight, own in zip(chosen, weights)}
    dropped = nn.Parameter(torch.empty(0))
    for group in optimizer.param_groups:
        memo |= {id(weight): dropped for weight in group["params"] if id(weight) not in memo}
    made = _copied_object(optimizer, memo)
    for group in made.param_groups:
        group["params"] = [weight for weight in group["params"] if weight is not dropped]
        if not isinstance(group["lr"], Tensor):
            group["lr"] = group["lr"] or 0.01  # a warm-up may begin at nothing
    to_weights(made)
    return made, weights


def _copied_object(optimizer: Any, memo: dict[int, Any]) -> Any:
    """All of its attributes, which torch's own way to copy an optimizer leaves out, and those of
    optimizers in it."""
    made = memo[id(optimizer)] = object.__new__(type(optimizer))
    attributes = dict(vars(optimizer))
    for value in attributes.values():
        if hasattr(value, "param_groups") and id(value) not in memo:
            _copied_object(value, memo)
    state = attributes.get("state")
    if state is not None and id(state) not in memo:
        memo[id(state)] = defaultdict(dict)
        memo[id(state)].update(
            (memo[id(weight)], copy.deepcopy(kept, memo))
            for weight, kept in state.items()
            if _is_kept(weight, memo)
        )
    vars(made).update(copy.deepcopy(attributes, memo))
    return made


def _is_kept(weight: Any, memo: dict[int, Any]) -> bool:
    return id(weight) in memo and memo[id(weight)].numel() > 0


def _update(
    optimizer: Optimizer, weights: list[nn.Parameter], gradients: list[list[Tensor]]
) -> None:
    torch.manual_seed(0)
    if has_modes(optimizer):
        switch_mode(optimizer, training=True)
    for row in gradients:
        for weight, gradient in zip(weights, row):
            weight.grad = gradient
        optimizer.step()
    if has_modes(optimizer):
        switch_mode(optimizer, training=False)


def _numbers(values: Any) -> dict[str, Any]:
    """What of a weight's state, or of a group, can be compared."""
    return {
        name: value for name, value in values.items() if isinstance(value, (int, float, Tensor))
    }


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
