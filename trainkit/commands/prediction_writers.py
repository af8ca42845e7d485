"""Writes predictions: classes with probabilities, or masks in colour and in the data's ids."""

import csv
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainkit.commands.class_mask_writer import ClassMaskWriter
from trainkit.commands.prediction_files import (
    hexadecimal,
    opened,
    partial,
    path_of,
    pixels,
    readable,
    write_line,
)
from trainkit.commands.probability_file import ProbabilityFile
from trainkit.data.datasets.label_sets import encoded
from trainkit.data.palette import (
    RAMP,
    class_colours,
    colour_map,
    levels,
    save_coloured,
    save_grey,
    save_overlay,
    save_titled,
)
from trainkit.errors import UserError
from trainkit.models.outputs import resized
from trainkit.options import PredictOptions
from trainkit.prediction.images import Picture
from trainkit.prediction.model_info import ModelInfo
from trainkit.prediction.results import in_words
from trainkit.tasks.dense_regression import DenseRegression
from trainkit.tasks.multilabel import MultiLabel
from trainkit.tasks.multilabel_segmentation import MultiLabelSegmentation
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.segmentation import Segmentation

DRAWN = 3  # classes on a photograph
# what has a line for each image, called so when all lines are in it
TABLES = ("predictions.jsonl", "predictions.csv", "probabilities.npz")


class Writer(Protocol):
    """What takes the outputs of a model and writes predictions."""

    one_file_each: bool
    """whether each image has a file of its own, called like it"""
    written: list[str]
    """names of its tables and folders"""

    def add(self, pictures: Sequence[Picture], outputs: Any) -> list[dict[str, Any]]:
        """Write what the model said about some images, see `ModelInfo.infer`, and return it."""

    def close(self) -> None:
        """All was written."""


def tables_in(out: Path) -> list[str]:
    """Names of the tables in the folder."""
    return [name for name in TABLES if (out / name).exists()]


def keep_tables(out: Path, written: Collection[str]) -> None:
    """Give the tables their names, in place of those of an earlier call: all images are in them.

    Args:
        out: the folder.
        written: names of tables, see `Writer`; partial ones of others are removed.
    """
    for name in TABLES:
        if name in written:
            partial(out / name).replace(out / name)
        else:
            partial(out / name).unlink(missing_ok=True)


def make_writer(info: ModelInfo, asked: PredictOptions) -> Writer:
    """The writer for the model's task; `keep_tables` is to be called after its `close`.

    Raises:
        UserError: the task is of another kind, without a method `records`.
    """
    if isinstance(info.task, Recognition):
        return ClassWriter(info, asked)
    if isinstance(info.task, MultiLabel):
        return LabelWriter(info, asked)
    if isinstance(info.task, Segmentation):
        return MaskWriter(info, asked)
    if isinstance(info.task, MultiLabelSegmentation):
        return ClassMaskWriter(info, asked)
    if isinstance(info.task, DenseRegression):
        return ValueWriter(info, asked)
    if info.task.provides("records"):
        return RecordWriter(info, asked)
    raise UserError(
        f"task {type(info.task.given).__name__}: predictions are written for Recognition,"
        " MultiLabel and Segmentation, what is derived from them, and tasks with a method `records`"
    )


class RecordWriter:
    """`predictions.jsonl`: a line per image, with what the task's method `records` says."""

    def __init__(self, info: ModelInfo, asked: PredictOptions):
        if asked.probabilities or asked.overlay:
            raise UserError(
                f"task {type(info.task.given).__name__} writes predictions.jsonl alone: leave out"
                " --probabilities and --overlay"
            )
        self.info, self.top_k, self.one_file_each = info, asked.top_k, False
        self.written = ["predictions.jsonl"]
        self._lines = opened(partial(asked.out / "predictions.jsonl"))

    def add(self, pictures: Sequence[Picture], outputs: Any) -> list[dict[str, Any]]:
        """One line for each image."""
        rows = self.info.records(pictures, outputs, self.top_k)
        for picture, row in zip(pictures, rows, strict=True):
            write_line(self._lines, {"file": str(picture.file), **row})
        return rows

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


class ClassWriter:
    """Writes `predictions.jsonl` and `predictions.csv`: an image's most probable classes a line.

    Where asked for, overlay/: the images with their classes drawn on, as JPEG, and
    `probabilities.npz`: "files" and "probabilities", float32 (N, C), and the names of "classes".
    """

    named = "top"  # the classes in what is said of an image

    def __init__(self, info: ModelInfo, asked: PredictOptions):
        self.info, self.out, self.one_file_each = info, asked.out, asked.overlay
        self.top_k = min(asked.top_k, len(info.classes))
        self.overlay = asked.overlay
        self.written = ["predictions.csv", "predictions.jsonl"]
        self.written += ["overlay/"] if asked.overlay else []
        self.written += ["probabilities.npz"] if asked.probabilities else []
        self._probabilities: ProbabilityFile | None = None
        if asked.probabilities:
            self._probabilities = ProbabilityFile(
                partial(asked.out / "probabilities.npz"), info.classes
            )
        self._lines = opened(partial(asked.out / "predictions.jsonl"))
        self._table = opened(partial(asked.out / "predictions.csv"), newline="")
        self._rows = csv.writer(self._table)
        self._rows.writerow(["file", *self._columns()])

    def add(self, pictures: Sequence[Picture], outputs: Tensor) -> list[dict[str, Any]]:
        """One line for each image; outputs: logits (N, C), or of several crops of each."""
        rows = self.info.records(pictures, outputs, self.top_k)
        probabilities = self.info.probabilities(outputs, len(pictures)).cpu().numpy()
        for picture, row, of_classes in zip(pictures, rows, probabilities):
            write_line(self._lines, {"file": str(picture.file), **row})
            self._rows.writerow([picture.file, *self._cells(row, of_classes)])
            if self.overlay:
                path = path_of(self.out, "overlay", picture, ".jpg")
                words = in_words(row[self.named], DRAWN).split(", ")
                save_titled(path, pixels(picture), words)
        if self._probabilities is not None:
            files = [readable(picture.file) for picture in pictures]
            self._probabilities.add(files, probabilities)
        return rows

    def _columns(self) -> list[str]:
        """Names of the table's columns after the file."""
        ranks = range(1, self.top_k + 1)
        return [f"{what}_{rank}" for rank in ranks for what in ("class", "probability")]

    def _cells(self, row: Mapping[str, Any], probabilities: np.ndarray) -> list[str]:
        """The columns of an image; probabilities: (C,)."""
        top = row[self.named]
        return [cell for each in top for cell in (each["name"], f"{each['probability']:.6f}")]

    def close(self) -> None:
        """Close all files, also where the last lines of one find no room, which is raised then."""
        with ExitStack() as files:
            files.callback(self._table.close)
            files.callback(self._lines.close)
            if self._probabilities is not None:
                files.callback(self._probabilities.close)


class LabelWriter(ClassWriter):
    """The same of any number of classes per image: those above their thresholds.

    predictions.csv has them in a column "label", as lists of images have them, and a column for
    each class with its probability.
    """

    named = "labels"

    def _columns(self) -> list[str]:
        return ["label", *self.info.classes]

    def _cells(self, row: Mapping[str, Any], probabilities: np.ndarray) -> list[str]:
        label = encoded(each["name"] for each in row[self.named])
        return [label, *(f"{probability:.6f}" for probability in probabilities.tolist())]


class MaskWriter:
    """Writes segmentation masks at each image's own size, below three folders.

    colour/: PNG of mode P, class ids in the task's palette. raw/: grey PNG of the dataset's own
    labels, as benchmark servers take them. Where asked for, overlay/: the image half covered by the
    colours, and probabilities/: npz with "probabilities", float16 (C, H, W). `predictions.jsonl`
    has a line for each image, with its largest classes, and `classes.csv` one for each class, with
    its name and its colours.
    """

    one_file_each = True

    def __init__(self, info: ModelInfo, asked: PredictOptions):
        task = info.task
        assert isinstance(task, Segmentation)
        if task.num_classes > 256:
            raise UserError(f"{task.num_classes} classes: a PNG with a palette holds at most 256")
        self.info, self.out, self.top_k = info, asked.out, asked.top_k
        self.overlay, self.probabilities = asked.overlay, asked.probabilities
        self.palette = colour_map(task.num_classes) if task.palette is None else task.palette
        self.shown = class_colours(task.num_classes, task.palette)  # as in all pictures
        raw = np.arange(task.num_classes) if task.raw_ids is None else np.asarray(task.raw_ids)
        self.raw_ids = raw.astype(np.uint8 if raw.max() < 256 else np.uint16)
        self.written = ["colour/", "raw/", "classes.csv", "predictions.jsonl"]
        self.written += ["overlay/"] if asked.overlay else []
        self.written += ["probabilities/"] if asked.probabilities else []
        self._write_legend()
        self._lines = opened(partial(asked.out / "predictions.jsonl"))

    def add(self, pictures: Sequence[Picture], outputs: Any) -> list[dict[str, Any]]:
        """Two to four files for each image, and a line; masks at each image's own size."""
        rows = self.info.records(pictures, outputs, self.top_k)
        for picture, row in zip(pictures, rows):
            labels = row["mask"].cpu().numpy()
            save_coloured(path_of(self.out, "colour", picture, ".png"), labels, self.palette)
            save_grey(path_of(self.out, "raw", picture, ".png"), self.raw_ids[labels])
            if self.overlay:
                path = path_of(self.out, "overlay", picture, ".jpg")
                save_overlay(path, pixels(picture), labels, self.shown)
            write_line(self._lines, {"file": str(picture.file), "classes": row["classes"]})
        if self.probabilities:
            self._save_probabilities(pictures, outputs)
        return rows

    def _write_legend(self) -> None:
        """What a class is called, and what stands for it in each folder: classes.csv."""
        with opened(self.out / "classes.csv", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["class", "name", "raw", "colour", "overlay"])
            for label, name in enumerate(self.info.classes):
                colours = (hexadecimal(each[label]) for each in (self.palette, self.shown))
                rows.writerow([label, name, int(self.raw_ids[label]), *colours])

    def _save_probabilities(self, pictures: Sequence[Picture], outputs: Tensor) -> None:
        for picture, each in zip(pictures, outputs):
            probabilities = self.info.probabilities(
                resized(each[None], torch.Size(picture.size)), number=1
            )
            half = probabilities[0].to(torch.float16).cpu().numpy()
            path = path_of(self.out, "probabilities", picture, ".npz")
            np.savez_compressed(path, probabilities=half)

    def close(self) -> None:
        """The masks are whole already."""
        self._lines.close()


class ValueWriter:
    """Writes maps of numbers at each image's own size, below two folders.

    raw/: PNG of 16 bits in steps of the task's `scale`, or .npy of float32 where it has none.
    colour/: from dark blue to yellow over the task's limits, or from the least to the largest
    value. `predictions.jsonl` has a line for each image with its least, mean and largest value.
    """

    one_file_each = True

    def __init__(self, info: ModelInfo, asked: PredictOptions):
        task = info.task
        assert isinstance(task, DenseRegression)
        if asked.probabilities or asked.overlay:
            raise UserError(
                "dense regression has no --probabilities and no --overlay: leave it out"
            )
        self.info, self.out, self.task = info, asked.out, task
        self.written = ["colour/", "raw/", "predictions.jsonl"]
        self._lines = opened(partial(asked.out / "predictions.jsonl"))

    def add(self, pictures: Sequence[Picture], outputs: Any) -> list[dict[str, Any]]:
        """Two files for each image, and a line."""
        rows = self.info.records(pictures, outputs, 1)
        for picture, row in zip(pictures, rows):
            values = row["values"].float().cpu().numpy()
            low, high = self.task.limits or (row["least"], row["largest"])
            colours = RAMP[levels(values, low, high)]
            Image.fromarray(colours).save(path_of(self.out, "colour", picture, ".png"))
            if self.task.scale is None:
                np.save(path_of(self.out, "raw", picture, ".npy"), values)
            else:
                steps = np.rint(values.astype(np.float64) / self.task.scale).clip(0, 65535)
                save_grey(path_of(self.out, "raw", picture, ".png"), steps.astype(np.uint16))
            plain = {name: value for name, value in row.items() if name != "values"}
            write_line(self._lines, {"file": str(picture.file), **plain})
        return rows

    def close(self) -> None:
        """The maps are whole already."""
        self._lines.close()
