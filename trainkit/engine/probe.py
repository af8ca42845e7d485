"""Runs one image through the network before the first step, to see what would fail later.

It shows what a conversion changes, and where one image is too few.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as AnyBatchNorm

from trainkit.engine.plan import TrainPlan
from trainkit.errors import UserError
from trainkit.models.freezing import frozen_modules
from trainkit.models.outputs import refusals_reported

ALLOWED = 1e-5  # of the largest output: what another kernel may change


@contextmanager
def unchanged(model: nn.Module, image: Tensor, option: str) -> Iterator[None]:
    """Context manager: what is done to the model must change none of its outputs.

    Compared in evaluation mode, on one image.

    Raises:
        UserError: an output differs; the message names `option`.
    """
    before = _outputs(model, image)
    yield
    after = _outputs(model, image)
    for name, output in before.items():
        scale = output.abs().max()
        difference = (after[name] - output).abs().max() if name in after else torch.inf
        if not difference <= ALLOWED * scale:
            raise UserError(
                f"{option} is on, and would change what {type(model).__name__} gives: {name}"
                f" differs by {float(difference):.2g}, where the largest is {float(scale):.2g}."
                " Turn it off for this network"
            )


def lonely_step(plan: TrainPlan, since: int = 0) -> int | None:
    """A step in which some process has a forward pass of one image, also an uncounted one.

    Args:
        plan: of the training.
        since: the first step that counts, from 0.
    """
    order = plan.order
    # the last batch of an epoch may be shorter
    last_of_epoch = (since // order.steps_per_epoch + 1) * order.steps_per_epoch - 1
    for step in (since, min(last_of_epoch, plan.total_steps - 1)):
        if not since <= step < plan.total_steps:
            continue
        if any(min(order.passes(step, process)) < 2 for process in range(order.num_processes)):
            return step
    return None


def refuse_lonely_values(plan: TrainPlan) -> None:
    """Check that no batch norm has one value per channel in a `lonely_step` that trains it.

    What is frozen then is in evaluation mode, and counts none. One value has no variance: torch
    refuses it in the middle of an epoch. Synchronised batch norm counts the values of all
    processes.

    Raises:
        UserError: one has.
    """
    recipe, order = plan.recipe, plan.order
    if recipe.sync_batch_norm and order.num_processes > 1:
        return
    frozen = frozen_modules(recipe.model, recipe.frozen)
    cases = [(lonely_step(plan), frozen)]
    if frozen and plan.unfreeze_step is not None:
        cases.append((lonely_step(plan, plan.unfreeze_step), []))
    for step, evaluating in cases:
        if step is None:
            continue
        with refusals_reported(recipe.model):
            name = _lonely_norm(plan, evaluating)
        if name is None:
            continue
        raise UserError(
            f"step {step + 1} has a forward pass of one image ({order.num_images_of(step)} images"
            f" in the batch, {order.num_processes} processes, micro_batch {order.micro_batch}), and"
            f" the batch norm {name} then has one value per channel, of which there is no variance:"
            " give another batch_size or micro_batch that leaves no single image, drop_last=True"
            " in the recipe where it is the last batch of an epoch, or larger images"
        )


def _lonely_norm(plan: TrainPlan, evaluating: Sequence[nn.Module]) -> str | None:
    """A batch norm that in training counts one value per channel of one image, by name.

    The modules `evaluating` are in evaluation mode then.
    """
    found: list[str] = []
    model = plan.recipe.model
    modes = {module: module.training for module in model.modules()}
    model.train()
    for module in evaluating:
        module.eval()
    norms = [
        (name, module) for name, module in model.named_modules() if isinstance(module, AnyBatchNorm)
    ]
    # What is frozen stays in evaluation mode.
    norms = [
        (name, norm)
        for name, norm in norms
        if norm.training and not isinstance(norm, nn.SyncBatchNorm)
    ]
    for module, mode in modes.items():
        module.training = mode

    def look(name: str, values: Tensor) -> None:
        if values.numel() == values.shape[1]:
            found.append(name)

    hooks = [
        norm.register_forward_pre_hook(lambda _, inputs, name=name: look(name, inputs[0]))
        for name, norm in norms
    ]
    try:
        if norms:
            _outputs(model, plan.first_image(next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _outputs(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Every floating-point tensor that the model gives in evaluation mode, by its place.

    No state is left behind.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.random.fork_rng([]):  # of the CPU; each step seeds every device
            torch.manual_seed(0)
            outputs = model(image)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return {name: tensor.detach() for name, tensor in _tensors("outputs", outputs)}


def _tensors(name: str, outputs: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(outputs, Tensor):
        if outputs.is_floating_point():
            yield name, outputs
    elif isinstance(outputs, (Mapping, list, tuple)):
        items = outputs.items() if isinstance(outputs, Mapping) else enumerate(outputs)
        for key, value in items:
            yield from _tensors(f"{name}[{key!r}]", value)
