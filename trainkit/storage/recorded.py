"""Reads settings.json of a run; without torch, for what only looks at runs."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trainkit.errors import UserError
from trainkit.storage.checked_json import (
    COUNT,
    MAPPING,
    POSITIVE,
    STRING,
    Fault,
    Kind,
    load_json,
    maybe,
    or_none,
    require,
)
from trainkit.storage.old_names import renamed_kept, renamed_options

MOST_NAMED = 5  # runs in a message
RECORDED = {
    "settings": MAPPING,
    "seed": Kind("a whole number", lambda value: type(value) is int and abs(value) < 2**64),
    "recipe": or_none(STRING),
    "input": maybe(MAPPING),
    "options": maybe(MAPPING),
    "order": maybe(POSITIVE),
    "call": maybe(Kind("a recipe with keywords", lambda value: _is_call(value))),
}
TO_PUBLISH = {
    "command": Kind("a command line", lambda value: isinstance(value, str) and bool(_words(value))),
    "options": MAPPING,
    "versions": MAPPING,
    "model": STRING,
    "total_steps": COUNT,
    "git_commit": or_none(STRING),
    "local": maybe(Kind("a list of names", lambda value: isinstance(value, list))),
}


def read_recorded(folder: Path, needs: Mapping[str, Kind] = MappingProxyType({})) -> dict[str, Any]:
    """Read settings.json of the run in `folder`.

    Args:
        folder: of the run.
        needs: what must be in it beside settings, seed and recipe.

    Raises:
        UserError: it is damaged, or not trainkit's.
    """
    file = folder / "settings.json"
    try:
        content = load_json(file)
        require(content, {**RECORDED, **needs})
    except Fault as error:
        raise UserError(
            f"{file} is damaged, or not of trainkit: {error}. Put a whole copy in its place, or"
            " choose another folder. Checkpoints beside it can be given to --weights where it is"
            " moved elsewhere, with the run's settings"
        ) from error
    if "options" in content:
        content["options"] = renamed_options(content["options"])
    return renamed_kept(content)


def read_order(folder: Path) -> int:
    """Version of the order of a run's training images, see `TrainOrder.version`.

    Runs that record none have 1.
    """
    return read_recorded(folder).get("order", 1)


def is_run(folder: Path) -> bool:
    """Whether `folder` has a settings.json that is trainkit's, or may be a damaged one of it."""
    file = folder / "settings.json"
    if not file.is_file():
        return False
    if (folder / "checkpoints").is_dir() or (folder / "log.jsonl").is_file():
        return True
    try:
        content = load_json(file)
    except Fault:
        return True
    return isinstance(content, dict) and not content.keys().isdisjoint(RECORDED)


def meant_run(named: Path) -> str:
    """The end of a message about what is no run: those in it, or the one of that name in runs/."""
    below = [each for each in named.glob("*") if is_run(each)] if named.is_dir() else []
    if below:
        newest = sorted(below, key=lambda run: (run / "settings.json").stat().st_mtime)[::-1]
        more = f" and {len(below) - MOST_NAMED} more" if len(below) > MOST_NAMED else ""
        return f"; in it are the runs {', '.join(map(str, newest[:MOST_NAMED]))}{more}"
    run = Path("runs") / named
    return f"; did you mean {run}?" if is_run(run) else ""


def _is_call(value: Any) -> bool:
    """Whether it is what `trainkit.train` was given, see `RecipeSource.call`."""
    if not isinstance(value, dict):
        return False
    return isinstance(value.get("recipe"), str) and isinstance(value.get("keywords"), dict)


def _words(command: str) -> list[str]:
    """Its words; none where quotes do not match."""
    try:
        return shlex.split(command)
    except ValueError:
        return []
