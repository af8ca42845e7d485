"""Weights that a command takes, and the recipe and settings that they were trained with."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainkit.commands.arguments import (
    asks_for_help,
    read_known_options,
    read_settings_and_options,
)
from trainkit.commands.recipe_file import RecipeFile, build, load_recipe
from trainkit.recipe import Recipe
from trainkit.storage.lookup import find_weights, read_class_names, read_input, read_settings
from trainkit.storage.run_settings import check_same_classes


@dataclass(frozen=True)
class Trained:
    """What a command was given to measure, to predict with or to write: weights, and how to build their model."""

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
        return recipe


def read_trained(command: str, path: Path, options: type, words: list[str]) -> tuple[Trained, Any]:
    """Find weights, recipe and settings; the words' other part is an instance of `options`."""
    recipe_file = load_recipe(path)
    prog = f"trainkit {command} {path}"
    recorded: dict[str, Any] = {}
    if not asks_for_help(words):
        checkpoint = read_known_options(options, prog, words).checkpoint
        recorded = _recorded_settings(recipe_file, checkpoint)
    settings, asked = read_settings_and_options(recipe_file, options, prog, words, recorded)
    weights, run = find_weights(asked.checkpoint)
    return Trained(recipe_file, settings, weights, run), asked


def _recorded_settings(recipe_file: RecipeFile, checkpoint: Path) -> dict[str, Any]:
    """The settings of the run that a checkpoint is of, and what the run read from its data and its network."""
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
