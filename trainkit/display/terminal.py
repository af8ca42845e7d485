"""What people see, by rich: a live bar in a terminal or a notebook, plain lines elsewhere.

Only the main process shows it.
"""

import multiprocessing
import re
import sys
import textwrap
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from trainkit.display.notebook import NotebookProgress
from trainkit.display.result_tables import ResultTables
from trainkit.display.streams import columns, lasting
from trainkit.display.training_line import TrainingLine
from trainkit.distributed.launcher import rank

Batch = TypeVar("Batch", bound=Sequence)

REFRESH_S = 0.2
LINE_S = 10.0  # between two lines where there is no bar
WORD = 24  # columns; a longer word of a table may be broken
COMMAND = re.compile(r"([\w ]+: | *)(trainkit|accelerate launch) ")  # a line that is copied


class Display:
    """Shows the progress and results of a command; nothing where `active` is false.

    Args:
        active: whether this process shows anything.
        console: where it writes; None for standard output.
    """

    def __init__(self, active: bool = True, console: Console | None = None):
        self.active = active
        self.console = console or _console(sys.stdout)
        self._bar: Progress | None = None
        self._shown = 0.0
        self._row_shown = 0.0
        self._line: TrainingLine | None = None
        self._row: Mapping[str, Any] | None = None
        self._notes: Sequence[str] = ()

    def note(self, text: str) -> None:
        """Show a line of text: whole, but where a terminal would break it within a word."""
        if self.active and self.is_notebook:
            sys.stdout.write(f"{text}\n")  # the cell wraps it
        elif self.active:
            self.console.print(
                _wrapped(text, self.console), markup=False, highlight=False, soft_wrap=True
            )

    @property
    def is_notebook(self) -> bool:
        """Whether it shows things in the output of a notebook's cell."""
        return self.console.is_jupyter

    @property
    def is_live(self) -> bool:
        """Whether it shows bars and large tables, and not lines alone."""
        return self.active and (self.console.is_terminal or self.is_notebook)

    @property
    def _bars(self) -> type[Progress]:
        return NotebookProgress if self.is_notebook else Progress

    def start(self, total_steps: int, step: int, steps_per_epoch: int) -> None:
        """Show the bar of a training, where there is a terminal to show it in.

        Args:
            total_steps: steps of the whole run.
            step: steps done so far.
            steps_per_epoch: steps of one epoch.
        """
        self._line = TrainingLine(total_steps, step)
        self._steps_per_epoch = steps_per_epoch
        if not self.is_live:
            return
        # No refreshing thread: the loop calls `advance`, and forked workers inherit no lock.
        self._bar = self._bars(_Line(self), console=self.console, auto_refresh=False, expand=True)
        self._bar.add_task("", total=total_steps, completed=step)
        self._bar.start()

    def advance(self, step: int) -> None:
        """Move the bar, a few times a second at most."""
        if (
            self._bar is not None
            and self._line is not None
            and time.monotonic() - self._shown > REFRESH_S
        ):
            self._shown = time.monotonic()
            self._line.advance(step)
            self._bar.update(self._bar.task_ids[0], completed=step, refresh=True)

    def row(self, row: Mapping[str, Any], notes: Sequence[str] = ()) -> None:
        """Show a row of the log: in the bar, or as a plain line.

        Args:
            row: of a step.
            notes: further parts of the line, such as the best result so far.
        """
        if not self.active or self._line is None:
            return
        self._line.advance(row["step"])
        self._row, self._notes = row, notes
        if self._bar is not None:
            # drawing takes 0.6 ms; a row that is not drawn here is drawn by the next `advance`
            now = time.monotonic()
            is_due = now - self._row_shown > REFRESH_S
            self._row_shown = now if is_due else self._row_shown
            self._bar.update(self._bar.task_ids[0], completed=row["step"], refresh=is_due)
        else:
            self.note(self._line.plain(row, notes))

    def training_line(self) -> Text:
        """The line of the training as it is now, as wide as the screen."""
        if self._line is None:
            return Text()
        epoch = self._line.step / self._steps_per_epoch
        return self._line.fitted(self._row, epoch, self._notes, self.console.width)

    def results(
        self,
        title: str,
        results: Mapping[str, Any],
        best: bool,
        percent: Collection[str] = (),
        per_class: Collection[str] = (),
    ) -> None:
        """Show a table of an evaluation's metrics, those of each class below their mean.

        With a confusion matrix among the results a row for each class follows, then the matrix, as
        a table where the screen is wide enough and else row by row, and the most frequent
        confusions. Intervals ("_95") and results of EMA weights ("ema_") are formatted as what they
        are of.

        Args:
            title: stands above the table.
            results: metrics by name, as in results.json.
            best: whether these results are the best of the run so far.
            percent: names of results that are fractions, shown as percent; others are plain numbers
                of four digits.
            per_class: names of results with a value for each class.
        """
        if self.active:
            ResultTables(self).show(title, results, best, percent, per_class)

    def table(self, title: str, rows: Mapping[str, Any]) -> None:
        """Show names and values, one a line."""
        if not self.active:
            return
        table = Table(title=title, title_justify="left", show_header=False)
        table.add_column(no_wrap=True)
        for name, value in rows.items():
            form = ",.4g" if isinstance(value, float) else "," if isinstance(value, int) else ""
            shown = format(value, form) if form else str(value)
            table.add_row(name, shown)
        self.console.print(table)

    def grid(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Show a table with a head; numbers are aligned to the right."""
        if not self.active:
            return
        rows = list(rows)
        table = Table(title=title, title_justify="left")
        for place, column in enumerate(columns):
            numbers = any(isinstance(row[place], (int, float)) for row in rows)
            # rich breaks words of a column that is narrower than they are
            cells = [column, *(_cell(row[place]) for row in rows)]
            longest = max(cell_len(word) for cell in cells for word in [*cell.split(), ""])
            table.add_column(
                column,
                justify="right" if numbers else "left",
                min_width=min(longest, WORD),
                overflow="fold",
            )
        for row in rows:
            table.add_row(*(escape(_cell(cell)) for cell in row))
        self.console.print(table)

    def track(self, batches: Iterable[Batch], total: int, what: str) -> Iterator[Batch]:
        """Pass batches on, and show how many of `total` items have come.

        Args:
            batches: what is passed on; the length of a batch is its number of items.
            total: number of items in all.
            what: what the items are, for the line.
        """
        bar = self._counting(what, total) if self.is_live else None
        shown, done = time.monotonic(), 0
        try:
            for batch in batches:
                yield batch
                done += len(batch)
                if time.monotonic() - shown > (REFRESH_S if bar is not None else LINE_S):
                    shown = time.monotonic()
                    if bar is not None:
                        bar.update(bar.task_ids[0], completed=done, refresh=True)
                    else:
                        self.note(f"{what}: {done} of {total}")
        finally:
            if bar is not None:
                bar.update(bar.task_ids[0], completed=done, refresh=True)
                bar.stop()

    @contextmanager
    def progress(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Yield a function that takes (done, total), for work that may take more than a moment.

        Args:
            what: what is done, for the line.
        """
        bar, shown = None, time.monotonic()
        live = self.is_live

        def tell(done: int, total: int) -> None:
            nonlocal bar, shown
            if time.monotonic() - shown > (REFRESH_S if live else LINE_S):
                shown = time.monotonic()
                if live:
                    bar = bar or self._counting(what, total)
                    bar.update(bar.task_ids[0], completed=done, refresh=True)
                else:
                    self.note(f"{what}: {done} of {total}")

        try:
            yield tell
        finally:
            if bar is not None:
                bar.stop()

    def _counting(self, what: str, total: int) -> Progress:
        """Make a bar; without a thread that refreshes it, as workers are forked meanwhile."""
        columns = (
            TextColumn(what),
            BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total}"),
        )
        bar = self._bars(
            *columns, TimeRemainingColumn(), console=self.console, auto_refresh=False, expand=True
        )
        bar.add_task("", total=total)
        bar.start()
        return bar

    @staticmethod
    def curve(values: Sequence[float]) -> str:
        """Draw values as a line of blocks, from 0 to the largest."""
        top = max(values) or 1.0
        return (
            "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * value / top))] for value in values)
            + f"  (largest: {top:.3g})"
        )

    def stop(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.stop()
            self._bar = None


class _Line(ProgressColumn):
    """The whole bar of a training."""

    def __init__(self, display: Display):
        super().__init__()
        self._display = display

    def render(self, task: Task) -> Text:
        """See `Display.training_line`."""
        return self._display.training_line()


def is_interactive() -> bool:
    """Whether a person types the code, in a notebook or at a prompt, and not a file is run.

    A process that such a program has started is another's, which ends by itself.
    """
    return _is_typed() and multiprocessing.parent_process() is None


def _is_typed() -> bool:
    ipython = sys.modules.get("IPython")
    return hasattr(sys, "ps1") or (ipython is not None and ipython.get_ipython() is not None)


def of_launcher() -> Display:
    """Make a display in the first of the launcher's processes, before they are connected."""
    return Display(rank() == 0)


def error(text: str) -> None:
    """Write one message to standard error."""
    console = _console(sys.stderr)
    console.print(
        _wrapped(text, console), style="red", markup=False, highlight=False, soft_wrap=True
    )


def _console(stream: TextIO | None) -> Console:
    """Make a console on `stream`, whose reader may disappear.

    None, a stream that was closed before the start, shows nothing. In a process that a notebook has
    started, such as by `notebook_launcher`, it writes lines: a cell takes nothing else from there.
    """
    is_child = _is_typed() and not is_interactive()
    plain = False if is_child else None  # None: as rich finds it
    return Console(
        file=None if stream is None else lasting(stream),
        width=columns(),
        quiet=stream is None,
        force_jupyter=plain,
        force_terminal=plain,
    )


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _wrapped(text: str, console: Console) -> str:
    """Text as wide as a terminal, broken between words; commands, paths and files stay whole."""
    if not console.is_terminal:
        return text
    lines = [
        line
        if COMMAND.match(line)
        else textwrap.fill(line, console.width, break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n")
    ]
    return "\n".join(lines)
