"""trainkit report: what a run did, or what differs between runs, in one HTML file or as text."""

import re
from pathlib import Path

from trainkit.commands.arguments import read_options
from trainkit.commands.recipe_names import find_recipe
from trainkit.display.terminal import Display
from trainkit.distributed.launcher import rank
from trainkit.errors import MissingFileError, UserError
from trainkit.files import replace_file
from trainkit.options import ReportOptions
from trainkit.report.comparison import (
    Subject,
    compare,
    subject_of_recipe,
    subject_of_run,
)
from trainkit.report.page import render_comparison, write_report
from trainkit.report.run_data import read_run
from trainkit.report.text import comparison_text, run_text
from trainkit.storage.recorded import is_run


def run(first: str, words: list[str]) -> int:
    """Write the report of a run, or compare several; the exit code."""
    asked = read_options("report", f"trainkit report {first}", words)
    if rank() != 0:
        return 0
    display = Display()
    if asked.text and asked.out is not None:
        raise UserError("--text prints and writes no file: leave out --out, or --text")
    if asked.plots and (asked.text or asked.others):
        raise UserError("--plots draws pictures of one run: leave out --text and other runs")
    if asked.others:
        _compare([Path(word) for word in (first, *asked.others)], asked, display)
    elif asked.text:
        for line in run_text(read_run(Path(first))):
            display.note(line)
    else:
        _say(write_report(Path(first), asked.out), display)
        if asked.plots:
            from trainkit.report.plots import write_plots  # matplotlib, an extra

            for file in write_plots(read_run(Path(first))):
                display.note(str(file))
    return 0


def _compare(paths: list[Path], asked: ReportOptions, display: Display) -> None:
    """Print what differs, or write it as HTML."""
    subjects = [_subject(path) for path in paths]
    if asked.text:
        for line in comparison_text(compare(subjects)):
            display.note(line)
        return
    content = render_comparison(subjects)
    names = "-".join(re.sub(r"[^\w.]+", "-", subject.name) for subject in subjects)
    out = asked.out or Path(f"report-{names[:100]}.html")
    replace_file(out, content)
    _say(out, display)


def _subject(path: Path) -> Subject:
    """The run that a word names, else the recipe: a file, or a name.

    Raises:
        MissingFileError: there is neither.
        UserError: it is damaged.
    """
    if is_run(path):
        return subject_of_run(path)
    recipe = find_recipe(str(path))
    if not recipe.is_file():
        raise MissingFileError(
            f"{path} is neither a run nor a recipe: give the folder that a training wrote, or a"
            " Python file with a function recipe(...)"
        )
    return subject_of_recipe(recipe)


def _say(file: Path, display: Display) -> None:
    display.note(f"{file}: {file.stat().st_size:,} bytes; open it in a browser")
