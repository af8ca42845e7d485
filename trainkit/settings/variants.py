"""The settings of a recipe as one flat list, and recipes that are others with other defaults."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from trainkit.errors import UserError
from trainkit.settings import SharedSettings

EMPTY = inspect.Parameter.empty
KEYWORD = inspect.Parameter.KEYWORD_ONLY
SECTIONS = ("Args:", "Attributes:")


def variant(base: Callable, /, **defaults: Any) -> Callable[[Callable], Callable]:
    """Decorate a function `recipe` that calls `base` with its settings, with other defaults.

        @variant(base, epochs=30, lr=0.004)
        def recipe(split: str = "train", **settings) -> Recipe:
            \"\"\"Another dataset, with `Args:` for `data` and `split`.\"\"\"
            return base(**settings)

    The function has settings of its own by name, and passes on the others. Parameters of `base`
    without a default are no settings: the function gives them, such as the dataset. What its
    docstring says of a setting goes before what that of `base` says.

    Args:
        base: the function `recipe` of another recipe.
        **defaults: by the names of settings, also where these are fields of `SharedSettings`.

    Raises:
        UserError: `defaults` names something that is no setting of `base`.
    """

    def decorate(function: Callable) -> Callable:
        own = {
            name: each
            for name, each in flat_signature(function).parameters.items()
            if each.kind is not each.VAR_KEYWORD
        }
        settings = {
            name: each
            for name, each in flat_signature(base).parameters.items()
            if each.default is not EMPTY and name not in own
        }
        unknown = sorted(defaults.keys() - settings.keys())
        if unknown:
            raise UserError(
                f"variant: {base.__name__} has no settings {', '.join(unknown)}; it has"
                f" {', '.join(settings)}"
            )
        # its own first, such as the dataset: so --help lists them
        parameters = [each.replace(kind=KEYWORD) for each in own.values()]
        parameters += [
            each.replace(default=defaults.get(name, each.default), kind=KEYWORD)
            for name, each in settings.items()
        ]
        returns = inspect.signature(function, eval_str=True).return_annotation
        signature = inspect.Signature(parameters, return_annotation=returns)

        @functools.wraps(function)
        def recipe(**given: Any) -> Any:
            bound = signature.bind(**given)
            bound.apply_defaults()
            return function(**packed(function, packed(base, bound.arguments)))

        recipe.__signature__ = signature  # type: ignore[attr-defined]  # as inspect looks it up
        recipe.__doc__ = _rendered(
            _summary(function), {**_described(base), **_described(function)}, signature
        )
        return recipe

    return decorate


def flat_signature(function: Callable) -> inspect.Signature:
    """The signature of a recipe, with the fields of `SharedSettings` in place of these parameters.

    Raises:
        TypeError, ValueError: `inspect.signature` cannot read the function.
    """
    signature = inspect.signature(function, eval_str=True)
    if not any(_is_shared(each) for each in signature.parameters.values()):
        return signature
    parameters = []
    for each in signature.parameters.values():
        if _is_shared(each):
            parameters += _fields(each)
        elif each.kind is each.POSITIONAL_OR_KEYWORD:
            parameters.append(each.replace(kind=KEYWORD))
        else:
            parameters.append(each)
    return signature.replace(parameters=parameters)


def flat_doc(function: Callable) -> str | None:
    """The docstring of a recipe, with a line for each `SharedSettings` field that it leaves out."""
    signature = inspect.signature(function, eval_str=True)
    if not any(_is_shared(each) for each in signature.parameters.values()):
        return inspect.getdoc(function)
    return _rendered(_summary(function), _described(function), flat_signature(function))


def packed(function: Callable, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The flat settings as `function` takes them: fields of `SharedSettings` within an instance."""
    found = dict(settings)
    for name, each in inspect.signature(function, eval_str=True).parameters.items():
        # a field may be called as the parameter is
        if _is_shared(each) and not isinstance(found.get(name), SharedSettings):
            names = [field.name for field in dataclasses.fields(each.annotation)]
            given = {field: found.pop(field) for field in names if field in found}
            start = each.annotation if each.default is EMPTY else None
            found[name] = start(**given) if start else dataclasses.replace(each.default, **given)
    return found


def _is_shared(parameter: inspect.Parameter) -> bool:
    kind = parameter.annotation
    return isinstance(kind, type) and issubclass(kind, SharedSettings)


def _fields(parameter: inspect.Parameter) -> list[inspect.Parameter]:
    """Parameters for the fields of a parameter that holds `SharedSettings`."""
    hints = get_type_hints(parameter.annotation, include_extras=True)
    found = []
    for field in dataclasses.fields(parameter.annotation):
        if parameter.default is not EMPTY:
            default = getattr(parameter.default, field.name)
        else:
            default = EMPTY if field.default is dataclasses.MISSING else field.default
        found.append(
            inspect.Parameter(field.name, KEYWORD, default=default, annotation=hints[field.name])
        )
    return found


def _summary(function: Callable) -> str:
    """The docstring up to its list of settings."""
    text = inspect.getdoc(function) or ""
    return re.split(rf"^(?:{'|'.join(SECTIONS)})$", text, flags=re.MULTILINE)[0].rstrip()


def _described(function: Callable) -> dict[str, str]:
    """What is said about each setting, in the docstring or in that of its class."""
    found: dict[str, str] = {}
    for each in inspect.signature(function, eval_str=True).parameters.values():
        if _is_shared(each):
            found |= _entries(inspect.getdoc(each.annotation) or "")
    return found | _entries(inspect.getdoc(function) or "")


def _entries(text: str) -> dict[str, str]:
    """Name -> words of a Google-style list of arguments or attributes."""
    found: dict[str, str] = {}
    name, inside = None, False
    for line in text.splitlines():
        entry = re.fullmatch(r"    (\w+): (.*)", line)
        if line in SECTIONS:
            inside = True
        elif line and not line.startswith(" "):
            inside = False
        elif inside and entry:
            name = entry[1]
            found[name] = entry[2]
        elif inside and name and line.strip():
            found[name] += f" {line.strip()}"
    return found


def _rendered(summary: str, described: Mapping[str, str], signature: inspect.Signature) -> str:
    lines = [f"    {name}: {described[name]}" for name in signature.parameters if name in described]
    return "\n".join([summary, "", "Args:", *lines])
