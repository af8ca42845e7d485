"""Pictures in a run's folder: the first batch, predictions, the worst images, pixels of classes."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from trainkit.data.mixup import heavier_masks
from trainkit.data.palette import RAMP, class_colours, levels
from trainkit.engine.evaluator import Evaluator
from trainkit.engine.label_warnings import names_of
from trainkit.engine.shown_images import (
    Shown,
    as_pixels,
    chosen,
    fixed,
    iou_of,
    labels_called,
    worst_by,
)
from trainkit.files import replace_file
from trainkit.report import pictures
from trainkit.report.pictures import INK, MUTED, RIGHT, WRONG, Line, Tile, as_colour, as_percent
from trainkit.storage import evaluation_files
from trainkit.tasks.dense_regression import DenseRegression
from trainkit.tasks.multilabel import MultiLabel
from trainkit.tasks.multilabel_segmentation import MultiLabelSegmentation
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.segmentation import Segmentation

NAMES = ("train_batch.jpg", "val_predictions.jpg", "worst.jpg", "classes.jpg")
TRAIN_BATCH, VALIDATION, WORST, CLASSES = NAMES
FIXED = 8  # validation images that are shown at each evaluation
LEAST, MOST = 4, 16  # of the worst and of the median ones
IN_TRAINING = 16  # in a training one of so many images is shown as worst
THUMBNAIL, PREVIEW_THUMBNAIL = 256, 192  # longest sides, in pixels
WIDTH, WIDE = 1000, 1400  # of a sheet, in pixels

Kinds = Mapping[str, Sequence[int]]  # images by why they are shown
# folder, kinds of images that it lists, and their longest side, of thumbnails
SHOWN = (evaluation_files.SHOWN, ("worst", "median", "mistake"), THUMBNAIL)
PREVIEW = (evaluation_files.PREVIEW, ("preview",), PREVIEW_THUMBNAIL)


class EvaluationPictures:
    """Draws the images of a recipe, with its classes and colours.

    Args:
        evaluator: that measures.
        folder: that the pictures go to.
        preview: validation images whose predictions are kept at each evaluation; None: of none.
    """

    def __init__(self, evaluator: Evaluator, folder: Path, preview: int | None = None):
        self.evaluator, self.recipe, self.folder = evaluator, evaluator.recipe, folder
        self.preview = preview
        task = self.recipe.task
        self.names = names_of(task)
        self.of_maps = isinstance(task, DenseRegression)
        self.overlap = isinstance(task, MultiLabelSegmentation)
        self.of_masks = self.of_maps or self.overlap or isinstance(task, Segmentation)
        self.colours = RAMP if self.of_maps else class_colours(len(self.names), task.known_palette)
        self.of_classes = isinstance(task, (Recognition, MultiLabel))

    def indices(self, arrays: Mapping[str, np.ndarray], thorough: bool) -> dict[str, list[int]]:
        """Which images an evaluation shows, by kind.

        Args:
            arrays: rows of all images.
            thorough: also of a small set as many as of a large one.
        """
        total = len(self.recipe.val_data)
        kept = {} if self.preview is None else {"preview": fixed(total, self.preview)}
        if not (self.of_masks or self.of_classes):
            return {**kept, **chosen(arrays, LEAST)}
        number = MOST if thorough else min(MOST // 2, max(LEAST, total // IN_TRAINING))
        return {**kept, "fixed": fixed(total, FIXED), **chosen(arrays, number)}

    def ranked(self, arrays: Mapping[str, np.ndarray], kinds: Kinds) -> Sequence[int]:
        """Which images get a ranking of classes; `arrays` and `kinds` as in `draw`."""
        return kinds.get("preview", ()) if "predicted" in arrays else ()

    def first_batch(self, as_read: Tensor, images: Tensor, targets: Tensor) -> None:
        """Draw the first images of the first training batch as the network gets them.

        Args:
            as_read: this process's share of the images.
            images: the same, mixed and normalised.
            targets: of `images`.
        """
        recipe, mixed = self.recipe, ""
        if recipe.mix is None:
            images = as_read
        else:
            parts = getattr(recipe.mix, "mixings", (recipe.mix,))
            kinds = " or ".join(type(each).__name__ for each in parts)
            mixed = f"; mixed in pairs by {kinds}"
            if self.of_masks and not self.overlap and targets.ndim == 4:
                targets = heavier_masks(targets)
                mixed += ": the mask is that of the image with the larger weight"
            elif not self.of_masks:
                mixed += ": the text says the share of each class"
        most = FIXED if self.of_masks else 2 * FIXED
        pixels = as_pixels(images[:most], recipe, as_read[:most])
        labels = targets[:most].cpu().numpy()
        tiles = [self._tile(Shown(each, label, None)) for each, label in zip(pixels, labels)]
        ignored = "; hatched: ignored" if self.of_masks else ""
        shape = " x ".join(str(length) for length in pixels.shape[1:3])
        page = pictures.sheet(
            f"First training batch: {len(tiles)} of {recipe.batch_size} images",
            f"as the network gets them after augmentation, {shape} pixels{ignored}{mixed}",
            tiles,
            self._legend(labels if self.of_masks and not self.of_maps else ()),
        )
        self._save(TRAIN_BATCH, page)

    def draw(
        self,
        name: str,
        kinds: Kinds,
        found: Mapping[int, Shown],
        arrays: Mapping[str, np.ndarray],
        what: str,
    ) -> None:
        """Draw the pictures of an evaluation, and the thumbnails for a report.

        Args:
            name: of the evaluation's files.
            kinds: which images, see `indices`.
            found: these images.
            arrays: rows of all images.
            what: which evaluation it is, for the headings.
        """
        headings = {
            "fixed": (VALIDATION, "Predictions on validation images"),
            "worst": (WORST, f"The worst validation images, {worst_by(arrays)} first"),
        }
        if "preview" in kinds:  # its thumbnails first: who sees the picture finds them
            self._thumbnails(name, PREVIEW, kinds, found, arrays)
            title = "Predictions on the same validation images"
            headings["preview"] = (f"{evaluation_files.PREVIEW}/{name}.jpg", title)
        parts = "true mask | predicted mask; hatched: ignored" if self.of_masks else ""
        parts = parts.replace("mask", "values") if self.of_maps else parts
        for kind, (file, title) in headings.items():
            indices = kinds.get(kind)
            if not indices:
                continue
            kept = kind == "preview"
            tiles = [self._tile(found[index], index, arrays, kept) for index in indices]
            masks = [
                mask
                for index in indices
                for mask in (found[index].target, found[index].prediction)
                if self.of_masks and mask is not None and not self.of_maps
            ]
            subtitle = "; ".join(
                filter(None, (what, f"image | {parts}" if kept and parts else parts))
            )
            width = WIDE if kept and self.of_masks else WIDTH
            self._save(file, pictures.sheet(title, subtitle, tiles, self._legend(masks), width))
        if "true_pixels" in arrays:
            page = pictures.class_bars(
                f"Pixels of each class, {what}",
                self.names,
                self.colours,
                arrays["true_pixels"].sum(0, dtype=np.int64),
                arrays["predicted_pixels"].sum(0, dtype=np.int64),
            )
            self._save(CLASSES, page)
        self._thumbnails(name, SHOWN, kinds, found, arrays)

    def _tile(
        self,
        shown: Shown,
        index: int | None = None,
        arrays: Mapping[str, np.ndarray] | None = None,
        kept: bool = False,
    ) -> Tile:
        image = pictures.fitted(shown.pixels)
        lines: list[Line] = []
        if self.of_masks:
            images = [image] if index is None or kept else []
            for labels in (shown.target, shown.prediction):
                if labels is not None:
                    images.append(self._overlaid(image, labels, shown.target))
            if index is not None and arrays is not None:
                lines.append((f"{self._named(index, arrays)}", MUTED))
                if self.of_maps and "loss" in arrays:
                    lines.append((f"loss {arrays['loss'][index]:.4g}", INK))
                if "intersection" in arrays:
                    lines.append((f"IoU {as_percent(iou_of(arrays, index))}", INK))
            return Tile(images, lines)
        if index is None or arrays is None:
            return Tile([image], pictures.wrapped(self._named_class(shown.target), INK))
        if "score" in arrays:
            truth, found = self._named_labels(index, arrays)
            lines += pictures.wrapped(truth, INK)
            lines += pictures.wrapped(f"predicted {found}", RIGHT if truth == found else WRONG)
        if "predicted" not in arrays:
            if "loss" in arrays:
                lines.append((f"loss {arrays['loss'][index]:.4g}", INK))
            return Tile([image], lines)
        target, called = int(arrays["target"][index]), int(arrays["predicted"][index])
        lines.append((self._class(target), INK))
        if kept and shown.ranking:
            for place, (label, share) in enumerate(shown.ranking):
                colour = RIGHT if label == target else MUTED if place else WRONG
                lines.append((f"{self._class(label)} {as_percent(share)}", colour))
            return Tile([image], lines)
        colour = RIGHT if target == called else WRONG
        probability = as_percent(float(arrays["probability"][index]))
        lines.append((f"predicted {self._class(called)} {probability}", colour))
        return Tile([image], lines)

    def _named_class(self, target: np.ndarray) -> str:
        """A target in words: a class, shares of classes, a number."""
        if target.ndim == 0 and target.dtype.kind in "iu":
            return self._class(int(target))
        if target.ndim == 1 and isinstance(self.recipe.task, MultiLabel):
            return self._labels(target)
        if target.ndim == 1 and len(target) == len(self.names):
            order = (-target).argsort(kind="stable")[:2]
            shares = [
                (int(label), float(target[label])) for label in order if target[label] >= 0.005
            ]
            return ", ".join(f"{self._class(label)} {as_percent(share)}" for label, share in shares)
        return np.array2string(target, precision=3, threshold=6, separator=", ")

    def _labels(self, shares: np.ndarray) -> str:
        """The classes of an image (C,), with their shares where it was mixed with another."""
        words = [
            self.names[label] + ("" if share >= 0.995 else f" {as_percent(share)}")
            for label, share in enumerate(shares.tolist())
            if share >= 0.005
        ]
        return ", ".join(words) or "of no class"

    def _named_labels(self, index: int, arrays: Mapping[str, np.ndarray]) -> tuple[str, str]:
        """The classes that an image is of, and those above the thresholds of the evaluation."""
        called = labels_called(arrays, index)
        return self._labels(arrays["target"][index]), self._labels(called.astype(np.int8))

    def _class(self, label: int) -> str:
        if label < 0:
            return "ignored"
        return self.names[label] if label < len(self.names) else str(label)

    def _named(self, index: int, arrays: Mapping[str, np.ndarray]) -> str:
        return str(arrays["names"][index]) if "names" in arrays else f"image {index}"

    @property
    def _cover(self) -> float:
        return 1.0 if self.of_maps else pictures.COVER

    def _marked(self, labels: np.ndarray, target: np.ndarray) -> np.ndarray:
        """A mask in which what is ignored is -1; of values their colours, by the target's range."""
        if self.of_maps:
            known = target[np.isfinite(target)]
            return levels(labels, *((known.min(), known.max()) if known.size else (0.0, 1.0)))
        return np.where(labels == self.recipe.task.ignored_label, -1, labels.astype(np.int64))

    def _overlaid(self, image: Image.Image, labels: np.ndarray, target: np.ndarray) -> Image.Image:
        """An image under a mask, under masks that overlap, or as values."""
        if self.overlap:
            return pictures.overlaid_masks(image, labels, self.colours)
        marked = self._marked(labels, target)
        return pictures.overlaid(image, marked, self.colours, self._cover)

    def _legend(self, masks: Sequence[np.ndarray] | np.ndarray) -> list[Line]:
        """Names and colours of the classes in some masks, the largest first."""
        counts = np.zeros(len(self.names), dtype=np.int64)
        for labels in masks:
            if self.overlap:
                counts += (labels > 0).sum((1, 2))
                continue
            valid = labels[(labels >= 0) & (labels < len(counts))].ravel()
            counts += np.bincount(valid.astype(np.int64), minlength=len(counts))
        order = [label for label in (-counts).argsort(kind="stable").tolist() if counts[label]]
        return [(self.names[label], as_colour(self.colours[label])) for label in order]

    def _thumbnails(
        self,
        name: str,
        shown_as: tuple[str, Sequence[str], int],
        kinds: Kinds,
        found: Mapping[int, Shown],
        arrays: Mapping[str, np.ndarray],
    ) -> None:
        place, listed, side = shown_as
        folder = evaluation_files.empty_thumbnails(self.folder, name, place)
        entries = []
        written = set()
        for kind in listed:
            for index in kinds.get(kind, ()):
                entry = self._entry(kind, index, arrays)
                if kind == "preview" and found[index].ranking:
                    ranking = found[index].ranking
                    entry["ranking"] = [[self._class(label), share] for label, share in ranking]
                entries.append(entry)
                if index not in written:
                    self._thumbnail(folder, index, found[index], side)
                    written.add(index)
        content = json.dumps(entries, indent=1, allow_nan=False) + "\n"
        replace_file(folder / evaluation_files.INDEX, content.encode())

    def _thumbnail(self, folder: Path, index: int, shown: Shown, side: int) -> None:
        side = side if max(shown.pixels.shape) > side // 2 else side // 2
        image = pictures.fitted(shown.pixels, side)
        parts = {"image": image}
        if self.of_masks and shown.prediction is not None:
            target, prediction = shown.target, shown.prediction
            parts["target"] = self._overlaid(image, target, target)
            parts["prediction"] = self._overlaid(image, prediction, target)
            if not self.of_maps:
                draw = pictures.error_of_masks if self.overlap else pictures.error_map
                marked = target if self.overlap else self._marked(target, target)
                parts["error"] = draw(image, marked, prediction)
        for part, picture in parts.items():
            picture.save(folder / f"{index}-{part}.webp", quality=80, method=0)

    def _entry(self, kind: str, index: int, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "index": index,
            "name": self._named(index, arrays),
            "kind": kind,
            "loss": _number(arrays["loss"][index]) if "loss" in arrays else None,
            "iou": iou_of(arrays, index) if "intersection" in arrays else None,
        }
        if "score" in arrays:
            entry["target"], entry["predicted"] = self._named_labels(index, arrays)
        if "predicted" in arrays:
            entry["target"] = self._class(int(arrays["target"][index]))
            entry["predicted"] = self._class(int(arrays["predicted"][index]))
            entry["probability"] = _number(arrays["probability"][index])
        return entry

    def _save(self, name: str, page: Image.Image) -> None:
        content = io.BytesIO()
        page.save(content, "JPEG", quality=88)
        replace_file(self.folder / name, content.getvalue())


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
