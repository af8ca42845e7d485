"""The metric that selects the best checkpoint, where `--headline` names another than the task's."""

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trainkit.engine.results import names_of_results
from trainkit.errors import UserError
from trainkit.metrics.base import declared, each_metric
from trainkit.recipe import Recipe

DIRECTIONS = {"max": True, "min": False}
LOSS = "val_loss"  # of each evaluation, with those of its terms


def chosen(best_by: tuple[str, bool]) -> str:
    """A choice as `--headline` takes it: "max:NAME" or "min:NAME"."""
    name, higher_is_better = best_by
    return f"{'max' if higher_is_better else 'min'}:{name}"


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
    computed = [names_of_results(metric) for metric in metrics]
    known = {task.headline}.union(*(names or set() for names in computed))
    all_known = None not in computed
    is_loss = name == LOSS or name.startswith(f"{LOSS}_")
    if name in declared(task, "per_class"):
        raise UserError(f"headline is {asked}: {name} has a value for each class, and must be one")
    if not is_loss and name not in known and all_known:
        near = difflib.get_close_matches(name, known, n=1)
        meant = f"; did you mean {near[0]}?" if near else f": there are {', '.join(sorted(known))}"
        raise UserError(f"headline is {asked}, which no metric of the task computes{meant}")
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
