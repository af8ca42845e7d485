"""Early stopping: how many evaluations brought no better headline metric, by the log's rows."""

from dataclasses import dataclass

from trainkit.engine.label_warnings import ranks
from trainkit.options import Options
from trainkit.recipe import Recipe
from trainkit.storage.train_log import TrainLog


@dataclass(frozen=True)
class EarlyStopping:
    """When a training ends early.

    Counted anew from the log each time: a kill at any place changes nothing.
    """

    recipe: Recipe
    patience: int | None
    """evaluations without a better headline metric; None: never"""
    min_delta: float
    """what a value must be better by"""

    @classmethod
    def of(cls, recipe: Recipe, options: Options) -> "EarlyStopping":
        """That of a run with these options."""
        return cls(recipe, options.patience, options.min_delta)

    def is_due(self, log: TrainLog) -> bool:
        """Whether the last `patience` evaluations of the log brought no improvement."""
        return self.patience is not None and self.num_without(log) >= self.patience

    def num_without(self, log: TrainLog) -> int:
        """Number of evaluations since the last one that improved the headline metric.

        A value of None improves nothing, nor does one that cannot tell which weights are better.
        """
        sign = 1 if self.recipe.higher_is_better else -1
        best, number = None, 0
        for row in log.evaluations():
            score = row.get(self.recipe.headline)
            number += 1
            if score is None or not ranks(row, self.recipe.task):
                continue
            if best is None or sign * (score - best) > self.min_delta:
                best, number = score, 0
        return number
