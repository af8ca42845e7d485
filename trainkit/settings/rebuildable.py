"""Records by which function and arguments a network or transform was built, to build it again."""

import functools
import inspect
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, ParamSpec, TypeVar

from trainkit.errors import UserError

Given = ParamSpec("Given")
Built = TypeVar("Built")

PACKAGE = __name__.partition(".")[0]


def rebuildable(function: Callable[Given, Built]) -> Callable[Given, Built]:
    """Decorate a function so that what it returns has an attribute `built_by`, see `built_by`.

    Args:
        function: gives the same for the same arguments, but for the values of weights. Its
            arguments are plain: numbers, strings, None, and lists and mappings of these. What it
            looks up elsewhere, such as on the Hub, it returns in an attribute `looked_up`, by the
            names of arguments that it takes in its place.

    Raises:
        UserError: by a call whose arguments JSON cannot hold.
    """
    signature = inspect.signature(function)
    name, recipe = function.__name__, None
    if function.__module__.startswith(f"{PACKAGE}."):
        name = f"{function.__module__.rpartition('.')[2]}.{name}"  # such as segmentation.segmenter
    else:
        recipe = Path(function.__code__.co_filename).name

    @functools.wraps(function)
    def build(*positional: Given.args, **named: Given.kwargs) -> Built:
        built: Any = function(*positional, **named)
        bound = signature.bind(*positional, **named)
        bound.apply_defaults()
        arguments = {each: _plain(each, value) for each, value in bound.arguments.items()}
        found = getattr(built, "looked_up", {})
        arguments |= {each: _plain(each, value) for each, value in found.items()}
        built.built_by = {"function": name, "recipe": recipe, "arguments": arguments}
        built.as_built = structure(built)
        return built

    marked: Any = build
    marked.is_rebuildable = True
    return marked


def is_rebuildable(function: Any) -> bool:
    """Whether it has the decorator `rebuildable`, so that files may name it."""
    return getattr(function, "is_rebuildable", False) is True


def built_by(built: Any) -> Mapping[str, Any] | None:
    """How a network or transform was built: "function", "arguments" and, if any, "recipe".

    Returns:
        None where it is not known.
    """
    return getattr(built, "built_by", None)


def structure(built: Any) -> list[tuple] | None:
    """Names, types, settings and hooks of a network's modules; None of something else."""
    if not hasattr(built, "named_modules"):
        return None
    return [
        (
            name,
            type(module).__qualname__,
            module.extra_repr(),
            len(module._forward_hooks) + len(module._forward_pre_hooks),
        )
        for name, module in built.named_modules()
    ]


def forget_if_changed(network: Any) -> None:
    """Forget what built a network that was changed since, such as by a layer put into it.

    Called once, where a recipe gives the network: what a training converts later is no change.
    """
    network = getattr(network, "_orig_mod", network)  # of torch.compile
    before = getattr(network, "as_built", None)
    if before is None:
        return
    if before != structure(network):
        network.built_by = None
    network.as_built = None


def _plain(name: str, value: Any) -> Any:
    """An argument as JSON gives it back.

    Raises:
        UserError: JSON has nothing like it.
    """
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(name, item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(name, item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UserError(
        f"{name} is of type {type(value).__name__}, which model.json cannot hold: a function with"
        " @rebuildable takes numbers, strings, None, and lists and mappings of these"
    )
