"""The metric of a model before and after its weights are rounded to float16."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainkit.commands.trained import is_recipe, read_trained
from trainkit.data.to_device import ToDevice
from trainkit.data.workers import choose_workers
from trainkit.distributed.accelerator import start_accelerator
from trainkit.distributed.fsdp import prepare
from trainkit.engine.evaluation import Evaluator
from trainkit.engine.task_module import TaskModule
from trainkit.errors import UserError
from trainkit.options import ExportOptions
from trainkit.recipe import Recipe
from trainkit.storage.lookup import run_of, trained_steps
from trainkit.storage.weights import take_weights


def measured_in_half(
    first: str, words: list[str], recipe: Recipe | None, weights: Path, asked: ExportOptions
) -> str:
    """A line with the metric of the weights, and of the same rounded to float16.

    Both are computed in float32. Where the validation data cannot be opened, the line says why.
    recipe: of the model, where it was built already.
    """
    try:
        if recipe is None:
            recipe = _recipe(first, words)
    except UserError as error:
        return f"the metric in float16 was not measured, as the data cannot be opened: {error}"
    take_weights(recipe.model, weights, asked.weights_key, asked.partial)
    steps = trained_steps(recipe.task, run_of(weights), weights)
    before = _measured(recipe, steps)
    _round(recipe.model)
    after = _measured(recipe, steps)
    name, number = recipe.task.headline, len(recipe.val_data)
    return f"{name} on {number:,} validation images: {before:.6g}; in float16: {after:.6g}"


def _recipe(first: str, words: list[str]) -> Recipe:
    """The recipe of a run, with its validation data. Raises UserError where that is not there."""
    assert not is_recipe(first)
    trained, _ = read_trained("export", first, words)
    return trained.build(merge=True)


@torch.no_grad()
def _round(model: nn.Module) -> None:
    """Round all floats of the model to float16, which `require_half_range` allows."""
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(value.half())


def _measured(recipe: Recipe, steps: tuple[int, int] | None) -> Any:
    accelerator = start_accelerator()
    evaluator = Evaluator(
        recipe=recipe,
        task_module=prepare(accelerator, TaskModule(recipe.model, recipe.task)),
        accelerator=accelerator,
        to_device=ToDevice(accelerator.device, recipe.mean, recipe.std),
        seed=0,
        workers=choose_workers(None, 1),
        ema=None,
    )
    results = evaluator.run(steps=steps)
    assert results is not None  # nothing stops it
    return results[recipe.task.headline]
