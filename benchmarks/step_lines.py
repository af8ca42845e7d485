"""Where a step of trainkit goes, statement by statement, beside that of a bare loop.

    python benchmarks/step_lines.py                 # two layers, batches handed over ready-made
    python benchmarks/step_lines.py --loop trainkit_held --steps 6000

The work is that of `step_overhead.py --work mlp`. The functions that make a step are compiled once
more with a note of the time after each of their statements; what lies between two notes belongs to
the second one, so that everything counts somewhere: a statement that is not noted itself, or is in
another function, to the next one that is. A note's own time is taken off. Results are tenth
percentiles of the steps, which other programs disturb least; of a statement that is not reached in
every step, such as a row of the log, its share of a step.
"""

import argparse
import ast
import inspect
import os
import sys
import tempfile
import textwrap
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import _loops
import numpy as np
import torch
from _results import Results, add_option
from torch import Tensor, nn
from torch.utils.data import DataLoader

from trainkit.engine import exchange, loop, oom, step, task_module
from trainkit.tasks import recognition

WARM_UP = 500  # steps that are not counted
LEAST_US = 1.5  # of a statement that has a row of its own
# Functions of a step: module, class or None, name.
OURS = [
    (loop, None, "_train_to_the_end"),
    (loop, None, "_save_and_evaluate"),
    (step, "Stepper", "__call__"),
    (step, "Stepper", "_start_counting"),
    (step, "Stepper", "_gradients"),
    (step, "Stepper", "_forward_backward"),
    (exchange, "Exchange", "start"),
    (exchange, "Exchange", "counts"),
    (oom, "OomFallback", "gradients"),
    (task_module, "TaskModule", "forward"),
    (recognition, "Recognition", "counts"),
    (recognition, "Recognition", "losses"),
]
BARE = [(_loops, None, "bare")]


class Notes:
    """Statements, and when each of them was done."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.times: list[tuple[int, int]] = []  # number of the statement, nanoseconds

    def named(self, text: str) -> int:
        """The number of a statement."""
        self.texts.append(text)
        return len(self.texts) - 1

    def note(self, number: int) -> None:
        """A statement is done."""
        self.times.append((number, time.perf_counter_ns()))

    def own_ns(self) -> float:
        """What a note takes."""
        mine = Notes()
        for number in range(20_000):
            mine.note(number)
        return median(b[1] - a[1] for a, b in zip(mine.times, mine.times[1:]))


class Noted(ast.NodeTransformer):
    """Adds a note after each statement of a function, and one where it begins."""

    def __init__(self, notes: Notes, name: str):
        self.notes, self.name = notes, name

    def function(self, tree: ast.FunctionDef) -> ast.FunctionDef:
        has_docstring = ast.get_docstring(tree) is not None
        kept, body = tree.body[:has_docstring], tree.body[has_docstring:]
        tree.body = [*kept, self._note("called"), *self._all(body)]
        return ast.fix_missing_locations(tree)

    def _note(self, text: str) -> ast.stmt:
        number = self.notes.named(f"{self.name}: {text}")
        return ast.parse(f"note__({number})").body[0]

    def _all(self, body: list[ast.stmt]) -> list[ast.stmt]:
        return [each for statement in body for each in self._one(statement)]

    def _one(self, statement: ast.stmt) -> list[ast.stmt]:
        text = ast.unparse(statement).splitlines()[0]
        if isinstance(statement, ast.Return):
            value = statement.value or ast.Constant(None)
            kept = ast.Assign([ast.Name("returned__", ast.Store())], value)
            return [kept, self._note(text), ast.Return(ast.Name("returned__", ast.Load()))]
        if isinstance(statement, (ast.Raise, ast.Continue, ast.Break, ast.FunctionDef)):
            return [statement]
        inner = [name for name in ("body", "orelse", "finalbody") if getattr(statement, name, [])]
        if not inner:
            return [statement, self._note(text)]
        for name in inner:
            setattr(statement, name, self._all(getattr(statement, name)))
        for handler in getattr(statement, "handlers", ()):
            handler.body = self._all(handler.body)
        return [statement]


def compile_with_notes(notes: Notes, module: ModuleType, owner: str | None, name: str) -> None:
    """Put a function that notes its statements in the place of one of trainkit's."""
    place: Any = module if owner is None else getattr(module, owner)
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(getattr(place, name))))
    tree = ast.parse(source)
    assert isinstance(tree.body[0], ast.FunctionDef), f"{name} is no function"
    file = Path(str(module.__file__)).stem
    tree.body[0] = Noted(notes, f"{file}.{name}").function(tree.body[0])
    vars(module)["note__"] = notes.note
    found: dict[str, Callable[..., Any]] = {}
    exec(compile(tree, str(module.__file__), "exec"), vars(module), found)
    setattr(place, name, found[name])


class Stamped(nn.Module):
    """The network, which says where a step begins."""

    def __init__(self, network: nn.Module, notes: Notes, number: int):
        super().__init__()
        self.network, self.notes, self.number = network, notes, number

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.notes.note(self.number)
        return self.network(images)


def measured(name: str, functions: list, steps: int) -> dict[str, float]:
    """Microseconds of each statement in a step of a loop, by its text, in the order of a step."""
    notes = Notes()
    begin = notes.named("the network is called")
    for each in functions:
        compile_with_notes(notes, *each)
    torch.manual_seed(0)
    work, batch = _loops.WORKS["mlp"], 32
    network = Stamped(work.network(), notes, begin)
    data = _loops.Images(work.epoch * batch, work.size)
    is_ready = name in ("bare", "trainkit_ready")
    ready = _loops.Ready(list(DataLoader(data, batch))) if is_ready else None
    job = _loops.Job(network, data, batch, steps, torch.device("cpu"), ready, True)
    getattr(_loops, name)(job)  # as compiled here
    return by_statement(notes, begin)


def by_statement(notes: Notes, begin: int) -> dict[str, float]:
    """Microseconds of each statement in a step."""
    own, before = notes.own_ns(), None
    steps: list[dict[int, float]] = []
    for number, at in notes.times:
        if number == begin:
            steps.append(defaultdict(float))
        if before is not None and steps:
            steps[-1][number] += max(0.0, at - before - own)
        before = at
    counted = steps[WARM_UP:-1]
    numbers = {number: None for each in counted for number in each}  # in their order
    found: dict[str, float] = defaultdict(float)  # the same text may stand in two places
    for number in numbers:
        taken = [each[number] for each in counted if number in each]
        share = len(taken) / len(counted)
        found[notes.texts[number]] += float(np.percentile(taken, 10)) * share / 1000
    return found


def main() -> None:
    """Both loops, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ways = [name for name in _loops.LOOPS if name.startswith("trainkit")]
    parser.add_argument("--loop", choices=ways, default="trainkit_ready")
    parser.add_argument("--steps", type=int, default=5000)
    add_option(parser)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(f"step_lines-{asked.loop}", "torch", note="tenth percentiles of the steps")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        rows = {
            "bare PyTorch": measured("bare", BARE, asked.steps),
            "trainkit": measured(asked.loop, OURS, asked.steps),
        }
    for side, found in rows.items():
        small = 0.0
        for text, us in found.items():
            if us < LEAST_US:
                small += us
                continue
            results.put(f"`{text[:110]}`", side, "us", us)
            print(f"{side:14} {us:8.1f} us  {text}", file=sys.stderr)
        for text, us in (("all others", small), ("a step", sum(found.values()))):
            results.put(text, side, "us", us)
            print(f"{side:14} {us:8.1f} us  {text}", file=sys.stderr)
    results.write(asked.results)


if __name__ == "__main__":
    main()
