"""Checks the words of a command line before tyro reads them, for what tyro explains too little."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import takewhile
from typing import Any, Literal, get_args, get_origin

from trainkit.commands.names_elsewhere import name_here
from trainkit.errors import UserError, did_you_mean

NUMBERS: dict[Any, tuple[type, str]] = {
    int: (int, "a whole number"),
    int | None: (int, "a whole number"),
    float: (float, "a number"),
    float | None: (float, "a number"),
}
TRUTH_VALUES = frozenset({"true", "false", "1", "0", "yes", "no", "on", "off"})
ONE_HYPHEN = re.compile(r"-([A-Za-z][\w-]+)")
DEVICES = (
    "a GPU is used where there is one; several by `accelerate launch -m trainkit ...`, and none"
    " with CUDA_VISIBLE_DEVICES= in front of the command"
)
FLAGS_OF_OTHERS = dict.fromkeys(("--device", "--devices", "--gpu", "--gpus", "--gpu-ids"), DEVICES)
"""what people know from elsewhere, and what is done here"""


def check_flags(kinds: Mapping[str, Any], words: Sequence[str]) -> None:
    """Raise UserError for a flag with one hyphen, and for one that other programs have.

    Args:
        kinds: annotation of each setting and option.
        words: of the command line.
    """
    flags = [_flag(name) for name in kinds]
    groups = [kind for kind in kinds.values() if is_dataclass(kind)]  # whose fields are flags too
    every = {*flags, *(_flag(field.name) for group in groups for field in fields(group))}
    for word in words:
        flag, equals, _ = word.partition("=")
        given = ONE_HYPHEN.fullmatch(flag)
        if given is not None:
            meant = _flag(given[1])
            near = "" if meant in flags else did_you_mean(meant, flags).partition("; there are")[0]
            raise UserError(f"{flag} has one hyphen: settings and options have two, {meant}{near}")
        if flag in FLAGS_OF_OTHERS and flag not in flags:
            raise UserError(f"{flag} is no option: {FLAGS_OF_OTHERS[flag]}")
        here = name_here(flag, every) if flag.startswith("--") else None  # else it is a value
        if here is not None:
            raise UserError(f"{flag} is no option: {here}")
        near = did_you_mean(flag, flags)
        if (
            equals
            and flag.replace("_", "-") not in flags
            and "there are" not in near
            and not groups
        ):
            raise UserError(f"{flag} is no option{near}")  # tyro looks at the whole word


def check_flags_without_value(names: Sequence[str], words: Sequence[str]) -> None:
    """Raise UserError where a flag that is given as --name or --no-name has a value."""
    flags = {_flag(name) for name in names}
    for word, following in zip(words, [*words[1:], ""]):
        flag, _, value = word.replace("_", "-").partition("=")
        value = value or following
        if flag in flags and value.lower() in TRUTH_VALUES:
            off = f"--no-{flag.removeprefix('--')}"
            raise UserError(
                f"{flag} takes no value, and {value} follows it: {flag} turns it on, {off} off"
            )


def check_values(kinds: Mapping[str, Any], words: Sequence[str]) -> None:
    """Raise UserError for values that cannot be those of a flag.

    A word without a flag, a flag without a value, several values for one, a word where a number is
    due, or none of the choices.

    Args:
        kinds: annotation of each setting and option.
        words: of the command line.
    """
    flags = {_flag(name): kind for name, kind in kinds.items()}
    if words and not words[0].startswith("-"):
        meant = f", such as --data {shlex.quote(words[0])}" if "data" in kinds else ""
        raise UserError(f"{words[0]} is given without a flag: settings and options have one{meant}")
    for place, word in enumerate(words):
        flag, equals, value = word.partition("=")
        values = list(takewhile(lambda each: not each.startswith("--"), words[place + 1 :]))
        given = [value] if equals else values
        kind = flags.get(flag.replace("_", "-"))
        if kind in (str, str | None) and len(given) > 1:
            one = ",".join(each.strip(",") for each in values)
            raise UserError(
                f"{flag} takes one value, and {' '.join(values)} are {len(values)}: write a list"
                f" without spaces ({flag} {shlex.quote(one)}), and a name that has one in quotes"
            )
        if get_origin(kind) is Literal:
            _check_choice(flag, given, get_args(kind))
        if kind in NUMBERS and given:
            _check_number(flag, given[0], kind)


def _flag(name: str) -> str:
    return f"--{name}".replace("_", "-")


def _check_choice(flag: str, given: Sequence[str], choices: Sequence[Any]) -> None:
    """Raise UserError where no choice is given, or what is none."""
    listed = ", ".join(map(str, choices))
    if not given:
        raise UserError(f"{flag} has no value: it is one of {listed}")
    if given[0] in map(str, choices):
        return
    raise UserError(f"{flag} has no choice {given[0]!r}{did_you_mean(given[0], map(str, choices))}")


def _check_number(flag: str, value: str, kind: Any) -> None:
    """Raise UserError where no such number can be read from a value; None where the kind has it."""
    number, what = NUMBERS[kind]
    if value == "None" and kind is not number:
        return
    try:
        number(value)
    except ValueError as error:
        raise UserError(f"{flag} is {value!r}: it must be {what}") from error
