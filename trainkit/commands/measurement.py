"""Weights that are measured as the options of `trainkit evaluate` ask, else as their run did."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from trainkit.commands.other_labels import with_images, with_labels
from trainkit.data.seeding import seed_host
from trainkit.display.terminal import Display
from trainkit.distributed.launcher import rank
from trainkit.engine.evaluation import How, Loaded
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


@dataclass(frozen=True)
class Measurement:
    """Weights that are measured, as options ask, else as their run did; see `evaluate.measure`."""

    build: Callable[[], Recipe]
    weights: Path
    run: Path | None
    settings: Mapping[str, Any]
    asked: EvaluateOptions

    @cached_property
    def how(self) -> How:
        """How they are measured."""
        asked, precise_bn = self.asked, self.asked.precise_bn
        if precise_bn is None:
            precise_bn = read_precise_bn(self.run, self.weights)
        return How(
            seed=read_seed(self.run) if asked.seed is None else asked.seed,
            workers=asked.workers,
            precise_bn=precise_bn or None,
            weights_key=asked.weights_key,
            channels_last=asked.channels_last,
            tf32=asked.tf32,
            partial=asked.partial,
            out=asked.out,
            pictures=asked.pictures,
        )

    def recipe(self) -> Recipe:
        """Build the recipe after the seed is set.

        Raises:
            OSError: results.json could not be written.
        """
        asked = self.asked
        seed_host(self.how.seed)
        recipe = self.build()
        recipe = with_images(recipe, asked.eval_data)
        if asked.as_stored:
            recipe = recipe.as_stored()
        recipe = with_crops(recipe, asked.crops)
        recipe = with_labels(recipe, asked.label_sets)
        recipe = replace(recipe, inference=asked.inference(recipe.inference))
        if asked.eval_batch is not None:
            recipe = replace(recipe, eval_batch_size=asked.eval_batch)
        if asked.out is not None:
            require_room(asked.out)
        return recipe

    def loaded(self, note: Callable[[str], None]) -> Loaded:
        """The recipe with its weights; what differs is said through `note`."""
        return Loaded.of(self.recipe(), self.weights, self.how, note)

    def write(self, results: Mapping[str, Any]) -> None:
        """Write results.json where `out` is given."""
        if self.asked.out is not None:
            write_results(self.asked.out, self.weights, self.settings, results)

    def finish(self) -> None:
        """Write the report of a run anew, and say where the results are."""
        out = self.asked.out
        if out is not None and rank() == 0:
            if self.asked.report and is_run(out):
                Display().note(report_or_reason(out))
            Display().note(f"results: {out / RESULTS}")


def write_results(
    folder: Path, weights: Path, settings: Mapping[str, Any], results: Mapping[str, Any]
) -> None:
    """Write `results.json`, the metrics of an evaluation and of what, into an existing folder."""
    of = {"checkpoint": str(weights), "sha256": digest(weights), "settings": plain(settings)}
    RunFolder(folder).write(RESULTS, {**of, **results})
