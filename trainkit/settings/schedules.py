"""Schedules by name, with their arguments."""

import inspect
from collections.abc import Callable
from typing import Any

from trainkit.errors import UserError, did_you_mean
from trainkit.schedules import (
    Schedule,
    constant,
    cos,
    linear,
    multistep,
    one_cycle,
    poly,
    step,
    wsd,
)
from trainkit.settings.parsing import parse_named, require_arguments

FUNCTIONS = (constant, cos, linear, multistep, one_cycle, poly, step, wsd)
CURVES: dict[str, Callable[..., Schedule]] = {each.__name__: each for each in FUNCTIONS}
NEEDED = {"every_epochs": "30", "milestones": "[30,60]"}  # examples of what has no default


def named_schedule(text: str, warmup_epochs: float = 0, **usual: Any) -> Schedule:
    """The schedule that `text` names: one of the functions of trainkit.schedules.

    Args:
        text: its name, such as cos; arguments of it follow a colon, such as "poly:power=0.5" or
            "multistep:milestones=[30,60]".
        warmup_epochs: of linear warm-up from 0.
        usual: arguments that are not in `text`, of the schedules that take them.

    Raises:
        UserError: there is none of that name, it does not take an argument or lacks one.
    """
    name, arguments = parse_named("schedule", text)
    if name not in CURVES:
        raise UserError(f"no schedule of the name {name}{did_you_mean(name, CURVES)}")
    curve = CURVES[name]
    require_arguments("schedule", name, arguments, curve)
    if "warmup_epochs" in arguments:
        raise UserError(f"schedule is {text}: warmup_epochs is given by --warmup-epochs")
    if "warmup_steps" not in arguments:
        arguments["warmup_epochs"] = warmup_epochs
    elif warmup_epochs:
        raise UserError(
            f"schedule is {text}, and warmup_epochs is {warmup_epochs}: give one warm-up"
        )
    parameters = inspect.signature(curve).parameters
    taken = {option: value for option, value in usual.items() if option in parameters}
    arguments = {**taken, **arguments}
    for option, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and option not in arguments:
            raise UserError(
                f"schedule {name} needs {option}, in epochs:"
                f" --schedule {name}:{option}={NEEDED[option]}"
            )
    return curve(**arguments)
