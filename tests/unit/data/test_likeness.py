"""In what two objects differ, by attributes and items."""

import random
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torchvision.transforms import v2

from trainkit.data.likeness import difference
from trainkit.data.transforms.recognition import eval_transform


@dataclass
class Data:
    transform: object
    files: list
    held: object = None


class Slotted:
    __slots__ = ("number",)

    def __init__(self, number):
        self.number = number


def shift(number, held=0):
    return lambda value: value + number + held


def data(**changes):
    given = {"transform": eval_transform(32), "files": [Path("a.png"), Path("b.png")]}
    return Data(**{**given, **changes})


def test_the_same_made_twice():
    ours, theirs = data(), data()
    ours.held, theirs.held = ours, theirs  # a cycle
    assert difference(ours, theirs, "data") is None
    assert ours != theirs or ours.transform is not theirs.transform


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"files": [Path("a.png"), Path("c.png")]}, "data.files[1]"),
        ({"files": [Path("a.png")]}, "data.files"),
        ({"transform": eval_transform(64)}, "data.transform"),
        ({"transform": v2.Identity()}, "data.transform"),
        ({"held": 1.0}, "data.held"),
    ],
)
def test_the_part_that_differs(changes, where):
    found = difference(data(), data(**changes), "data")
    assert found is not None and found.startswith(where)


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (torch.arange(3), torch.arange(3), torch.arange(3.0)),
        (np.array([1.0, np.nan]), np.array([1.0, np.nan]), np.array([1.0, 2.0])),
        ({"a": 1, 2: "b"}, {"a": 1, 2: "b"}, {2: "b", "a": 1}),
        (partial(max, 1), partial(max, 1), partial(max, 2)),
        (shift(1), shift(1), shift(2)),
        (data().files.append, None, data().files.append),
        (Slotted(1), Slotted(1), Slotted(2)),
        ({1, 2}, {2, 1}, {1}),
        (1, 1, True),
        (re.compile("a"), re.compile("a"), re.compile("b")),
        (pa.schema({"a": pa.int8()}), pa.schema({"a": pa.int8()}), pa.schema({"b": pa.int8()})),
        (random.Random(1), None, random.Random(1)),  # whose state cannot be seen
        (np.random.default_rng(1), None, np.random.default_rng(1)),
    ],
)
def test_kinds_of_values(one, same, other):
    assert difference(one, one) is None
    if same is not None:
        assert difference(one, same) is None
    assert difference(one, other, "it") is not None


def test_functions_of_other_code_differ():
    assert difference(shift, data, "it") is not None
    assert difference(Data, Slotted, "it") == "it"


@pytest.mark.parametrize("place", range(5))
def test_every_function_of_a_list_is_compared(place):
    """What is compared is made on the spot, and its memory may be another's next."""
    ours, theirs = ([shift(number) for number in range(5)] for _ in range(2))
    theirs[place] = shift(-1)
    assert difference(ours, theirs, "it") is not None


def test_what_hides_is_compared():
    class Private:
        __slots__ = ("__size",)

        def __init__(self, size):
            self.__size = size

    assert difference(Private(1), Private(2), "it") == "it._Private__size"
    assert difference(Private(1), Private(1), "it") is None

    def late():
        def held():
            return value

        if len(str(held)) < 0:
            value = 1
        return held

    assert difference(late(), late(), "it") is None
