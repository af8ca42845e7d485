"""Reads weights of a file from elsewhere without running anything stored in it."""

import re
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from tarfile import is_tarfile
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from trainkit.errors import UserError
from trainkit.storage.checkpoint import in_memory
from trainkit.storage.tensor_files import SHARD

# where trainers keep the weights
NESTS = ("state_dict", "model", "model_state_dict", "net", "weights")
COUNTER = "n_averaged"  # of torch's AveragedModel, beside the weights it averages


OTHER_KINDS = {  # as torch's reader names them
    "TorchScript": "a program of TorchScript",
    "legacy .tar": "a tar archive, or of PyTorch's oldest format",
}


class Beside:
    """Stands for a value beside the weights, such as a NumPy number, which is never made."""

    def __init__(self, *stored: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _plain_dict(*factory: Any) -> dict:
    """In place of a defaultdict, whose factory is not kept."""
    return {}


# What files hold beside weights, by the names that NumPy 1 and 2 and the versions of Python give
# them.
BESIDE = (
    *(f"numpy.{core}.multiarray.{name}"
      for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"numpy.{name}" for name in ("dtype", "ndarray", "bool_", "bool", "str_")),
    *(f"numpy.{kind}{bits}" for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64)),
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in (
        "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path", "PurePath",
    )),
    *(f"builtins.{name}" for name in ("list", "dict", "int", "float", "str", "bool", "tuple")),
    *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
)  # fmt: skip


def load_weights(path: Path, key: str | None = None) -> tuple[dict[str, Tensor], list[str]]:
    """Load weights of a .safetensors file or of what torch.save wrote.

    Args:
        path: the file.
        key: the set to be taken, by its key or the path of keys to it, such as "model_ema" or
            "ema.state_dict"; None: the first of NESTS that the file has, or the only one.

    Returns:
        Tensors by name, and lines on which of several sets they are.

    Raises:
        UserError: the file cannot be read, holds objects of other kinds, no weights, several sets
            of which none is known, or none called `key`.
    """
    if SHARD.fullmatch(path.name):
        raise UserError(
            f"{path} is one process's part of a sharded checkpoint: give its folder, {path.parent},"
            " or write whole weights into a file with trainkit export"
        )
    if path.suffix == ".safetensors":
        if key is not None:
            raise UserError(
                f"weights_key is {key!r}, and {path} holds a single set of weights: leave it out"
            )
        try:
            tensors = in_memory(path)
        except SafetensorError as error:
            raise UserError(
                f"{path} is not a safetensors file, or is cut short: {error}"
            ) from error
        return _checked(tensors, path), []
    _check_beginning(path)
    try:
        with _known_kinds(), catch_warnings():
            simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise UserError(
            f"{path} is not read: it holds {_found(path, error)}, and only tensors and plain values"
            " are. Where you trust the file, save its weights alone:"
            " torch.save(model.state_dict(), ...), or with safetensors"
        ) from error
    except Exception as error:  # of a file cut short or damaged torch's reader raises many a kind
        reason = str(error).partition("\n")[0] or "it ends too soon"
        for kind, what in OTHER_KINDS.items():
            if kind in reason:
                raise UserError(
                    f"{path} is {what}, which is not read: save model.state_dict() of it"
                ) from error
        raise UserError(
            f"{path} cannot be read as weights: {type(error).__name__}: {reason}. Is it whole? Copy"
            " or download it again"
        ) from error
    named, lines = _chosen(content, path, key)
    if COUNTER in named:
        named = {name: value for name, value in named.items() if name != COUNTER}
        lines.append(
            f"{path.name}: {COUNTER} stands beside the weights: they are averages of torch's"
            " AveragedModel"
        )
    return _checked(named, path), lines


def _known_kinds() -> safe_globals:
    kinds = [(Beside, name) for name in BESIDE]
    return safe_globals([Namespace, (_plain_dict, "collections.defaultdict"), *kinds])


def _check_beginning(path: Path) -> None:
    """Raise UserError for a web page or a Git LFS pointer that is called .pth."""
    with path.open("rb") as file:
        begins = file.read(64)
    if not begins.startswith((b"PK", b"\x80")) and not (begins.strip(b"\0") and is_tarfile(path)):
        raise UserError(
            f"{path} cannot be read as weights: it begins with {begins[:24]!r}, as no file of"
            " PyTorch does. Download it again (a web page or a pointer of Git LFS may have come in"
            " its place), or call it .safetensors if it is one"
        )


def _found(path: Path, error: UnpicklingError) -> str:
    """What was refused in a file: every kind of object by name, or what torch's reader says."""
    try:
        with _known_kinds():
            names = sorted(get_unsafe_globals_in_checkpoint(path))
    except (
        ValueError,
        UnpicklingError,
        RuntimeError,
    ):  # the older format, or something else than a name is refused
        names = re.findall(r"GLOBAL ([\w.]+)", str(error))[:1]
    if names:
        return f"objects of {', '.join(names)}"
    lines = [line.strip() for line in str(error).splitlines()]
    said = next(
        (line for line in lines if line.startswith(("Unsupported", "WeightsUnpickler error"))),
        lines[0],
    )
    return f"what torch.save does not write, or it is damaged ({said})"


def _chosen(content: Any, path: Path, key: str | None) -> tuple[dict[str, Any], list[str]]:
    """The tensors by name in a file's content, at any depth of nesting, and lines to report."""
    lines: list[str] = []
    seen: list[int] = []
    content = content if key is None else _at(content, key, path)
    while True:
        if id(content) in seen:
            raise UserError(
                f"{path} holds no weights: what it holds contains itself. Save the state dict alone"
            )
        seen.append(id(content))
        sets = list(_sets(content))
        usual = [name for name in NESTS if name in sets]
        if not usual and (len(sets) != 1 or _tensors(content)):
            break
        taken = usual[0] if usual else sets[0]
        others = [name for name in sets if name != taken]
        if others or not usual:
            left = f"; left: {', '.join(others)} (--weights-key takes another)" if others else ""
            lines.append(f"{path.name}: the weights under {taken} are taken{left}")
        content = content[taken]
    tensors = _tensors(content)
    if not tensors and len(sets) > 1:
        raise UserError(
            f"{path} holds {len(sets)} sets of weights, {', '.join(sets)}: choose one with"
            " --weights-key"
        )
    if not tensors:
        names = ", ".join(map(str, content)) if isinstance(content, Mapping) else None
        held = type(content).__name__ if names is None else f"a mapping with {names}"
        if _holds_arrays(content):
            raise UserError(
                f"{path} holds no weights: its values are of NumPy and no tensors. Save them as"
                " torch.from_numpy(array)"
            )
        raise UserError(
            f"{path} holds no weights: it is {held[:200]}. Give a state dict, by itself or as"
            f" {' or '.join(NESTS)}"
        )
    return tensors, lines


def _holds_arrays(content: Any) -> bool:
    """Whether a state dict, by itself or nested, has stand-ins for all its values."""
    parts = (
        [content, *(content.get(nest) for nest in NESTS)] if isinstance(content, Mapping) else []
    )
    return any(
        isinstance(p, Mapping) and p and all(isinstance(v, Beside) for v in p.values())
        for p in parts
    )


def _at(content: Any, key: str, path: Path) -> Any:
    """The value under `key`, which may be a path of keys with dots between them."""
    rest, content = key, content if isinstance(content, Mapping) else {}
    while rest:
        held = [
            name for name in content if isinstance(name, str) and f"{rest}.".startswith(f"{name}.")
        ]
        name = max(held, key=len) if held else None
        if name is None or not isinstance(content.get(name), Mapping):
            sets = ", ".join(_sets(content)) or "none"
            raise UserError(
                f"weights_key is {key!r}, and {path} has no weights there; the sets of it are:"
                f" {sets}"
            )
        content, rest = content[name], rest[len(name) + 1 :]
    return content


def _sets(content: Any) -> Iterator[str]:
    """Keys of mappings in `content` that are weights, or hold some where trainers keep them."""
    for name, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(name, str) and isinstance(value, Mapping):
            inside = [value[nest] for nest in NESTS if isinstance(value.get(nest), Mapping)]
            if any(map(_is_set, [value, *inside])) or (inside and name in NESTS):
                yield name


def _is_set(value: Mapping) -> bool:
    """Whether there are weights among the values; the state of a generator is whole numbers."""
    return any(
        isinstance(each, Tensor) and (each.is_floating_point() or each.is_complex())
        for each in value.values()
    )


def _tensors(content: Any) -> dict[Any, Tensor]:
    named = content.items() if isinstance(content, Mapping) else ()
    return {name: value for name, value in named if isinstance(value, Tensor)}


def _checked(tensors: dict[Any, Tensor], path: Path) -> dict[str, Tensor]:
    """The same tensors.

    Raises UserError for names that are no strings, and tensors that no weights can be.
    """
    numbers = [name for name in tensors if not isinstance(name, str)]
    if numbers:
        raise UserError(
            f"{path} names its {len(tensors)} tensors {', '.join(map(str, numbers[:3]))}, ..., and"
            " not as a state dict does, such as conv1.weight: save model.state_dict()"
        )
    kinds = {
        "on the meta device, without values": lambda tensor: tensor.is_meta,
        "quantized": lambda tensor: tensor.is_quantized,
        "sparse": lambda tensor: tensor.layout != torch.strided,
    }
    for kind, is_of in kinds.items():
        found = [name for name, tensor in tensors.items() if is_of(tensor)]
        if found:
            raise UserError(
                f"{len(found)} of the {len(tensors)} tensors in {path} are {kind}:"
                f" {', '.join(found[:3])}. Save the weights as plain tensors"
            )
    return tensors
