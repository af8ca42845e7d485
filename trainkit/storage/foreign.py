"""Checks what a model.json asks for before anything is built of it: it may be anybody's file."""

from collections.abc import Callable, Collection, Mapping
from enum import Enum
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from trainkit.errors import UserError
from trainkit.storage.setting_values import typed

Range = tuple[float, float]
SIDE: Range = (1, 65_536)
# By the arguments' names; whole ranges, far beyond what anybody trains.
RANGES: Mapping[str, Range] = {
    "num_classes": (1, 1_000_000),
    "classes": (1, 1_000_000),
    "image_channels": (1, 1024),
    "batch_size": (1, 65_536),
    "channels": (1, 65_536),
    "widths": (1, 65_536),
    "sizes": (1, 8192),
    "size": SIDE,
    "long_side": SIDE,
    "crop": SIDE,
    "crop_width": SIDE,
    "window": SIDE,
    "window_width": SIDE,
    "stride": SIDE,
    "window_batch": (1, 4096),
    "scales": (0.01, 16),
    "crop_fraction": (0.001, 1),
    "raw_ids": (0, 65_535),
    "palette": (0, 255),
}
MOST_ITEMS = 1_000_000  # of a list
LONGEST_TEXT = 10_000  # characters, of a name


def require_usual(what: str, function: Callable | type, arguments: Mapping[str, Any]) -> None:
    """Check the values of arguments in a model.json by type and range.

    Args:
        what: the part of model.json that they belong to, for messages; "" for none.
        function: one of trainkit's own that takes them, or a class with these fields.
        arguments: by name; others than it takes are left to the call.

    Raises:
        UserError: a value is of another type than the function takes, or out of range; the message
            has its name.
    """
    hints = get_type_hints(function)
    for name, value in arguments.items():
        fault = _fault(name, value, hints.get(name, Any))
        if fault is not None:
            shown = repr(value)
            shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
            raise UserError(
                f"model.json gives {what}{' ' * bool(what)}{name} = {shown}, {fault}: it is"
                " damaged, or no training wrote it"
            )


def _fault(name: str, value: Any, annotation: Any) -> str | None:
    """What is wrong with a value; None where nothing is."""
    for each in _items(value):
        if isinstance(each, str) and len(each) > LONGEST_TEXT:
            return f"of which a text has {len(each):,} characters"
    if isinstance(value, Collection) and len(value) > MOST_ITEMS:
        return f"of {len(value):,} items"
    is_union = get_origin(annotation) in (Union, UnionType)
    kinds = get_args(annotation) if is_union else (annotation,)
    enums = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum)]
    if enums:
        known = [each.value for each in enums[0]]
        return None if value in known else f"which is none of {', '.join(map(str, known))}"
    if isinstance(value, str) and any(map(_is_a_list, kinds)):
        return "which is no list"
    try:
        typed(value, annotation)
    except (TypeError, ValueError, OverflowError) as error:
        return f"which it cannot be: {error}"
    low, high = RANGES.get(name, (-1e12, 1e12))
    for each in _items(value):
        is_number = isinstance(each, (int, float)) and not isinstance(each, bool)
        if is_number and not low <= each <= high:  # NaN is in no range
            return f"which is not in {low:g} to {high:g}"
    return None


def _is_a_list(kind: Any) -> bool:
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Collection)


def _items(value: Any) -> list[Any]:
    """The value, or what is in it, at any depth."""
    found, waiting = [], [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, (list, tuple)):
            waiting.extend(each)
        elif isinstance(each, Mapping):
            waiting.extend(each.values())
        else:
            found.append(each)
    return found
