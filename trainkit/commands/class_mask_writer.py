"""Writes predictions of overlapping classes: a mask for each image and class."""

import csv
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from trainkit.commands.prediction_files import (
    hexadecimal,
    opened,
    partial,
    path_of,
    pixels,
    write_line,
)
from trainkit.data.palette import class_colours, save_grey
from trainkit.errors import UserError
from trainkit.models.outputs import resized
from trainkit.options import PredictOptions
from trainkit.prediction.images import Picture
from trainkit.prediction.model_info import ModelInfo
from trainkit.report.pictures import overlaid_masks
from trainkit.tasks.multilabel_segmentation import MultiLabelSegmentation


class ClassMaskWriter:
    """Writes a mask of each class at each image's own size, as seg_multilabel reads them.

    masks/<class>/: grey PNG, 255 where a pixel is of the class and 0 where it is not. Where asked
    for, overlay/: the image under the colours of the classes, and probabilities/: npz with
    "probabilities", float16 (C, H, W). `predictions.jsonl` has a line for each image, with its
    largest classes, and `classes.csv` one for each class, with its folder and its colour.
    """

    one_file_each = True

    def __init__(self, info: ModelInfo, asked: PredictOptions):
        task = info.task
        assert isinstance(task, MultiLabelSegmentation)
        self.info, self.out, self.top_k = info, asked.out, asked.top_k
        self.overlay, self.probabilities = asked.overlay, asked.probabilities
        self.colours = class_colours(task.num_classes, task.palette)
        self.folders = [re.sub(r"[/\\\0]", "_", name) for name in info.classes]
        if len(set(self.folders)) < len(self.folders) or {".", "..", ""} & set(self.folders):
            raise UserError(
                f"classes are {', '.join(info.classes)}: predictions have a folder for each, and"
                " these names make none, or one for two"
            )
        self.written = ["masks/", "classes.csv", "predictions.jsonl"]
        self.written += ["overlay/"] if asked.overlay else []
        self.written += ["probabilities/"] if asked.probabilities else []
        with opened(self.out / "classes.csv", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["class", "name", "folder", "overlay"])
            for label, name in enumerate(info.classes):
                rows.writerow([label, name, self.folders[label], hexadecimal(self.colours[label])])
        self._lines = opened(partial(asked.out / "predictions.jsonl"))

    def add(self, pictures: Sequence[Picture], outputs: Tensor) -> list[dict[str, Any]]:
        """A file for each image and class, and a line; outputs: probabilities (N, C, h, w)."""
        rows = self.info.records(pictures, outputs, self.top_k)
        for picture, row, scores in zip(pictures, rows, outputs):
            masks = row["masks"].cpu().numpy()
            for folder, mask in zip(self.folders, masks):
                save_grey(
                    path_of(self.out, f"masks/{folder}", picture, ".png"), mask * np.uint8(255)
                )
            if self.overlay:
                laid = overlaid_masks(Image.fromarray(pixels(picture)), masks, self.colours, 0.5)
                laid.save(path_of(self.out, "overlay", picture, ".jpg"), quality=90)
            if self.probabilities:
                whole = resized(scores[None], masks.shape[-2:])[0]
                half = whole.half().cpu().numpy()
                file = path_of(self.out, "probabilities", picture, ".npz")
                np.savez_compressed(file, probabilities=half)
            write_line(self._lines, {"file": str(picture.file), "classes": row["classes"]})
        return rows

    def close(self) -> None:
        """The masks are whole already."""
        self._lines.close()
