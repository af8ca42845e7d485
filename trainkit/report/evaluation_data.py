"""What an evaluation leaves about each image: evaluations/*.npz and *.json, read and checked."""

import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trainkit.errors import first_line
from trainkit.storage import checked_json
from trainkit.storage.checked_json import COUNT, STRING, Fault, Kind, maybe, or_none

LIST = Kind("a list", lambda value: isinstance(value, list))
DESCRIBED = {
    "step": or_none(COUNT),
    "task": STRING,
    "split": maybe(or_none(STRING)),
    "protocol": maybe(or_none(STRING)),
    "weights": maybe(or_none(STRING)),
    "num_images": COUNT,
    "headline": or_none(STRING),
    "classes": or_none(LIST),
    "palette": or_none(LIST),
    "ignore": maybe(or_none(Kind("a whole number", lambda value: type(value) is int))),
    # of segmentation: what a class that occurs nowhere is in mIoU, see `MeanIoU`
    "absent": maybe(Kind("skip or zero", lambda value: value in ("skip", "zero"))),
}
# names of arrays by task: the kind of their numbers, and whether they have a column for each class
PER_IMAGE: dict[str, dict[str, tuple[str, bool]]] = {
    "recognition": {
        "target": ("iu", False),
        "predicted": ("iu", False),
        "top5_hit": ("b", False),
        "probability": ("f", False),
    },
    "segmentation": {
        "intersection": ("iu", True),
        "predicted_pixels": ("iu", True),
        "true_pixels": ("iu", True),
    },
    "multilabel": {"score": ("f", True), "target": ("i", True)},
}
# what numpy and zipfile raise for a damaged .npz; RuntimeError for bits that say it is encrypted
UNREADABLE = (
    OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
LARGEST_CONFUSION = 4096  # classes; a matrix of more would take much memory


@dataclass
class EvaluationData:
    """An evaluation, image by image.

    Attributes:
        name: of its files, such as step-000000120.
        about: its JSON file: step, split, protocol, headline, ...
        arrays: by name, one row for each image; what an evaluation lacks is missing.
    """

    name: str
    about: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def task(self) -> str:
        """Recognition, segmentation, multilabel, or other."""
        return self.about["task"]

    @property
    def headline(self) -> str | None:
        """The metric that decides which weights are the best."""
        return self.about["headline"]

    @property
    def step(self) -> int | None:
        """Steps that the weights had seen, where that is known."""
        return self.about["step"]

    @property
    def num_images(self) -> int:
        """Images that were measured."""
        return self.about["num_images"]

    @property
    def class_names(self) -> list[str]:
        """In the order of ids; numbers where the classes have no names; empty for no classes."""
        if self.about["classes"]:
            return [str(name) for name in self.about["classes"]]
        if "score" in self.arrays and self.task == "multilabel":
            return [str(number) for number in range(self.arrays["score"].shape[1])]
        confusion = self.confusion
        return [] if confusion is None else [str(number) for number in range(len(confusion))]

    @property
    def palette(self) -> list[str]:
        """CSS colours of the classes; empty where there are none."""
        return [
            "#" + "".join(f"{int(part) & 255:02x}" for part in colour)
            for colour in self.about["palette"] or ()
            if isinstance(colour, list)
            and len(colour) == 3
            and all(type(part) is int for part in colour)
        ]

    @property
    def confusion(self) -> np.ndarray | None:
        """Images or pixels of each true class (row) taken for each class (column): (C, C)."""
        if "confusion" in self.arrays:
            return self.arrays["confusion"]
        if self.task != "recognition" or not {"target", "predicted"} <= self.arrays.keys():
            return None
        target, predicted = self.arrays["target"], self.arrays["predicted"]
        valid = (target >= 0) & (predicted >= 0)
        named = len(self.about["classes"] or ())
        most = int(max(target[valid].max(initial=-1), predicted[valid].max(initial=-1)))
        size = max(named, most + 1)
        if not size or size > LARGEST_CONFUSION:
            return None
        cells = target[valid].astype(np.int64) * size + predicted[valid]
        return np.bincount(cells, minlength=size * size).reshape(size, size)


def find_evaluation(run: Path, best_step: int | None, faults: list[str]) -> EvaluationData | None:
    """What the evaluation of a run's best weights says of each image, else that of the last ones.

    Args:
        run: its folder.
        best_step: the step of its best weights, where that is known.
        faults: gets a line about each file that is damaged.

    Returns:
        None where there is none that can be read.
    """
    folder = run / "evaluations"
    files = {path.stem: path for path in folder.glob("*.json") if not path.name.startswith(".")}
    if not files:
        return None
    steps = sorted((name for name in files if name.startswith("step-")), reverse=True)
    best = [] if best_step is None else [f"step-{best_step:09d}"]
    # a later `trainkit evaluate` measured the weights that somebody asked for
    order = [name for name in dict.fromkeys((*best, "evaluate", *steps)) if name in files]
    if order[:1] == best and "evaluate" in files and _is_newer(files["evaluate"], files[best[0]]):
        order = ["evaluate", *(name for name in order if name != "evaluate")]
    for name in order:
        try:
            return read_evaluation(files[name])
        except Fault as error:
            faults.append(f"evaluations/{name} is left out: {error}")
    return None


def _is_newer(one: Path, other: Path) -> bool:
    return one.stat().st_mtime_ns > other.stat().st_mtime_ns


def read_evaluation(file: Path) -> EvaluationData:
    """Read an evaluation from its JSON file and the .npz beside it.

    Raises:
        Fault: one of them is damaged or missing.
    """
    about = checked_json.load_json(file)
    checked_json.require(about, DESCRIBED)
    arrays = _arrays(file.with_suffix(".npz"))
    num_classes = _num_classes(about, arrays)
    expected = {"ids": ("iu", False), "names": ("U", False), "loss": ("f", False)}
    expected |= PER_IMAGE.get(about["task"], {})
    for name, (kinds, has_classes) in expected.items():
        if name not in arrays:
            continue
        shape = (about["num_images"], *((num_classes,) if has_classes else ()))
        if arrays[name].shape != shape or arrays[name].dtype.kind not in kinds:
            raise Fault(
                f"{name} is {arrays[name].dtype} of shape {arrays[name].shape}, and must have"
                f" the shape {shape}"
            )
    return EvaluationData(file.stem, about, arrays)


def _num_classes(about: dict[str, Any], arrays: dict[str, np.ndarray]) -> int:
    """How many classes there are; checks that the confusion matrix has as many."""
    named = len(about["classes"] or ())
    confusion = arrays.get("confusion")
    if confusion is None:
        wide = arrays.get("score" if about["task"] == "multilabel" else "intersection")
        return named or (wide.shape[-1] if wide is not None and wide.ndim == 2 else 0)
    size = len(confusion) if confusion.ndim == 2 else -1
    if (
        confusion.shape != (size, size)
        or confusion.dtype.kind not in "iu"
        or named not in (0, size)
    ):
        raise Fault(f"confusion has the shape {confusion.shape}, for {named} classes")
    return size


def _arrays(file: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file."""
    if not os.path.lexists(file):
        raise Fault(f"there is no {file.name}")
    if not file.is_file():
        raise Fault(f"{file.name} is not a regular file")
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except UNREADABLE as error:
        raise Fault(f"{file.name} cannot be read ({first_line(error)})") from error


def counts_of_headline(
    data: EvaluationData, headline: str
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]] | None:
    """Counts of each image (N, S), whose sum gives the headline metric, and the metric of sums.

    They are those of `trainkit evaluate`, so that the interval is the same.

    Returns:
        None where the metric does not follow from what is kept of each image.
    """
    arrays = data.arrays
    if data.task == "recognition" and {"target", "predicted"} <= arrays.keys():
        hits = {"top1": arrays["predicted"] == arrays["target"], "top5": arrays.get("top5_hit")}
        hit = hits.get(headline)
        if hit is None:
            return None
        valid = arrays["target"] >= 0
        columns = (valid, hit & valid, arrays["target"], arrays["predicted"])
        return np.stack(columns, 1).astype(np.float64), _share
    if data.task == "segmentation" and headline in ("mIoU", "pixAcc"):
        if not PER_IMAGE["segmentation"].keys() <= arrays.keys():
            return None
        names = ("intersection", "true_pixels", "predicted_pixels")
        rows = np.concatenate([arrays[name] for name in names], 1).astype(np.float64)
        if headline == "pixAcc":
            return rows, _pixel_accuracy
        return rows, partial(_mean_iou, counts_absent=data.about.get("absent") == "zero")
    return None


def _share(sums: np.ndarray) -> np.ndarray:
    """Hits over valid images, of sums (B, 4)."""
    return sums[:, 1] / np.maximum(sums[:, 0], 1)


def _mean_iou(sums: np.ndarray, counts_absent: bool) -> np.ndarray:
    """Mean over the classes that occur, or over all, of sums (B, 3 C)."""
    hits, references, predictions = np.split(sums, 3, axis=1)
    union = references + predictions - hits
    counted = (union > 0) | counts_absent
    iou = hits / np.maximum(union, 1)
    return (iou * counted).sum(1) / np.maximum(counted.sum(1), 1)


def _pixel_accuracy(sums: np.ndarray) -> np.ndarray:
    hits, references, _ = np.split(sums, 3, axis=1)
    return hits.sum(1) / np.maximum(references.sum(1), 1)
