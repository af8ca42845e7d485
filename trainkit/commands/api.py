"""`trainkit.train` and `trainkit.evaluate`: the commands as functions, for Python and notebooks."""

import multiprocessing
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainkit.commands.evaluate import measure
from trainkit.commands.from_python import (
    as_recipe_file,
    objects_in,
    resolved,
    split_keywords,
)
from trainkit.commands.proposals import proposals
from trainkit.commands.recipe_file import RecipeFile, build, load_recipe
from trainkit.commands.trained import (
    Trained,
    check_recorded_code,
    is_recipe,
    recipe_of_run,
    recorded_settings,
    weights_twice,
)
from trainkit.data.seeding import seed_host
from trainkit.data.spawning import LOADING
from trainkit.display.terminal import is_interactive, of_launcher
from trainkit.engine import loop
from trainkit.engine.process_state import process_state_kept
from trainkit.engine.stop_signal import Interrupted
from trainkit.errors import UserError
from trainkit.options import EvaluateOptions, Options
from trainkit.recipe import Recipe
from trainkit.storage.hub_download import is_hub_name
from trainkit.storage.locks import posix_locks
from trainkit.storage.lookup import find_weights, located
from trainkit.storage.model_json import require_same_build
from trainkit.storage.recipe_source import RecipeSource
from trainkit.storage.run_settings import check_same_classes
from trainkit.storage.setting_values import plain, read_settings_as

RecipeLike = Recipe | Callable[..., Recipe] | str | Path


def train(
    recipe: RecipeLike,
    options: Options | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    trackers: Sequence[Any] = (),
    **given: Any,
) -> dict[str, Any]:
    """Train a recipe, or resume where an earlier call in the same folder stopped.

        trainkit.train(recipe, out="runs/x", seed=0, lr=0.01)

    As `trainkit RECIPE` with these flags: the same weights and log, bit for bit. The seed is set
    before the recipe is built. A Recipe that is built already has weights that were drawn before,
    which is recorded as unknown: seed before building it, and a resume takes its checkpoint's.

    In a notebook an interrupt saves, and returns {"stopped": "SIGINT", "steps": ...}; elsewhere a
    signal ends the program, saved.

    Args:
        recipe: a function that returns a Recipe, the file of one, the name of one of `trainkit
            recipes`, or a Recipe.
        options: of the run, instead of keywords.
        settings: of a Recipe that is built already, to be recorded.
        trackers: own ones, accelerate's `GeneralTracker`, beside those of `track`.
        **given: options of the run, see `Options`, and settings of the function, by the names of
            their flags: out (default: runs/ and the recipe's name; a built Recipe needs it), seed
            (0), workers, init_from, lr, ... Strings are taken for paths; `config` as `--config`.

    Returns:
        The run's summary, as in summary.json.

    Raises:
        UserError: a keyword, a setting or an image that cannot work.
        NonFiniteError: a non-finite loss or gradient.
        OSError: the folder cannot be written.
        MemoryError: a single image does not fit.
        Stopped: after a signal; a SystemExit.
    """
    _refuse_while_loading("train")
    _require_options(options)
    with process_state_kept():
        if isinstance(recipe, Recipe):
            _, named = split_keywords("train", None, given)
            source = RecipeSource(seeded=False)
            options = replace(options or Options(), **named)
            return _trained(recipe, options, settings or {}, source, trackers)
        return _train_function(recipe, options, settings, given, trackers)


def _train_function(
    recipe: Any,
    options: Options | None,
    settings: Mapping[str, Any] | None,
    given: dict[str, Any],
    trackers: Sequence[Any],
) -> dict[str, Any]:
    """Build a recipe, and train it."""
    recipe_file, source = as_recipe_file(recipe)
    if settings is not None:
        raise UserError(
            "settings are for a Recipe that is built already: give those of a function as keywords"
            " of their own, such as lr=0.01"
        )
    asked, named = split_keywords("train", recipe_file, given)
    values = resolved(recipe_file, asked, {})
    options = replace(options or Options(), **named)
    out = options.out or Path("runs") / _name(recipe_file, source)
    options = replace(options, out=out)
    objects = objects_in(values)
    call = {"recipe": _named(recipe), "keywords": plain({**given, **objects_in(given)})}
    source = replace(source, call=call)
    if objects:  # which settings.json cannot hold
        source = replace(source, file=None)
    lacks = _not_kept(source, objects)
    if lacks and not (out / "settings.json").exists():
        of_launcher().note(lacks)
    posix_locks()  # before a recipe that takes minutes to build
    seed_host(options.seed)
    built = build(recipe_file, values)
    advice = proposals(recipe_file, values)
    return _trained(built, options, {**values, **objects}, source, trackers, advice)


def _trained(
    recipe: Recipe,
    options: Options,
    settings: Mapping[str, Any],
    source: RecipeSource,
    trackers: Sequence[Any],
    advice: Sequence[str] = (),
) -> dict[str, Any]:
    try:
        return loop.train(recipe, options, settings, source, trackers, advice=advice)
    except Interrupted as stopped:
        if not is_interactive():
            raise
        return {"stopped": "SIGINT", "steps": stopped.step}


def evaluate(recipe: RecipeLike, weights: str | Path | None = None, **given: Any) -> dict[str, Any]:
    """Measure trained weights on validation images, as `trainkit evaluate` does.

        trainkit.evaluate("runs/x", scales=[0.75, 1, 1.25], flip=True)
        trainkit.evaluate(recipe, weights="runs/x")

    Args:
        recipe: a run, a checkpoint in it, a published folder, or a name on the Hub; or with
            `weights` a function that returns a Recipe, its file, its name, or a Recipe.
        weights: a run's folder, of which the best checkpoint is taken, a checkpoint, or a file of
            weights.
        **given: options of an evaluation, see `trainkit.options.EvaluateOptions`, by the names of
            their flags: eval_batch, workers, window, scales, flip, seed, precise_bn, ...; settings
            of the function, in place of those of the run; out, a folder for results.json, which is
            not written otherwise.

    Returns:
        The metrics, as in results.json.

    Raises:
        UserError: a keyword that is none of these; the weights do not fit the model, or are of a
            run with other classes, or of a network that an earlier version built otherwise.
        MissingFileError: there are no weights.
    """
    _refuse_while_loading("evaluate")
    with process_state_kept():
        if isinstance(recipe, Recipe):
            _, named = split_keywords("evaluate", None, given)
            found, run = find_weights(_weights(recipe, weights))
            check_same_classes(run, recipe.task)
            require_same_build(recipe.model, found, resumed=False)
            return measure(lambda: recipe, found, run, {}, EvaluateOptions(**named))
        trained, asked = _find_trained(recipe, weights, given)
        return measure(trained.build, trained.weights, trained.run, trained.settings, asked)


def _find_trained(
    recipe: Any, weights: str | Path | None, given: dict[str, Any]
) -> tuple[Trained, EvaluateOptions]:
    """The weights, and the function with settings that builds their recipe."""
    if isinstance(recipe, (str, Path)) and not is_recipe(str(recipe)):
        if weights is not None:
            raise weights_twice("evaluate", str(recipe), Path(weights))
        source, trust = Path(recipe), given.get("trust_recipe") is True
        recipe_file = load_recipe(recipe_of_run(source, "evaluate", trust))
    else:
        recipe_file, _ = as_recipe_file(recipe)
        source = Path(_weights(recipe, weights))
    on_hub = not source.exists() and is_hub_name(source)
    asked, named = split_keywords("evaluate", recipe_file, given)
    options = EvaluateOptions(**named)
    source = located(source)
    recorded = recorded_settings(recipe_file, source)
    before = read_settings_as(recorded, recipe_file.__signature__, recipe_file.path)
    values = resolved(recipe_file, asked, before)
    found, run = find_weights(source)
    check_recorded_code(run, recorded, values, options.trust_recipe)
    return Trained(recipe_file, values, found, run, on_hub, options.partial), options


def _weights(recipe: Any, weights: str | Path | None) -> Path:
    if weights is None:
        raise UserError(
            f"which weights? evaluate({_named(recipe)}, weights=PATH) takes a run, a checkpoint or"
            " a file of weights"
        )
    return Path(weights)


def _require_options(options: Any) -> None:
    """Raise UserError where the second argument is no Options."""
    if options is not None and not isinstance(options, Options):
        raise UserError(
            f"the second argument is {options!r}; it can be trainkit.Options(...). Give settings"
            ' and options by name, such as train(recipe, out="runs/streets", lr=0.01)'
        )


def _refuse_while_loading(name: str) -> None:
    """Raise UserError where a recipe's file, or a script that workers import, calls it on loading.

    A run keeps its recipe's file, which is loaded again to evaluate it.
    """
    imported = getattr(multiprocessing.current_process(), "_inheriting", False)
    if not LOADING and not imported:
        return
    file = LOADING[-1] if LOADING else sys.argv[0]
    raise UserError(
        f"{file} calls trainkit.{name} while it is loaded: put the call under `if __name__ =="
        ' "__main__":`, so that the file can be loaded for its recipe alone'
    )


def _name(recipe_file: RecipeFile, source: RecipeSource) -> str:
    """Of the folder below runs/: as the command has it, or that of a function called otherwise."""
    name = getattr(recipe_file.function, "__name__", "recipe")
    return recipe_file.path.stem if name == "recipe" and source.file is not None else name


def _named(recipe: Any) -> str:
    """The recipe as the call gave it, in Python."""
    if isinstance(recipe, RecipeFile):
        recipe = recipe.path
    if isinstance(recipe, (str, Path)):
        return repr(str(recipe))
    return getattr(recipe, "__name__", type(recipe).__name__)


def _not_kept(source: RecipeSource, objects: Mapping[str, str]) -> str | None:
    """What the run's folder will lack of its recipe, in words; None where it has it whole."""
    if source.file is not None:
        return None
    kept = "" if source.text is None else " (its source is kept as function.py, for the record)"
    why = f"the function is at the top of no Python file{kept}"
    if objects:
        why = f"{', '.join(objects)} {'are' if len(objects) > 1 else 'is'} no plain value"
    return (
        f"{why}: `trainkit evaluate` and `replay` of this run need the recipe in a file, such as by"
        " %%writefile my_recipe.py in a notebook; trainkit.evaluate(recipe, weights=RUN) does not"
    )
