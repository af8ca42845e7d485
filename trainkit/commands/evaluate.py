"""trainkit evaluate: measures a run, a checkpoint or a file of weights on validation images."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainkit.commands.trained import read_trained
from trainkit.data.seeding import seed_host
from trainkit.display.terminal import Display
from trainkit.distributed.accelerator import use_whole_host
from trainkit.distributed.launcher import rank
from trainkit.engine.evaluation import evaluate
from trainkit.files import require_room
from trainkit.options import EvaluateOptions
from trainkit.prediction.crops import with_crops
from trainkit.recipe import Recipe
from trainkit.report.page import report_or_reason
from trainkit.storage.checkpoint import digest
from trainkit.storage.lookup import read_precise_bn, read_seed
from trainkit.storage.recorded import is_run
from trainkit.storage.run_folder import RunFolder
from trainkit.storage.setting_values import plain

RESULTS = "results.json"


def run(first: str, words: list[str]) -> int:
    """Measure what the words name, and write results.json; the exit code."""
    trained, asked = read_trained("evaluate", first, words)
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
    seed = read_seed(run) if asked.seed is None else asked.seed
    precise_bn = asked.precise_bn
    if precise_bn is None:
        precise_bn = read_precise_bn(run, weights)
    out = asked.out

    seed_host(seed)
    recipe = build()
    if asked.as_stored:
        recipe = recipe.as_stored()
    recipe = with_crops(recipe, asked.crops)
    recipe = replace(recipe, inference=asked.inference(recipe.inference))
    if asked.eval_batch is not None:
        recipe = replace(recipe, eval_batch_size=asked.eval_batch)
    if out is not None:
        require_room(out)

    def keep(results: dict[str, Any]) -> None:
        if out is not None:
            write_results(out, weights, settings, results)

    results = evaluate(
        recipe,
        weights,
        seed=seed,
        workers=asked.workers,
        precise_bn=precise_bn or None,
        weights_key=asked.weights_key,
        channels_last=asked.channels_last,
        tf32=asked.tf32,
        partial=asked.partial,
        keep=keep,
        out=out,
        pictures=asked.pictures,
    )
    if out is not None and rank() == 0:
        if asked.report and is_run(out):
            Display().note(report_or_reason(out))
        Display().note(f"results: {out / RESULTS}")
    return results


def write_results(
    folder: Path, weights: Path, settings: Mapping[str, Any], results: Mapping[str, Any]
) -> None:
    """Write `results.json`, the metrics of an evaluation and of what, into an existing folder."""
    of = {"checkpoint": str(weights), "sha256": digest(weights), "settings": plain(settings)}
    RunFolder(folder).write(RESULTS, {**of, **results})
