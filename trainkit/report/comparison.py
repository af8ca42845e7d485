"""What differs between runs, or between a run and a recipe: settings, code, data, results."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from trainkit.errors import UserError
from trainkit.report.curves import bare
from trainkit.report.overview import (
    dataset_of,
    images_per_s,
    interval_of,
    name_of,
    network_of,
    seconds_of,
)
from trainkit.report.recipe_defaults import read_defaults
from trainkit.report.run_data import RunData, metrics_of, read_run
from trainkit.report.statistics import Difference, ImagesDiffer, paired_difference
from trainkit.report.wording import number, setting, shown, span

MISSING = "not there"
DATA = ("num_images", "classes", "label_values", "train_data", "drop_last", "input")
MOST_LINES = 400  # of a difference of code


@dataclass
class Subject:
    """What is compared: a run, or a recipe with its defaults.

    Attributes:
        name: that tells it from the others.
        run: None for a recipe.
        settings: of the run, or the recipe's defaults.
        code: of the recipe; None where the run has none.
    """

    name: str
    run: RunData | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    code: str | None = None


class Row(NamedTuple):
    """A line of a table: a name, and what each subject has."""

    name: str
    values: list[str]


class Verdict(NamedTuple):
    """The headline metric of one run less that of the first."""

    name: str
    text: str
    kind: str
    """better, worse, noise, or unknown"""


@dataclass
class Comparison:
    """What differs; tables have a column for each subject.

    Attributes:
        names: of the subjects.
        colors: numbers of the colours of their curves; None for a recipe.
        settings: that differ.
        data: fingerprints of the data that differ.
        versions: of packages, and commits, that differ.
        results: of all runs.
        verdicts: whether differences of the headline metric are within noise, against the first.
        code: differences of the recipes' code against the first, by name; empty for none.
        notes: what could not be compared.
    """

    names: list[str]
    colors: list[int | None]
    settings: list[Row] = field(default_factory=list)
    data: list[Row] = field(default_factory=list)
    versions: list[Row] = field(default_factory=list)
    results: list[Row] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    code: list[tuple[str, list[str]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def subject_of_run(folder: Path) -> Subject:
    """A run to compare.

    Raises:
        MissingFileError, UserError: it is none, or its settings are damaged.
    """
    run = read_run(folder)
    file = folder / "recipe.py"
    code = file.read_text(errors="replace") if file.is_file() else None
    return Subject(name_of(run), run, run.settings, code)


def subject_of_recipe(file: Path) -> Subject:
    """A recipe to compare, with its defaults, which are read from its code.

    Raises:
        UserError: it cannot be read, or is not Python.
    """
    defaults = read_defaults(file)
    return Subject(file.name, None, defaults, file.read_text(errors="replace"))


def named_apart(subjects: Sequence[Subject]) -> None:
    """Give subjects of one name the folder above theirs, then numbers."""
    for subject in subjects:
        alike = [other for other in subjects if other.name == subject.name]
        if len(alike) > 1:
            for position, other in enumerate(alike, 1):
                above = other.run.folder.resolve().parent.name if other.run is not None else ""
                other.name = f"{above}/{other.name}" if above else f"{other.name} ({position})"
    seen: dict[str, int] = {}
    for subject in subjects:
        seen[subject.name] = seen.get(subject.name, 0) + 1
        if seen[subject.name] > 1:
            subject.name = f"{subject.name} ({seen[subject.name]})"


def compare(subjects: Sequence[Subject]) -> Comparison:
    """What differs between two or more runs or recipes.

    Raises:
        UserError: there are fewer than two.
    """
    if len(subjects) < 2:
        raise UserError("a comparison takes two runs or more: trainkit report RUN RUN")
    named_apart(subjects)
    numbers = iter(range(len(subjects)))
    colors = [None if subject.run is None else next(numbers) % 8 for subject in subjects]
    found = Comparison([subject.name for subject in subjects], colors)
    found.settings = _differing([subject.settings for subject in subjects])
    runs = [subject.run for subject in subjects if subject.run is not None]
    if len(runs) == len(subjects):
        found.data = _differing([_data(run) for run in runs])
        found.versions = _differing([_versions(run) for run in runs])
    elif runs:
        found.notes.append("A recipe has no data, versions and results to compare.")
    found.results = _results(subjects)
    found.verdicts = _verdicts(subjects)
    for subject in subjects[1:]:
        found.code += _code(subjects[0], subject)
    for run in runs:
        found.notes += [f"{name_of(run)}: {fault}" for fault in run.faults]
    return found


def _differing(values: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Names whose values are not the same everywhere."""
    names = dict.fromkeys(name for each in values for name in each)
    rows = []
    for name in names:
        found = [each.get(name, MISSING) for each in values]
        if any(value != found[0] for value in found[1:]):
            rows.append(Row(name, [_short(value) for value in found]))
    return rows


def _short(value: Any) -> str:
    text = value if value is MISSING else setting(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _data(run: RunData) -> dict[str, Any]:
    """What is known of the data: names, numbers and hashes."""
    found = {name: run.recorded[name] for name in DATA if name in run.recorded}
    sizes = (run.summary or {}).get("data")
    if isinstance(sizes, dict):
        found |= {f"{split} images": value for split, value in sizes.items()}
    if run.evaluation is not None:
        found["validation images"] = run.evaluation.num_images
    return {"dataset": dataset_of(run), **found}


def _versions(run: RunData) -> dict[str, Any]:
    versions = run.recorded.get("versions")
    found = dict(versions) if isinstance(versions, dict) else {}
    found["seed"] = run.recorded.get("seed")
    found["git commit"] = run.recorded.get("git_commit")
    found["changed since that commit"] = run.recorded.get("git_changed")
    if run.starts:
        start = run.starts[-1]
        found["device"] = f"{start['num_processes']} × {start['device']}"
        found["precision"] = start["precision"]
        found["processor"] = start["machine"].get("processor")
    return found


def _results(subjects: Sequence[Subject]) -> list[Row]:
    """Metrics of the best weights of each run, with the interval of the headline, and its cost."""
    runs = [subject.run for subject in subjects]
    if not any(runs):
        return []
    best = [_best_row(run) for run in runs]
    names = list(dict.fromkeys(name for row in best for name in metrics_of(row)))
    headlines = list(dict.fromkeys(run.headline for run in runs if run and run.headline))
    names = [*(name for name in headlines if name in names), *names]
    rows = []
    for name in dict.fromkeys(names):
        cells = []
        for run, row in zip(runs, best):
            text = shown(name, row[name]) if name in row else ""
            interval = interval_of(run) if run is not None and name == run.headline else None
            if interval is not None:
                text += f" ({shown(name, list(interval))})"
            cells.append(text)
        rows.append(Row(name, cells))

    def add(name: str, values: list[str]) -> None:
        if any(values):
            rows.append(Row(name, values))

    add("network", [network_of(run) if run else "" for run in runs])
    add("best step", [number(run.best_step) if run and run.best_step else "" for run in runs])
    times = [seconds_of(run) if run else None for run in runs]
    add("time", [span(known[0]) if known is not None else "" for known in times])
    speeds = [images_per_s(run) if run else None for run in runs]
    add("images/s", [number(speed) if speed is not None else "" for speed in speeds])
    add("ended", [run.ending[1] if run else "" for run in runs])
    return rows


def _best_row(run: RunData | None) -> dict[str, Any]:
    """The log's row of the best weights, else of the last evaluation; empty for none."""
    if run is None or not run.evaluations:
        return {}
    best = [row for row in run.evaluations if row["step"] == run.best_step]
    return best[-1] if best else run.evaluations[-1]


def _verdicts(subjects: Sequence[Subject]) -> list[Verdict]:
    """The paired bootstrap of each run against the first."""
    runs = [subject for subject in subjects if subject.run is not None]
    return [_verdict(runs[0], other) for other in runs[1:]]


def _verdict(first: Subject, other: Subject) -> Verdict:
    one, two = first.run, other.run
    assert one is not None and two is not None  # recipes have no results
    names = f"{other.name} against {first.name}"
    if one.evaluation is None or two.evaluation is None:
        lacks = first.name if one.evaluation is None else other.name
        return Verdict(
            names,
            f"not compared image by image: {lacks} has no evaluations/ that can be read"
            " (trainkit evaluate writes them)",
            "unknown",
        )
    headline = bare(one.headline or "")
    if bare(two.headline or "") != headline:
        return Verdict(
            names, f"not compared: the headline is {headline}, and {two.headline}", "unknown"
        )
    try:
        found = paired_difference(one.evaluation, two.evaluation, headline)
    except ImagesDiffer as error:
        return Verdict(
            names,
            f"refused: they were not measured on the same validation images ({error}), and a"
            " paired bootstrap takes the same images of both",
            "unknown",
        )
    if found is None:
        return Verdict(
            names, f"no paired bootstrap: {headline} does not follow from counts of each image",
            "unknown",
        )  # fmt: skip
    return Verdict(names, _said(headline, found) + _unlike(first, other), _kind(found))


def _said(headline: str, found: Difference) -> str:
    low, high = (_signed(headline, each) for each in (found.low, found.high))
    text = f"{headline} {_signed(headline, found.value)}, 95 % interval {low} to {high}"
    if found.within_noise:
        return f"{text}: within noise (paired bootstrap over the same validation images)"
    return f"{text}: more than noise (paired bootstrap over the same validation images)"


def _unlike(first: Subject, other: Subject) -> str:
    """How two runs were measured, as the end of a sentence; empty where they were alike."""
    ways = []
    for subject in (first, other):
        assert subject.run is not None and subject.run.evaluation is not None  # they are compared
        ways.append((subject.name, subject.run.evaluation.about.get("protocol")))
    (one, way), (two, other_way) = ways
    if way == other_way:
        return ""
    return f"; not by the weights alone: {one} was measured by {way}, {two} by {other_way}"


def _signed(name: str, value: float) -> str:
    text = shown(name, float(value))
    return text if value < 0 else f"+{text}"


def _kind(found: Difference) -> str:
    """Of a share or an IoU, which alone are compared: more is better."""
    if found.within_noise:
        return "noise"
    return "better" if found.value > 0 else "worse"


def _code(first: Subject, other: Subject) -> list[tuple[str, list[str]]]:
    """The unified difference of two recipes' code; nothing where they are the same."""
    if first.code is None or other.code is None or first.code == other.code:
        return []
    lines = list(
        difflib.unified_diff(
            first.code.splitlines(), other.code.splitlines(), first.name, other.name, lineterm=""
        )
    )
    if len(lines) > MOST_LINES:
        rest = len(lines) - MOST_LINES
        lines = [*lines[:MOST_LINES], f"... and {rest} more lines"]
    return [(f"{first.name} and {other.name}", lines)]
