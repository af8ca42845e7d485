"""trainkit average: the mean of the weights of several checkpoints or runs, measured and kept."""

import json
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm as AnyBatchNorm

from trainkit.commands.arguments import asks_for_help, read_known_options, read_settings_and_options
from trainkit.commands.average_options import ESTIMATED, AverageOptions
from trainkit.commands.push import recipe_files
from trainkit.commands.recipe_file import load_recipe
from trainkit.commands.recipe_names import find_recipe
from trainkit.commands.trained import (
    Trained,
    check_recorded_code,
    is_recipe,
    recipe_of_run,
    recorded_settings,
)
from trainkit.data.dataset_info import opened
from trainkit.data.seeding import seed_host
from trainkit.data.to_device import ToDevice
from trainkit.data.workers import choose_workers, worker_deaths_reported
from trainkit.display.result_tables import in_words
from trainkit.display.terminal import Display
from trainkit.distributed.accelerator import start_accelerator, use_whole_host
from trainkit.distributed.fsdp import prepare
from trainkit.engine.evaluator import Evaluator
from trainkit.engine.metric_checks import with_headline
from trainkit.engine.precise_bn import PreciseBatchNorm
from trainkit.engine.results import show_results
from trainkit.engine.task_module import TaskModule
from trainkit.errors import MissingFileError, UserError
from trainkit.files import save_tensors
from trainkit.metrics.base import declared
from trainkit.recipe import Recipe
from trainkit.storage.checkpoint import digest, list_checkpoints
from trainkit.storage.hub_download import is_hub_name
from trainkit.storage.lookup import (
    is_published,
    located,
    read_precise_bn,
    read_seed,
    trained_steps,
)
from trainkit.storage.model_json import read_model_json
from trainkit.storage.recorded import is_run, read_recorded
from trainkit.storage.run_files import MODEL_JSON
from trainkit.storage.run_settings import check_not_trained_on, check_same_classes
from trainkit.storage.setting_values import plain
from trainkit.storage.stored_model import StoredModel
from trainkit.storage.trained_here import is_trained_here, remember
from trainkit.storage.weight_average import average, require_alike
from trainkit.storage.weights import load_model, take_weights

WEIGHTS = "model.safetensors"
LISTS = ("train.csv", "val.csv")  # which images were held out


def run(first: str, words: list[str]) -> int:
    """Average what the words name.

    Returns:
        The exit code: 1 where the average is worse than what it is made of, and is not kept.
    """
    prog = f"trainkit average {first}"
    if is_recipe(first):
        find_recipe(first)  # which says that there is none
        raise UserError(f"{first} is a recipe, and average takes runs and checkpoints of trainings")
    trust = not asks_for_help(words) and read_known_options("average", prog, words)[0].trust_recipe
    recipe_file = load_recipe(recipe_of_run(Path(first), "average", trust))
    recorded = recorded_settings(recipe_file, located(Path(first)))
    settings, asked = read_settings_and_options(recipe_file, "average", prog, words, recorded)
    if asked.out.exists() and (not asked.out.is_dir() or any(asked.out.iterdir())):
        raise UserError(f"{asked.out} is not an empty folder; choose another with --out")
    models = _models(Path(first), asked)
    check_recorded_code(models[0].run, recorded, settings, asked.trust_recipe)
    on_hub = not Path(first).exists() and is_hub_name(Path(first))
    trained = Trained(recipe_file, settings, models[0].weights, models[0].run, on_hub)
    use_whole_host()
    return 0 if _average(models, trained, asked) else 1


def _models(first: Path, asked: AverageOptions) -> list[StoredModel]:
    """What is averaged, in order.

    Raises UserError where that is fewer than two, or they differ.
    """
    named = [first, *asked.others]
    place = located(first)
    if not asked.others and is_run(place) and not is_published(place):
        named = list_checkpoints(place / "checkpoints")[-(asked.last or 0) :]
    if len(named) < 2:
        what = "is one checkpoint" if not is_run(place) or is_published(place) else "keeps one"
        raise UserError(
            f"{first} {what}, and an average takes two or more: give further runs or checkpoints,"
            " or train with --keep-checkpoints 10, of which a run's are averaged"
        )
    models = [StoredModel.at(each) for each in named]
    require_alike(models)
    return models


def _average(models: Sequence[StoredModel], trained: Trained, asked: AverageOptions) -> bool:
    """Measure what is averaged, then the average, and write it; whether it was kept."""
    seed = read_seed(trained.run)
    seed_host(seed)
    recipe = trained.build()
    for model in models:
        check_same_classes(model.run, recipe.task)
        check_not_trained_on(model.run, trained.settings, recipe.val_data)
    assert trained.run is not None  # its recipe is known by it
    options = read_recorded(trained.run).get("options", {})
    recipe = with_headline(recipe, options.get("headline"))
    weights = average(models)
    evaluator = _evaluator(recipe, seed, asked.workers)
    display = Display()
    name = recipe.task.headline if recipe.best_by is None else recipe.best_by[0]
    inputs = []
    for model in models:
        take_weights(recipe.model, model.weights)
        results = _measured(evaluator, read_precise_bn(model.run, model.weights), model)
        inputs.append(
            {"weights": str(model.weights), "sha256": digest(model.weights), name: results[name]}
        )
        display.note(f"{_shown(recipe, name, results[name])}  {model.weights}")
    load_model(recipe.model, weights, models[-1].weights)
    number = asked.precise_bn
    if number is None:
        number = read_precise_bn(trained.run, trained.weights) or ESTIMATED
    with _statistics(evaluator, number, display) as estimated:
        weights |= estimated
        results = _measured(evaluator, None, models[-1])
    show_results(display, f"average of {len(models)}", results, False, recipe)
    found = [each[name] for each in inputs]
    best = max(found) if recipe.higher_is_better else min(found)
    is_worse = results[name] < best if recipe.higher_is_better else results[name] > best
    said = f"{_shown(recipe, name, results[name])}, the best of them {_shown(recipe, name, best)}"
    if is_worse and not asked.keep:
        display.note(f"the average has {said}: it is not kept; --keep writes it all the same")
        return False
    about = {"headline": name, "average": results[name], "inputs": inputs}
    about["precise_bn"] = number if estimated else None
    _write(asked.out, models[0], trained, weights, results, about)
    display.note(f"{asked.out}: the average has {said}")
    return True


def _evaluator(recipe: Recipe, seed: int, workers: int | None) -> Evaluator:
    """What measures the model with the weights that it has at the time.

    Raises UserError where several processes were started.
    """
    accelerator = start_accelerator()
    if accelerator.num_processes > 1:
        raise UserError(
            f"{accelerator.num_processes} processes were started, and average takes one: start it"
            " without a launcher"
        )
    return Evaluator(
        recipe=recipe,
        task_module=prepare(accelerator, TaskModule(recipe.model, recipe.task)),
        accelerator=accelerator,
        to_device=ToDevice(accelerator.device, recipe.mean, recipe.std),
        seed=seed,
        workers=choose_workers(workers, 1),
        ema=None,
    )


def _measured(evaluator: Evaluator, precise_bn: int | None, model: StoredModel) -> dict[str, Any]:
    """The results of the weights that the model has, as of the step of `model`."""
    steps = trained_steps(evaluator.recipe.task, model.run, model.weights)
    with worker_deaths_reported():
        results = replace(evaluator, precise_bn=precise_bn).run(steps=steps)
    assert results is not None  # nothing stops it
    return results


@contextmanager
def _statistics(evaluator: Evaluator, number: int, display: Display) -> Iterator[dict[str, Tensor]]:
    """Context manager: batch norm has statistics of these weights, which are given by name."""
    recipe = evaluator.recipe
    norms = [each for each in recipe.model.modules() if isinstance(each, AnyBatchNorm)]
    if not norms or not number:
        yield {}
        return
    if recipe.frozen and recipe.unfreeze_epoch is None:
        display.note("BatchNorm statistics are averaged, as a part of the network was not trained")
        yield {}
        return
    try:
        opened(recipe.train_data)
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{error}. BatchNorm statistics of the average are estimated from training images:"
            " --precise-bn 0 averages the statistics, which is worse"
        ) from error
    trained_whole = replace(recipe, frozen=(), unfreeze_epoch=None)
    estimate = PreciseBatchNorm(replace(evaluator, recipe=trained_whole, precise_bn=number))
    display.note(f"BatchNorm statistics are re-estimated from {number:,} training images")
    with worker_deaths_reported(), estimate.estimated():
        names = ("running_mean", "running_var")
        yield {
            name: value.detach().cpu().clone()
            for name, value in recipe.model.state_dict().items()
            if name.endswith(names)
        }


def _shown(recipe: Recipe, name: str, value: Any) -> str:
    return f"{name} {in_words(name, value, declared(recipe.task, 'percent'))}"


def _write(
    folder: Path,
    first: StoredModel,
    trained: Trained,
    weights: dict[str, Tensor],
    results: Mapping[str, Any],
    about: Mapping[str, Any],
) -> None:
    """Everything that makes a folder a model that other commands take, settings.json the last."""
    run = trained.run
    assert run is not None
    recorded = read_recorded(run)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(
        {name: value.contiguous() for name, value in weights.items()},
        folder / WEIGHTS,
        {"format": "pt"},
    )
    for name, path in recipe_files(first.named, run, recorded["recipe"]).items():
        shutil.copyfile(path, folder / name)
    for name in LISTS:
        if (run / name).is_file():
            shutil.copyfile(run / name, folder / name)
    described = read_model_json(first.weights if first.weights.is_dir() else first.weights.parent)
    if described is not None:
        _write_json(folder / MODEL_JSON, described)
    settings = plain(trained.settings)
    measured = {"checkpoint": WEIGHTS, "sha256": digest(folder / WEIGHTS), "settings": settings}
    _write_json(folder / "results.json", {**measured, **results})
    _write_json(folder / "average.json", about)
    # the statistics are in the weights
    options = {**recorded.get("options", {}), "precise_bn": None}
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    changed = {"settings": settings, "options": options, "command": command}
    _write_json(folder / "settings.json", {**recorded, **changed})
    if is_trained_here(run):
        code = (folder / "recipe.py").read_bytes()
        remember(folder, code, Path(recorded["recipe"]))


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n")
