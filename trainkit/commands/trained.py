"""Finds weights that a command takes, with the recipe and settings they were trained with."""

import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainkit.commands.arguments import (
    asks_for_help,
    flags,
    read_known_options,
    read_settings_and_options,
)
from trainkit.commands.names_elsewhere import name_here
from trainkit.commands.recipe_file import RecipeFile, build, load_recipe, modules_gone
from trainkit.commands.recipe_names import find_recipe, nearest
from trainkit.display.terminal import Display
from trainkit.engine.task_module import set_step
from trainkit.errors import MissingFileError, UserError
from trainkit.models.building import no_larger_than
from trainkit.models.lora import merged
from trainkit.models.pretrained import without_pretrained
from trainkit.models.recorded import recorded_networks
from trainkit.options import WeightsOptions
from trainkit.prediction.loading import Source
from trainkit.prediction.model_info import ModelInfo
from trainkit.recipe import Recipe
from trainkit.storage.hub_download import is_hub_name
from trainkit.storage.lookup import (
    COUNTED,
    find_weights,
    is_published,
    located,
    read_class_names,
    read_input,
    read_origin,
    read_precise_bn,
    read_settings,
    run_of,
    trained_steps,
)
from trainkit.storage.model_json import read_model_json
from trainkit.storage.recorded import meant_run
from trainkit.storage.run_settings import check_not_trained_on, check_same_classes
from trainkit.storage.shipped import same_shipped_recipe
from trainkit.storage.stored_model import trusted
from trainkit.storage.trained_here import is_trained_here
from trainkit.storage.weights import take_weights

CODE = "evaluate:"  # a metric whose script is loaded from a path or from the Hub


@dataclass(frozen=True)
class Trained:
    """What a command was given: weights, and how to build their model."""

    recipe_file: RecipeFile
    settings: dict[str, Any]
    """of the recipe: the run's, but for those given on the command line"""
    weights: Path
    """a checkpoint folder or a file"""
    run: Path | None
    """the run that the weights are of"""
    is_on_hub: bool = False
    """they were downloaded, and nothing is to be written beside them"""
    partial: bool = False
    """weights that do not fit are left out"""

    def build(self, merge: bool = False) -> Recipe:
        """Build the recipe, without fetching published weights that the run replaces.

        Its network is the one that the weights were trained with, also where that of an earlier
        version had other windows (Swin).

        Args:
            merge: without adapters (LoRA), which are merged into the weights as these are loaded.

        Raises:
            UserError: its classes are not those that the run was trained on; or a run that was not
                trained here has fewer weights than its settings ask for.
        """
        with ExitStack() as around:
            if merge:
                around.enter_context(merged())
            if not self.partial:
                around.enter_context(without_pretrained())
            around.enter_context(recorded_networks(self._network, configs=not self.partial))
            if not (self.partial or self.run is None or is_trained_here(self.run)):
                settings_file = str(self.run / "settings.json")
                around.enter_context(no_larger_than(self.weights, settings_file))
            recipe = build(self.recipe_file, self.settings)
        check_same_classes(self.run, recipe.task)
        check_not_trained_on(self.run, self.settings, recipe.val_data)
        return recipe

    def _network(self) -> Mapping[str, Any] | None:
        """What model.json beside the weights says about their network; None where there is none."""
        folder = self.weights if self.weights.is_dir() else self.weights.parent
        described = read_model_json(folder)
        return None if described is None else described["network"]


def read_model(command: str, first: str, words: list[str]) -> tuple[ModelInfo | Recipe, Path, Any]:
    """The model that `trainkit COMMAND RUN` or `trainkit COMMAND RECIPE --weights FILE` names.

    Where RUN comes first and model.json beside its weights says all about the model, no recipe is
    called and no dataset opened.

    Returns:
        The model with random weights and what belongs to it, or the recipe that was called; the
        weights, a checkpoint folder or a file; and the command's options.

    Raises:
        MissingFileError: there is nothing of that name.
        UserError: a recipe comes without weights, or the words hold what is no option.
    """
    if not is_recipe(first):
        source = Source.at(Path(first))
        if source.lacks is None:
            asked = _options_alone(command, first, words)
            return source.info(asked.trust_recipe), source.weights, asked
        if not asks_for_help(words):
            Display().note(f"the recipe is called, and its data opened: {source.lacks}")
    trained, asked = read_trained(command, first, words)
    return trained.build(merge=True), trained.weights, asked


def _options_alone(command: str, first: str, words: list[str]) -> Any:
    """The options of a command where no recipe is asked for its settings."""
    asked, unknown = read_known_options(command, f"trainkit {command} {first}", words)
    if asked.weights is not None:
        raise weights_twice(command, first, asked.weights)
    if unknown:
        here = name_here(unknown[0].partition("=")[0], flags(command))
        if here is not None:
            raise UserError(f"{unknown[0]} is no option of {command}: {here}")
        near = nearest(unknown[0].lstrip("-"), [flag.lstrip("-") for flag in flags(command)])
        meant = f"did you mean --{near}? " if near is not None else ""
        raise UserError(
            f"{unknown[0]} is no option of {command}: {meant}{first} says itself how its model is"
            f" built; `trainkit {command} RECIPE --weights {first} {unknown[0]} ...` builds it by"
            " a recipe with other settings"
        )
    return asked


def read_trained(
    command: str,
    first: str,
    words: list[str],
    weights: Path | None = None,
    load: Callable[[Path], RecipeFile] = load_recipe,
) -> tuple[Trained, Any]:
    """What `trainkit COMMAND RUN` or `trainkit COMMAND RECIPE --weights FILE` names, with options.

    RUN: a run's folder, of which the best checkpoint is taken, a checkpoint in it, or a folder that
    `trainkit push` wrote. Its recipe.py and its settings say which model it is.

    Args:
        command: its name.
        first: RUN or RECIPE.
        words: that follow.
        weights: of a recipe, in place of those among the words.
        load: reads a recipe's file.

    Raises:
        MissingFileError: there is nothing of that name.
        UserError: a recipe comes without weights, or weights without a recipe.
    """
    prog = f"trainkit {command} {first}"
    asked = None if asks_for_help(words) else read_known_options(command, prog, words)[0]
    if is_recipe(first):
        recipe_file = load(find_recipe(first))
        source = weights or (None if asked is None else asked.weights)
        if asked is not None and source is None:
            raise UserError(
                f"which weights? `{prog} --weights PATH` takes a run, a checkpoint or a file of"
                f" weights{meant_run(Path(first))}"
            )
    else:
        if asked is not None and asked.weights is not None:
            raise weights_twice(command, first, asked.weights)
        source = Path(first)
        trust = asked is not None and asked.trust_recipe
        recipe_file = load(recipe_of_run(source, command, trust))
    on_hub = source is not None and not source.exists() and is_hub_name(source)
    if source is not None and on_hub:
        source = located(source)
    recorded = {} if asked is None or source is None else recorded_settings(recipe_file, source)
    settings, asked = read_settings_and_options(recipe_file, command, prog, words, recorded)
    assert source is not None  # without options the line above has shown the help
    weights, run = find_weights(source)
    check_recorded_code(run, recorded, settings, asked.trust_recipe)
    return Trained(recipe_file, settings, weights, run, on_hub, asked.partial), asked


def load_trained(info: ModelInfo, weights: Path, asked: WeightsOptions, display: Display) -> None:
    """Put weights into a model for a command that measures nothing, and report what differs."""
    run = run_of(weights)
    for line in take_weights(info.model, weights, asked.weights_key, asked.partial):
        display.note(line)
    precise_bn = read_precise_bn(run, weights)
    if precise_bn:
        display.note(COUNTED.format(precise_bn))
    set_step(info.task, info.model, trained_steps(info.task, run, weights))


def weights_twice(command: str, first: str, weights: Path) -> UserError:
    """The error where weights are given beside a run, which has its own."""
    return UserError(
        f"--weights is {weights}, and {first} is no recipe: leave it out, or give"
        f" `trainkit {command} RECIPE --weights PATH`"
    )


def is_recipe(first: str) -> bool:
    """Whether the first word of a command means a recipe: a Python file, or a recipe's name."""
    path = Path(first)
    return path.suffix == ".py" or (not path.exists() and path.name == first)


def recipe_of_run(named: Path, command: str, trust_recipe: bool) -> Path:
    """The recipe.py that the run of these weights keeps.

    It may import others that lay beside its original.

    Raises:
        MissingFileError: nothing is there, or no run that has one.
        UserError: an older trainkit wrote it, or it is code from elsewhere that is not trusted.
    """
    weights = located(named)
    run = run_of(weights)
    given = f"give it: trainkit {command} RECIPE --weights {named}"
    if run is None or not (run / "recipe.py").is_file():
        what = "lies in no run" if run is None else f"is of a run without recipe.py ({run})"
        if command == "evaluate":
            given += f"; in Python: trainkit.evaluate(recipe, weights={str(named)!r})"
        raise MissingFileError(
            f"{weights} {what}, so that its recipe is not known; {given}{meant_run(weights)}"
        )
    file = run / "recipe.py"
    if gone := modules_gone(file):
        raise UserError(
            f"{file} was written for an older trainkit: it imports {gone[0]}, which is not there"
            f" any more. Take the recipe of today that it became, and {given}"
        )
    return code_of_run(run, named, command, trust_recipe)


def require_recipe(run: Path) -> None:
    """Check that a run keeps the recipe that builds it.

    Raises:
        MissingFileError: it was trained from Python, by a function or a Recipe of no file.
    """
    if (run / "recipe.py").is_file():
        return
    kept = ", whose source alone is in function.py" if (run / "function.py").is_file() else ""
    raise MissingFileError(
        f"{run} has no recipe.py: it was trained from Python, by what lies in no file{kept}. Give"
        " trainkit.train a function at the top of a Python file, and train it in another folder"
    )


def code_of_run(run: Path, named: Path, command: str, trust_recipe: bool) -> Path:
    """The recipe of a run, which may be run; what lay beside its original can be imported.

    Raises:
        UserError: it was not trained here, is none of trainkit's recipes, and is not trusted.
    """
    file, (_, origin) = run / "recipe.py", read_origin(run)
    if not file.is_file():
        return file  # `load_recipe` reports it
    ours = same_shipped_recipe(file)
    if ours is not None and origin is not None and Path(origin) == ours:
        return ours  # and nothing that lies beside the copy can be imported
    if not is_trained_here(run):
        why = f"{command} takes the data, and the task, from its recipe"
        file = trusted(file, named, why, trust_recipe)
    if origin is not None and file.parent == run and not is_published(run):
        sys.path.append(str(Path(origin).parent))  # where a variant finds the recipe it varies
    return file


def check_recorded_code(
    run: Path | None, recorded: Mapping[str, Any], settings: Mapping[str, Any], trust_recipe: bool
) -> None:
    """Check that no setting taken from a run that was not trained here names code to be run.

    Raises:
        UserError: one does, and the run's code is not trusted.
    """
    if run is None or trust_recipe or is_trained_here(run):
        return
    held = [text for value in recorded.values() for text in _texts(value)]
    theirs = {text for text in held if text.lstrip().startswith(CODE)}
    for name, value in settings.items():
        found = sorted(theirs.intersection(_texts(value)))
        if found:
            raise UserError(
                f"{run / 'settings.json'} has --{name.replace('_', '-')} {found[0]}, whose script"
                " would run with all your rights. Read it, and give --trust-recipe if you trust it,"
                f" or --{name.replace('_', '-')} with others: nothing in your cache says that you"
                " trained it here, in this folder"
            )


def _texts(value: Any) -> list[str]:
    """The strings that a setting is, or holds."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [each for each in values if isinstance(each, str)]


def recorded_settings(recipe_file: RecipeFile, checkpoint: Path) -> dict[str, Any]:
    """The settings of a checkpoint's run, and what the run read from its data and its network."""
    recorded = read_settings(checkpoint)
    # The data may hold some of the run's classes alone, and no training images to tell them by.
    if _takes_class_names(recipe_file) and recorded.get("classes") is None:
        names = read_class_names(checkpoint)
        if names is not None:
            recorded["classes"] = names
    # What the run took of its network, whatever is said of that network now.
    for name, value in read_input(checkpoint, inspect.signature(recipe_file)).items():
        if recorded.get(name) in (None, "auto"):
            recorded[name] = value
    return recorded


def _takes_class_names(recipe_file: RecipeFile) -> bool:
    """Whether a recipe has a setting `classes` that is names, or None."""
    classes = inspect.signature(recipe_file).parameters.get("classes")
    return classes is not None and classes.annotation == tuple[str, ...] | None
