"""Replays a failed step, to find which image and layer made a non-finite (NaN/Inf) value."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from trainkit.commands.arguments import read_options, read_settings_and_options
from trainkit.commands.recipe_file import build, load_recipe
from trainkit.commands.trained import check_recorded_code, code_of_run, require_recipe
from trainkit.data.reader import name_of
from trainkit.data.seeding import seed_host
from trainkit.distributed.accelerator import lost_processes_reported, use_whole_host
from trainkit.engine.nonfinite import is_failure
from trainkit.engine.setup import Setup
from trainkit.engine.state import read_steps
from trainkit.engine.training import Training
from trainkit.errors import UserError
from trainkit.options import Options
from trainkit.recipe import Recipe
from trainkit.storage.checked_json import Fault, read_regular
from trainkit.storage.checkpoint import digest
from trainkit.storage.locks import posix_locks
from trainkit.storage.lookup import find_failure, read_seed, read_settings, run_of
from trainkit.storage.recorded import read_order
from trainkit.storage.run_files import read_report
from trainkit.storage.run_folder import RunFolder
from trainkit.storage.weights import start_from


def run(first: str, words: list[str]) -> int:
    """Run a failed step of the run in the folder `first` again.

    Returns:
        The exit code: 1 where it does not fail again.
    """
    prog = f"trainkit replay {first}"
    asked = read_options("replay", prog, words)
    posix_locks()  # before a recipe that takes minutes to build
    path = run_of(Path(first)) or Path(first)
    failure = find_failure(path, asked.step)
    seed = read_seed(path)
    require_recipe(path)
    recipe_file = load_recipe(code_of_run(path, Path(first), "replay", asked.trust_recipe))
    recorded = read_settings(path)
    settings, _ = read_settings_and_options(recipe_file, "replay", prog, [], recorded)
    check_recorded_code(path, recorded, settings, asked.trust_recipe)
    report = read_report(failure)
    taught = report.get("teacher") or {}
    options = Options(
        seed=seed,
        workers=asked.workers,
        micro_batch=report["micro_batch"],
        on_bad_image=report["on_bad_image"],
        channels_last=report["channels_last"],
        tf32=report["tf32"],
        static_graph=report.get("static_graph", False),
        activation_checkpointing=report.get("activation_checkpointing", False),
        teacher=taught.get("named"),
        distill=taught.get("distill"),
        temperature=taught.get("temperature"),
        trust_recipe=asked.trust_recipe,
    )
    seed_host(seed)
    recipe = build(recipe_file, settings)
    use_whole_host()
    fails_again = replay(recipe, options, failure)
    return 0 if fails_again else 1


class Watch:
    """Notes the first module with a non-finite (NaN/Inf) output, and for which images."""

    def __init__(self, model: nn.Module):
        # the module's name, and places in this process's share
        self.found: tuple[str, list[int]] | None = None
        self._before = 0  # images of the passes before this one
        self._size = 0
        self._hooks = [model.register_forward_pre_hook(self._on_pass)]
        for name, module in model.named_modules():
            if not list(module.children()):
                self._hooks.append(module.register_forward_hook(self._watching(name)))

    def _on_pass(self, module: nn.Module, inputs: tuple) -> None:
        self._before, self._size = self._before + self._size, len(inputs[0])
        self._look("the images as they were read", inputs[0])

    def _watching(self, name: str) -> Any:
        return lambda module, inputs, output: self._look(f"the output of {name}", output)

    def _look(self, name: str, output: Any) -> None:
        if self.found is None and isinstance(output, Tensor) and not output.isfinite().all():
            rows = (~output.flatten(1).isfinite()).any(1) if output.ndim > 1 else ~output.isfinite()
            places = (
                rows.nonzero().flatten().tolist()
                if len(output) == self._size
                else range(self._size)
            )
            self.found = name, [self._before + place for place in places]

    def end(self) -> None:
        """Watch no longer."""
        for hook in self._hooks:
            hook.remove()


@lost_processes_reported()
def replay(recipe: Recipe, options: Options, failure: Path) -> bool:
    """Run the step kept in `failure` again from the state before it; whether it fails again.

    The steps between the kept checkpoint and the failed one are trained again, which gives the same
    state bit for bit on the same machine and number of processes. Nothing is written.

    Args:
        recipe: of the run.
        options: of the run.
        failure: folder of the failed step.
    """
    report = read_report(failure)
    if "batch" in report:
        raise UserError(f"{failure} holds no batch: it {report['batch']}")
    setup = Setup(recipe, options)
    taught = setup.distillation
    if taught is not None and taught.sha256 != report["teacher"]["sha256"]:
        raise UserError(
            f"the run was trained with the teacher in {options.teacher}, which has changed since"
            " (SHA-256 differs): put the one there that it was trained with"
        )
    accelerator, display, plan = setup.accelerator, setup.display, setup.plan
    plan.use_order(read_order(failure.parent.parent))
    if "init" in report:
        for line in _start_as_then(recipe, report["init"]):
            display.note(line)
    run = RunFolder(failure.parent.parent, writes=False)
    training = Training(setup, run)
    stepper = training.stepper
    if accelerator.num_processes != report["num_processes"]:
        display.note(
            f"it failed on {report['num_processes']} processes and runs on"
            f" {accelerator.num_processes} here"
        )
    if accelerator.mixed_precision != report["precision"]:
        display.note(
            f"it failed in precision {report['precision']} and runs in"
            f" {accelerator.mixed_precision} here"
        )
    if report["checkpoint"] is not None:
        training.checkpointer.restore(failure / "checkpoint")
    first_step, step = training.state.step, report["step"] - 1
    display.note(
        f"training {step - first_step} steps from step {first_step} on, to the one that failed"
    )
    batches = plan.loader(first_step, step, accelerator, setup.workers)
    stepper.start()
    for number, (images, targets, _) in enumerate(batches, first_step):
        stepper(number, images, targets)

    batch = _read_batch(failure, recipe.batch_size)
    share = plan.order.share(step, accelerator.process_index)
    keys = plan.order.keys(step)[share]
    stepper.oom.skip_trials()
    watch = Watch(recipe.model)
    stats = stepper(step, batch["images"][share], batch["targets"][share])
    watch.end()
    (numbers,) = read_steps(accelerator, [stats.row], step + 1)
    failed = is_failure(numbers, accelerator)
    again = "fails again" if failed else "does not fail this time"
    display.note(f"step {step + 1} {again}: loss {numbers.loss}, gradient norm {numbers.grad_norm}")
    mine = (
        []
        if watch.found is None
        else [(watch.found[0], [keys[place][1] for place in watch.found[1]])]
    )
    everywhere = gather_object(mine)
    for where, indices in everywhere:
        named = [f"{index} ({name_of(recipe.train_data, index)})" for index in indices]
        display.note(f"first in {where}, for images {', '.join(named)}")
    if failed and not everywhere:
        display.note(
            "all outputs of the model's layers are numbers: its loss or gradient is the first that"
            " is none"
        )
    return failed


def _start_as_then(recipe: Recipe, init: Mapping[str, Any]) -> list[str]:
    """Load the weights that the run was started from; return lines to report.

    Raises UserError where they changed.
    """
    weights = Path(init["weights"])
    if not weights.exists():
        raise UserError(
            f"the run was started from the weights in {weights}, which are gone: put them there"
            " again"
        )
    if digest(weights) != init["sha256"]:
        raise UserError(
            f"the run was started from the weights in {weights}, which have changed since (SHA-256"
            " differs): put those there that it was started from"
        )
    return start_from(recipe.model, weights, init["weights_key"])


def _read_batch(failure: Path, batch_size: int) -> dict[str, Tensor]:
    """Images and targets of the failed step.

    Raises UserError where they are damaged.
    """
    file = failure / "batch.safetensors"
    try:
        read_regular(file)
        batch = load_file(file)
        fault = None if {"images", "targets"} <= batch.keys() else "it has no images and targets"
    except (SafetensorError, Fault) as error:
        batch, fault = {}, str(error)
    if fault is None and not 0 < len(batch["images"]) == len(batch["targets"]) <= batch_size:
        fault = f"it has {len(batch['images'])} images and {len(batch['targets'])} targets"
    if fault is not None:
        raise UserError(f"{file} is damaged: {fault}. Put a whole copy in its place")
    return batch
