"""Predictions as files: classes with probabilities.

Segmentation masks in colour and in the dataset's own ids.
"""

import csv
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainkit.data.palette import colour_map, save_coloured, save_grey, save_overlay
from trainkit.errors import UserError
from trainkit.recipe import Task
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.segmentation import Segmentation

VALUES_AT_ONCE = 1 << 25  # logits held at an image's own size: 128 MiB


@dataclass(frozen=True)
class Picture:
    """One image as it was read for the model; `fault` says why it was not."""

    file: Path
    name: Path
    """relative, of what is written about it"""
    image: Tensor | None = None
    """as the model wants it but for mean and std: (C, H, W)"""
    size: tuple[int, int] = (0, 0)
    """its own height and width"""
    original: Tensor | None = None
    """uint8 (3, height, width), where an overlay wants it"""
    fault: str | None = None


class Writer(Protocol):
    """What takes the outputs of a model and writes predictions."""

    one_file_each: bool
    """whether each image has a file of its own, called like it"""

    def add(self, pictures: Sequence[Picture], logits: Tensor) -> None:
        """Write what the model said about some images; logits: (N, C) or (N, C, h, w), float32."""

    def close(self) -> None:
        """All was written."""


def make_writer(task: Task, out: Path, top_k: int, overlay: bool) -> Writer:
    """The writer for the recipe's task. Raises UserError for tasks of another kind."""
    if isinstance(task, Recognition):
        return ClassWriter(task, out, top_k)
    if isinstance(task, Segmentation):
        return MapWriter(task, out, overlay)
    raise UserError(
        f"task {type(task.given).__name__}: predictions are written for Recognition and"
        " Segmentation, and what is derived from them"
    )


class ClassWriter:
    """`predictions.jsonl` and `predictions.csv`.

    A line per image, its most probable (top-k) classes.
    """

    one_file_each = False

    def __init__(self, task: Recognition, out: Path, top_k: int):
        names = range(task.num_classes) if isinstance(task.classes, int) else task.classes
        self.task = task
        self.names, self.top_k = [str(name) for name in names], min(top_k, task.num_classes)
        # Bytes of a file's name that are no UTF-8 are escaped as "\udce9", which JSON reads as
        # Python's name of it.
        self._lines = (out / "predictions.jsonl").open(
            "w", encoding="utf-8", errors="backslashreplace"
        )
        self._table = (out / "predictions.csv").open(
            "w", encoding="utf-8", errors="backslashreplace", newline=""
        )
        self._rows = csv.writer(self._table)
        ranks = range(1, self.top_k + 1)
        self._rows.writerow(
            ["file", *(f"{what}_{rank}" for rank in ranks for what in ("class", "probability"))]
        )

    def add(self, pictures: Sequence[Picture], logits: Tensor) -> None:
        """One line for each image; logits: (N, C), or of several crops of each."""
        logits = self.task.predict(logits, torch.empty(len(pictures)))
        probabilities, classes = (each.tolist() for each in logits.softmax(1).topk(self.top_k))
        for picture, values, ids in zip(pictures, probabilities, classes):
            top = [
                {"class": i, "name": self.names[i], "probability": value}
                for i, value in zip(ids, values)
            ]
            self._lines.write(
                json.dumps({"file": str(picture.file), "top": top}, ensure_ascii=False) + "\n"
            )
            cells = (cell for each in top for cell in (each["name"], f"{each['probability']:.6f}"))
            self._rows.writerow([picture.file, *cells])

    def close(self) -> None:
        """Close both files, also where the last of a line found no room."""
        with suppress(OSError):
            self._table.close()
        self._lines.close()


class MapWriter:
    """Segmentation masks at each image's own size, below three folders.

    colour/: PNG of mode P, class ids in the task's palette. raw/: grey PNG of the dataset's own
    labels, as benchmark servers take them. overlay/: the image half covered by the colours, where
    asked for.
    """

    one_file_each = True

    def __init__(self, task: Segmentation, out: Path, overlay: bool):
        if task.num_classes > 256:
            raise UserError(f"{task.num_classes} classes: a PNG with a palette holds at most 256")
        self.out, self.overlay = out, overlay
        self.palette = colour_map(task.num_classes) if task.palette is None else task.palette
        raw = np.arange(task.num_classes) if task.raw_ids is None else np.asarray(task.raw_ids)
        self.raw_ids = raw.astype(np.uint8 if raw.max() < 256 else np.uint16)

    def add(self, pictures: Sequence[Picture], logits: Tensor) -> None:
        """Two or three files for each image.

        logits: (N, C, h, w), resized to each image's own size.
        """
        for picture, each in zip(pictures, logits):
            labels = predicted_mask(each, picture.size).cpu().numpy()
            save_coloured(self._path("colour", picture, ".png"), labels, self.palette)
            save_grey(self._path("raw", picture, ".png"), self.raw_ids[labels])
            if self.overlay and picture.original is not None:
                image = picture.original.permute(1, 2, 0).numpy()
                save_overlay(self._path("overlay", picture, ".jpg"), image, labels, self.palette)

    def close(self) -> None:
        """Each file is whole already."""

    def _path(self, kind: str, picture: Picture, suffix: str) -> Path:
        path = self.out / kind / picture.name.with_suffix(suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def predicted_mask(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The class of each pixel at `size`, uint8 (H, W), from logits (C, h, w) resized bilinearly.

    As `resize(logits).argmax(0)`, a few classes at a time: 150 classes of a photo of 12 million
    pixels are 7 GB.
    """
    at_once = max(1, VALUES_AT_ONCE // (size[0] * size[1]))
    best: Tensor | None = None
    for first in range(0, len(logits), at_once):
        part = logits[None, first : first + at_once]
        if part.shape[-2:] != size:
            part = F.interpolate(part, size, mode="bilinear", align_corners=False)
        values, classes = part[0].max(0)
        classes = (classes + first).to(torch.uint8)
        if best is None:
            best, chosen = values, classes
        else:
            better = values > best
            best, chosen = torch.where(better, values, best), torch.where(better, classes, chosen)
    return chosen
