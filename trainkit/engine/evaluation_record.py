"""What an evaluation leaves in a folder, beside its row of the log: rows of images, a table."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from trainkit import files
from trainkit.data.dataset_info import DatasetInfo
from trainkit.data.palette import class_colours
from trainkit.engine.evaluator import Evaluator, Keep
from trainkit.engine.label_warnings import names_of
from trainkit.engine.state import TrainState
from trainkit.recipe import Recipe
from trainkit.storage import evaluation_files
from trainkit.storage.results_table import ResultsTable
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.segmentation import Segmentation

UNNAMED = re.compile(r"number \d+ (of|in) .*")  # images whose dataset knows no files


class EvaluationRecord:
    """Writes the files of evaluations, in the main process.

    Nothing in a training depends on them: a file that cannot be written is reported once, and the
    training continues.

    Args:
        evaluator: that measures.
        folder: of the run, or where results.json goes.
        note: shows a line.
    """

    def __init__(self, evaluator: Evaluator, folder: Path, note: Callable[[str], None]):
        self.evaluator, self.recipe, self.folder = evaluator, evaluator.recipe, folder
        self.note = note
        self.table = ResultsTable(folder)
        self._reported: set[str] = set()

    def of_step(self, step: int) -> Keep:
        """What `Evaluator.run` calls in an evaluation of the training after so many steps."""
        return partial(self._keep, evaluation_files.name_of_step(step), step)

    def of_command(self, step: int | None) -> Keep:
        """The same for `trainkit evaluate`; None where the weights' step is not known."""
        return partial(self._keep, evaluation_files.EVALUATE, step)

    def _keep(
        self,
        name: str,
        step: int | None,
        arrays: Mapping[str, np.ndarray],
        results: Mapping[str, Any],
    ) -> None:
        """Write the rows of an evaluation; called in all processes."""
        if not self.evaluator.accelerator.is_main_process:
            return
        if self._names is not None:
            arrays = {**arrays, "names": self._names}
        averaged = self.evaluator.ema is not None
        about = {"step": step, **describe(self.recipe, results, averaged)}
        with self._writing(evaluation_files.FOLDER):
            evaluation_files.write_evaluation(self.folder, name, arrays, about)

    def tidy(self, state: TrainState) -> None:
        """Bring what follows from the log up to date with it: the table, and what is kept.

        Called by all processes when a run begins, and after each evaluation.
        """
        if not self.evaluator.accelerator.is_main_process:
            return
        kept = {state.evaluated, state.best_step or 0}
        with self._writing(evaluation_files.FOLDER):
            evaluation_files.keep_evaluations(self.folder, kept)
        with self._writing("results.csv"):
            self.table.write()

    @cached_property
    def _names(self) -> np.ndarray | None:
        """Names of the files of the validation images, from their common folder on, or None."""
        info = DatasetInfo.of(self.recipe.val_data)
        if UNNAMED.fullmatch(info.name_of(0)):
            return None
        names = [info.name_of(index) for index in range(len(self.recipe.val_data))]
        if all(os.path.isabs(name) for name in names):
            common = os.path.commonpath([os.path.dirname(name) for name in names])
            names = [os.path.relpath(name, common) for name in names]
        return np.array(names, dtype=str)

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """Context manager: a file that cannot be written is reported once."""
        try:
            yield
        except OSError as error:
            told = f"{self.folder}/{name} cannot be written: {files.reason(error)}"
            if told not in self._reported:
                self._reported.add(told)
                self.note(f"warning: {told}; continuing without it")


def describe(recipe: Recipe, results: Mapping[str, Any], averaged: bool) -> dict[str, Any]:
    """What the rows of an evaluation are of, as its JSON file says it."""
    task = recipe.task
    kinds = {"recognition": Recognition, "segmentation": Segmentation}
    names = names_of(task)
    palette = class_colours(len(names), task.known_palette).tolist() if names else None
    return {
        "task": next((name for name, kind in kinds.items() if isinstance(task, kind)), "other"),
        "split": results.get("split"),
        "protocol": results.get("protocol"),
        "weights": "ema" if averaged else "raw",
        "num_images": results["num_images"],
        "headline": recipe.headline.removeprefix("ema_"),
        "classes": None if isinstance(task.known_classes, int) or not names else names,
        "palette": palette,
        "ignore": task.ignored_label,
    }
