"""What a training and its evaluations leave in a folder beside the log: rows, a table, pictures."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from trainkit import files
from trainkit.data.dataset_info import DatasetInfo
from trainkit.data.palette import class_colours
from trainkit.distributed.fsdp import is_sharded
from trainkit.engine.evaluation_pictures import TRAIN_BATCH, EvaluationPictures
from trainkit.engine.evaluator import Evaluator, Keep
from trainkit.engine.label_warnings import names_of
from trainkit.engine.shown_images import read_shown
from trainkit.engine.state import TrainState
from trainkit.recipe import Recipe
from trainkit.storage import evaluation_files
from trainkit.storage.results_table import ResultsTable
from trainkit.storage.weight_links import WeightLinks
from trainkit.tasks.dense_regression import DenseRegression
from trainkit.tasks.multilabel import THRESHOLD, MultiLabel
from trainkit.tasks.multilabel_segmentation import MultiLabelSegmentation
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
        pictures: whether pictures are drawn too.
        links: to the best and the last checkpoint of a run; None elsewhere.
        preview: validation images whose predictions are kept at each evaluation; None: of none.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        folder: Path,
        note: Callable[[str], None],
        pictures: bool,
        links: WeightLinks | None = None,
        preview: int | None = None,
    ):
        self.links = links
        self.evaluator, self.recipe, self.folder = evaluator, evaluator.recipe, folder
        self.note = note
        self.pictures = EvaluationPictures(evaluator, folder, preview) if pictures else None
        self.table = ResultsTable(folder)
        self._reported: set[str] = set()

    def of_step(self, step: int, is_last: bool) -> Keep:
        """What `Evaluator.run` calls in an evaluation of the training after so many steps."""
        return partial(self._keep, evaluation_files.name_of_step(step), step, is_last)

    def of_command(self, step: int | None) -> Keep:
        """The same for `trainkit evaluate`; None where the weights' step is not known."""
        return partial(self._keep, evaluation_files.EVALUATE, step, True)

    def first_batch(self, as_read: Tensor, images: Tensor, targets: Tensor) -> None:
        """Draw the first training batch, before the first update.

        Args:
            as_read: this process's share of the images.
            images: the same as the network gets them: mixed and normalised.
            targets: of `images`.
        """
        if self.pictures is not None and self.evaluator.accelerator.is_main_process:
            with self._drawing():
                self.pictures.first_batch(as_read, images, targets)
                self.note(f"{self.folder / TRAIN_BATCH}: the first batch as the network gets it")

    def _keep(
        self,
        name: str,
        step: int | None,
        thorough: bool,
        arrays: Mapping[str, np.ndarray],
        results: Mapping[str, Any],
    ) -> None:
        """Write the rows of an evaluation and draw pictures of it; called in all processes."""
        is_main = self.evaluator.accelerator.is_main_process
        if "score" in arrays and "thresholds" in results:
            arrays = {**arrays, "thresholds": known_thresholds(results["thresholds"])}
        if is_main:
            if self._names is not None:
                arrays = {**arrays, "names": self._names}
            averaged = self.evaluator.ema is not None
            about = {"step": step, **describe(self.recipe, results, averaged)}
            with self._writing(evaluation_files.FOLDER):
                evaluation_files.write_evaluation(self.folder, name, arrays, about)
        if self.pictures is None:
            return
        kinds = self.pictures.indices(arrays, thorough)
        ranked = self.pictures.ranked(arrays, kinds)
        # it is predicted with sharded parameters, which all processes gather together
        predicts = self.pictures.of_masks or bool(ranked)
        together = predicts and is_sharded(self.evaluator.task_module)
        if not (is_main or together):
            return
        # an error of one process alone is raised then: the others would wait for its part
        with nullcontext() if together else self._drawing():
            found = read_shown(self.evaluator, sorted(set().union(*kinds.values())), ranked)
            if not is_main:
                return
            when = "trainkit evaluate" if step is None else f"after step {step}"
            split = results.get("split") or "validation"
            what = f"{when}, {split}, {results['num_images']} images"
            with self._drawing():
                self.pictures.draw(name, kinds, found, arrays, what)

    def tidy(self, state: TrainState) -> None:
        """Bring what follows from the log up to date with it: the table, and what is kept.

        Called by all processes when a run begins, and after each evaluation.
        """
        if not self.evaluator.accelerator.is_main_process:
            return
        kept = {state.evaluated, state.best_step or 0}
        with self._writing(evaluation_files.FOLDER):
            evaluation_files.keep_evaluations(self.folder, kept)
        with self._writing(evaluation_files.PREVIEW):
            evaluation_files.keep_previews(self.folder, state.evaluated)
        with self._writing("results.csv"):
            self.table.write()
        if self.links is not None:
            self.links.update()
            if self.links.fault is not None:
                self._report(f"{self.folder}: {self.links.fault}")

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
    def _drawing(self) -> Iterator[None]:
        """Context manager: pictures that cannot be drawn are reported once."""
        try:
            yield
        except Exception as error:  # whatever a dataset, a network or a file gives a second time
            said = (str(error).splitlines() or [""])[0]
            self._report(f"pictures cannot be drawn: {type(error).__name__}: {said}")

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """Context manager: a file that cannot be written is reported once."""
        try:
            yield
        except OSError as error:
            self._report(f"{self.folder}/{name} cannot be written: {files.reason(error)}")

    def _report(self, message: str) -> None:
        if message not in self._reported:
            self._reported.add(message)
            self.note(f"warning: {message}; continuing without it")


def known_thresholds(found: Mapping[str, float | None] | Sequence[float | None]) -> np.ndarray:
    """The threshold of each class, 0.5 where none was found: float64 (C,)."""
    values = found.values() if isinstance(found, Mapping) else found
    return np.array([THRESHOLD if each is None else each for each in values], dtype=np.float64)


def describe(recipe: Recipe, results: Mapping[str, Any], averaged: bool) -> dict[str, Any]:
    """What the rows of an evaluation are of, as its JSON file says it."""
    task = recipe.task
    kinds: dict[str, Any] = {
        "recognition": Recognition,
        "segmentation": (Segmentation, MultiLabelSegmentation),
        "multilabel": MultiLabel,
        "dense_regression": DenseRegression,
    }
    names = names_of(task)
    palette = class_colours(len(names), task.known_palette).tolist() if names else None
    about = {
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
    if isinstance(task, Segmentation):
        about["absent"] = task.absent
    return about
