"""Results of an evaluation: which names they may have, and how they are written and shown."""

import copy
import math
import warnings
from collections.abc import Mapping
from typing import Any

from trainkit.display.terminal import Display
from trainkit.engine.label_warnings import WITHOUT
from trainkit.engine.validation_loss import NAME
from trainkit.errors import UserError
from trainkit.metrics.base import declared, each_metric
from trainkit.recipe import Recipe
from trainkit.tasks.base import Task

# Names beside the metrics in a row of the log, and in results.json.
IN_ROWS = (
    "event", "step", "epoch", "best", "best_step", "split", "protocol", "precise_bn", "num_images",
    WITHOUT
)  # fmt: skip
RESERVED = frozenset((*IN_ROWS, "seconds", NAME, "checkpoint", "sha256", "settings"))


def show_results(
    display: Display, title: str, results: Mapping[str, Any], best: bool, recipe: Recipe
) -> None:
    """Show the results as the task's metrics declare their units."""
    percent, per_class = (declared(recipe.task, what) for what in ("percent", "per_class"))
    # the protocol says it in words
    results = {name: value for name, value in results.items() if name != "precise_bn"}
    display.results(title, results, best, percent, per_class)


def require_free_names(task: Task) -> None:
    """Check before the first step that no metric computes a reserved name of log or results.json.

    A metric tells its names by what it declares (`percent`, `per_class`), or computes of no image;
    a copy of it is asked, for what it counts must not change. One that needs images to compute, as
    those of `evaluate` do, the first evaluation refuses.

    Raises:
        UserError: one does, or the task lacks `labels` that a metric takes; the message has the
            names of metric and result.
    """
    metrics = [*task.metrics(), *task.thorough_metrics()]
    for metric in (one for each in metrics for one in each_metric(each)):
        if not hasattr(metric, "counts") and not task.provides("labels"):
            raise UserError(
                f"task {type(task.given).__name__} lacks labels, which metric {metric_name(metric)}"
                " takes, as it has no `counts`: see trainkit.tasks.base.Task"
            )
        names = _declared_names(metric) | (_results_of_nothing(metric) or set())
        without_reserved_names(metric, dict.fromkeys(names))


def metric_name(metric: Any) -> str:
    """The name of a metric, or that of its class."""
    return getattr(metric, "name", type(metric).__name__)


def names_of_results(metric: Any) -> set[str] | None:
    """Names of what a metric computes; None where only images tell them."""
    names = _results_of_nothing(metric)
    return None if names is None else names | _declared_names(metric)


def _declared_names(metric: Any) -> set[str]:
    return {*getattr(metric, "percent", ()), *getattr(metric, "per_class", ())}


def _results_of_nothing(metric: Any) -> set[str] | None:
    """Names of what a metric computes of no image; None where it cannot, as with a quotient."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as NumPy's for the mean of nothing
        try:
            return set(copy.deepcopy(metric).compute())
        except (
            Exception
        ):  # whatever a foreign metric raises; an error is reported once it has images
            return None


def without_reserved_names(metric: Any, results: dict[str, Any]) -> dict[str, Any]:
    """A metric's results.

    Raises UserError where one has a reserved name of the log or of results.json.
    """
    taken = sorted(RESERVED & results.keys())
    if taken:
        raise UserError(
            f"metric {metric_name(metric)} computes {', '.join(taken)}, which the log needs "
            f"for itself: name it otherwise, such as my_{taken[0]}"
        )
    return results


def as_plain(value: Any) -> Any:
    """Arrays, tensors and their numbers as Python values for JSON; None for NaN/Inf."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, dict):
        return {name: as_plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
