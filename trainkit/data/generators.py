"""Finds random generators that a dataset or its transforms hold, to seed them before each read.

torch's, NumPy's and Python's global generators are seeded for each image (`seed_host`). What draws
from a generator of its own, as albumentations 2 does, would draw the same numbers in every worker
and others in every run.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_DEPTH = 12  # of objects within objects
MAX_OBJECTS = 10_000  # of one dataset
# of a container that is looked into; a longer one is a list of files, not of transforms
MAX_ITEMS = 64
GLOBAL = (random._inst, np.random.mtrand._rand, torch.default_generator)  # `seed_host` seeds them
PLAIN = (
    str,
    bytes,
    bytearray,
    int,
    float,
    complex,
    type,
    ModuleType,
    Tensor,
    np.ndarray,
    np.generic,
)


def find_generators(data: object) -> list[Callable[[int], object]]:
    """Find functions that seed each generator that `data` holds, in attributes, closures and so on.

    Found are torch.Generator, numpy.random.Generator and RandomState, random.Random, and whatever
    has a method `set_random_seed(seed)` (albumentations 2).

    Returns:
        Functions that take a 64-bit seed.
    """
    return [seeder for seeder in map(_seeder, _reachable(data)) if seeder is not None]


def _seeder(value: object) -> Callable[[int], object] | None:
    """What seeds `value`; None where it is no generator, or one of the global ones."""
    if any(value is known for known in GLOBAL):
        return None
    if isinstance(value, torch.Generator):
        return value.manual_seed
    if isinstance(value, np.random.Generator):
        return partial(_seed_numpy, value)
    if isinstance(value, np.random.RandomState):
        return partial(_seed_legacy_numpy, value)
    if isinstance(value, random.Random):
        return value.seed
    if _seeds_itself(value):
        return partial(_seed_by_method, value)
    return None


def _seed_numpy(generator: np.random.Generator, seed: int) -> None:
    bits = generator.bit_generator
    bits.state = type(bits)(seed).state


def _seed_legacy_numpy(generator: np.random.RandomState, seed: int) -> None:
    generator.seed(seed & 0xFFFFFFFF)


def _seed_by_method(value: Any, seed: int) -> None:
    value.set_random_seed(seed & 0x7FFFFFFF)


def _seeds_itself(value: object) -> bool:
    return callable(getattr(type(value), "set_random_seed", None))


def _reachable(root: object) -> Iterator[object]:
    """Objects reachable from `root`, each once, in an order that is the same in every process."""
    seen: set[int] = set()
    ahead = [(root, 0)]
    while ahead and len(seen) < MAX_OBJECTS:
        value, depth = ahead.pop()
        if id(value) in seen or value is None or isinstance(value, PLAIN):
            continue
        seen.add(id(value))
        yield value
        # What seeds itself seeds what it holds; a second seed would be overwritten or would
        # overwrite it.
        if depth < MAX_DEPTH and not _seeds_itself(value):
            ahead += [(held, depth + 1) for held in reversed(_held_by(value))]


def _held_by(value: object) -> list[object]:
    """What `value` holds: items of a short container, attributes, or variables of a closure."""
    if isinstance(value, Mapping):
        return list(value.values()) if len(value) <= MAX_ITEMS else []
    if isinstance(value, (list, tuple)):  # no sets: their order differs between processes
        return list(value) if len(value) <= MAX_ITEMS else []
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, MethodType):
        return [value.__self__]
    if isinstance(value, FunctionType):
        return _used_by(value)
    slots = [name for kind in type(value).__mro__ for name in _slots(kind)]
    held = [getattr(value, name, None) for name in slots]
    held += vars(value).values() if hasattr(value, "__dict__") else ()
    # a dataset's method may use a transform of its module
    read = getattr(type(value), "__getitem__", None)
    return [*held, read] if isinstance(read, FunctionType) else held


def _slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if not name.startswith("__"))


def _used_by(function: FunctionType) -> list[object]:
    """What a function closes over, its defaults, and the globals that it names."""
    cells = [_content(cell) for cell in function.__closure__ or ()]
    named = [
        function.__globals__[name]
        for name in function.__code__.co_names
        if name in function.__globals__
    ]
    return [*cells, *(function.__defaults__ or ()), *named]


def _content(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None
