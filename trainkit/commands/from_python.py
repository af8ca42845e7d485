"""What Python code gives to `trainkit.train` and `trainkit.evaluate`, as the commands take it."""

import ast
import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any, get_type_hints

import numpy as np
from torch import nn

from trainkit.commands.config_file import read_config
from trainkit.commands.option_checks import check_finite, check_names
from trainkit.commands.recipe_file import RecipeFile, innermost, load_recipe
from trainkit.commands.recipe_names import find_recipe
from trainkit.errors import UserError, did_you_mean
from trainkit.options import EvaluateOptions, Options
from trainkit.settings import SharedSettings
from trainkit.storage.recipe_source import RecipeSource
from trainkit.storage.setting_values import typed_as_any

COMMANDS: Mapping[str, type] = {"train": Options, "evaluate": EvaluateOptions}
EMPTY = inspect.Parameter.empty
PLAIN = (str, int, float, list, dict, PurePath, type(None))


def as_recipe_file(given: Any) -> tuple[RecipeFile, RecipeSource]:
    """The function that builds a recipe, and where it came from.

    Args:
        given: a function that returns a Recipe, its file, or the name of one of trainkit's.

    Raises:
        UserError: it is nothing of the kind.
    """
    if isinstance(given, (str, Path)):
        given = load_recipe(find_recipe(str(given)))
    if isinstance(given, RecipeFile):
        return given, RecipeSource(file=given.path)
    if isinstance(given, ModuleType) and callable(getattr(given, "recipe", None)):
        name = given.__name__
        raise UserError(f"{name} is a module: give the function in it, {name}.recipe")
    if not callable(given) or isinstance(given, nn.Module):
        raise UserError(
            f"a {type(given).__name__} is no recipe: give a function that returns a"
            " trainkit.Recipe, a Recipe, the file of a recipe, or the name of one of `trainkit"
            " recipes`"
        )
    function = _partial_of(given)
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    code = getattr(innermost(function), "__code__", None)
    path = Path(code.co_filename if code is not None else getattr(module, "__file__", "recipe.py"))
    recipe_file = RecipeFile(given, module or ModuleType("recipe"), path)
    return recipe_file, _source_of(function, module, path)


def _partial_of(given: Callable) -> Callable:
    """The function itself. Raises UserError where a partial of it has settings without a name."""
    while isinstance(given, functools.partial):
        if given.args:
            raise UserError(
                f"functools.partial of {given.func} holds {given.args} without names: give settings"
                " by their names"
            )
        given = given.func
    return given


def _source_of(function: Callable, module: ModuleType | None, path: Path) -> RecipeSource:
    """The file that holds a function at its top, else its source alone."""
    name = next((name for name, each in vars(module or function).items() if each is function), None)
    if name is not None and path.suffix == ".py" and path.is_file() and _stands_alone(path):
        return RecipeSource(file=path, name=name)
    try:
        text = inspect.getsource(innermost(function))
    except (OSError, TypeError):  # such as of a callable object
        text = None
    return RecipeSource(text=text)


def _stands_alone(path: Path) -> bool:
    """Whether a file can be loaded by its path: a module of a package with `from . import` cannot.

    Nor can one that is not Python any more.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return False
    return not any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree))


def split_keywords(
    command: str, recipe_file: RecipeFile | None, given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of a recipe's function, and options of a command, from the keywords of a call.

    Args:
        command: train or evaluate.
        recipe_file: the function; None for a built Recipe, which has no settings any more.
        given: the keywords. `config` is a file as of --config; the others go before it.

    Raises:
        UserError: a name is none of them, or a value is not of its kind.
    """
    signature = inspect.signature(recipe_file) if recipe_file else inspect.Signature()
    check_names(signature.parameters)
    hints = _hints(COMMANDS[command])
    given = dict(given)
    config = given.pop("config", None)
    in_file: dict[str, Any] = {}
    options: dict[str, Any] = {}
    if config is not None:
        others = {name for each in COMMANDS.values() for name in _hints(each)}
        in_file, options = read_config(Path(config), signature, hints, others)
    settings: dict[str, Any] = {}
    for name, value in given.items():
        if name in hints:
            options[name] = _typed(name, value, hints[name])
            continue
        held = vars(value) if isinstance(value, SharedSettings) else {name: value}
        for each, inner in held.items():
            if each not in signature.parameters:
                raise _unknown(command, recipe_file, each, [*signature.parameters, *hints])
            if each in settings:
                raise UserError(
                    f"{each} is given twice, by itself and as a field of another keyword: leave"
                    " one out"
                )
            settings[each] = _typed(each, inner, signature.parameters[each].annotation)
    return {**in_file, **settings}, options


def _unknown(
    command: str, recipe_file: RecipeFile | None, name: str, known: list[str]
) -> UserError:
    """The error for a keyword that a call does not take."""
    for other, kind in COMMANDS.items():
        if name in _hints(kind):
            return UserError(f"{name} is an option of {other}, and {command} does not take it")
    if recipe_file is None:
        near = did_you_mean(name, known)
        return UserError(
            f"{command} has no option {name}{near}. Where it is a setting of the function that"
            f" built the Recipe, give {command} the function itself: {command}(recipe, {name}=...),"
            f" not {command}(recipe(...), {name}=...)"
        )
    return UserError(
        f"{name} is no setting of {_called(recipe_file)} and no option of {command}"
        f"{did_you_mean(name, known)}"
    )


def resolved(
    recipe_file: RecipeFile, given: Mapping[str, Any], recorded: Mapping[str, Any]
) -> dict[str, Any]:
    """All settings of a recipe: as given, else as recorded, as `sample` has them, or as it says.

    Raises:
        UserError: one without a default is not given, or a number is not finite.
    """
    parameters = inspect.signature(recipe_file).parameters
    own = {name: each.default for name, each in parameters.items() if each.default is not EMPTY}
    sampled = recipe_file.sample_settings() if given.get("sample") is True else {}
    found = {**own, **sampled, **recorded, **given}
    missing = [name for name in parameters if name not in found]
    if missing:
        raise UserError(
            f"{_called(recipe_file)} has no default for {', '.join(missing)}: give {missing[0]}=..."
        )
    settings = {name: found[name] for name in parameters}
    check_finite(settings)
    return settings


def _called(recipe_file: RecipeFile) -> str:
    """A recipe by its file, or by the name of a function that no file holds."""
    named = getattr(innermost(recipe_file.function), "__name__", "the recipe")
    return recipe_file.path.name if recipe_file.path.is_file() else f"{named}(...)"


def objects_in(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings that no file can hold, such as a dataset, by the names of their classes."""
    return {
        name: f"{type(value).__module__}.{type(value).__qualname__}"
        for name, value in settings.items()
        if not _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list, set, frozenset)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    is_data = is_dataclass(value) and not isinstance(value, type)
    return is_data or isinstance(value, (*PLAIN, Enum))


def _hints(options: type) -> dict[str, Any]:
    hints = get_type_hints(options)
    return {field.name: hints[field.name] for field in fields(options)}


def _typed(name: str, value: Any, annotation: Any) -> Any:
    """A value as a flag would give it: a string is a path where a path is asked for."""
    if isinstance(value, np.generic):
        value = value.item()
    given = list(value) if isinstance(value, tuple) else value
    if not isinstance(given, PLAIN) or not _is_plain(given):
        return value
    tried = [given, str(given)] if isinstance(given, PurePath) else [given]
    try:
        return typed_as_any(tried, annotation)
    except UserError as error:
        raise UserError(f"{name} is {value!r}: {error}") from error
