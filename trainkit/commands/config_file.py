"""Settings and options from a file: YAML, JSON, or the settings.json of another run."""

import inspect
import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from trainkit.errors import MissingFileError, UserError, did_you_mean
from trainkit.storage.old_names import renamed_options, renamed_settings
from trainkit.storage.setting_values import typed_as_any

FLAG = "--config"
NAMED = 5  # unknown names in a message, at most
NOT_OF_ANOTHER_RUN = ("out", "resume")  # of its folder


def config_path(words: Sequence[str]) -> Path | None:
    """The file that `--config` names among the words of a command line, the last one."""
    found = None
    for word, following in zip(words, [*words[1:], ""]):
        if word == FLAG:
            found = Path(following)
        elif word.startswith(f"{FLAG}="):
            found = Path(word.removeprefix(f"{FLAG}="))
    return found


def read_config(
    path: Path, signature: inspect.Signature, options: Mapping[str, Any], others: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a recipe and the options of a command that a file gives.

    Args:
        path: of a mapping by names of settings and options, with - or _, or of a settings.json,
            whose folder and --resume are left out.
        signature: of the recipe.
        options: annotation of each option of the command.
        others: options that other commands have, which are passed by.

    Returns:
        Settings, and options, as the command takes them.

    Raises:
        MissingFileError: there is no such file.
        UserError: it cannot be read, or has a name or a value that is not taken.
    """
    settings, given = {}, {}
    content = _content(path, signature)
    known = [*signature.parameters, *options]
    unknown = [str(name) for name in content if name not in known and name not in others]
    if len(unknown) > 1:
        more = ", ..." if len(unknown) > NAMED else ""
        raise UserError(
            f"{path}: {len(unknown)} of its {len(content)} names are no settings here"
            f" ({', '.join(unknown[:NAMED])}{more}): is it of another recipe?"
        )
    if unknown:
        raise UserError(
            f"{path}: there is no setting {unknown[0]}{did_you_mean(unknown[0], known)}"
        )
    for name, value in content.items():
        if name in signature.parameters:
            settings[name] = _typed(path, name, value, signature.parameters[name].annotation)
        elif name in options:
            given[name] = _typed(path, name, value, options[name])
    return settings, given


def _content(path: Path, signature: inspect.Signature) -> dict[str, Any]:
    if not path.is_file():
        raise MissingFileError(f"--config: there is no file {path}")
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, OSError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"--config: {path} cannot be read: {said}") from error
    if not isinstance(content, dict):
        raise UserError(
            f"--config: {path} holds no names with values, such as `lr: 0.01` on a line of YAML"
        )
    if isinstance(content.get("settings"), dict):  # of another run
        recorded = renamed_options(content.get("options", {}))
        kept = {name: each for name, each in recorded.items() if name not in NOT_OF_ANOTHER_RUN}
        return {**renamed_settings(content["settings"], signature.parameters), **kept}
    return {str(name).replace("-", "_"): value for name, value in content.items()}


def _typed(path: Path, name: str, value: Any, annotation: Any) -> Any:
    """A value as a setting takes it: YAML reads 1e-3 as text, and a list of one may be a value."""
    tried = [value, [value]]
    if isinstance(value, str):
        with suppress(ValueError):
            tried.insert(1, float(value))
    try:
        return typed_as_any(tried, annotation)
    except UserError as error:
        raise UserError(f"{path}: {name} is {value!r}: {error}") from error
