"""Whether two datasets give the same items: in what, if anything, two objects differ."""

import types
from collections.abc import Mapping
from enum import Enum
from functools import partial
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

PLAIN = (str, bytes, int, float, complex, type(None), PurePath, Enum, torch.dtype, np.generic)
UNORDERED = (set, frozenset, range, slice)
POINTER = 8  # bytes that a slot takes


def difference(one: Any, other: Any, name: str = "") -> str | None:
    """The first part in which two objects differ, by attributes and items; None for none.

    What cannot be looked into, such as an open file or a generator of random numbers, differs
    unless it is one and the same object, or compares itself, as the schema of a table does.

    Args:
        one: any object.
        other: to compare it with.
        name: of the two in what is returned.

    Returns:
        A path, such as "val_data.transform.size".
    """
    return _difference(one, other, name, {})


def _difference(
    one: Any, other: Any, name: str, seen: dict[tuple[int, int], tuple[Any, Any]]
) -> str | None:
    if one is other or (id(one), id(other)) in seen:
        return None
    if type(one) is not type(other):
        return name
    seen[id(one), id(other)] = one, other  # held: a freed object's id may be another's next
    if isinstance(one, (Tensor, np.ndarray)):
        return None if _is_same_array(one, other) else name
    if isinstance(one, (*PLAIN, *UNORDERED)):
        return None if one == other else name
    ours, theirs = _parts(one), _parts(other)
    if ours is None or theirs is None:
        return None if _says_equal(one, other) else name
    if list(ours) != list(theirs):
        return name
    for part, value in ours.items():
        found = _difference(value, theirs[part], name + part, seen)
        if found is not None:
            return found
    return None


def _says_equal(one: Any, other: Any) -> bool:
    """Whether an object that cannot be looked into compares itself, and finds the other equal."""
    try:
        return (one == other) is True
    except Exception:  # whatever a library raises
        return False


def _is_same_array(one: Any, other: Any) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if isinstance(one, np.ndarray):
        return not one.dtype.hasobject and one.tobytes() == other.tobytes()
    return one.device == other.device and torch.equal(one, other)


def _parts(value: Any) -> dict[str, Any] | None:
    """What an object consists of, by name; None where nothing shows it."""
    if isinstance(value, types.FunctionType):
        # those that one piece of code has made differ in what they hold
        cells = [_held(cell) for cell in value.__closure__ or ()]
        held = {"code": id(value.__code__), "closure": cells}
        return {**held, "defaults": value.__defaults__, "keywords": value.__kwdefaults__}
    if isinstance(value, types.MethodType):
        return {f".{value.__name__}": value.__func__, "": value.__self__}
    if isinstance(value, partial):
        return {".func": value.func, ".args": value.args, ".keywords": value.keywords}
    if isinstance(value, type):
        return None
    if hasattr(value, "_fingerprint") and type(value).__module__.startswith("datasets."):
        return {"._fingerprint": value._fingerprint}  # of rows and of what was done to them
    found: dict[str, Any] = {}
    if isinstance(value, Mapping):
        if not all(isinstance(key, (str, int)) for key in value):
            return None
        found |= {f"[{key!r}]": value[key] for key in value}
    elif isinstance(value, (list, tuple)):
        found |= {f"[{place}]": each for place, each in enumerate(value)}
    elif _holds_more(type(value)):
        return None
    found |= {f".{name}": each for name, each in getattr(value, "__dict__", {}).items()}
    return found | {f".{name}": getattr(value, name, None) for name in _slots(type(value))}


def _slots(kind: type) -> list[str]:
    """Names of attributes that an object's `__dict__` does not hold."""
    names = []
    for each in kind.__mro__:
        given = each.__dict__.get("__slots__", ())
        for name in [given] if isinstance(given, str) else given:
            is_private = name.startswith("__") and not name.endswith("__")
            names.append(f"_{each.__name__.lstrip('_')}{name}" if is_private else name)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _held(cell: types.CellType) -> Any:
    """What a closure's cell holds; of one that was never filled a text."""
    try:
        return cell.cell_contents
    except ValueError:
        return "nothing yet"


def _holds_more(kind: type) -> bool:
    """Whether objects have more in memory than Python can see of them, as those of C have."""
    seen = object.__basicsize__ + POINTER * (len(_slots(kind)) + 2)  # __dict__ and __weakref__
    return kind.__basicsize__ > seen or kind.__itemsize__ > 0
