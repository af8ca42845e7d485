"""What a training shows while it runs and when it ends; what it writes is in reporting.py."""

import math
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from trainkit.display.result_tables import in_words
from trainkit.display.training_line import clock_time
from trainkit.display.wording import counted, duration
from trainkit.engine.results import show_results
from trainkit.engine.setup import Setup
from trainkit.engine.state import StepNumbers, TrainState
from trainkit.metrics.base import declared
from trainkit.storage.checkpoint import checkpoint_path
from trainkit.storage.run_files import read_bad_images
from trainkit.storage.run_folder import RunFolder

LONG_SAVE_S = 1.0  # a shorter one is not worth a line


class Screen:
    """Shows rows of the log, evaluations and the end of a training."""

    def __init__(self, setup: Setup, run: RunFolder, state: TrainState):
        """Keep what is shown and where.

        Args:
            setup: of the training.
            run: its folder.
            state: how far it is.
        """
        self.display = setup.display
        self.recipe = setup.recipe
        self.plan = setup.plan
        self.patience = setup.options.patience or 0
        self.run = run
        self.state = state
        self._percent = declared(setup.recipe.task, "percent")
        self._losses: list[float] = []  # of the steps since the last evaluation
        self._taken = 0  # the last step whose loss was taken up

    def row(self, row: Mapping[str, Any], steps: Iterable[StepNumbers]) -> None:
        """Show a row of the log.

        Args:
            row: of the log.
            steps: those that it is of.
        """
        self._take_up(steps)
        notes = [f"best {self.recipe.headline} {self._best()}"] if self.state.best_step else []
        if "skipped_steps" in row:
            notes.append(counted(row["skipped_steps"], "skipped step"))
        if "bad_images" in row:
            notes.append(f"bad images: {self._bad_images(row['bad_images'])}")
        if "intervals_without_targets" in row:
            notes.append(
                f"{counted(row['intervals_without_targets'], 'log interval')} without targets"
            )
        self.display.row(row, notes)

    def evaluation(
        self, results: Mapping[str, Any], improved: bool, unlogged: Iterable[StepNumbers]
    ) -> None:
        """Show an evaluation in one line; after the last step in a table too.

        Args:
            results: of the evaluation.
            improved: whether they are the best so far.
            unlogged: the steps since the last row of the log.
        """
        state, headline = self.state, self.recipe.headline
        epoch = f"epoch {self.plan.epoch(state.step):g}"
        self._take_up(unlogged)
        words = [epoch]
        if self._losses:
            words.append(f"train loss {sum(self._losses) / len(self._losses):.4f}")
        self._losses.clear()
        loss = results.get("val_loss" if self.recipe.ema is None else "ema_val_loss")
        words += [] if loss is None else [f"val loss {loss:.4f}"]
        words.append(f"{headline} {self._in_words(headline, results[headline])}")
        if state.best_step is not None:
            words.append("best so far" if improved else f"best {self._best()}")
        self.display.note("  ".join([*words, f"time {clock_time(state.seconds)}"]))
        if state.step == self.plan.total_steps:
            title = f"evaluation after {epoch}"
            show_results(self.display, title, results, improved, self.recipe)

    def save(self, row: Mapping[str, Any]) -> None:
        """Show a save that took long."""
        if row["save_s"] > LONG_SAVE_S:
            self.display.note(
                f"saved step {row['step']}: training paused {row['pause_s']:.2f} s,"
                f" {_size(row['bytes'])}"
            )

    def stopped(self, name: str) -> None:
        """Say that the signal `name` stopped the run, whose steps are all saved."""
        self.display.stop()
        what = "cell" if self.display.is_notebook else "command"
        self.display.note(
            f"stopped by {name} after step {self.state.step}, saved; run the same {what} again to"
            " resume"
        )

    def end(self, stopped_early: bool) -> None:
        """Show the best and the last results, where the best weights are, and what to type next."""
        state, run, note = self.state, self.run.folder, self.display.note
        self.display.stop()
        if stopped_early:
            title = f"evaluation after epoch {self.plan.epoch(state.step):g}"
            is_best = state.best_step == state.step
            show_results(self.display, title, state.results, is_best, self.recipe)
            note(
                f"stopped early after step {state.step} of {self.plan.total_steps}: no better"
                f" {self.recipe.headline} in {counted(self.patience, 'evaluation')};"
                " the same command with a larger --patience resumes it"
            )
        self._best_and_last()
        note(f"finished: {counted(state.step, 'step')} in {duration(state.seconds)}")
        if state.bad_images:
            note(f"bad images: {self._bad_images(state.bad_images)}, see {run / 'bad_images.txt'}")
        step = state.best_step or state.step
        which = f"best {self.recipe.headline}" if state.best_step else "last"
        note(f"{which}: {checkpoint_path(self.run.checkpoints, step)}")
        if (run / "recipe.py").is_file():
            name = shlex.quote(str(run))
            note(f"next: trainkit evaluate {name}")
            note(f"      trainkit predict {name} IMAGES --out FOLDER")
            note(f"      trainkit export {name} --out model.onnx")

    def _best_and_last(self) -> None:
        """Show both in two columns, where they differ."""
        state = self.state
        if state.best_step in (None, state.evaluated):
            return
        best = self.run.log.last_evaluation(state.best_step)
        if best is None:  # the log could not be written
            return
        rows = [
            [name, self._in_words(name, best.get(name)), self._in_words(name, value)]
            for name, value in state.results.items()
            if isinstance(value, (int, float)) and name not in ("num_images", "precise_bn")
        ]
        heads = ["", f"best, step {state.best_step}", f"last, step {state.evaluated}"]
        self.display.grid("best and last evaluation", heads, rows)

    def _take_up(self, steps: Iterable[StepNumbers]) -> None:
        new = [each for each in steps if each.step > self._taken]
        self._losses += [each.loss for each in new if math.isfinite(each.loss)]
        self._taken = new[-1].step if new else self._taken

    def _best(self) -> str:
        headline = self.recipe.headline
        value = self._in_words(headline, self.state.best)
        return f"{value} (step {self.state.best_step})"

    def _in_words(self, name: str, value: Any) -> str:
        return "none" if value is None else in_words(name, value, self._percent)

    def _bad_images(self, num_reads: int) -> str:
        """How often one was met, and how many files there are."""
        num_files = len(read_bad_images(self.run.folder))
        if num_files in (0, num_reads):
            return str(num_reads)
        return f"{counted(num_reads, 'read')} of {counted(num_files, 'file')}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:.0f} KiB"
