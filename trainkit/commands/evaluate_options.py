"""Options of `trainkit evaluate`, which takes several runs at once."""

from dataclasses import dataclass
from pathlib import Path

from trainkit.options import EvaluateOptions


@dataclass(frozen=True, kw_only=True)
class EvaluateCommandOptions(EvaluateOptions):
    """Options of an evaluation, beside the recipe's own settings."""

    others: tuple[Path, ...] = ()
    """further runs, checkpoints or, after a recipe, weights: a table compares them, and validation
    data that they share is read once"""
