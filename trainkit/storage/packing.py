"""Packs state as JSON beside tensors, without pickled code, and checks that it can be packed."""

import json
import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from trainkit.distributed.sharded_tensors import local
from trainkit.errors import UserError

WHOLE = 1024  # elements up to which a tensor is tried with its values, and above with its type


def pack(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """JSON for `value`; tensors go into `tensors` and leave their name.

    Keys, and NumPy's numbers, keep their type.

    Raises:
        TypeError: it holds something else; the message has the name.
    """
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, np.generic) and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
        return {"numpy": [value.dtype.name, value.item()]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, dict):
        strange = [
            key for key in value if not (key is None or isinstance(key, (bool, int, float, str)))
        ]
        if strange:
            raise TypeError(
                f"{name} has a key of type {type(strange[0]).__name__}: a checkpoint holds plain"
                " values"
            )
        return {
            "dict": [[key, pack(item, tensors, f"{name}.{key}")] for key, item in value.items()]
        }
    if type(value) in (list, tuple):
        items = [pack(item, tensors, f"{name}.{index}") for index, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"{name} is of type {type(value).__name__}: a checkpoint holds tensors and plain values"
    )


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `pack` was given, from its JSON and the tensors."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "numpy":
        return np.dtype(content[0]).type(content[1])
    if kind == "dtype":
        return getattr(torch, content)
    if kind == "dict":
        return {key: unpack(item, tensors) for key, item in content}
    items = [unpack(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def require_savable(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Check that a checkpoint can hold `state`, with the model's state dict, and restore it.

    The structure is written, read and compared as it is; of large tensors, which would take as long
    as a save, the type and the layout. The model loads its own state dict, as a resume does.
    Nothing is changed.

    Args:
        model: the network.
        state: what a checkpoint would hold, with the model's state dict as "model".

    Raises:
        UserError: it cannot; the message has the name and a remedy.
    """
    tensors: dict[str, Tensor] = {}
    try:
        for name, value in state["model"].items():
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"state.model.{name} is of type {type(value).__name__}, and not a tensor"
                )
        structure = pack(state, tensors, "state")
        for name, tensor in tensors.items():
            _check_tensor(name, tensor)
        back = unpack(json.loads(json.dumps(structure)), _written_and_read(tensors))
    except TypeError as error:
        raise UserError(
            f"no checkpoint can hold this training: {error}. {_remedy(str(error))}"
        ) from error
    fault = _difference(state, back, "state")
    if fault:
        raise UserError(
            f"no checkpoint can hold this training: {fault} comes back changed. {_remedy(fault)}"
        )
    try:
        model.load_state_dict(state["model"])
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"no checkpoint can hold this training: {type(model).__name__} does not take up its own"
            f" state dict, as a resume would have it: {reason[:400]}"
        ) from error


def _check_tensor(name: str, tensor: Tensor) -> None:
    """Raise TypeError for tensors that safetensors does not know, or that are not writable."""
    tensor = local(tensor)
    kind = (
        "sparse" if tensor.layout != torch.strided else "quantized" if tensor.is_quantized else None
    )
    kind = "meta" if kind is None and tensor.is_meta else kind
    if kind is None and any(
        stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride())
    ):
        kind = "expanded"
    if kind is not None:
        raise TypeError(f"{name} is a tensor that is {kind}")
    if not _has_type(tensor.dtype):
        raise TypeError(f"{name} is a tensor of {tensor.dtype}, which safetensors has not")


@cache
def _has_type(dtype: torch.dtype) -> bool:
    try:
        save_tensors({"empty": torch.empty(0, dtype=dtype)})
    except (KeyError, TypeError, ValueError, SafetensorError):
        return False
    return True


def _written_and_read(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    here = {name: local(tensor).detach() for name, tensor in tensors.items()}
    small = {
        name: (
            (tensor if tensor.numel() <= WHOLE else tensor.new_empty(0))
            .to("cpu", copy=True)
            .contiguous()
        )
        for name, tensor in here.items()
    }
    return load_tensors(save_tensors(small))


def _difference(value: Any, back: Any, name: str) -> str | None:
    """The first place where what was read back differs."""
    if isinstance(value, Tensor):
        value = local(value).detach().cpu()
        if value.numel() > WHOLE:
            value = value.new_empty(0)
        same = (
            value.dtype == back.dtype
            and value.shape == back.shape
            and torch.equal(_bytes(value), _bytes(back))
        )
        return None if same else name
    if isinstance(value, Mapping):
        if not isinstance(back, dict) or list(value) != list(back):
            return name
        return next(
            (d for key in value if (d := _difference(value[key], back[key], f"{name}.{key}"))), None
        )
    if isinstance(value, (list, tuple)):
        if type(value) is not type(back) or len(value) != len(back):
            return name
        pairs = enumerate(zip(value, back))
        return next(
            (
                d
                for index, (one, other) in pairs
                if (d := _difference(one, other, f"{name}.{index}"))
            ),
            None,
        )
    both_nan = (
        isinstance(value, float)
        and isinstance(back, float)
        and math.isnan(value)
        and math.isnan(back)
    )
    return None if both_nan or (type(value) is type(back) and value == back) else name


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def _remedy(fault: str) -> str:
    if fault.startswith("state.model."):
        return (
            "Keep it out of the model's state dict (a plain attribute, or a buffer with"
            " persistent=False, where it can be made anew), or hold it as real, dense, contiguous"
            " tensors"
        )
    return (
        "Keep it out of the optimizer's groups and state, or hold it as numbers, strings or dense"
        " tensors"
    )
