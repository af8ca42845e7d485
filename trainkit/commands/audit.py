"""trainkit audit: trains a few steps again and again, and names the first thing that differs."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from trainkit.commands.arguments import read_settings_and_options
from trainkit.commands.audit_options import AuditOptions
from trainkit.commands.audit_process import Trial
from trainkit.commands.audit_words import in_words
from trainkit.commands.proposals import propose
from trainkit.commands.recipe_file import load_recipe
from trainkit.commands.recipe_names import find_recipe
from trainkit.data.spawning import forks
from trainkit.data.workers import choose_workers
from trainkit.display.terminal import Display
from trainkit.display.wording import counted
from trainkit.distributed.accelerator import computes_on_cpu
from trainkit.engine.audit import Difference
from trainkit.errors import CommandFailed, UserError
from trainkit.files import replace_file, require_room
from trainkit.storage import checkpoint

LOSS = 1e-5  # relative, of the first step: what another order of sums may change
NORM = 1e-4  # the same of the gradient norm
BIT_EQUAL = "bit-equal"
PROMISED = dict.fromkeys(("again", "workers", "resume"), BIT_EQUAL)
PROMISED["processes"] = "same batches and sums"
PROCESSES = 2
OWN_PART = "each process sees its own part of a batch"


@dataclass
class Comparison:
    """What one training has in common with the first one.

    Attributes:
        name: as in --compare.
        title: how it trains.
        promise: of trainkit, see docs/determinism.md.
        equal: whether the promise is kept; None where it could not be tried.
        found: in words, for the table.
        why: a line of explanation.
        difference: the first one, where it is not as promised.
        loss: largest relative difference of a step's loss, on other processes.
        parameters: largest difference of a parameter after the last step, on other processes.
    """

    name: str
    title: str
    promise: str
    equal: bool | None = True
    found: str = "equal"
    why: str | None = None
    difference: Difference | None = None
    loss: float | None = None
    parameters: float | None = None


def run(recipe: str, words: list[str]) -> int:
    """Audit a recipe, a file or the name of one; the exit code: 1 where a promise is not kept."""
    path = find_recipe(recipe)
    recipe_file = load_recipe(path)
    settings, asked = read_settings_and_options(
        recipe_file, "audit", f"trainkit audit {recipe}", words
    )
    _require_machine()
    if asked.out is not None:
        require_room(asked.out)
    if asked.json is not None and not asked.json.parent.is_dir():
        raise UserError(f"json is {asked.json}, and there is no folder {asked.json.parent}")
    display = Display()
    with tempfile.TemporaryDirectory(prefix="trainkit-audit-") as folder:
        auditor = Auditor(path, words, asked, Path(folder), display)
        comparisons = auditor.compare()
    steps = auditor.steps
    _show(display, f"{path.name}: {steps} steps, compared with the first training", comparisons)
    propose(recipe_file, settings)
    kept = all(each.equal is not False for each in comparisons)
    if asked.json is not None:
        content = {
            "recipe": str(path), "steps": steps, "seed": asked.seed, "torch": torch.__version__,
            "device": "cpu", "equal": kept, "comparisons": [asdict(each) for each in comparisons],
        }  # fmt: skip
        replace_file(asked.json, json.dumps(content, indent=2).encode())
    return 0 if kept else 1


def _require_machine() -> None:
    """Raise UserError where an audit has not been proven."""
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        raise UserError("audit starts its processes itself: run trainkit audit without a launcher")
    if not computes_on_cpu():
        raise UserError(
            f"trainkit audit is proven on CPUs alone, and a training here would use"
            f" {torch.accelerator.current_accelerator()}: set ACCELERATE_USE_CPU=true to audit on"
            " the CPU"
        )
    if not forks():
        raise UserError("trainkit audit forks its trainings, which it does on Linux alone")


class Auditor:
    """Makes the trainings of an audit and compares them.

    Args:
        recipe: the file.
        words: of the command line, after the recipe.
        asked: the options in them.
        folder: a temporary one.
        display: where it is shown what is under way.
    """

    def __init__(
        self, recipe: Path, words: list[str], asked: AuditOptions, folder: Path, display: Display
    ):
        self.recipe, self.words, self.asked, self.folder = recipe, words, asked, folder
        self.display = display
        self.runs = asked.out or folder / "runs"
        self.records = folder / "records"
        self.records.mkdir()
        self.steps = asked.steps
        self.workers = choose_workers(asked.workers, 1)
        self.common = {"resume": "never", "workers": self.workers}

    def compare(self) -> list[Comparison]:
        """Train, and return the comparisons in the order of --compare."""
        self.display.note("training for the first time")
        with self._process(hash_seed=1) as process:
            self._train(process, "first", {"checkpoint_every": self.steps}, records=True)
        self.steps = self._end("first")["steps"]
        comparisons: list[Comparison] = []
        # another interpreter: with other hashes of strings, and so another order of sets
        with self._process(hash_seed=2) as process:
            for name in dict.fromkeys(self.asked.compare):
                title, starts = self._starts(name)
                self.display.note(f"training {title}")
                comparison = Comparison(name, title, PROMISED[name])
                comparisons.append(comparison)
                self._try(process, comparison, starts)
                if name == "again" and not comparison.equal:
                    comparison.why = (
                        f"{comparison.why}. Until this is equal, nothing else can be compared"
                    )
                    break
        return comparisons

    def _starts(self, name: str) -> tuple[str, list[dict[str, Any]]]:
        """What a comparison is called, and how it trains: arguments of `_train`, start by start."""
        whole = {"checkpoint_every": self.steps}
        if name == "workers":
            other = 2 if self.workers <= 1 else 1
            title = f"with {counted(other, 'worker')}, not {self.workers}"
            return title, [{"options": {**whole, "workers": other}}]
        if name == "resume":
            saved = max(1, self.steps // 3)
            killed = max(saved, self.steps // 2)
            options = {"checkpoint_every": saved}
            resumed = {**options, "resume": "auto"}
            title = f"killed after step {killed}, resumed after step {saved}"
            return title, [{"options": options, "kill_after": killed}, {"options": resumed}]
        if name == "processes":
            title = f"on {PROCESSES} processes"
            return title, [{"options": whole, "processes": PROCESSES, "batches_only": True}]
        return "again", [{"options": whole}]

    def _try(
        self, process: subprocess.Popen, comparison: Comparison, starts: list[dict[str, Any]]
    ) -> None:
        """Train once more and compare."""
        name, refused = comparison.name, None
        try:
            for start in starts:
                self._train(process, name, **start)
        except UserError as error:
            refused = str(error)
        comparison.difference = self._difference(name)
        if comparison.difference is not None:
            comparison.equal = False
            comparison.found = f"differs in step {comparison.difference.step}"
            comparison.why = in_words(comparison.difference)
        elif refused is not None:
            comparison.equal = None if name == "processes" else False
            comparison.found, comparison.why = "not possible", refused
        elif name == "processes":
            self._compare_sums(comparison)
        if self.asked.out is None:
            shutil.rmtree(self.runs / name, ignore_errors=True)  # its checkpoints take room

    def _train(
        self,
        process: subprocess.Popen,
        name: str,
        options: dict[str, Any],
        processes: int = 1,
        **audit: Any,
    ) -> None:
        """Train in so many processes at once, forked from `process`.

        Raises:
            UserError, CommandFailed: one of them failed.
        """
        results = self.folder / name
        results.mkdir(exist_ok=True)
        trial = Trial(
            str(self.recipe), self.words, str(self.runs / name), str(results), str(self.records),
            audit, {**self.common, **options}, keep=self.asked.out is not None,
        )  # fmt: skip
        group = _group(processes) if processes > 1 else [{}]
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps([{**asdict(trial), "env": env} for env in group]) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        expected = [-9 if "kill_after" in audit else 0] * processes
        if answer and json.loads(answer) == expected:
            return
        errors = [json.loads(file.read_text()) for file in sorted(results.glob("error-*.json"))]
        for error in sorted(errors, key=lambda each: each["code"], reverse=True):
            raise (UserError if error["code"] == 2 else CommandFailed)(error["message"])
        printed = results / "printed.txt"
        last = printed.read_text().splitlines()[-15:] if printed.exists() else []
        raise CommandFailed(
            "\n".join([f"a training ({name}) ended with exit codes {answer.strip()}:", *last])
        )

    @contextmanager
    def _process(self, hash_seed: int) -> Iterator[subprocess.Popen]:
        """An interpreter that trains, on the paths of this one."""
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        env = {"PYTHONHASHSEED": str(hash_seed), **os.environ, "PYTHONPATH": paths}
        command = [sys.executable, "-P", "-m", "trainkit.commands.audit_process"]
        process = subprocess.Popen(
            command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            yield process
        finally:
            process.kill()  # and with it what it has forked
            process.communicate()

    def _end(self, name: str, rank: int = 0) -> dict[str, Any]:
        """What a training left at its end."""
        return json.loads((self.folder / name / f"end-{rank}.json").read_text())

    def _difference(self, name: str) -> Difference | None:
        """The earliest that a process has found."""
        files = (self.folder / name).glob("difference-*.json")
        found = [Difference(**json.loads(file.read_text())) for file in files]
        return min(found, key=lambda each: each.step, default=None)

    def _compare_sums(self, comparison: Comparison) -> None:
        """Compare losses and weights of several processes, which add in another order."""
        mine, first = (_rows(self.runs / name) for name in (comparison.name, "first"))
        losses = [_relative(row["loss"], other["loss"]) for row, other in zip(mine, first)]
        norm = _relative(mine[0]["grad_norm"], first[0]["grad_norm"])
        ranks = [self._end(comparison.name, rank) for rank in range(PROCESSES)]
        digests, others = (each["parameters"] for each in ranks)
        parted = [name for name, digest in digests.items() if others[name] != digest]
        gaps = self._gaps(comparison.name, digests)
        comparison.loss, comparison.parameters = max(losses), max(gaps)
        comparison.found = (
            f"batches equal; losses differ by up to {comparison.loss:.1e} of themselves, weights"
            f" by {comparison.parameters:.1e}"
        )
        if parted:
            comparison.equal, comparison.found = False, "processes have other weights"
            comparison.why = (
                f"after step {self.steps} the processes do not have the same {parted[0]}: the"
                " optimizer draws random numbers, or uses what its process alone knows"
            )
        elif ranks[0]["own_part"]:
            comparison.why = f"no bound is promised: {OWN_PART}: {', '.join(ranks[0]['own_part'])}"
        elif losses[0] > LOSS or norm > NORM:
            comparison.equal, comparison.found = False, f"{comparison.found}; too much in step 1"
            comparison.why = (
                f"in step 1, from the same weights, the loss differs by {losses[0]:.1e} of itself"
                f" and the gradient norm by {norm:.1e}, more than an order of sums explains"
                f" ({LOSS:.0e} and {NORM:.0e}): network or loss look at the other images of their"
                " process's part of the batch, or divide by their number"
            )

    def _gaps(self, name: str, parameters: Iterable[str]) -> list[float]:
        """How much each parameter differs from that of the first training after the last step."""
        paths = (
            checkpoint.checkpoint_path(self.runs / each / "checkpoints", self.steps)
            for each in (name, "first")
        )
        mine, first = (checkpoint.load(path)[0] for path in paths)
        return [
            float((mine[each].double() - first[each].double()).abs().max())
            for each in parameters
            if each in mine and mine[each].numel()
        ]


def _rows(folder: Path) -> list[dict[str, Any]]:
    """Rows of the steps in a run's log."""
    rows = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [row for row in rows if row["event"] == "step"]


def _relative(one: float | None, other: float | None) -> float:
    """How much two numbers differ, as a part of the second."""
    if one is None or other is None:  # of a step that was skipped
        return 0.0 if one is other else float("inf")
    return abs(one - other) / max(abs(other), 1e-30)


def _group(processes: int) -> list[dict[str, str]]:
    """The environment of each process of a group on this machine, as torchrun sets it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = str(processes)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": size,
              "LOCAL_WORLD_SIZE": size}  # fmt: skip
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _show(display: Display, title: str, comparisons: list[Comparison]) -> None:
    rows = [[each.title, each.promise, each.found] for each in comparisons]
    display.grid(title, ["training", "promised", "found"], rows)
    for each in comparisons:
        if each.why is not None:
            display.note(f"{each.title}: {each.why}")
