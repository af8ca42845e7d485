"""Options of `trainkit average`."""

from dataclasses import dataclass
from pathlib import Path

from trainkit.errors import UserError

ESTIMATED = 1024  # training images, where neither the option nor the run says another number


@dataclass(frozen=True, kw_only=True)
class AverageOptions:
    """Options of an average of weights (SWA, model soups), beside the recipe's own settings."""

    others: tuple[Path, ...] = ()
    """further runs (their best checkpoints) and checkpoints of the same network; with none, all
    checkpoints of RUN are averaged"""
    out: Path
    """folder for the average, which predict, evaluate, export and --init-from take as a model"""
    last: int | None = None
    """of RUN alone: so many of its newest checkpoints; default: all that are kept"""
    precise_bn: int | None = None
    """training images to re-estimate BatchNorm statistics of the average from (0: average the
    statistics too); default: as in the run, or 1024"""
    keep: bool = False
    """also write an average that is worse than the best of what it is made of"""
    workers: int | None = None
    """data-loading workers (0: none); default: all cores but one, up to 8"""
    trust_recipe: bool = False
    """run code that was not trained here, if it is not one of trainkit's recipes"""

    def __post_init__(self) -> None:
        for name, least in (("last", 2), ("workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} is {value}; it must be at least {least}")
        if self.precise_bn and self.precise_bn < 16:  # 0: off
            raise UserError(f"precise_bn is {self.precise_bn}; it must be at least 16, or 0")
        if self.last is not None and self.others:
            raise UserError(
                f"last is {self.last}, and several models are given: it is for the checkpoints of"
                " one run"
            )
