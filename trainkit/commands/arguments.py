"""Reads the command line: a recipe's settings by its signature, options by a dataclass.

Both are read by tyro.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import dropwhile
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import tyro

from trainkit.commands.audit_options import AuditOptions
from trainkit.commands.average_options import AverageOptions
from trainkit.commands.config_file import config_path, read_config
from trainkit.commands.evaluate_options import EvaluateCommandOptions
from trainkit.commands.help_text import help_of, shown
from trainkit.commands.option_checks import check_finite, check_names
from trainkit.commands.pack_options import PackOptions
from trainkit.commands.word_checks import check_flags, check_flags_without_value, check_values
from trainkit.errors import UserError
from trainkit.options import (
    DoctorOptions,
    ExportOptions,
    NewOptions,
    Options,
    PredictOptions,
    PushOptions,
    RecipesOptions,
    ReplayOptions,
    ReportOptions,
)
from trainkit.storage.setting_values import read_settings_as

if TYPE_CHECKING:  # torch comes with it, and the help of a command goes without
    from trainkit.commands.recipe_file import RecipeFile

POSITIONAL: Any = tyro.conf.Positional  # of types that are known at run time alone

# what positional arguments are called in the help
NAMES = {"paths": "IMAGES ...", "name": "OWNER/NAME", "others": "RUN ...", "file": "FILE"}
CONFIG_HELP = (
    "settings and options from a YAML file, or from the settings.json of another run; what is given"
    " on the command line goes before"
)


def _as_arguments(options: type, positional: str | None = None, config: bool = False) -> type:
    """The same options with help for tyro, the one called `positional` without a flag.

    With `config` there is --config beside them, which `read_settings_and_options` has read by then.

    Their values are checked by `_checked`: an error within tyro would end in a text of tyro's own.
    """
    annotations: dict[str, Any] = {}
    for name, kind in get_type_hints(options).items():
        is_positional = name == positional
        annotations[name] = shown(kind, NAMES.get(name) if is_positional else None)
        if is_positional:
            annotations[name] = POSITIONAL[annotations[name]]
    more: dict[str, Any] = {}
    if config:
        annotations["config"] = Annotated[shown(Path | None), tyro.conf.arg(help=CONFIG_HELP)]
        more["config"] = None
    members = {
        **more,
        "__annotations__": annotations,
        "__doc__": options.__doc__,
        "__post_init__": lambda _: None,
    }
    return dataclass(frozen=True, kw_only=True)(type(options.__name__, (options,), members))


def _checked(arguments: Any) -> Any:
    """The options that were read as `arguments`.

    Raises UserError where a value cannot be.
    """
    (options,) = type(arguments).__bases__
    names = {field.name for field in fields(options)}
    return options(**{name: value for name, value in vars(arguments).items() if name in names})


# what a command takes beside its first argument without a flag
POSITIONALS = {
    "evaluate": "others",
    "predict": "paths",
    "average": "others",
    "push": "name",
    "report": "others",
    "new": "file",
}
OPTIONS: dict[str, type] = {
    "train": _as_arguments(Options, config=True),
    "check": _as_arguments(Options, config=True),
    "audit": _as_arguments(AuditOptions, config=True),
    "doctor": _as_arguments(DoctorOptions, config=True),
    "pack": _as_arguments(PackOptions, config=True),
    "evaluate": _as_arguments(EvaluateCommandOptions, positional=POSITIONALS["evaluate"]),
    "predict": _as_arguments(PredictOptions, positional=POSITIONALS["predict"]),
    "export": _as_arguments(ExportOptions),
    "average": _as_arguments(AverageOptions, positional=POSITIONALS["average"]),
    "push": _as_arguments(PushOptions, positional=POSITIONALS["push"]),
    "replay": _as_arguments(ReplayOptions),
    "report": _as_arguments(ReportOptions, positional=POSITIONALS["report"]),
    "recipes": _as_arguments(RecipesOptions),
    "new": _as_arguments(NewOptions, positional=POSITIONALS["new"]),
}
# what a command takes first, explained
FIRST = {
    "RECIPE": "RECIPE: a Python file, or the name of one of `trainkit recipes`.\n\n",
    "RECIPE|FOLDER": (
        "RECIPE: a Python file, or the name of one of `trainkit recipes`.\n\n"
        "FOLDER: with images, or a list of them (.csv, .jsonl): says what it holds, and the command"
        " that trains on it.\n\n"
    ),
    "RUN": (
        "RUN: the folder of a run, a checkpoint in it, a folder that push wrote, or the name of a"
        " model on the Hub (owner/name).\n\n"
    ),
}
TAKE_SETTINGS = (
    "train", "check", "audit", "doctor", "pack", "evaluate", "predict", "export", "average"
)  # fmt: skip
WITH_SETTINGS = "The settings of a recipe are options too: `trainkit RECIPE --help` lists them.\n"
SETTINGS = "Recipe settings"
HELP_FLAGS = frozenset({"-h", "--help"})
WHERE_TO = {  # for commands that need it
    "predict": "--out predictions",
    "export": "--out model.onnx",
    "average": "--out averaged",
    "pack": "--out packed",
}
NOTHING_RECORDED: Mapping[str, Any] = MappingProxyType({})


def asks_for_help(words: list[str]) -> bool:
    """Whether -h or --help is among the words."""
    return not HELP_FLAGS.isdisjoint(words)


def read_options(command: str, prog: str, words: list[str]) -> Any:
    """The options of a command from the words of the command line."""
    return _checked(tyro.cli(OPTIONS[command], prog=prog, args=words))


def show_help(command: str, first: str) -> None:
    """Write the options of a command; `first` is what it takes before them."""
    kind = OPTIONS[command]
    text = help_of(
        kind,
        positional=NAMES.get(POSITIONALS.get(command, ""), ""),
        more=WITH_SETTINGS if command in TAKE_SETTINGS else "",
        prog=f"trainkit {command} {first}".rstrip(),
        description=f"{FIRST.get(first, '')}{inspect.getdoc(kind)}",
    )
    sys.stdout.write(text)


def read_known_options(command: str, prog: str, words: list[str]) -> tuple[Any, list[str]]:
    """The options of a command alone, and the other words, such as settings of a recipe."""
    _require_out(command, words)
    known: Any
    known, unknown = tyro.cli(OPTIONS[command], prog=prog, args=words, return_unknown_args=True)
    return _checked(known), unknown


def _require_out(command: str, words: Sequence[str]) -> None:
    """Raise UserError where a command is not told where to write; tyro would show its usage."""
    given = any(word.partition("=")[0] == "--out" for word in words)
    if command in WHERE_TO and not given and not asks_for_help(list(words)):
        raise UserError(
            f"trainkit {command} is not told where to write: give --out, such as"
            f" {WHERE_TO[command]}"
        )


def flags(command: str) -> list[str]:
    """The flags of a command's options."""
    return [f"--{field.name.replace('_', '-')}" for field in fields(OPTIONS[command])]


def read_settings_and_options(
    recipe_file: RecipeFile,
    command_name: str,
    prog: str,
    words: list[str],
    recorded: Mapping[str, Any] = NOTHING_RECORDED,
) -> tuple[dict[str, Any], Any]:
    """The settings of a recipe and the options of a command, from the words of the command line.

    A setting not given there is as the file of --config says, else as `recorded` by an earlier run,
    else as `--sample` sets it where that is given, else as the signature says.

    Raises:
        UserError: a setting has the name of an option of any command, or a number is not finite.
    """
    signature = inspect.signature(recipe_file)
    check_names(signature.parameters, OPTIONS[command_name])
    asked_settings, asked_options = _from_file(command_name, signature, words)
    if "out" not in asked_options:
        _require_out(command_name, words)
    sampled = "--sample" in words or asked_settings.get("sample") is True
    samples = recipe_file.sample_settings() if sampled else {}
    recorded = read_settings_as(recorded, signature, recipe_file.path)
    defaults = {**samples, **recorded, **asked_settings}

    def command(settings: dict, options: Any) -> tuple:
        return settings, options

    if asked_options:
        command.__defaults__ = (OPTIONS[command_name](**asked_options),)

    command.__annotations__ = {
        "settings": Annotated[
            dict, tyro.conf.arg(constructor=_collector(recipe_file, defaults), name=SETTINGS)
        ],
        "options": Annotated[OPTIONS[command_name], tyro.conf.arg(name="Run")],
    }
    description = _joined(inspect.getdoc(recipe_file.module) or "")
    config = (tyro.conf.OmitArgPrefixes,)
    if asks_for_help(words):
        positional = NAMES.get(POSITIONALS.get(command_name, ""), "")
        text = help_of(command, positional, prog=prog, description=description, config=config)
        # tyro calls every group options
        title = f"{SETTINGS} options "
        sys.stdout.write(text.replace(title, f"{SETTINGS} ".ljust(len(title), "─"), 1))
        raise SystemExit(0)
    flags = [name for name, each in signature.parameters.items() if each.annotation is bool]
    flags += [name for name, kind in get_type_hints(OPTIONS[command_name]).items() if kind is bool]
    check_flags_without_value(flags, words)
    kinds = {name: each.annotation for name, each in signature.parameters.items()}
    kinds |= get_type_hints(OPTIONS[command_name])
    check_flags(kinds, words)
    if command_name == "evaluate":  # runs, and then what has a flag
        check_values(kinds, list(dropwhile(lambda word: not word.startswith("-"), words)))
    elif command_name not in POSITIONALS:
        check_values(kinds, words)
    settings, arguments = tyro.cli(
        command, prog=prog, description=description, args=words, config=config
    )
    asked = _checked(arguments)
    check_finite({**settings, **vars(asked)})
    return settings, asked


def _from_file(
    command: str, signature: inspect.Signature, words: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and options that the file of --config gives; none where there is no such flag."""
    path = config_path(words)
    if path is None or "config" not in {field.name for field in fields(OPTIONS[command])}:
        return {}, {}
    mine, others = (_hints(kind) for kind in (OPTIONS[command], Options))
    return read_config(path, signature, mine, others.keys())


def _hints(options: type) -> dict[str, Any]:
    return {
        field.name: get_type_hints(options)[field.name]
        for field in fields(options)
        if field.name != "config"
    }


def _joined(text: str) -> str:
    """The text with each paragraph on one line, for tyro to wrap; indented ones stay.

    tyro keeps the break before a line that begins with a digit or a bracket.
    """
    paragraphs = []
    for paragraph in text.split("\n\n"):
        lines = paragraph.split("\n")
        is_code = any(line.startswith(" ") for line in lines)
        paragraphs.append(paragraph if is_code else " ".join(lines))
    return "\n\n".join(paragraphs)


def _collector(recipe_file: RecipeFile, defaults: Mapping[str, Any]) -> Callable[..., dict]:
    """A function with the recipe's signature and these defaults, that returns its arguments."""
    signature = inspect.signature(recipe_file)
    parameters = []
    for name, parameter in signature.parameters.items():
        changed = parameter.replace(default=defaults[name]) if name in defaults else parameter
        parameters.append(changed)
    annotations = {name: each.annotation for name, each in signature.parameters.items()}
    types = {
        name: shown(each)
        for name, each in annotations.items()
        if each is not inspect.Parameter.empty
    }

    def collect(**settings: Any) -> dict[str, Any]:
        return settings

    called_with = signature.replace(parameters=parameters, return_annotation=dict)
    collect.__signature__ = called_with  # type: ignore[attr-defined]  # as inspect looks it up
    collect.__annotations__ = {**types, "return": dict}
    collect.__doc__ = recipe_file.__doc__
    return collect
