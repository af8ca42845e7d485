"""trainkit evaluate: measures runs, checkpoints or files of weights on validation images."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from trainkit.commands.evaluate_several import run_several
from trainkit.commands.measurement import Measurement
from trainkit.commands.recipe_file import RecipeFile, load_recipe
from trainkit.commands.trained import read_trained
from trainkit.distributed.accelerator import use_whole_host
from trainkit.engine.evaluation import evaluate
from trainkit.options import EvaluateOptions
from trainkit.recipe import Recipe


class LoadedOnce:
    """Loads recipes' files; of those that say the same the first alone."""

    def __init__(self) -> None:
        self._known: dict[bytes, RecipeFile] = {}

    def __call__(self, path: Path) -> RecipeFile:
        """See `load_recipe`."""
        if not path.is_file():
            return load_recipe(path)  # which reports it
        code = path.read_bytes()
        if code not in self._known:
            self._known[code] = load_recipe(path)
        return self._known[code]


def run(first: str, words: list[str]) -> int:
    """Measure what the words name, and write results.json; the exit code."""
    load = LoadedOnce()
    trained, asked = read_trained("evaluate", first, words, load=load)
    if asked.others:
        return run_several(first, words, trained, asked, load)
    if asked.out is None and not trained.is_on_hub:
        asked = replace(asked, out=trained.run)
    use_whole_host()
    measure(trained.build, trained.weights, trained.run, trained.settings, asked)
    return 0


def measure(
    build: Callable[[], Recipe],
    weights: Path,
    run: Path | None,
    settings: Mapping[str, Any],
    asked: EvaluateOptions,
) -> dict[str, Any]:
    """Measure weights as the options ask, else as their run did.

    Args:
        build: the recipe, called after the seed is set.
        weights: a checkpoint folder or a file.
        run: that they are of, if any.
        settings: of the recipe, for results.json.
        asked: options; results.json is written where `out` is given, and the report of a run.

    Returns:
        The metrics.
    """
    measurement = Measurement(build, weights, run, settings, asked)
    recipe, how = measurement.recipe(), measurement.how
    options = {field.name: getattr(how, field.name) for field in fields(how)}
    results = evaluate(recipe, weights, keep=measurement.write, **options)
    measurement.finish()
    return results
