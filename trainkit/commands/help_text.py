"""How flags and their values are shown by --help, in the width of the terminal."""

from __future__ import annotations

import codecs
import io
import shutil
import sys
import textwrap
import types
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import tyro

NONE = type(None)
VALUES = {int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}
NARROWEST = 40  # columns
BOX = "╭"  # lines within boxes of ASCII are indented


def shown(kind: Any, name: str | None = None) -> Any:
    """An annotation, with how --help names its values and its default.

    Args:
        kind: the annotation of a flag.
        name: of its values; None: by their types.
    """
    hints: dict[str, Any] = {"help_behavior_hint": _default_hint}
    name = name or _metavar(kind)
    if name is not None:
        hints["metavar"] = name
    return Annotated[kind, tyro.conf.arg(**hints)]


def help_of(kind: Any, positional: str = "", more: str = "", **settings: Any) -> str:
    """The help of a type or function, as tyro formats it, in the width of the terminal.

    Args:
        kind: what `tyro.cli` takes.
        positional: see `in_width`.
        more: what stands below it.
        **settings: of `tyro.cli`.
    """
    # tyro draws boxes as the encoding allows, which it knows by this name
    encoding = codecs.lookup(sys.stdout.encoding or "ascii").name
    written = io.TextIOWrapper(io.BytesIO(), encoding, errors="backslashreplace", newline="")
    with redirect_stdout(written), suppress(SystemExit):
        tyro.cli(kind, args=["--help"], **settings)
    written.seek(0)
    return in_width(written.read(), positional) + wrapped(more, _columns())


def in_width(help_text: str, positional: str = "") -> str:
    """The help that tyro wrote, with all before its first box no wider than the terminal.

    Args:
        help_text: as tyro formats it.
        positional: what the usage ends with, where its flags are left out for its length.
    """
    width = _columns()
    head, box, rest = help_text.partition(BOX)
    usage, _, description = head.partition("\n")
    before, flag, _ = usage.partition("[-h]")
    if len(usage) > width and flag:
        usage = f"{before}[-h] [OPTIONS] {positional}".rstrip()
    return "\n".join([usage, wrapped(description, width)]) + box + rest


def _columns() -> int:
    return max(NARROWEST, shutil.get_terminal_size().columns)


def wrapped(text: str, width: int) -> str:
    """Lines of text, broken before this many columns; indented ones stay."""
    lines = []
    for line in text.split("\n"):
        stays = line.startswith(" ")
        lines += [line] if stays else textwrap.wrap(line, width, break_on_hyphens=False) or [""]
    return "\n".join(lines)


def _default_hint(default: str) -> str:
    """The default behind the help of a flag.

    Nothing for None, which the help explains itself, and for an empty list or text.
    """
    return "" if default in ("None", "", "''") else f"(default: {default})"


def _metavar(kind: Any) -> str | None:
    """How the values of a flag are shown; None: as tyro does, or it has none.

    None among them is not shown: it is the default, or the help says what it means.
    """
    if get_origin(kind) is Annotated:
        return _metavar(get_args(kind)[0])
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if bool in kinds:
        return None
    names = [_value(each) for each in kinds if each is not NONE]
    if None in names or not names:
        return None
    return "|".join(name for name in names if name is not None)


def _value(kind: Any) -> str | None:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in VALUES:
        return VALUES[kind]
    if origin is Literal:
        return "{" + ",".join(map(str, arguments)) + "}"
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        each = _value(arguments[0])
        return None if each is None else f"{each} ..."
    if origin is tuple:
        values = [_value(each) for each in arguments]
        return None if None in values else " ".join(map(str, values))
    return None
