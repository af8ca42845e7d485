"""trainkit push: publishes weights, recipe, settings, metrics and a model card of a run.

They go into a folder or to the Hugging Face Hub.
"""

import ast
import json
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trainkit.commands.arguments import read_options
from trainkit.commands.hub_upload import open_repository, upload
from trainkit.commands.model_card import WEIGHTS, Published, model_card
from trainkit.commands.plain_code import library_and_call, plain_code
from trainkit.display.terminal import Display
from trainkit.distributed.launcher import rank
from trainkit.errors import MissingFileError, UserError, first_line
from trainkit.files import save_tensors
from trainkit.metrics.resampling import NO_INTERVAL
from trainkit.options import PushOptions
from trainkit.prediction.loading import Source
from trainkit.report.plots import PLOTS
from trainkit.storage.adapters import ADAPTER_FILES
from trainkit.storage.checkpoint import digest
from trainkit.storage.hub_download import HUB_NAME, is_hub_name
from trainkit.storage.lookup import (
    PUBLISHED_STEP,
    find_weights,
    is_published,
    require_run,
    step_of_weights,
)
from trainkit.storage.model_json import read_model_json
from trainkit.storage.recorded import TO_PUBLISH, read_recorded
from trainkit.storage.run_files import MODEL_JSON, read_results
from trainkit.storage.run_folder import RunFolder
from trainkit.storage.shipped import same_shipped_recipe, shipped
from trainkit.storage.trained_here import is_trained_here
from trainkit.storage.weights import read_weights

BEGINNING = r"""(?<![\w.~/\\])(?:      # where a word begins, not inside a path or an address:
    file:/+ | [A-Za-z]:[/\\] | \\\\ | ~
    | (?:[\w.-]+[/\\])* \.\. (?=[/\\]|$)  # a folder above, maybe after folders below
    | (?!(?<=\w:)//) /+ (?=\S)            # a root; no // of an address, no stroke between blanks
)"""
# a path of this machine
PLACE = re.compile(rf"{BEGINNING} .*? (?= {BEGINNING} | $ )", re.VERBOSE | re.DOTALL)
NO_METRICS = ("event", "step", "epoch", "best", "best_step", "seconds")


def run(first: str, words: list[str]) -> int:
    """Publish the run, checkpoint or published folder `first`; the exit code."""
    asked = read_options("push", f"trainkit push {first}", words)
    if rank() != 0:
        return 0  # one process does it all
    push(Path(first), asked)
    return 0


def push(source: Path, asked: PushOptions) -> None:
    """Upload a run as `asked.name`, or write the same files to `asked.folder`.

    The weights are EMA weights where the run has them: the ones its headline result is of. What is
    written names no folder of this machine.

    Args:
        source: the run's folder, of which the best checkpoint is taken, a checkpoint in it, a
            folder that was published, or its name on the Hub.
        asked: options of the command.

    Raises:
        MissingFileError: there is no run or no checkpoint.
        UserError: the folder is taken, or the Hub cannot be reached or refuses.
    """
    display = Display()
    if not source.exists() and not is_hub_name(source):
        require_run(source)  # which says that there is none
    if asked.folder is not None:
        if asked.folder.exists() and (not asked.folder.is_dir() or any(asked.folder.iterdir())):
            raise UserError(f"{asked.folder} is not an empty folder; choose another with --folder")
        _write(source, asked, asked.folder)
        display.note(f"{asked.folder}: {_list(asked.folder)}; nothing was uploaded")
        return
    with TemporaryDirectory() as place:
        _write(source, asked, Path(place))
        repository = open_repository(asked.name, asked.private)
        display.note(f"{upload(Path(place), repository)}: {_list(Path(place))}")


def _list(folder: Path) -> str:
    return ", ".join(
        f"{path.name} ({path.stat().st_size:,} bytes)" for path in sorted(folder.iterdir())
    )


def _write(source: Path, asked: PushOptions, folder: Path) -> None:
    """Everything that is published of `source`, into `folder`."""
    weights, run = find_weights(source)
    if run is None:
        raise MissingFileError(f"{source} is of no run: give the folder that the training wrote")
    recorded, evaluated = read_recorded(run, TO_PUBLISH), read_results(run)
    recipes = recipe_files(source, run, recorded["recipe"])
    log = run / "log.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(read_weights(weights)[0], folder / WEIGHTS, {"format": "pt"})
    for name in ADAPTER_FILES:
        if (weights / name).is_file():
            shutil.copyfile(weights / name, folder / name)
    for name, path in recipes.items():
        shutil.copyfile(path, folder / name)
    if log.is_file():
        shutil.copyfile(log, folder / log.name)
    described = read_model_json(weights if weights.is_dir() else weights.parent)
    if described is not None:
        content = without_places(_for_folder(described, recorded["recipe"]))
        (folder / MODEL_JSON).write_text(json.dumps(content, indent=1) + "\n")
    published = replace(
        _published(run, weights, recorded, evaluated, asked, digest(folder / WEIGHTS)),
        **_used_from_python(folder),
    )
    for name, content in (
        ("settings.json", published.recorded),
        ("results.json", published.results),
    ):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")
    published = replace(published, pictures=_copy_plots(run, folder))
    model_card(published).save(folder / "README.md")


def _copy_plots(run: Path, folder: Path) -> tuple[str, ...]:
    """Copy the pictures that `trainkit report --plots` drew of the run; their names."""
    names = tuple(name for name in PLOTS if (run / name).is_file())
    for name in names:
        shutil.copyfile(run / name, folder / name)
    return names


def _for_folder(described: dict[str, Any], origin: str | None) -> dict[str, Any]:
    """model.json where the recipe, which was read from `origin`, is called recipe.py."""
    network = described["network"]
    if network is None or origin is None or network["recipe"] != Path(origin).name:
        return described
    return {**described, "network": {**network, "recipe": "recipe.py"}}


def _used_from_python(folder: Path) -> dict[str, Any]:
    """How the card says that the model in `folder` is used, see `Published`."""
    described = read_model_json(folder)
    source = Source(folder, folder / WEIGHTS, folder, described)
    if described is None or source.lacks is not None:
        return {}
    source.require_usual()
    own = described["network"]["recipe"]
    code = None if own is None else folder / own
    trust = code is not None and code.is_file() and same_shipped_recipe(code) is None
    return {
        "loads": True,
        "trust": trust,
        "plain": plain_code(described, folder / WEIGHTS),
        "own_network": library_and_call(described["network"], folder / WEIGHTS) is None,
    }


def _published(
    run: Path,
    weights: Path,
    recorded: dict[str, Any],
    evaluated: dict[str, Any] | None,
    asked: PushOptions,
    sha256: str,
) -> Published:
    """The content of the card, from results.json and the hash of the published file of weights."""
    averaged = recorded.get("ema") is not None and (weights.is_dir() or is_published(run))
    step = step_of_weights(run, weights)
    row = RunFolder(run).log.last_evaluation(step) or {}
    metrics = _of_weights(
        {name: value for name, value in row.items() if name not in NO_METRICS}, averaged
    )
    measured = {}
    # and not of another evaluation's weights
    is_measured = evaluated is not None and evaluated["sha256"] == digest(weights)
    # what was published may be of the training's own evaluation, which has no intervals
    if is_published(run):
        is_measured = is_measured and any(
            name.endswith(("_95", NO_INTERVAL)) for name in evaluated or ()
        )
    if is_measured and evaluated is not None:
        measured = _of_weights(evaluated, averaged)
    dataset = asked.dataset or _dataset(recorded)
    command = shlex.join(_shortened(word) for word in shlex.split(recorded["command"]))
    recorded = {**without_places(recorded), "command": command, PUBLISHED_STEP: step}
    about = {"checkpoint": WEIGHTS, "sha256": sha256, "settings": recorded["settings"]}
    return Published(
        name=asked.name,
        recipe=_name_of_recipe(recorded, run),
        has_recipe=(run / "recipe.py").is_file(),
        recorded=recorded,
        summary=RunFolder(run).summary or {},
        step=recorded["total_steps"] if step is None else step,
        epoch=row.get("epoch"),
        averaged=averaged,
        evaluated=metrics,
        measured={name: value for name, value in measured.items() if name not in about},
        results={**without_places(measured or metrics), **about},
        dataset=dataset,
        license=asked.license,
    )


def _of_weights(row: dict[str, Any], averaged: bool) -> dict[str, Any]:
    """The metrics of the weights that are published, by their plain names."""
    if not averaged:
        return row
    mine = {name: value for name, value in row.items() if f"ema_{name}" not in row}
    return {name.removeprefix("ema_"): value for name, value in mine.items()}


def _name_of_recipe(recorded: dict[str, Any], run: Path) -> str:
    """Of its file, or of the function that `trainkit.train` was given; else of the run."""
    if recorded["recipe"] is not None:
        return Path(recorded["recipe"]).stem
    return recorded["call"]["recipe"] if "call" in recorded else run.resolve().name


def recipe_files(source: Path, run: Path, origin: str | None) -> dict[str, Path]:
    """The recipe's file and those that it imports, by their published names.

    Those lie beside its original, or are recipes that come with the package. A run from Python
    whose recipe lies in no file has none, and its model is rebuilt by model.json.

    Raises:
        UserError: neither builds the model.
    """
    if origin is None or not (run / "recipe.py").is_file():
        lacks = Source.at(source).lacks
        if lacks is not None:
            raise UserError(
                f"{run} holds no recipe.py, and {lacks}, so that nobody could build its model. Give"
                " trainkit.train a function at the top of a Python file, or train by `trainkit"
                " RECIPE`"
            )
        return {"function.py": run / "function.py"} if (run / "function.py").is_file() else {}
    files, waiting = {"recipe.py": run / "recipe.py"}, [run / "recipe.py"]
    is_ours = is_trained_here(run)
    beside_original = [] if is_published(run) else [Path(origin).parent]
    folders = [*(beside_original if is_ours else [run]), shipped("recipes")]
    while waiting:
        for node in ast.walk(_parsed(waiting.pop())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in {f"{module.split('.')[0]}.py" for module in modules} - files.keys():
                beside = next((each for each in folders if (each / name).is_file()), None)
                if beside is None and not is_ours:
                    _require_not_there(name, beside_original, run)
                if beside is not None:
                    files[name] = beside / name
                    waiting.append(beside / name)
    return files


def _require_not_there(name: str, folders: Sequence[Path], run: Path) -> None:
    """Raise UserError for a file that the run's recipe imports, from a place that it names itself.

    That may be any file of this machine, where somebody else wrote the run's folder.
    """
    found = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if found is not None:
        raise UserError(
            f"{run / 'recipe.py'} imports {found}, and nothing in your cache says that the run was"
            f" trained here, in this folder: copy that file into {run} if it is to be published too"
        )


def _parsed(file: Path) -> ast.AST:
    """The code in a file.

    Raises UserError where it is none, such as one that was cut short.
    """
    try:
        return ast.parse(file.read_bytes())
    except (
        SyntaxError,
        ValueError,
        MemoryError,
        RecursionError,
    ) as error:  # too many brackets are all of these
        reason = first_line(error)
        raise UserError(f"{file} is not Python: {reason}. Put a whole copy in its place") from error


def _dataset(recorded: dict[str, Any]) -> str | None:
    """The name on the Hub of the data, where the run read it from there."""
    settings = recorded["settings"]
    data = str(settings.get("data"))
    # Where it was read from is known where it was read: here there may be no such folder, or
    # another one.
    there = "data" in recorded["local"] if "local" in recorded else Path(data).is_dir()
    local = settings.get("sample") or data.startswith("data/") or there
    return data if HUB_NAME.fullmatch(data) and not local else None


def without_places(value: Any) -> Any:
    """A plain value with every path of this machine in it shortened to its last name.

    Such begin at a root, a home, a drive or a folder above, also inside a string.
    """
    if isinstance(value, dict):
        return {name: without_places(item) for name, item in value.items()}
    if isinstance(value, list):
        return [without_places(item) for item in value]
    return _shortened(value) if isinstance(value, str) else value


def _shortened(words: str) -> str:
    """Shorten a path, which ends where the next one begins, or with the words.

    A name may hold blanks, commas and equal signs.
    """
    return PLACE.sub(lambda place: re.split(r"[/\\]", place[0].rstrip("/\\"))[-1] or ".", words)
