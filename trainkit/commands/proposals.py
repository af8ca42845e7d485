"""Proposes a learning rate where batch size or optimizer are not those that the rate is for."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

from trainkit.commands.recipe_file import RecipeFile
from trainkit.display.terminal import Display
from trainkit.distributed.launcher import rank
from trainkit.settings.optimizers import is_adaptive
from trainkit.settings.parsing import parse_named

USUAL = 1e-3  # rate of Adam and its like


def propose(recipe_file: RecipeFile, settings: Mapping[str, Any]) -> None:
    """Show the proposals for these settings in the main process; nothing is changed.

    After the checks of a command, whose refusal would end it.
    """
    display = Display(rank() == 0)
    for line in proposals(recipe_file, settings):
        display.note(line)


def proposals(recipe_file: RecipeFile, settings: Mapping[str, Any]) -> list[str]:
    """What to propose for these settings of a recipe, a line each.

    The rate of another batch size follows the linear rule (Goyal et al., 2017), that of adaptive
    optimizers the square root (Krizhevsky, 2014; Malladi et al., 2022).
    """
    parameters = inspect.signature(recipe_file).parameters
    own = {name: each.default for name, each in parameters.items()}
    if settings.get("sample") is True:
        own |= recipe_file.sample_settings()
    if not {"lr", "batch_size", "optimizer"} <= own.keys() & settings.keys():
        return []
    lr, optimizer, batch_size = settings["lr"], settings["optimizer"], settings["batch_size"]
    lines = []
    if lr == own["lr"]:
        if is_adaptive(optimizer) != is_adaptive(own["optimizer"]):
            usual = (
                f", {USUAL:g} being usual for Adam and its like" if is_adaptive(optimizer) else ""
            )
            lines.append(
                f"lr {lr:g} is the recipe's for {own['optimizer']}, and is used; {optimizer} takes"
                f" another one{usual}: give --lr"
            )
        elif batch_size > 0 and batch_size != own["batch_size"]:
            factor = batch_size / own["batch_size"]
            rule = "square root" if is_adaptive(optimizer) else "linear"
            scaled = lr * (math.sqrt(factor) if is_adaptive(optimizer) else factor)
            lines.append(
                f"lr {lr:g} is the recipe's for batches of {own['batch_size']}; for those of"
                f" {batch_size} the {rule} rule proposes {scaled:.3g}, which is not applied: give"
                f" --lr {scaled:.3g}"
            )
    schedule = settings.get("schedule", "constant")
    free = parse_named("optimizer", optimizer)[0].startswith("schedulefree")
    if free and parse_named("schedule", schedule)[0] != "constant":
        lines.append(f"{optimizer} is made for --schedule constant, and the schedule is {schedule}")
    return lines
