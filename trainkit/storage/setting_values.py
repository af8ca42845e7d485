"""Turns settings of a recipe into the values of settings.json, and back by its annotations."""

import inspect
import types
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from trainkit.errors import UserError
from trainkit.storage.old_names import renamed_settings

EMPTY = inspect.Parameter.empty


def plain(value: Any) -> Any:
    """A value as JSON gives it back.

    Dataclasses become mappings, tuples and sets lists, paths and others strings.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in fields(value) if field.init
        }
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Mapping):
        return {_key(name): plain(item) for name, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(plain, value), key=repr)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _key(name: Any) -> str:
    """A key of a mapping, by which `_typed_key` knows it."""
    return str(plain(name))


def read_settings_as(
    recorded: Mapping[str, Any], signature: inspect.Signature, recipe: Path
) -> dict[str, Any]:
    """The recorded settings as a recipe takes them, by today's names.

    Args:
        recorded: of settings.json.
        signature: of the recipe.
        recipe: its file, for messages.

    Raises:
        UserError: the recipe lacks a setting, or it is not of that type.
    """
    recorded = renamed_settings(recorded, signature.parameters)
    gone = [
        f"{name}={value!r}" for name, value in recorded.items() if name not in signature.parameters
    ]
    if gone:
        raise UserError(
            f"the run was trained with settings that {recipe} does not have: {', '.join(gone)}."
            " Give the recipe it was trained with, which the run's folder keeps as recipe.py"
        )
    found = {}
    for name, value in recorded.items():
        parameter = signature.parameters[name]
        if parameter.default is not EMPTY and plain(parameter.default) == value:
            found[name] = parameter.default
            continue
        try:
            found[name] = typed(value, parameter.annotation)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"the run was trained with {name}={value!r}, which {recipe} does not take: {error}."
                " Give the recipe it was trained with, which the run's folder keeps as recipe.py"
            ) from error
    return found


def require_all(
    recorded: Mapping[str, Any],
    settings: Mapping[str, Any],
    run: Path,
    before: str | None = None,
    now: Path | None = None,
) -> None:
    """Check that no recorded setting of a run is missing, nor a field of a setting's dataclass.

    Args:
        recorded: settings of the run.
        settings: those of the recipe as it is called.
        run: its folder.
        before: the file of the run's recipe.
        now: the file of the recipe.

    Raises:
        UserError: one is; the message has its name, and those of the recipes where they differ.
    """
    lost = _lost(recorded, settings)
    if lost:
        of = ""
        if before is not None and now is not None and Path(before).name != now.name:
            of = f", of {Path(before).stem} and not of {now.stem},"
        raise UserError(
            f"the run in {run}{of} was started with settings that the recipe does not have any"
            f" more: {', '.join(lost)}. Give it the settings back, which {run / 'recipe.py'} has,"
            " take another folder with --out, where --init-from begins from this run's weights, or"
            " --resume never to start afresh (this run is moved aside)"
        )


def _lost(recorded: Mapping[str, Any], settings: Mapping[str, Any], within: str = "") -> list[str]:
    found = [
        f"{within}{name}={value!r}" for name, value in recorded.items() if name not in settings
    ]
    for name, value in settings.items():
        before = recorded.get(name)
        if is_dataclass(value) and not isinstance(value, type) and isinstance(before, dict):
            now = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
            found += _lost(before, now, f"{within}{name}.")
    return found


def typed(value: Any, annotation: Any) -> Any:
    """Turn a value of JSON into what an annotation says.

    Raises:
        UserError: it cannot be.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is EMPTY or annotation is Any:
        return tuple(value) if isinstance(value, list) else value
    if origin is Annotated:
        return typed(value, arguments[0])
    if hasattr(annotation, "__supertype__"):  # a NewType
        return typed(value, annotation.__supertype__)
    if origin in (Union, types.UnionType):
        return _of_union(value, arguments)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"it must be one of {', '.join(map(repr, arguments))}")
        return value
    kind = origin or annotation
    if not isinstance(kind, type):
        return value
    if is_dataclass(kind):
        return _of_dataclass(value, kind)
    if issubclass(kind, Enum):
        return _of_enum(value, kind)
    if issubclass(kind, PurePath) and isinstance(value, str):
        return kind(value)
    if issubclass(kind, Mapping) and isinstance(value, dict):
        keys, items = arguments or (Any, Any)
        return {_typed_key(name, keys): typed(item, items) for name, item in value.items()}
    if issubclass(kind, Collection) and isinstance(value, list):
        return _of_collection(value, kind, arguments)
    return _of_class(value, kind)


IN_WORDS: dict[Any, str] = {
    float: "a number", int: "a whole number", bool: "true or false", str: "text", Path: "a path",
    type(None): "None", tuple: "a list", list: "a list", set: "a list", dict: "a mapping",
}  # fmt: skip


def _described(kind: Any) -> str:
    """A type in words."""
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    origin = get_origin(kind) or kind
    return IN_WORDS.get(origin) or f"a {getattr(origin, '__name__', origin)}"


def typed_as_any(forms: Iterable[Any], annotation: Any) -> Any:
    """The first of several forms of a value that an annotation takes.

    Raises:
        UserError: it takes none; the message is that of the first.
    """
    faults = []
    for form in forms:
        try:
            return typed(form, annotation)
        except (TypeError, ValueError) as error:
            faults.append(str(error))
    raise UserError(faults[0])


def _of_class(value: Any, kind: type) -> Any:
    """A value of a class itself; a whole number where a float is asked for becomes one."""
    if isinstance(value, bool) and kind is not bool:
        raise UserError(f"it must be {_described(kind)}")
    if kind is float and isinstance(value, int):
        return float(value)
    if isinstance(value, kind):
        return value
    raise UserError(f"it must be {_described(kind)}")


def _of_union(value: Any, kinds: tuple) -> Any:
    """Type a value by the first of the types that takes it.

    Raises UserError where none does, or two dataclasses do.
    """
    if value is None and type(None) in kinds:
        return None
    found = []
    for kind in kinds:
        try:
            found.append(typed(value, kind))
        except (TypeError, ValueError):
            continue
    if len(found) > 1 and all(map(is_dataclass, found)):
        raise UserError(f"it may be {' or '.join(type(each).__name__ for each in found)}")
    if not found:
        raise UserError(f"it must be {' or '.join(dict.fromkeys(map(_described, kinds)))}")
    return found[0]


def _of_dataclass(value: Any, kind: type) -> Any:
    """Make a dataclass of every recorded field; those added since have their defaults."""
    if not isinstance(value, dict):
        raise UserError(f"it must be {_described(kind)}")
    known = {field.name: field for field in fields(kind) if field.init}
    gone = sorted(value.keys() - known.keys())
    lacks = [
        name
        for name, field in known.items()
        if name not in value and field.default is MISSING and field.default_factory is MISSING
    ]
    if gone or lacks:
        what = f"has no {', '.join(gone)}" if gone else f"needs {', '.join(lacks)}"
        raise UserError(f"{kind.__name__} {what}")
    hints = get_type_hints(kind, include_extras=True)
    return kind(**{name: typed(item, hints[name]) for name, item in value.items()})


def _of_enum(value: Any, kind: type[Enum]) -> Any:
    if not isinstance(value, str) or value not in kind.__members__:
        raise UserError(f"it must be {_described(kind)}")
    return kind[value]


def _of_collection(value: list, kind: type, arguments: tuple) -> Any:
    if hasattr(kind, "_fields"):  # a NamedTuple
        hints = get_type_hints(kind)
        if len(value) != len(kind._fields):
            raise UserError(f"{kind.__name__} has {len(kind._fields)} values")
        return kind(*(typed(item, hints[name]) for name, item in zip(kind._fields, value)))
    if issubclass(kind, str):
        raise UserError("it must be text")
    if issubclass(kind, tuple) and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise UserError(f"it has {len(value)} values, and needs {len(arguments)}")
        return tuple(typed(item, each) for item, each in zip(value, arguments))
    items = [typed(item, arguments[0] if arguments else Any) for item in value]
    return kind(items) if issubclass(kind, (list, set, frozenset)) else tuple(items)


def _typed_key(name: str, kind: Any) -> Any:
    """A key of a JSON mapping, which is always a string."""
    if kind is int:
        return int(name)
    if kind is float:
        return float(name)
    return typed(name, kind)
