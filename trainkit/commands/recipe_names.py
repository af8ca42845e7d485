"""Finds recipes by name, and what each is, without importing any."""

import ast
import difflib
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from trainkit.commands import COMMANDS
from trainkit.errors import MissingFileError
from trainkit.storage.shipped import shipped

TASKS = {
    "recog": "recognition",
    "seg": "segmentation",
    "depth": "regression",
}  # by the first part of a name
SENTENCE_ENDS = re.compile(r"[.:](?:\s|$)")


class About(NamedTuple):
    """What the docstring of a recipe's file says in its first sentence."""

    name: str
    task: str
    networks: str
    dataset: str


def recipe_folders() -> list[Path]:
    """Where recipes are found by their names, in this order."""
    return [Path("recipes"), shipped("recipes")]


def known_recipes() -> dict[str, Path]:
    """All recipes that are found by their names."""
    folders = [folder for folder in recipe_folders() if folder.is_dir()]
    files = (file for folder in reversed(folders) for file in sorted(folder.glob("*.py")))
    return {file.stem: file for file in files}


def find_recipe(word: str, or_folders: bool = False) -> Path:
    """The file that a first word means: an existing file, else the recipe of that name.

    Looked for in ./recipes and among those that come with the package.

    Args:
        word: of the command line.
        or_folders: a folder may have been meant as well.

    Raises:
        MissingFileError: there is none; it names the nearest.
    """
    path = Path(word)
    if path.exists() or path.suffix or path.name != word:
        return path  # of which `load_recipe` reports what is wrong with it
    recipes = known_recipes()
    if word in recipes:
        return recipes[word]
    beside = {file.stem: str(file) for file in Path().glob("*.py")}
    kinds = "command, file or recipe"
    folders: list[str] = []
    if or_folders:
        kinds = f"folder, {kinds}"
        folders = sorted(each.name for each in Path().iterdir() if each.is_dir())
    near = nearest(word, [*recipes, *COMMANDS, *beside, *folders])
    if near is not None:
        meant = beside.get(near, near)
        raise MissingFileError(f"no {kinds} {word}; did you mean {meant}?")
    raise MissingFileError(f"no {kinds} {word}; recipes: {', '.join(sorted(recipes)) or 'none'}")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like it; None where none is."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


def instead_of(path: Path) -> str:
    """What may have been meant by a path without a file, as the end of a message.

    The file of the nearest name beside it, else a recipe of the package, else all files there.
    """
    if path.is_dir():
        return (
            f", which is a folder; trainkit doctor {shlex.quote(str(path))} says how to train on it"
        )
    beside = sorted(path.parent.glob("*.py")) if path.parent.is_dir() else []
    by_name = {other.stem: str(other) for other in beside}
    recipes = known_recipes()
    near = nearest(path.stem, by_name)  # whole paths are alike by their folder
    if near is not None:
        return f"; did you mean {by_name[near]}?"
    near = nearest(path.stem, recipes)
    if near is not None:
        return f"; did you mean {near}, a recipe that comes with trainkit?"
    if beside:
        return f"; recipes in {path.parent}: {', '.join(map(str, beside))}"
    return f" (looked in {Path.cwd()})"


def described(file: Path) -> About:
    """What the first sentence of the file's docstring says: NETWORKS on DATASET."""
    try:
        doc = ast.get_docstring(ast.parse(file.read_bytes()))
    except (SyntaxError, ValueError):
        doc = None
    words = " ".join((doc or "").split("\n\n")[0].split())
    sentence = SENTENCE_ENDS.split(words)[0]
    networks, _, dataset = sentence.partition(" on ")
    task = TASKS.get(file.stem.partition("_")[0], "")
    return About(file.stem, task, networks.rstrip(","), dataset)
