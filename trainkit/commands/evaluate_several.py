"""trainkit evaluate of several runs: a table; validation data that they share is read once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from trainkit.commands.evaluate_options import EvaluateCommandOptions
from trainkit.commands.measurement import Measurement
from trainkit.commands.recipe_file import RecipeFile
from trainkit.commands.trained import Trained, is_recipe, read_trained
from trainkit.data.dataset_info import DatasetInfo
from trainkit.data.workers import worker_deaths_reported
from trainkit.display.result_tables import in_words, width_of
from trainkit.display.terminal import Display
from trainkit.distributed.accelerator import (
    allow_tf32,
    lost_processes_reported,
    start_accelerator,
    use_whole_host,
)
from trainkit.engine.evaluating_together import Reading, free_bytes, parted, taking_turns
from trainkit.engine.evaluation import Loaded
from trainkit.engine.metric_checks import with_headline
from trainkit.errors import UserError, may_fail_alone
from trainkit.metrics.base import declared
from trainkit.recipe import Recipe
from trainkit.storage.checkpoint import digest
from trainkit.storage.recorded import read_recorded
from trainkit.storage.run_files import COMPARISON
from trainkit.storage.run_folder import RunFolder

SHARE = 0.5  # of the free memory, see `run_several`
INTERVAL = "_95"


@dataclass
class Entry:
    """What is measured, by the name that it was given by."""

    name: str
    measurement: Measurement
    recipe: Recipe | None = None
    """with these weights; None where too many would be in memory"""
    size: int = 0
    """bytes of the weights, and of their EMA"""
    number: int = 1
    """of the reading of validation data, from 1: entries that read alike have the same"""
    differs: str | None = None
    """in what that differs from the first"""
    headline: tuple[str, bool] = ("", True)
    """that selects the best checkpoint, and whether more of it is better"""
    of_data: tuple[int | None, str | None] = (None, None)
    """number of classes, and the validation data's fingerprint where it has one"""
    percent: frozenset[str] = frozenset()
    """names of results that are shown so"""
    step: int | None = None
    results: Mapping[str, Any] = field(default_factory=dict)


def run_several(
    first: str,
    words: list[str],
    trained: Trained,
    asked: EvaluateCommandOptions,
    load: Callable[[Path], RecipeFile],
    share: float = SHARE,
) -> int:
    """Measure all that the words name, show a table of it and write it; the exit code.

    Args:
        first: a run, or a recipe.
        words: that follow it.
        trained: what the first of them names.
        asked: the options.
        load: reads recipes' files.
        share: of the memory that is free, for weights of networks that take turns: 0 to 1.
    """
    of_recipe = is_recipe(first)
    named = [str(asked.weights) if of_recipe else first, *map(str, asked.others)]
    every = [trained]
    for other in asked.others:
        what, weights = (first, other) if of_recipe else (str(other), None)
        every.append(read_trained("evaluate", what, words, weights, load)[0])
    entries = []
    for name, each, folder in zip(named, every, _folders(named, asked.out)):
        out = each.run if folder is None and not each.is_on_hub else folder
        options = replace(asked, out=out)
        measurement = Measurement(each.build, each.weights, each.run, each.settings, options)
        entries.append(Entry(name, measurement))
    use_whole_host()
    _measure(entries, asked.out or entries[0].measurement.asked.out, share)
    return 0


def _folders(names: Sequence[str], out: Path | None) -> list[Path | None]:
    """Where results go with --out: folders in it that are called as the names end.

    Raises UserError where one is given twice.
    """
    if out is None:
        return [None] * len(names)
    parts = [Path(name).parts for name in names]
    twice = [name for name, each in zip(names, parts) if parts.count(each) > 1]
    if twice:
        raise UserError(f"{twice[0]} is given twice: --out has one folder for each; give it once")
    depth = 1
    while len({each[-depth:] for each in parts}) < len(parts):
        depth += 1
    return [out / "-".join(part.strip("/") for part in each[-depth:]) for each in parts]


@lost_processes_reported()
def _measure(entries: Sequence[Entry], out: Path | None, share: float) -> None:
    """Measure all entries, of which none begins before all were loaded; then show and write them.

    Args:
        entries: what is measured.
        out: the folder that the table goes to; None for none.
        share: see `run_several`.
    """
    accelerator = start_accelerator()
    display = Display(accelerator.is_main_process)
    allow_tf32(entries[0].measurement.asked.tf32)
    room = _room(accelerator, share)
    readings: list[Reading] = []
    held = 0
    for entry in entries:
        display.note(f"{entry.name}:")
        loaded = _load(entry, readings, display.note)
        _refuse_shared(entry, loaded.recipe, entries)
        held += entry.size
        entry.recipe = loaded.recipe if held <= room else None
    for number in range(1, len(readings) + 1):
        group = [entry for entry in entries if entry.number == number]
        for part in parted([entry.size for entry in group], room):
            chosen = [group[place] for place in part]
            names = ", ".join(entry.name for entry in chosen)
            once = ", the validation data read once" if len(chosen) > 1 else ""
            display.note(f"evaluated{once}: {names}")
            _together(chosen, accelerator, display)
            accelerator.free_memory()  # it keeps the networks
    if accelerator.is_main_process:
        # of several checkpoints of a run the last one's results are left in it
        for entry in {entry.measurement.asked.out: entry for entry in entries}.values():
            entry.measurement.finish()
        _show(entries, display)
        if out is not None:
            RunFolder(out).write(COMPARISON, _as_table(entries))
            display.note(f"the table: {out / COMPARISON}")


def _refuse_shared(entry: Entry, recipe: Recipe, entries: Sequence[Entry]) -> None:
    """Raise UserError where the recipe gives an entry the model of another one."""
    for other in entries:
        if other.recipe is not None and other.recipe.model is recipe.model:
            raise UserError(
                f"{entry.name} and {other.name} have one model, which their recipe makes outside of"
                " its function: make it in the function, or evaluate them one by one"
            )


def _room(accelerator: Accelerator, share: float) -> int:
    """Bytes for weights that are in memory together: as many in all processes."""
    free = min(free_bytes(accelerator.device), free_bytes(torch.device("cpu")))
    mine = torch.tensor(int(share * free), device=accelerator.device)
    return int(accelerator.gather(mine[None]).min())


def _load(entry: Entry, readings: list[Reading], note: Callable[[str], None]) -> Loaded:
    """Load an entry, and find which of the readings it has; a further one is added."""
    loaded = entry.measurement.loaded(note)
    recipe = loaded.recipe
    averages = loaded.averages()
    if averages is None:  # a file has one set of weights, whatever its training averaged
        recipe = replace(recipe, ema=None)
    tensors = [*recipe.model.state_dict().values()]
    tensors += [] if averages is None else averages.averages
    entry.size = sum(each.nbytes for each in tensors)
    entry.step = loaded.step
    run = entry.measurement.run
    asked = None if run is None else read_recorded(run).get("options", {}).get("headline")
    if entry.measurement.asked.label_sets is not None:
        asked = None  # of which there is one metric
    chosen = with_headline(recipe, asked)
    entry.headline = chosen.headline, chosen.higher_is_better
    entry.percent = declared(recipe.task, "percent")
    fingerprint = DatasetInfo.of(recipe.val_data).fingerprint
    entry.of_data = recipe.task.known_num_classes, fingerprint
    reading = Reading.of(recipe, entry.measurement.how.seed)
    differences = [each.difference(reading) for each in readings]
    if None not in differences:
        readings.append(reading)
        entry.differs = differences[0] if differences else None
        entry.number = len(readings)
    else:
        entry.number = differences.index(None) + 1
        entry.differs = differences[0]
    return loaded


def _together(entries: Sequence[Entry], accelerator: Accelerator, display: Display) -> None:
    """Measure entries in turns, and write the results of each."""
    every = []
    for entry in entries:
        measurement = entry.measurement
        if entry.recipe is None:
            every.append(measurement.loaded(lambda line: None))  # it was said before
        else:
            weights, run = measurement.weights, measurement.run
            every.append(Loaded(entry.recipe, weights, run, measurement.how))
    evaluators = [loaded.evaluator(accelerator, display.note) for loaded in every]
    starts = [partial(loaded.by_batches, note=display.note) for loaded in every]
    with worker_deaths_reported(), may_fail_alone():
        found = taking_turns(evaluators, starts)
    for entry, loaded, evaluator, results in zip(entries, every, evaluators, found):
        entry.results, entry.recipe = results, None
        if accelerator.is_main_process:
            entry.measurement.write(results)
        for line in loaded.warnings(evaluator, results):
            display.note(f"{entry.name}: {line}")


def _best(entries: Sequence[Entry]) -> tuple[Entry | None, str]:
    """The best entry, and by what; None and why not, where they cannot be compared."""
    headlines = {(_bare(name), higher) for name, higher in (each.headline for each in entries)}
    if len(headlines) > 1:
        names = " and ".join(sorted(name for name, _ in headlines))
        return None, f"no best one: the best checkpoints are chosen by {names}"
    of_data = {
        (entry.results["split"], entry.results["num_images"], *entry.of_data) for entry in entries
    }
    if len(of_data) > 1:
        return None, "no best one: these are results of different validation images"
    ((name, higher),) = headlines
    known = [entry for entry in entries if entry.results.get(entry.headline[0]) is not None]
    if not known:
        return None, f"no best one: {name} is not known of any"
    choose = max if higher else min
    return choose(known, key=lambda entry: entry.results[entry.headline[0]]), f"best by {name}"


def _show(entries: Sequence[Entry], display: Display) -> None:
    """Show a row for each entry, the best marked, and say which were read apart.

    The columns are the headline metric, and further ones that the screen has room for, of EMA
    weights where these decide.
    """
    best, by = _best(entries)
    heads = ["", "step", *dict.fromkeys(_bare(entry.headline[0]) for entry in entries)]
    columns = [
        [f"{entry.name} *" if entry is best else entry.name for entry in entries],
        ["" if entry.step is None else str(entry.step) for entry in entries],
        *([_cell(entry, head) for entry in entries] for head in heads[2:]),
    ]
    names = dict.fromkeys(
        _bare(name)
        for entry in entries
        for name, value in entry.results.items()
        if isinstance(value, float)
    )
    room = display.console.width - sum(map(width_of, heads, columns))
    for name in names:
        cells = [_cell(entry, name) for entry in entries]
        if name not in heads and width_of(name, cells) <= room:
            heads.append(name)
            columns.append(cells)
            room -= width_of(name, cells)
    display.grid(f"{by} (*)" if best is not None else by, heads, zip(*columns))
    for entry in entries:
        if entry.differs is not None:
            display.note(
                f"{entry.name}: other validation data, or read in another way, than"
                f" {entries[0].name} ({entry.differs} differs)"
            )


def _bare(name: str) -> str:
    return name.removeprefix("ema_")


def _cell(entry: Entry, name: str) -> str:
    """A result in words, with its interval; of EMA weights where the entry's headline is."""
    prefix = entry.headline[0].removesuffix(_bare(entry.headline[0]))
    value = entry.results.get(prefix + name)
    if value is None:
        return ""
    shown = in_words(name, value, entry.percent)
    interval = entry.results.get(f"{prefix}{name}{INTERVAL}")
    if not interval:
        return shown
    low, high = (in_words(name, each, entry.percent).removesuffix(" %") for each in interval)
    return f"{shown} ({low} to {high})"


def _as_table(entries: Sequence[Entry]) -> dict[str, Any]:
    """The table for JSON: results that are numbers, with their intervals."""
    best, by = _best(entries)
    rows = []
    for entry in entries:
        numbers = {
            name: value
            for name, value in entry.results.items()
            if isinstance(value, (int, float, str)) or name.endswith(INTERVAL)
        }
        weights = entry.measurement.weights
        about: dict[str, Any] = {"name": entry.name, "checkpoint": str(weights)}
        about |= {"sha256": digest(weights)}
        about |= {"step": entry.step, "headline": entry.headline[0], "read_with": entry.number}
        rows.append({**about, "differs": entry.differs, **numbers})
    return {"best": None if best is None else best.name, "by": by, "rows": rows}
