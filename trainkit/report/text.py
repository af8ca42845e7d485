"""A report on the terminal: what a run did, or what differs between runs, in plain lines."""

from collections.abc import Sequence

from trainkit.report import overview
from trainkit.report.comparison import Comparison, Row
from trainkit.report.run_data import RunData

WIDEST = 44  # characters of a column


def run_text(run: RunData) -> list[str]:
    """Lines about one run."""
    lines = [overview.name_of(run), overview.subtitle(run), run.ending[1], ""]
    for tile in overview.tiles(run):
        more = f" ({tile['more']})" if tile["more"] else ""
        lines.append(f"{tile['what']}: {tile['value']}{more}")
    found = overview.results(run)
    if found is not None:
        rows = [Row(name, values) for name, values in found["rows"]]
        lines += ["", *table("metric", found["heads"], rows), *found["notes"]]
    settings = overview.settings(run)
    changed = [row for row in settings["rows"] if row["changed"]]
    rows = [Row(row["name"], [row["value"], row["default"]]) for row in changed]
    lines += ["", settings["note"]]
    lines += table("setting", ["value", "default"], rows) if rows else []
    lines += ["", f"again: {overview.train_command(run)}"]
    return [*lines, *(f"note: {line}" for line in overview.warnings_of(run))]


def comparison_text(found: Comparison) -> list[str]:
    """Lines about what differs."""
    lines: list[str] = []
    for title, what, rows in (
        ("Results of the best weights", "metric", found.results),
        ("Settings that differ", "setting", found.settings),
        ("Data that differ", "of the data", found.data),
        ("Versions and machines that differ", "version", found.versions),
    ):
        if rows:
            lines += [title, *table(what, found.names, rows), ""]
        elif what == "setting":
            lines += ["Settings: no difference", ""]
    for verdict in found.verdicts:
        lines += [f"{verdict.name}: {verdict.text}", ""]
    if not found.code:
        lines.append("Code of the recipes: no difference")
    for name, difference in found.code:
        lines += [f"Code of the recipes, {name}", *difference]
    return [*lines, *found.notes]


def table(what: str, heads: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Rows in columns, each as wide as its longest value, up to 44 characters."""
    cells = [[what, *heads], *([row.name, *row.values] for row in rows)]
    cells = [[_cut(" ".join(cell.split())) for cell in row] for row in cells]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in cells
    ]


def _cut(text: str) -> str:
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 3]}..."
