"""Checks of a task's metrics before the first step: their names, the headline, and a trial."""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from trainkit.engine.label_warnings import WITHOUT
from trainkit.engine.validation_loss import NAME
from trainkit.errors import ReportedError, UserError, did_you_mean
from trainkit.metrics.base import declared, each_metric
from trainkit.recipe import Recipe
from trainkit.tasks.base import Task
from trainkit.tasks.dense_regression import DenseRegression
from trainkit.tasks.mask_classification import MaskClassification
from trainkit.tasks.multilabel_segmentation import MultiLabelSegmentation
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.segmentation import Segmentation

# Names beside the metrics in a row of the log, and in results.json.
RESERVED = frozenset((
    "event", "step", "epoch", "best", "best_step", "split", "protocol", "precise_bn", "num_images",
    WITHOUT, "seconds", NAME, "checkpoint", "sha256", "settings",
))  # fmt: skip
DIRECTIONS = {"max": True, "min": False}


def with_headline(recipe: Recipe, asked: str | None) -> Recipe:
    """The recipe with another metric that selects the best checkpoint.

    Args:
        recipe: whose task has the metrics.
        asked: NAME of a metric that states its direction, "max:NAME" or "min:NAME"; None: as it is.

    Raises:
        UserError: no metric has this name, it has a value for each class, or states no direction.
    """
    if asked is None:
        return recipe
    task = recipe.task
    direction, colon, name = asked.partition(":")
    if not colon or direction not in DIRECTIONS:
        direction, name = "", asked
    name = name.removeprefix("ema_")  # EMA weights decide wherever there are any
    metrics = [one for metric in task.metrics() for one in each_metric(metric)]
    computed = [_names_of_results(metric) for metric in metrics]
    known = {task.headline}.union(*(names or set() for names in computed))
    all_known = None not in computed
    is_loss = name == NAME or name.startswith(f"{NAME}_")
    if any(name in getattr(metric, "per_class", ()) for metric in metrics):
        raise UserError(f"headline is {asked}: {name} has a value for each class, and must be one")
    if not is_loss and name not in known and all_known:
        raise UserError(
            f"headline is {asked}, which no metric of the task computes"
            f"{did_you_mean(name, sorted(known))}"
        )
    higher = DIRECTIONS.get(direction)
    if higher is None:
        higher = False if is_loss else _stated(name, recipe, metrics, computed)
    if higher is None:
        raise UserError(
            f"headline is {asked}, and nothing says whether more of it is better: give max:{name}"
            f" or min:{name}"
        )
    if (name, higher) == (task.headline, task.higher_is_better):
        return replace(recipe, best_by=None)
    return replace(recipe, best_by=(name, higher))


def _stated(
    name: str, recipe: Recipe, metrics: list[Any], computed: list[set[str] | None]
) -> bool | None:
    """Whether a higher value is better, as the task or a metric says; None where none does."""
    if name == recipe.task.headline:
        return recipe.task.higher_is_better
    for metric, names in zip(metrics, computed):
        if names is not None and name in names:
            stated = getattr(metric, "higher_is_better", None)
            return name in stated or None if isinstance(stated, tuple) else stated
    return None


def chosen(best_by: tuple[str, bool]) -> str:
    """A choice as `--headline` takes it: "max:NAME" or "min:NAME"."""
    name, higher_is_better = best_by
    return f"{'max' if higher_is_better else 'min'}:{name}"


def require_headline(recipe: Recipe, results: Mapping[str, Any]) -> str:
    """The name of the metric that selects the best checkpoint, which an evaluation has computed.

    Raises:
        UserError: it has not, or not as one value.
    """
    name = recipe.headline
    numbers = [each for each, value in results.items() if isinstance(value, (int, float))]
    if recipe.best_by is None or (name in results and (results[name] is None or name in numbers)):
        return name
    raise UserError(
        f"headline is {chosen(recipe.best_by)}, and the evaluation has no number {name}: there are"
        f" {', '.join(sorted(numbers))}"
    )


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


def try_metrics(task: Task) -> None:
    """Compute each metric from elsewhere once, on a copy of it, so that no epoch ends in an error.

    A metric from elsewhere has no `counts`, and gets plain labels: here one of each class, or
    values where pixels have such.

    Raises:
        UserError: one cannot be computed, or computes what another one does.
    """
    kinds = (Recognition, Segmentation, MaskClassification, DenseRegression, MultiLabelSegmentation)
    if type(task.given) not in kinds:
        return  # what the labels of another task are, it alone knows
    taken = dict.fromkeys(declared(task, "percent") | declared(task, "per_class"), "the task")
    for metric in (one for each in task.metrics() for one in each_metric(each)):
        if not (hasattr(metric, "counts") or hasattr(metric, "take_up")):
            computed = _computed(metric, task)
            without_reserved_names(metric, dict.fromkeys(computed))
            for name in computed:
                if name in taken and name not in getattr(metric, "percent", ()):
                    raise UserError(
                        f"metric {metric_name(metric)} computes {name}, and so does"
                        f" {taken[name]}: one of the two would be lost: leave it out"
                    )
                taken[name] = f"metric {metric_name(metric)}"


def _computed(metric: Any, task: Task) -> list[str]:
    labels = torch.arange(task.known_num_classes or 2)
    if isinstance(task.given, DenseRegression):
        low, high = task.given.limits or (1.0, 2.0)
        labels = torch.linspace(low, high, 8)
    if isinstance(task.given, MultiLabelSegmentation):
        labels = labels % 2
        labels = labels[None, :, None, None]  # of one pixel
    elif task.is_dense:
        labels = labels[None, None]  # one mask of one row
    tried = copy.deepcopy(metric)
    try:
        tried.add_batch(predictions=labels.numpy(), references=labels.numpy())
        return list(tried.compute())
    except ReportedError:
        raise
    except Exception as error:  # whatever a metric from elsewhere raises
        said = (str(error).splitlines() or [""])[0].rstrip(".")
        raise UserError(
            f"metric {metric_name(metric)} cannot be computed: {type(error).__name__}: {said}."
            f" Give its arguments by trainkit.metrics.named.WithArguments(metric, average='macro'),"
            " or name it: --metrics evaluate:NAME:average=macro"
        ) from error


def metric_name(metric: Any) -> str:
    """The name of a metric, or that of its class."""
    return getattr(metric, "name", type(metric).__name__)


def _names_of_results(metric: Any) -> set[str] | None:
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
        except Exception:  # of a foreign metric; reported once it has images
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
