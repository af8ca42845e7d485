"""What a setting names with arguments: NAME, or NAME:argument=value,argument=value."""

import ast
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

from trainkit.errors import UserError, did_you_mean

WITH_ARGUMENTS = re.compile(r"(?P<name>.*?):(?P<arguments>\s*[A-Za-z_]\w*\s*=.*)", re.DOTALL)


def parse_named(setting: str, text: str) -> tuple[str, dict[str, Any]]:
    """The name and the arguments in `text`, such as "poly:power=0.9,end=0.01".

    Values are Python's: numbers, True, None, lists, tuples, strings. A string needs no quotes where
    it is a word or a path: `average=macro`.

    Args:
        setting: what `text` is given as, for messages.
        text: a name; after a colon arguments with commas between.

    Raises:
        UserError: the arguments cannot be read.
    """
    match = WITH_ARGUMENTS.fullmatch(text)
    if match is None:
        return text.strip(), {}
    arguments = match["arguments"]
    try:
        call = ast.parse(f"f({arguments})", mode="eval").body
    except SyntaxError as error:
        raise _unreadable(setting, text) from error
    if not isinstance(call, ast.Call) or call.args:
        raise _unreadable(setting, text)
    found: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in found:
            raise _unreadable(setting, text)
        found[keyword.arg] = _value(keyword.value)
    return match["name"].strip(), found


def _unreadable(setting: str, text: str) -> UserError:
    return UserError(
        f"{setting} is {text!r}, which cannot be read: give NAME, or NAME:argument=value with"
        " commas between several, such as poly:power=0.9,end=0.01"
    )


def _value(node: ast.expr) -> Any:
    """What an expression says; where it is no value of Python its own text, such as `macro`."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node).replace(" ", "")


def require_arguments(
    setting: str, name: str, arguments: Iterable[str], function: Callable[..., Any]
) -> None:
    """Raises UserError for an argument that `function` does not take; it names the nearest.

    Args:
        setting: that names it, for messages.
        name: of what `function` makes.
        arguments: names of those given.
        function: that gets them by name.
    """
    parameters = inspect.signature(function).parameters.values()
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = [each.name for each in parameters if each.kind in named]
    for argument in arguments:
        if argument not in known:
            raise UserError(
                f"{setting} {name} does not take {argument}{did_you_mean(argument, known)}"
            )
