"""Weights that a command takes, and the recipe and settings that they were trained with."""

import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainkit.commands.arguments import (
    asks_for_help,
    read_known_options,
    read_settings_and_options,
)
from trainkit.commands.recipe_file import RecipeFile, build, load_recipe, modules_gone
from trainkit.commands.recipe_names import find_recipe
from trainkit.errors import MissingFileError, UserError
from trainkit.recipe import Recipe
from trainkit.storage.lookup import (
    find_weights,
    read_class_names,
    read_input,
    read_origin,
    read_settings,
    run_of,
)
from trainkit.storage.run_settings import check_not_trained_on, check_same_classes


@dataclass(frozen=True)
class Trained:
    """What a command was given to measure, to predict with or to write.

    Weights, and how to build their model.
    """

    recipe_file: RecipeFile
    settings: dict[str, Any]
    """of the recipe: the run's, but for those given on the command line"""
    weights: Path
    """a checkpoint folder or a file"""
    run: Path | None
    """the run that the weights are of"""

    def build(self) -> Recipe:
        """The recipe. Raises UserError where its classes are not those that the run was trained on."""
        recipe = build(self.recipe_file, self.settings)
        check_same_classes(self.run, recipe.task)
        check_not_trained_on(self.run, self.settings, recipe.val_data)
        return recipe


def read_trained(command: str, first: str, words: list[str]) -> tuple[Trained, Any]:
    """What `trainkit COMMAND RUN` or `trainkit COMMAND RECIPE --weights FILE` names, and the
    command's options.

    RUN: a run's folder, of which the best checkpoint is taken, a checkpoint in it, or a folder that
    `trainkit push` wrote. Its recipe.py and its settings say which model it is.

    Raises:
        MissingFileError: there is nothing of that name.
        UserError: a recipe comes without weights, or weights without a recipe.
    """
    prog = f"trainkit {command} {first}"
    asked = None if asks_for_help(words) else read_known_options(command, prog, words)
    if is_recipe(first):
        recipe_file = load_recipe(find_recipe(first))
        source = None if asked is None else asked.weights
        if asked is not None and source is None:
            raise UserError(
                f"which weights? `{prog} --weights PATH` takes a run, a checkpoint or a file of"
                " weights"
            )
    else:
        if asked is not None and asked.weights is not None:
            raise UserError(
                f"--weights is {asked.weights}, and {first} is no recipe: leave it out, or give"
                f" `trainkit {command} RECIPE --weights PATH`"
            )
        source = Path(first)
        recipe_file = load_recipe(_recipe_of(source, command))
    recorded = {} if asked is None or source is None else _recorded_settings(recipe_file, source)
    settings, asked = read_settings_and_options(recipe_file, command, prog, words, recorded)
    assert source is not None  # without options the line above has shown the help
    weights, run = find_weights(source)
    return Trained(recipe_file, settings, weights, run), asked


def is_recipe(first: str) -> bool:
    """Whether the first word of a command means a recipe.

    A Python file, or the name of one that is no path here.
    """
    path = Path(first)
    return path.suffix == ".py" or (not path.exists() and path.name == first)


def _recipe_of(weights: Path, command: str) -> Path:
    """The recipe.py that the run of these weights keeps, which may import others that lay beside
    its original.

    Raises:
        MissingFileError: nothing is there, or no run that has one.
        UserError: an older trainkit wrote it.
    """
    if not weights.exists():
        find_weights(weights)  # which reports it
    run = run_of(weights)
    given = f"give it: trainkit {command} RECIPE --weights {weights}"
    if run is None or not (run / "recipe.py").is_file():
        what = "lies in no run" if run is None else f"is of a run without recipe.py ({run})"
        raise MissingFileError(f"{weights} {what}, so that its recipe is not known; {given}")
    file = run / "recipe.py"
    if gone := modules_gone(file):
        raise UserError(
            f"{file} was written for an older trainkit: it imports {gone[0]}, which is not there"
            f" any more. Take the recipe of today that it became, and {given}"
        )
    _, origin = read_origin(run)
    if origin is not None:
        sys.path.append(str(Path(origin).parent))  # where a variant finds the recipe it varies
    return file


def _recorded_settings(recipe_file: RecipeFile, checkpoint: Path) -> dict[str, Any]:
    """The settings of the run that a checkpoint is of, and what the run read from its data and its
    network."""
    recorded = read_settings(checkpoint)
    # The data may hold some of the run's classes alone, and no training images to tell them by.
    if _takes_class_names(recipe_file) and recorded.get("classes") is None:
        names = read_class_names(checkpoint)
        if names is not None:
            recorded["classes"] = names
    # What the run took of its network, whatever is said of that network now.
    for name, value in read_input(checkpoint, inspect.signature(recipe_file)).items():
        if recorded.get(name) is None:
            recorded[name] = value
    return recorded


def _takes_class_names(recipe_file: RecipeFile) -> bool:
    """Whether a recipe has a setting `classes` that is names, or None."""
    classes = inspect.signature(recipe_file).parameters.get("classes")
    return classes is not None and classes.annotation == tuple[str, ...] | None
