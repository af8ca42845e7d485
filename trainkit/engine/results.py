"""Results of an evaluation, as they are written and shown."""

import math
from collections.abc import Mapping
from typing import Any

from trainkit.display.terminal import Display
from trainkit.metrics.base import declared
from trainkit.recipe import Recipe


def show_results(
    display: Display, title: str, results: Mapping[str, Any], best: bool, recipe: Recipe
) -> None:
    """Show the results as the task's metrics declare their units."""
    percent, per_class = (declared(recipe.task, what) for what in ("percent", "per_class"))
    # the protocol says it in words
    results = {name: value for name, value in results.items() if name != "precise_bn"}
    display.results(title, results, best, percent, per_class)


def as_plain(value: Any) -> Any:
    """Arrays, tensors and their numbers as Python values for JSON; None for NaN/Inf."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, dict):
        return {name: as_plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
