"""The parts of a report that every run has: the first look, results, settings, how to repeat it."""

import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from trainkit.display.wording import counted
from trainkit.errors import UserError
from trainkit.metrics.resampling import NO_INTERVAL, SAME
from trainkit.report.curves import bare
from trainkit.report.recipe_defaults import read_defaults
from trainkit.report.run_data import RunData, metrics_of
from trainkit.report.statistics import headline_interval, headline_value
from trainkit.report.wording import number, setting, shown, span
from trainkit.storage.checked_json import is_number

UNKNOWN = object()
NAMES_OF_NETWORKS = ("model", "network", "backbone", "encoder", "decoder")


def name_of(run: RunData) -> str:
    """The name of a run: of its folder."""
    return run.folder.resolve().name


def dataset_of(run: RunData) -> str:
    """What was trained on, in a few words."""
    if run.settings.get("sample"):
        return "generated images"
    data = run.settings.get("data")
    return str(data) if data else "data of the recipe"


def network_of(run: RunData) -> str:
    """The network by its settings, else as it describes itself."""
    names = [run.settings.get(name) for name in NAMES_OF_NETWORKS]
    parts = [str(name) for name in names if name]
    return " ".join(parts) or str(run.recorded.get("model", "network"))


def subtitle(run: RunData) -> str:
    """Recipe, task, dataset and network in a line."""
    recipe = run.recorded.get("recipe")
    known = [] if recipe is None else [Path(recipe).stem]
    task = [] if run.task == "other" else [run.task]
    return " · ".join([*known, *task, dataset_of(run), network_of(run)])


def seconds_of(run: RunData) -> tuple[float, int] | None:
    """Seconds of training, over all starts, and after which step; None where nothing tells them.

    Of a run without an end they are known up to its last evaluation.
    """
    if run.summary is not None:
        return run.summary["seconds"], run.summary["steps"]
    for row in reversed(run.evaluations):
        seconds = row.get("seconds")
        if is_number(seconds):
            return seconds, row["step"]
    return None


def images_per_s(run: RunData) -> float | None:
    """Images per second over the whole run, else the median of the log's rows."""
    if run.summary is not None:
        return run.summary["images_per_s"]
    values: list[Any] = [row.get("images_per_s") for row in run.steps]
    known = [each for each in values if is_number(each)]
    return float(np.median(known)) if known else None


def interval_of(run: RunData) -> tuple[float, float] | None:
    """95 % interval of the headline metric of the best weights, where it follows from what is kept.

    From the evaluation of the best step image by image, else from `trainkit evaluate`; each only
    where it gives the same value, as it may be of another split, protocol, or weights.
    """
    headline = run.headline
    if headline is None or run.best is None:
        return None
    data = run.evaluation
    if data is not None and data.step == run.best_step:
        value = headline_value(data, bare(headline))
        if value is not None and math.isclose(value, run.best, abs_tol=1e-5):
            return headline_interval(data, bare(headline))
    measured = run.results or {}
    interval = measured.get(f"{headline}_95")
    if isinstance(interval, list) and len(interval) == 2 and measured.get(headline) == run.best:
        return tuple(interval)
    return None


def tiles(run: RunData) -> list[dict[str, Any]]:
    """What is seen first: the headline metric, best step, time, speed and cost."""
    found = []
    if run.headline is not None:
        interval = interval_of(run)
        more = f"no interval: {_why_no_interval(run)}"
        if interval is not None:
            more = f"95 % interval {shown(run.headline, list(interval))}"
        value = shown(run.headline, run.best)
        so_far = "" if run.summary is not None else " so far"
        found.append(_tile(f"best {run.headline}{so_far}", value, more, main=True))
        if run.best_step is not None:
            of = f"of {run.total_steps:,}" if run.total_steps else ""
            found.append(_tile("best step", f"{run.best_step:,}", of))
    known = seconds_of(run)
    seconds, step = (None, None) if known is None else known
    if seconds is not None:
        until = f"until step {step:,}" if step != run.last_step else f"{step:,} steps"
        found.append(_tile("time", span(seconds), until))
    speed = images_per_s(run)
    if speed is not None:
        found.append(_tile("images/s", number(speed), "over all processes"))
    if seconds is not None:
        found.append(_cost(run, seconds))
    memory = (run.summary or {}).get("peak_memory_gib")
    if memory is not None:
        found.append(_tile("peak memory", f"{memory:.1f} GiB", "of a process"))
    return found


def _why_no_interval(run: RunData) -> str:
    data, headline = run.evaluation, bare(run.headline or "")
    if data is not None and data.step == run.best_step:
        value = headline_value(data, headline)
        is_same = value is not None and headline_interval(data, headline) is None
        if is_same:
            return SAME
    return (run.results or {}).get(NO_INTERVAL, "no evaluation of it image by image")


def _tile(what: str, value: str, more: str, main: bool = False) -> dict[str, Any]:
    return {"what": what, "value": value, "more": more, "main": main}


def _cost(run: RunData, seconds: float) -> dict[str, Any]:
    """GPU-hours; of a run without a GPU hours of its processes."""
    start = run.starts[-1] if run.starts else None
    summarized = (run.summary or {}).get("num_processes", 1)
    processes = start["num_processes"] if start is not None else summarized
    hours = f"{seconds * processes / 3600:.3g}"
    if start is None:
        return _tile("cost", f"{hours} h", "hours times processes")
    if any(each["num_processes"] != processes for each in run.starts):
        each_start = ", then ".join(str(each["num_processes"]) for each in run.starts)
        return _tile("cost", "not known", f"{span(seconds)} with {each_start} processes")
    if start["device"] == "cpu":
        several = f", {processes} processes" if processes > 1 else ""
        return _tile("cost", "no GPU", f"{hours} h on the CPU{several}")
    return _tile("cost", f"{hours} GPU-h", f"{processes} × {start['device']}")


def warnings_of(run: RunData) -> list[str]:
    """What a reader of the report must know: damage, warnings of the training, skipped images."""
    found = list(run.faults)
    summary = run.summary or {}
    lines = summary.get("warnings", [])
    found += [str(line) for line in lines] if isinstance(lines, list) else []
    found += [_failure(run, report) for report in run.failures]
    if summary.get("skipped_steps"):
        skipped = counted(summary["skipped_steps"], "step")
        found.append(f"{skipped} skipped: their loss or gradient was not finite (NaN/Inf)")
    if summary.get("bad_images"):
        found.append(
            f"{counted(summary['bad_images'], 'time')} an unusable image was replaced by the next"
            " one: bad_images.txt"
        )
    if run.settings.get("sample"):
        found.append("trained on generated images (--sample): no result of any dataset")
    return found


def _failure(run: RunData, report: dict[str, Any]) -> str:
    """A step with a non-finite loss or gradient, in words."""
    losses = report.get("losses")
    parts = (
        [f"{name} {value}" for name, value in losses.items()] if isinstance(losses, dict) else []
    )
    values = ", ".join([*parts, f"gradient norm {report.get('grad_norm')}"])
    command = f"trainkit replay {shlex.quote(str(run.folder))} --step {report['step']}"
    return f"step {report['step']:,} was not finite ({values}); `{command}` runs it again"


def results(run: RunData) -> dict[str, Any] | None:
    """Metrics of the best and the last evaluation, and of `trainkit evaluate`, side by side."""
    columns: list[tuple[str, dict[str, Any]]] = []
    evaluations = run.evaluations
    best = [row for row in evaluations if row["step"] == run.best_step]
    if best and best[-1]["step"] != evaluations[-1]["step"]:
        columns.append((f"best, step {best[-1]['step']:,}", best[-1]))
    if evaluations:
        word = "last and best" if best and best[-1] is evaluations[-1] else "last"
        columns.append((f"{word}, step {evaluations[-1]['step']:,}", evaluations[-1]))
    if run.results is not None:
        columns.append(("trainkit evaluate", run.results))
    if not columns:
        return None
    names = list(dict.fromkeys(name for _, row in columns for name in metrics_of(row)))
    rows = [(name, [_cell(name, row) for _, row in columns]) for name in names]
    notes = []
    for head, row in columns:
        how = [str(row[name]) for name in ("split", "protocol") if row.get(name)]
        count = row.get("num_images")
        how += [f"{count:,} images"] if isinstance(count, int) else []
        notes.append(f"{head}: {'; '.join(how)}." if how else "")
    # one line where all were measured alike
    alike = {note.partition(": ")[2] for note in notes}
    if len(alike) == 1:
        notes = [notes[0].partition(": ")[2]]
    return {"heads": [head for head, _ in columns], "rows": rows, "notes": [*filter(None, notes)]}


def _cell(name: str, row: dict[str, Any]) -> str:
    if name not in row:
        return ""
    interval = row.get(f"{name}_95")
    value = shown(name, row[name])
    return f"{value} ({shown(name, interval)})" if isinstance(interval, list) else value


def defaults_of(run: RunData) -> dict[str, Any]:
    """The defaults of the run's own recipe.py; empty where they cannot be read."""
    if not (run.folder / "recipe.py").is_file():
        return {}
    origin = run.recorded.get("recipe")
    beside = Path(origin).parent if isinstance(origin, str) else None
    try:
        return read_defaults(run.folder / "recipe.py", beside)
    except UserError as error:
        run.faults.append(str(error))
        return {}


def settings(run: RunData) -> dict[str, Any]:
    """The settings, those that differ from the recipe's defaults first."""
    defaults = defaults_of(run)
    rows: list[dict[str, Any]] = []
    for name, value in run.settings.items():
        default = defaults.get(name, UNKNOWN)
        rows.append(
            {
                "name": name,
                "value": setting(value),
                "default": "" if default is UNKNOWN else setting(default),
                "changed": default is not UNKNOWN and default != value,
            }
        )
    changed = sum(bool(row["changed"]) for row in rows)
    rows.sort(key=lambda row: not row["changed"])
    note = "The defaults of the recipe are not known: the run's folder has no recipe.py."
    if defaults:
        note = (
            f"{changed} of {len(rows)} differ from the recipe's defaults, and come first."
            if changed
            else "All are the recipe's defaults."
        )
    options = run.recorded.get("options", {})
    return {
        "note": note,
        "rows": rows,
        "options": [(name, setting(value)) for name, value in options.items()],
    }


def repeat(run: RunData) -> dict[str, Any]:
    """The commands that train and evaluate it again, machine, versions and code."""
    recorded, start = run.recorded, run.starts[-1] if run.starts else None
    machine: dict[str, Any] = {}
    if start is not None:
        about = start["machine"]
        machine["device"] = f"{start['num_processes']} × {start['device']}"
        machine["precision"] = start["precision"].replace("no", "fp32")
        machine["processor"] = f"{about.get('processor')}, {about.get('cores')} cores"
        machine["memory"] = f"{about.get('memory_gib')} GiB"
        machine["system"] = about.get("system")
    elif run.summary is not None:
        machine["processes"] = run.summary["num_processes"]
    machine["seed"] = recorded.get("seed")
    versions = recorded.get("versions")
    machine |= versions if isinstance(versions, dict) else {}
    commit = recorded.get("git_commit")
    changed = ", with changes" if recorded.get("git_changed") else ""
    machine["git commit"] = f"{commit}{changed}" if commit else "none"
    diff = recorded.get("git_diff_stat")
    return {
        "train": train_command(run),
        "evaluate": f"trainkit evaluate {shlex.quote(str(run.folder))}",
        "machine": [(name, setting(value)) for name, value in machine.items()],
        "diff": _unindented(diff) if isinstance(diff, str) else None,
        "starts": run.starts if len(run.starts) > 1 else [],
    }


def _unindented(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines())


def train_command(run: RunData) -> str:
    """The command that trains the same run."""
    command = run.recorded.get("command")
    if not isinstance(command, str):
        return "not recorded"
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    processes = run.starts[-1]["num_processes"] if run.starts else 1
    if words[:1] and words[0] in ("__main__.py", "trainkit"):
        program = ["trainkit"]
        if processes > 1:
            program = ["accelerate", "launch", "--num_processes", str(processes), "-m", "trainkit"]
        words = [*program, *words[1:]]
    return shlex.join(words)
