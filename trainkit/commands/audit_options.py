"""Options of `trainkit audit`: those of the trainings that it compares, and its own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainkit.errors import UserError
from trainkit.options import Options

Comparisons = tuple[Literal["again", "workers", "resume", "processes"], ...]


@dataclass(frozen=True)
class AuditOptions(Options):
    """Options of a determinism audit, beside the recipe's own settings."""

    out: Path | None = None
    """keep the runs that are compared in this folder; default: none is left"""
    steps: int = 10
    """steps of each training; where the recipe has fewer, all of them"""
    compare: Comparisons = ("again", "workers", "resume", "processes")
    """what to compare the first training with: one just like it, one with another number of
    workers, one that is killed and resumed, one on 2 processes"""
    json: Path | None = None
    """also write what was found into this file"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 2:
            raise UserError(f"steps is {self.steps}; it must be at least 2, to resume between them")
        if not self.compare:
            raise UserError("compare names nothing: give again, workers, resume or processes")
