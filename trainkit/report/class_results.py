"""The parts of a report about classes: accuracy or IoU of each, confusions, calibration."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from trainkit.metrics.ranking import average_precisions
from trainkit.report.evaluation_data import EvaluationData
from trainkit.report.run_data import RunData
from trainkit.report.statistics import BINS, reliability
from trainkit.report.wording import number

MOST_OF_MATRIX = 100  # classes; of more, only the largest confusions are shown
PAIRS = 50
LEFT, TOP, SIDE_X, SIDE_Y = 50, 10, 380, 360  # of the reliability diagram


def class_evaluation(run: RunData) -> tuple[list[str], np.ndarray, list[str], str] | None:
    """Names of the classes, confusion matrix (C, C), colours, and of which evaluation they are.

    From the evaluation image by image, else from results.json. None where neither has it.
    """
    data = run.evaluation
    if data is not None and data.confusion is not None:
        where = "by trainkit evaluate" if data.step is None else f"after step {data.step:,}"
        weights = " with the EMA weights" if data.about.get("weights") == "ema" else ""
        return data.class_names, data.confusion, data.palette, where + weights
    found = (run.results or {}).get("confusion")
    try:
        matrix = np.array(found, dtype=np.int64)
    except (TypeError, ValueError, OverflowError):
        return None
    if found is None or matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        return None
    names = run.recorded.get("classes")
    if not isinstance(names, list) or len(names) != len(matrix):
        names = [str(each) for each in range(len(matrix))]
    return [str(name) for name in names], matrix, [], "by trainkit evaluate"


def of_labels(run: RunData) -> dict[str, Any] | None:
    """Average precision of each class beside its images, of any number of classes per image.

    As `classes` gives it; None where no evaluation image by image has the scores.
    """
    data = run.evaluation
    if data is None or data.task != "multilabel" or not {"score", "target"} <= data.arrays.keys():
        return None
    scores, targets = data.arrays["score"], data.arrays["target"]
    found = average_precisions(scores, targets)
    values = [None if value is None or not math.isfinite(value) else value for value in found]
    where = "by trainkit evaluate" if data.step is None else f"after step {data.step:,}"
    return {
        "title": "Average precision of each class",
        "metric": "AP",
        "sizes": "images",
        "note": f"{number(len(values))} classes, the lowest first; measured {where}.",
        "rows": _rows(data.class_names, values, (targets > 0).sum(0).tolist(), data.palette),
    }


def of_masks(run: RunData) -> dict[str, Any] | None:
    """IoU of each class beside its pixels, where there is no confusion: of overlapping classes.

    As `classes` gives it; None where no evaluation image by image has counts of pixels.
    """
    data = run.evaluation
    names = ("intersection", "predicted_pixels", "true_pixels")
    if data is None or data.task != "segmentation" or not set(names) <= data.arrays.keys():
        return None
    hits, called, of_class = (data.arrays[name].sum(0, dtype=np.int64) for name in names)
    totals = (of_class + called - hits).tolist()
    values = [hit / total if total else None for hit, total in zip(hits.tolist(), totals)]
    labels = data.class_names or [str(label) for label in range(len(values))]
    where = "by trainkit evaluate" if data.step is None else f"after step {data.step:,}"
    return {
        "title": "IoU of each class",
        "metric": "IoU",
        "sizes": "pixels",
        "note": f"{number(len(values))} classes, the lowest first; measured {where}.",
        "rows": _rows(labels, values, of_class.tolist(), data.palette),
    }


def classes(
    names: Sequence[str], matrix: np.ndarray, palette: Sequence[str], task: str, where: str
) -> dict[str, Any]:
    """Accuracy, or IoU, of each class beside its images or pixels, the lowest first."""
    is_segmentation = task == "segmentation"
    of_class, called = matrix.sum(1), matrix.sum(0)
    hits = matrix.diagonal()
    denominator = of_class + called - hits if is_segmentation else of_class
    values = [hit / total if total else None for hit, total in zip(hits, denominator)]
    return {
        "title": "IoU of each class" if is_segmentation else "Accuracy of each class",
        "metric": "IoU" if is_segmentation else "accuracy",
        "sizes": "pixels" if is_segmentation else "images",
        "note": f"{number(len(names))} classes, the lowest first; measured {where}.",
        "rows": _rows(names, values, of_class.tolist(), palette),
    }


def _rows(
    names: Sequence[str],
    values: Sequence[float | None],
    sizes: Sequence[int],
    palette: Sequence[str],
) -> list[dict[str, Any]]:
    """A row for each class, the lowest value first."""
    most = max(max(sizes, default=0), 1)
    rows = []
    for index in sorted(range(len(names)), key=lambda each: _rank(values[each])):
        value, size = values[index], int(sizes[index])
        rows.append(
            {
                "name": names[index],
                "color": palette[index] if index < len(palette) else "",
                "value": "does not occur" if value is None else f"{100 * value:.1f} %",
                "key": -1 if value is None else round(float(value), 6),
                "width": 0 if value is None else round(100 * float(value), 1),
                "size": size,
                "shown_size": f"{size:,}",
                "share": round(100 * size / most, 2),
            }
        )
    return rows


def _rank(value: float | None) -> tuple[bool, float]:
    """Classes that do not occur come last."""
    return value is None, 0 if value is None else float(value)


def confusion(names: Sequence[str], matrix: np.ndarray, task: str) -> dict[str, Any] | None:
    """The matrix as data for the script, and the largest confusions; None where nothing is."""
    if not matrix.any():
        return None
    unit = "pixels" if task == "segmentation" else "images"
    wrong = matrix - np.diag(matrix.diagonal())
    flat = wrong.ravel()
    order = np.argsort(-flat, kind="stable")[:PAIRS]
    of_class = matrix.sum(1)
    pairs = []
    for place in order.tolist():
        count = int(flat[place])
        if not count:
            break
        right, called = divmod(place, len(names))
        share = f"{100 * count / of_class[right]:.1f} %"
        pairs.append((names[right], names[called], f"{count:,}", share))
    data = None
    if len(names) <= MOST_OF_MATRIX:
        data = {"names": list(names), "matrix": matrix.tolist(), "unit": unit}
    largest = f"The {len(pairs)} largest confusions" if len(pairs) == PAIRS else "All confusions"
    return {
        "matrix": data,
        "unit": unit,
        "note": (
            "A row for each true class, a column for each class it was taken for; numbers are"
            " percent of the row."
        ),
        "pairs": pairs,
        "pairs_note": f"{largest}, the most {unit} first." if pairs else "There is no confusion.",
    }


def calibration(data: EvaluationData) -> dict[str, Any] | None:
    """A reliability diagram with ECE; None where no probabilities are kept."""
    found = reliability(data)
    if found is None:
        return None
    bins, error = found
    width = SIDE_X / BINS
    shapes = []
    for each in bins:
        low, high = sorted((each.accuracy, each.confidence))
        shapes.append(
            {
                "x": round(LEFT + each.low * SIDE_X + 1, 1),
                "width": round(width - 2, 1),
                "y": round(TOP + SIDE_Y * (1 - each.accuracy), 1),
                "height": round(SIDE_Y * each.accuracy, 1),
                "gap_y": round(TOP + SIDE_Y * (1 - high), 1),
                "gap_height": round(SIDE_Y * (high - low), 1),
                "title": (
                    f"{each.num_images:,} images with a probability of {each.low:.2f} to"
                    f" {each.high:.2f}: {100 * each.accuracy:.1f} % are right, the mean"
                    f" probability is {100 * each.confidence:.1f} %"
                ),
            }
        )
    ticks = [
        {
            "x": LEFT + SIDE_X * each / 5,
            "y": TOP + SIDE_Y * (1 - each / 5) + 4,
            "text": f"{each / 5:g}",
        }
        for each in range(6)
    ]
    return {
        "bins": shapes,
        "ticks": ticks,
        "error": f"{100 * error:.2f} %",
        "note": (
            f"{BINS} bins of equal width. Blue is the share of images that are right, red its"
            " distance from the mean probability of the bin; a network whose probabilities can be"
            " taken at their word lies on the dashed line."
        ),
    }


def as_json(value: Any) -> str:
    """JSON that may stand inside a <script> element of a page."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    escapes = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}
    for character, escape in escapes.items():
        text = text.replace(character, escape)
    return text
