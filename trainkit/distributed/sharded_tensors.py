"""Tensors of which each process holds a part: its rows, the whole, and an optimizer's state."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.optim import Optimizer


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_part(tensor: Tensor) -> bool:
    """Whether this process holds some of its rows, and the others the rest, in their order."""
    if not isinstance(tensor, DTensor):
        return False
    assert tensor.placements == (Shard(0),), f"sharded as {tensor.placements}, not by rows alone"
    return True


def own_rows(like: Tensor) -> slice:
    """The rows that this process holds of a tensor sharded as `like` is, see `is_part`."""
    assert isinstance(like, DTensor)
    in_each = -(-like.shape[0] // like.device_mesh.size())  # as torch.chunk cuts
    start = min(in_each * like.device_mesh.get_local_rank(), like.shape[0])
    return slice(start, start + like.to_local().shape[0])


def from_rows(rows: Tensor, like: Tensor) -> Tensor:
    """The tensor sharded as `like` is of which this process has `rows`, see `own_rows`."""
    assert isinstance(like, DTensor)
    return DTensor.from_local(
        rows.to(like.device),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def gathered(tensor: Tensor) -> Tensor:
    """All of a tensor, where it is. All processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole(value: Any, keep: bool = True) -> Any:
    """Nested dicts, lists and tuples with every part gathered to a whole tensor, on the CPU.

    All processes must call it; those that do not `keep` get None for them.
    """
    if isinstance(value, DTensor):
        tensor = gathered(value)
        return tensor.cpu() if keep else None
    if isinstance(value, Mapping):
        return {name: whole(each, keep) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(whole(each, keep) for each in value)
    return value


def unsharded_state(optimizer: Optimizer) -> str | None:
    """The first of an optimizer's state that is not laid out as its sharded weight is.

    It could not be gathered, or loaded. Also what is in lists and mappings.
    """
    return next(
        (
            name
            for weight, state in optimizer.state.items()
            if isinstance(weight, DTensor)
            for name, value in state.items()
            for each in _tensors(value)
            if each.numel() > 1 and not (isinstance(each, DTensor) and each.shape == weight.shape)
        ),
        None,
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(each)


def part(value: Tensor, like: Tensor | None) -> Tensor:
    """This rank's shard of a whole tensor, or of one that was read so, sharded as `like` is."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    if isinstance(value, DTensor):
        return value.to(like.dtype)
    value = value.to(like.device, like.dtype)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def parts_of_optimizer(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """Turn a state of whole tensors, see `whole`, into that of an optimizer over parts."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    return state | {
        "state": {
            index: {
                name: part(each, weights[index]) if isinstance(each, Tensor) else each
                for name, each in kept.items()
            }
            if isinstance(index, int)  # else of all weights together
            else kept
            for index, kept in state["state"].items()
        }
    }
