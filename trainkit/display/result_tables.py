"""Results of an evaluation on the terminal: metrics, classes, and the confusion matrix."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from trainkit.display.terminal import Display

# shown of an evaluation: rows, rows of more classes than that, pairs
ALL_CLASSES, FEW_CLASSES, CONFUSED = 200, 20, 5
MATRIX_CELL = 4  # columns of the screen


class ResultTables:
    """Shows results on a display: tables on a terminal, plain lines elsewhere."""

    def __init__(self, display: "Display"):
        self.display = display

    def show(
        self,
        title: str,
        results: Mapping[str, Any],
        best: bool,
        percent: Collection[str],
        per_class: Collection[str],
    ) -> None:
        """See `Display.results`."""
        form = {name: partial(in_words, name, percent=percent) for name in results}
        shown = {
            name: form[name](value)
            for name, value in results.items()
            if isinstance(value, (int, float, str))
        }
        shown |= {
            name: " to ".join(map(form[name], value))
            for name, value in results.items()
            if name.endswith("_95") and value
        }
        if not self.display.is_live:
            self.display.note(
                f"{title}  " + "  ".join(f"{name} {value}" for name, value in shown.items())
            )
            self._classes(results, per_class, form)
            return
        table = Table(
            title=title + ("  (best so far)" if best else ""),
            title_justify="left",
            show_header=False,
        )
        for name, value in shown.items():
            table.add_row(name, value)
        for name, values in results.items():
            listed = "confusion" in results or "positives" in results  # class by class, below
            if _bare(name) in per_class and values and not listed:
                table.add_row(f"{name} per class", self._per_class(values, form[name]))
        self.display.console.print(table)
        self._classes(results, per_class, form)

    def _classes(
        self,
        results: Mapping[str, Any],
        per_class: Collection[str],
        form: Mapping[str, Callable[[Any], str]],
    ) -> None:
        """Show a row for each class, and the confusions, where the results hold them."""
        confusion = results.get("confusion", ())
        number = len(confusion) or len(results.get("positives") or ())  # of any number per image
        if isinstance(confusion, Mapping):  # of many classes: the pairs that occur
            of_classes = [results[name] or () for name in results if _bare(name) in per_class]
            number = max(map(len, of_classes), default=0)
        found = {
            name: list(values.items() if isinstance(values, Mapping) else enumerate(values))
            for name, values in results.items()
            if _bare(name) in per_class and len(values or ()) == number
        }
        if not found:
            return
        names = [" ".join(str(name).split()) for name, _ in next(iter(found.values()))]
        order: Sequence[int] = range(len(names))
        if len(names) > ALL_CLASSES:  # those that most is to be won with
            first = [value for _, value in next(iter(found.values()))]
            order = sorted((i for i in order if first[i] is not None), key=first.__getitem__)[
                :FEW_CLASSES
            ]
        rows = [
            [
                names[i],
                *(
                    "" if pairs[i][1] is None else form[name](pairs[i][1])
                    for name, pairs in found.items()
                ),
            ]
            for i in order
        ]
        title = "classes"
        if len(rows) < len(names):
            title = f"{len(rows)} of {len(names)} classes, lowest first"
        self.display.grid(title, ["class", *found], rows)
        if confusion:
            self._confusion(names, _called(confusion, len(names)), order)

    def _confusion(
        self, names: Sequence[str], counts: Sequence[Mapping[int, int]], order: Iterable[int]
    ) -> None:
        """Show the matrix in percent of a row.

        A table where the screen is wide enough, else rows in `order` in words.
        """
        parts = []
        for found in counts:
            total = sum(found.values())
            parts.append({called: count / total for called, count in found.items()})
        heads = [
            f"{number} {name}" if name != str(number) else name for number, name in enumerate(names)
        ]
        if (
            max(map(cell_len, ["class", *heads])) + MATRIX_CELL * len(names)
            <= self.display.console.width
        ):
            self.display.note("confusion, percent of a class (row) taken for which (column)")
            table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
            table.add_column("class")
            columns = range(len(names))
            for number in columns:
                table.add_column(str(number), justify="right", min_width=MATRIX_CELL - 1)
            for head, row in zip(heads, parts):
                cells = [f"{100 * row[place]:.0f}" if place in row else "" for place in columns]
                table.add_row(escape(head), *cells)
            self.display.console.print(table)
        else:
            self.display.note("confusion, percent of a class taken for which, from 1 % on")
            for right in order:
                called = sorted(
                    ((part, names[i]) for i, part in parts[right].items() if part >= 0.01),
                    reverse=True,
                )
                self.display.note(
                    f"{heads[right]}: "
                    + ", ".join(f"{name} {100 * part:.0f}" for part, name in called)
                )
        mistaken = sorted(
            (
                (part, names[right], names[called])
                for right, row in enumerate(parts)
                for called, part in row.items()
                if right != called
            ),
            reverse=True,
        )[:CONFUSED]
        if mistaken:
            self.display.note("most frequent confusions (share of the true class):")
            for share, true, taken_for in mistaken:
                self.display.note(f"  {true} taken for {taken_for} {_percent(share)}")

    @staticmethod
    def _per_class(
        values: Mapping[str, Any] | list, form: Callable[[Any], str], limit: int = 20
    ) -> Table:
        """Tabulate the classes that have a value, the largest `limit`, in two columns."""
        pairs = values.items() if isinstance(values, Mapping) else enumerate(values)
        known = sorted(
            ((value, str(name)) for name, value in pairs if value is not None), reverse=True
        )
        grid = Table.grid(padding=(0, 2))
        cells = [f"{name} {form(value)}" for value, name in known[:limit]]
        for left, right in zip(cells[::2], [*cells[1::2], ""]):
            grid.add_row(left, right)
        if len(known) > limit:
            grid.add_row(f"and {len(known) - limit} more in the log")
        return grid


def width_of(head: str, cells: Sequence[str]) -> int:
    """Columns of the screen that a column of a table takes, with its border."""
    return max(map(cell_len, [head, *cells])) + 3


def _called(confusion: Any, num_classes: int) -> list[dict[int, int]]:
    """For each class of the references, how often which class was predicted."""
    if not isinstance(confusion, Mapping):
        return [{place: count for place, count in enumerate(row) if count} for row in confusion]
    rows: list[dict[int, int]] = [{} for _ in range(num_classes)]
    pairs = (confusion[name] for name in ("truth", "predicted", "count"))
    for truth, predicted, count in zip(*pairs):
        rows[truth][predicted] = count
    return rows


def _bare(name: str) -> str:
    """The name of the result that an interval, or a result of the EMA weights, belongs to."""
    return name.removeprefix("ema_").removesuffix("_95")


def in_words(name: str, value: Any, percent: Collection[str]) -> str:
    """A result as it is shown: in percent where its name, without ema_ and _95, is in `percent`."""
    return _percent(value) if _bare(name) in percent else _number(value)


def _percent(value: Any) -> str:
    return f"{100 * value:.2f} %" if isinstance(value, float) else str(value)


def _number(value: Any) -> str:
    """A number with a fraction in four digits."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4g}" if abs(value) < 1e4 or abs(value) >= 1e15 else f"{value:.0f}"
