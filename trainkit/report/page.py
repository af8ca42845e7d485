"""Writes a report: one HTML file with all it needs, that asks for nothing from the network.

The curves are drawn by report.js, some 400 lines of our own, and not by a charting library: within
each page bokeh 3.9's script takes 1.27 MB, plotly 7.1's 4.82 MB and uPlot's 120 kB, where a whole
report without images takes 50 kB. uPlot lacks smoothing, touch and themes, its package for Python
is one person's, and an extra would leave those without it with less. SVG is drawn in the page, and
not here, because log scale, zoom and smoothing need the points there anyway.
"""

import functools
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined, Template
from markupsafe import Markup

from trainkit import __version__
from trainkit.errors import UserError
from trainkit.files import replace_file
from trainkit.report import class_results, overview
from trainkit.report.comparison import Subject, compare
from trainkit.report.curves import curves
from trainkit.report.images import pictures
from trainkit.report.run_data import RunData, read_run

NAME = "report.html"
LEGEND = 60  # classes that are named beside pictures; the table of classes has all
TEMPLATES = ("report.html.j2", "comparison.html.j2")
MARKS = {
    "best": "best weights",
    "resume": "resumed",
    "skip": "skipped steps",
    "failure": "non-finite (NaN/Inf)",
    "stop": "stopped",
}


def write_report(folder: Path, out: Path | None = None, under_way: bool | None = None) -> Path:
    """Write the report of a run.

    Args:
        folder: of the run.
        out: the file; None: report.html in the run's folder.
        under_way: see `read_run`.

    Returns:
        The file.

    Raises:
        MissingFileError: it is no run.
        UserError: settings.json is damaged.
        OSError: the file cannot be written.
    """
    out = out or folder / NAME
    replace_file(out, render(read_run(folder, under_way)))
    return out


def report_or_reason(folder: Path, under_way: bool | None = None) -> str:
    """Write the report of a run where it must not disturb what it comes after.

    Returns:
        A line to show: where the report is, or why there is none.
    """
    try:
        return f"report: {write_report(folder, under_way=under_way)}"
    except Exception as error:  # whatever it is, the training or the evaluation is done
        kind = "" if isinstance(error, (UserError, OSError)) else f"{type(error).__name__}: "
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        # in one line, also where the folder's name has a line break
        return " ".join(f"warning: {folder / NAME} was not written: {kind}{why}".split())


def render(run: RunData) -> bytes:
    """The report of a run as HTML."""
    context = {
        "title": overview.name_of(run),
        "subtitle": overview.subtitle(run),
        "ending": run.ending,
        "tiles": overview.tiles(run),
        "results": overview.results(run),
        "settings": overview.settings(run),
        "repeat": overview.repeat(run),
        "comparison": None,
        **_classes(run),
        "pictures": pictures(run),
        "legend": _legend(run),
    }
    context["warnings"] = overview.warnings_of(run)  # the last: reading may find more
    context["left_out"] = _left_out(context)
    return rendered([run], [overview.name_of(run)], context)


def render_comparison(subjects: Sequence[Subject]) -> bytes:
    """Two or more runs, or runs and recipes, as HTML.

    Raises:
        UserError: there are fewer than two.
    """
    comparison = compare(subjects)
    runs = [(subject.run, subject.name) for subject in subjects if subject.run is not None]
    empty = ("ending", "results", "settings", "repeat", "classes", "confusion", "calibration")
    context: dict[str, Any] = {
        "title": ", ".join(comparison.names),
        "subtitle": "a comparison",
        "tiles": [],
        "comparison": comparison,
        "pictures": None,
        "legend": [],
        "warnings": [],
        "left_out": [],
        **dict.fromkeys(empty),
    }
    return rendered([run for run, _ in runs], [name for _, name in runs], context)


@functools.cache  # compiling it takes longer than writing most reports
def template() -> Template:
    """The page, with places for what `render` finds."""
    environment = Environment(
        loader=DictLoader({name: _part(name) for name in TEMPLATES}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _part(name: str) -> str:
    """A file beside this one, which is UTF-8 whatever the locale's encoding is."""
    return files("trainkit.report").joinpath(name).read_text(encoding="utf-8")


def rendered(runs: Sequence[RunData], names: Sequence[str], context: dict[str, Any]) -> bytes:
    """A page with the curves of runs and what else `context` has for the template."""
    drawn = curves(runs, names)
    kinds = {mark["kind"] for run in drawn["runs"] for mark in run["marks"]}
    confusion = context["confusion"]
    if confusion and confusion["matrix"]:
        confusion["matrix"] = Markup(class_results.as_json(confusion["matrix"]))
    text = template().render(
        **context,
        has_curves=bool(drawn["charts"]),
        is_thinned=any(
            "mean_x" in series for chart in drawn["charts"] for series in chart["series"]
        ),
        mark_kinds=[(kind, name) for kind, name in MARKS.items() if kind in kinds],
        sections=_sections(context),
        curve_data=Markup(class_results.as_json(drawn)),
        css=Markup(_part("report.css")),
        script=Markup(_part("report.js")),
        version=__version__,
        written=datetime.now(UTC).isoformat(" ", "minutes")[:16],
    )
    # names of files need not be UTF-8
    return text.encode("utf-8", "backslashreplace")


def _classes(run: RunData) -> dict[str, Any]:
    """The sections about classes, None where the run has nothing for them."""
    found: dict[str, Any] = {"classes": None, "confusion": None, "calibration": None}
    evaluated = class_results.class_evaluation(run)
    if evaluated is not None:
        names, matrix, palette, where = evaluated
        found["classes"] = class_results.classes(names, matrix, palette, run.task, where)
        found["confusion"] = class_results.confusion(names, matrix, run.task)
    found["classes"] = found["classes"] or class_results.of_labels(run)
    found["classes"] = found["classes"] or class_results.of_masks(run)
    if run.evaluation is not None:
        found["calibration"] = class_results.calibration(run.evaluation)
    return found


def _legend(run: RunData) -> list[tuple[str, str]]:
    """Names and colours of the classes of masks."""
    data = run.evaluation
    if data is None or data.task != "segmentation":
        return []
    return list(zip(data.class_names, data.palette))[:LEGEND]


def _sections(context: dict[str, Any]) -> list[tuple[str, str]]:
    """Anchors and names of the sections that the page has."""
    found = [("comparison", "Comparison")] if context["comparison"] else []
    found.append(("curves", "Curves"))
    for name, anchor, title in (
        ("results", "results", "Results"),
        ("classes", "classes", "Classes"),
        ("confusion", "confusions", "Confusion"),
        ("calibration", "calibration", "Calibration"),
        ("pictures", "images", "Images"),
        ("settings", "settings", "Settings"),
        ("repeat", "again", "To do it again"),
    ):
        if context[name]:
            found.append((anchor, title))
    return found


def _left_out(context: dict[str, Any]) -> list[str]:
    """Names of sections that the run's folder has nothing for."""
    names = {"results": "results of an evaluation", "classes": "classes and confusions"}
    names["pictures"] = "images"
    return [name for key, name in names.items() if not context[key]]
