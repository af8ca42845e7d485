"""Checks of options and settings that hold for every command."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from trainkit.errors import UserError
from trainkit.options import (
    DoctorOptions,
    EvaluateOptions,
    ExportOptions,
    Options,
    PredictOptions,
    ReplayOptions,
)

LARGEST = 3.4e38  # of float32


def check_finite(values: Mapping[str, Any]) -> None:
    """Check that the numbers among settings and options are finite and within float32.

    Args:
        values: settings or options by name; dataclasses, lists and tuples are searched.

    Raises:
        UserError: a number is NaN, infinite or beyond the range of float32; the message has its
            name.
    """
    for name, value in values.items():
        if is_dataclass(value):
            check_finite(
                {f"{name}.{field.name}": getattr(value, field.name) for field in fields(value)}
            )
        for each in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(each, float) and not math.isfinite(each):
                raise UserError(f"{name} is {each}; it must be a finite number")
            if isinstance(each, float) and abs(each) > LARGEST:
                raise UserError(
                    f"{name} is {each}; it must be between -{LARGEST} and {LARGEST}, as float32 is"
                )


def check_names(settings: Iterable[str], command: type = Options) -> None:
    """Check that no setting of a recipe has the name of an option of a command that takes settings.

    Args:
        settings: names of the recipe's.
        command: the options of the one that is run, whichever it is.

    Raises:
        UserError: one has.
    """
    commands = (
        command,
        Options,
        EvaluateOptions,
        PredictOptions,
        ExportOptions,
        ReplayOptions,
        DoctorOptions,
    )
    options = {field.name for each in commands for field in fields(each)} | {"config"}
    taken = sorted(options & set(settings))
    if taken:
        raise UserError(
            f"the recipe has settings named like options of trainkit: {', '.join(taken)}. Name them"
            f" otherwise, such as my_{taken[0]}: no command line could tell the two apart"
        )
