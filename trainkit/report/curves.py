"""The curves of a report, as data for its script: which charts, their series, and marks on them.

A long log is thinned here, so that a page of 100,000 rows opens as fast as one of 1,000: of each
stretch of rows the lowest and the highest stay, and the mean, which is what smoothing goes over.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trainkit.report.run_data import RunData, metrics_of
from trainkit.storage.checked_json import is_number

STRETCHES = 600  # of a series that is thinned; a chart is about as many pixels wide
COUNTERS = frozenset({"skipped_steps", "bad_images", "intervals_without_targets"})
TITLES = {
    "loss": "Loss",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "images_per_s": "Images per second",
    "images_per_s_per_device": "Images per second and device",
    "data_wait": "Share of the time spent waiting for data",
    "memory_gib": "Memory, GiB",
}
# results that are fractions in [0, 1] and shown as percent; what others are is not known here
PERCENT = frozenset({
    "top1", "top5", "mIoU", "pixAcc", "mAcc", "fwIoU", "calibration_error", "accuracy", "IoU",
    "macro_precision", "macro_recall", "macro_f1", "data_wait", "mAP", "AP", "micro_f1",
    "macro_f1_best",
})  # fmt: skip
MACRO = ("macro_precision", "macro_recall", "macro_f1")


def bare(name: str) -> str:
    """The metric that a result of the EMA weights, or an interval, is of."""
    return name.removeprefix("ema_").removesuffix("_95")


def is_percent(name: str) -> bool:
    """Whether a result is a fraction that is shown as percent."""
    return bare(name) in PERCENT


def curves(runs: Sequence[RunData], names: Sequence[str]) -> dict[str, Any]:
    """The charts of one run, or of several over each other.

    Args:
        runs: whose logs are drawn.
        names: of the runs, for legends.

    Returns:
        "runs": name, steps per epoch and marks of each; "charts": title, unit and series of each,
        see report.js. Charts without any point are left out.
    """
    charts = [
        *_loss_charts(runs),
        *_metric_charts(runs),
        *_training_charts(runs),
    ]
    return {
        "runs": [
            {"name": name, "per_epoch": steps_per_epoch(run), "marks": marks(run)}
            for run, name in zip(runs, names)
        ],
        "charts": [chart for chart in charts if chart["series"]],
    }


def _loss_charts(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Losses of training and evaluation in one chart, and one for each term where there are any."""
    of_terms: dict[str, list[dict[str, Any]]] = {}
    total = []
    for number, run in enumerate(runs):
        steps, evaluations = run.steps, run.evaluations
        total += _series(steps, "loss", "training", number)
        for name in _names(evaluations):
            if name in ("val_loss", "ema_val_loss"):
                label = "validation, EMA" if name.startswith("ema_") else "validation"
                total += _series(evaluations, name, label, number)
            elif bare(name).startswith("val_loss_"):
                term = bare(name).removeprefix("val_loss_")
                label = "validation, EMA" if name.startswith("ema_") else "validation"
                of_terms.setdefault(term, []).extend(_series(evaluations, name, label, number))
        for name in dict.fromkeys(name for row in steps for name in row):
            if name.startswith("loss_"):
                found = _series(steps, name, "training", number)
                of_terms.setdefault(name.removeprefix("loss_"), []).extend(found)
    charts = [_chart("loss", "Loss", total)]
    return charts + [
        _chart(f"loss_{term}", f"Loss: {term}", sorted(found, key=lambda one: one["run"]))
        for term, found in of_terms.items()
    ]


def _metric_charts(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """One chart for each metric of the evaluations, the headline first."""
    found: dict[str, list[dict[str, Any]]] = {}
    headlines = [run.headline for run in runs]
    for name in headlines:
        if name is not None:
            found.setdefault(bare(name), [])
    for number, run in enumerate(runs):
        for name in _names(run.evaluations):
            if "val_loss" in name or name == "num_classes":
                continue
            averaged = name.startswith("ema_")
            label = "EMA weights" if averaged else "weights"
            group = bare(name)
            if group in MACRO:
                group, label = "macro", bare(name).removeprefix("macro_") + ", EMA" * averaged
            found.setdefault(group, []).extend(_series(run.evaluations, name, label, number))
    return [
        _chart(
            name,
            "Macro precision, recall and F1" if name == "macro" else name,
            series,
            percent=name == "macro" or is_percent(name),
        )
        for name, series in found.items()
    ]


def _training_charts(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Learning rate, gradient norm, speed, and whatever else rows of training hold."""
    usual = [name for name in TITLES if name != "loss"]
    more = dict.fromkeys(
        name
        for run in runs
        for row in run.steps
        for name, value in row.items()
        if type(value) in (int, float) and name not in ("step", "epoch") and "loss" not in name
    )
    names = [*usual, *(name for name in more if name not in usual and name not in COUNTERS)]
    per_device = "images_per_s_per_device"
    if not any(run.starts and run.starts[-1]["num_processes"] > 1 for run in runs):
        names = [name for name in names if name != per_device]  # it is the sum
    return [
        _chart(
            name,
            TITLES.get(name, name),
            [
                series
                for number, run in enumerate(runs)
                for series in _series(run.steps, name, TITLES.get(name, name), number)
            ],
            percent=is_percent(name),
        )
        for name in names
    ]


def _chart(
    name: str, title: str, series: list[dict[str, Any]], percent: bool = False
) -> dict[str, Any]:
    return {
        "name": name,
        "title": title,
        "unit": "percent" if percent else "number",
        "series": series,
    }


def _names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the metrics of all evaluations, in their order."""
    return list(dict.fromkeys(name for row in rows for name in metrics_of(row)))


def _series(
    rows: Sequence[dict[str, Any]], name: str, label: str, run: int
) -> list[dict[str, Any]]:
    """One series, or none where no row has a number of the name."""
    points = [(row["step"], row[name]) for row in rows if name in row]
    numbers = [value if is_number(value) else None for _, value in points]
    steps = np.array([step for step, _ in points], dtype=np.int64)
    values = np.array(numbers, dtype=np.float64)
    if not np.isfinite(values).any():
        return []
    return [{"label": label, "run": run, "metric": name, **thinned(steps, values)}]


def thinned(steps: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    """Points of a series: all, or of a long one the lowest and highest of each stretch.

    Args:
        steps: int64 (N,), rising.
        values: float64 (N,); NaN where there is none.

    Returns:
        "x" and "y" of the points, None for a gap; "rows": N. Of a thinned one also "mean_x" and
        "mean_y", the mean of each stretch.
    """
    if len(steps) <= 2 * STRETCHES:
        return {"x": steps.tolist(), "y": _rounded(values), "rows": len(steps)}
    places: list[int] = []
    mean_steps, means = [], []
    bounds = np.linspace(0, len(steps), STRETCHES + 1).astype(int)
    for begin, end in zip(bounds[:-1], bounds[1:]):
        part = values[begin:end]
        finite = np.isfinite(part)
        kept = set()
        if finite.any():
            kept |= {begin + int(np.nanargmin(part)), begin + int(np.nanargmax(part))}
            means.append(float(part[finite].mean()))
            mean_steps.append(int(steps[begin + (end - begin) // 2]))
        if not finite.all():
            kept.add(begin + int(np.argmin(finite)))
        places += sorted(kept)
    return {
        "x": steps[places].tolist(),
        "y": _rounded(values[places]),
        "rows": len(steps),
        "mean_x": mean_steps,
        "mean_y": _rounded(np.array(means)),
    }


def _rounded(values: np.ndarray) -> list[float | None]:
    """Six digits of each number, which no chart shows more of."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values.tolist()]


def steps_per_epoch(run: RunData) -> float | None:
    """Steps of an epoch, from the last row that tells of both; None where none does."""
    for row in reversed(run.rows):
        epoch = row.get("epoch")
        if type(epoch) in (int, float) and epoch > 0 and row["step"] > 0:
            return row["step"] / epoch
    return None


def marks(run: RunData) -> list[dict[str, Any]]:
    """What happened at which step: the best weights, resumes, skipped steps, failures, a stop."""
    found = []
    if run.best_step is not None:
        found.append(_mark(run.best_step, "best", f"best {run.headline}"))
    for start in run.starts[1:]:
        found.append(_mark(start["step"], "resume", f"resumed on {start['when'][:16]} UTC"))
    before = 0
    for row in run.steps:
        skipped = row.get("skipped_steps", before)
        if type(skipped) is int and skipped > before:
            count = skipped - before
            text = f"{count} skipped step{'s' * (count > 1)} up to here"
            found.append(_mark(row["step"], "skip", text))
        before = skipped if type(skipped) is int else before
    for failure in run.failures:
        found.append(_mark(failure["step"], "failure", "non-finite loss or gradient"))
    if run.stopped is not None:
        found.append(_mark(run.stopped["step"], "stop", f"stopped by {run.stopped['signal']}"))
    return found


def _mark(step: int, kind: str, text: str) -> dict[str, Any]:
    return {"step": step, "kind": kind, "text": text}
