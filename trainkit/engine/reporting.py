"""Reports a training: log, display, counters, bad images, failed writes, summary."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from trainkit import files
from trainkit.data.datasets.inventory import used
from trainkit.engine.label_warnings import evaluation_warnings, interval_warnings, ranks
from trainkit.engine.metric_checks import require_headline
from trainkit.engine.nonfinite import FailureRecorder, is_failure
from trainkit.engine.screen import Screen
from trainkit.engine.setup import Setup
from trainkit.engine.state import StepNumbers, StepStats, TrainState, read_steps
from trainkit.engine.stop_signal import FAILED, StopFlag
from trainkit.engine.throughput import Throughput
from trainkit.engine.validation_loss import NO_LOSS
from trainkit.errors import NonFiniteError
from trainkit.storage.checkpoint_writer import CheckpointWriter
from trainkit.storage.run_folder import RunFolder


class Reporter:
    """Collects what steps, evaluations and saves leave, and writes it to log and display.

    A step's numbers stay on the device until a row of the log, a save or an evaluation reads them.
    """

    def __init__(
        self,
        setup: Setup,
        run: RunFolder,
        writer: CheckpointWriter,
        failures: FailureRecorder,
        state: TrainState,
        stop: StopFlag,
    ):
        """Keep what is reported and where.

        Args:
            setup: of the training.
            run: whose log is written.
            writer: of checkpoints, whose rows and errors are reported here.
            failures: that keeps a step with a non-finite loss or gradient.
            state: whose counters are kept here.
            stop: that is set where the run's folder cannot be written.
        """
        self.recipe = setup.recipe
        self.terms = setup.terms
        self.options = setup.options
        self.accelerator = setup.accelerator
        self.plan = setup.plan
        self.display = setup.display
        self.screen = Screen(setup, run, state)
        self.run = run
        self.writer = writer
        self.failures = failures
        self.state = state
        self.stop = stop
        self.after_row: Callable[[], None] = lambda: None
        self.warnings: list[str] = []  # about the training data, found before the first step
        self.write_error: OSError | None = None  # why the run's folder could not be written
        # of each step since the last row of the log, see `read_steps`
        self._rows: list[Sequence[Tensor]] = []
        # valid targets of each step since they were last counted, on the device: (K,) each
        self._counts: list[Tensor] = []
        self._bad_images: list[str] = []  # replaced in this process since they were last reported
        self.throughput = Throughput(setup.accelerator, setup.workers)
        self._evaluation_warned = False  # by the first evaluation of this process
        self._fault_reported = False

    def note(self, line: str) -> None:
        """Show a line."""
        self.display.note(line)

    def step(self, stats: StepStats, bad_images: Sequence[str]) -> None:
        """Receive what a step left, and move the bar; waits for nothing.

        Args:
            stats: of the step, on the device.
            bad_images: a line for each image that was replaced in this process's share of the
                batch.
        """
        self._rows.append(stats.row)
        self._counts.append(stats.counts)
        self._bad_images += bad_images
        self.display.advance(self.state.step)

    def resume(self, rows: Tensor) -> None:
        """Resume from a checkpoint, whose state has been loaded already.

        Args:
            rows: of the steps since the last row of the log, summed over all processes: (steps, K +
                1).
        """
        self.throughput.resume(self.state)
        # summed over all processes, so one of them takes it up
        mine = rows.to(self.accelerator.device) * self.accelerator.is_main_process
        self._rows = [(row,) for row in mine]

    def read_unlogged(self) -> list[StepNumbers]:
        """Numbers of each step since the last row of the log; waits for the device.

        Raises:
            NonFiniteError: one is non-finite and that is to stop the run.
        """
        steps = read_steps(self.accelerator, self._rows, self.state.step)
        failed = [numbers for numbers in steps if is_failure(numbers, self.accelerator)]
        if failed and self.options.on_nonfinite == "stop":
            raise NonFiniteError(self.failures.keep(failed[0]))
        return steps

    def log_row(self) -> None:
        """Write a row of the log: the only place where training waits for the device."""
        steps = self.read_unlogged()
        self._rows.clear()
        self.report_bad_images()
        self.report_saves()
        good = [numbers for numbers in steps if numbers.is_finite]
        state = self.state
        if len(good) < len(steps):
            state.skipped_steps += len(steps) - len(good)
            for numbers in steps:
                if is_failure(numbers, self.accelerator):
                    self.note(f"{self.failures.describe(numbers)}: its update was left out")
        self._count_interval(len(steps))
        losses = [sum(column) / len(good) for column in zip(*(each.losses for each in good))]
        row: dict[str, Any] = {
            "event": "step",
            "step": state.step,
            "epoch": self.plan.epoch(state.step),
            "loss": sum(losses) if losses else None,
            "lr": float(self.recipe.optimizer.param_groups[0]["lr"]),
            "grad_norm": good[-1].grad_norm if good else None,
            **self.throughput.row(state),
        }
        if len(losses) > 1:
            row |= {f"loss_{term}": loss for term, loss in zip(self.terms, losses)}
        names = ("skipped_steps", "bad_images", "intervals_without_targets")
        counters = {name: getattr(state, name) for name in names}
        row |= {name: count for name, count in counters.items() if count}
        self.log(row)
        self.screen.row(row, steps)
        self.after_row()
        advice = self.throughput.advice(state)
        if advice is not None:
            self.note(advice)

    def count_targets(self) -> None:
        """Add the valid targets of the steps since the last time to those of the log interval.

        Waits for the device.
        """
        if self._counts:
            of_first_loss = torch.stack(self._counts)[:, 0].cpu()
            self.state.interval_targets += float(of_first_loss.sum(dtype=torch.float64))
            self._counts.clear()

    def _count_interval(self, num_steps: int) -> None:
        """Count a log interval in which no target was valid, and report the first one."""
        self.count_targets()
        state = self.state
        if num_steps and state.interval_targets <= 0:
            state.intervals_without_targets += 1
            if state.intervals_without_targets == 1:
                self.note(
                    f"warning: no target was valid in steps {state.step - num_steps + 1} to"
                    f" {state.step}, which learnt nothing: all of their labels are ignored"
                )
        state.interval_targets = 0.0

    def evaluation(self, results: Mapping[str, Any], loss_fault: str | None = None) -> bool:
        """Log and show the results of an evaluation; whether they are the best so far.

        Args:
            results: of the evaluation.
            loss_fault: why there is no validation loss; None where nothing failed.
        """
        state, task = self.state, self.recipe.task
        epoch = self.plan.epoch(state.step)
        score = results[require_headline(self.recipe, results)]
        sign = 1 if self.recipe.higher_is_better else -1
        known = score is not None and ranks(results, task)
        improved = known and (state.best is None or sign * score > sign * state.best)
        row = {
            "event": "evaluate",
            "step": state.step,
            "epoch": epoch,
            "best": score if improved else state.best,
            "best_step": state.step if improved else state.best_step,
            "seconds": state.seconds,
            **results,
        }
        state.restore_evaluation(row)
        unlogged = self.read_unlogged()
        good = [numbers.loss for numbers in unlogged if numbers.is_finite]
        if good:  # for the training loss between two evaluations
            mean = sum(good) / len(good)
            self.log(
                {"event": "unlogged", "step": state.step, "loss": mean, "finite_steps": len(good)}
            )
        self.log(row)
        self.screen.evaluation(results, improved, unlogged)
        if not self._evaluation_warned:
            for line in evaluation_warnings(results, task):
                self.note(f"warning: {line}")
        self._evaluation_warned = True
        # it may be of a later evaluation alone
        if loss_fault is not None and not self._fault_reported:
            self.note(f"warning: {NO_LOSS.format(loss_fault)}")
            self._fault_reported = True
        return improved

    def log(self, row: Mapping[str, Any]) -> None:
        """Add a row to the log."""
        with self.writing("log.jsonl"):
            self.run.log.append(row)

    def report_saves(self) -> None:
        """Log and show what was saved by now, or that it could not be."""
        for row in self.writer.written():
            if self.options.on_save_error == "continue":
                self.write_error = None  # of an earlier save; the run continued without it
            self.log(row)
            self.screen.save(row)
        while (error := self.writer.error()) is not None:
            self.cannot_write(error)

    def report_bad_images(self) -> None:
        """Count the images replaced in all processes, and list new ones in the folder."""
        if self.options.on_bad_image != "skip":
            return
        lines = gather_object(self._bad_images)
        self._bad_images = []
        self.state.bad_images += len(lines)
        if not lines or not self.accelerator.is_main_process:
            return
        with self.writing("bad_images.txt"):
            for line in self.run.list_bad_images(lines):
                self.note(f"image {line}. The next one in the order takes its place")

    def remember_micro_batch(self, micro_batch: int, alone: bool) -> None:
        """Have the run begin with micro-batches of so many images when it is resumed.

        Args:
            micro_batch: images of a forward pass.
            alone: no other process knows, so that this one writes it, whichever it is.
        """
        # a replay remembers nothing
        if (self.accelerator.is_main_process or alone) and self.options.out is not None:
            with self.writing("memory.json"):
                self.run.remember_micro_batch(micro_batch, self.options.micro_batch)

    @contextmanager
    def writing(self, name: str) -> Iterator[None]:
        """Context manager: the file `name` of the run is written; a failure is reported."""
        try:
            yield
        except OSError as error:
            message = f"{self.run.folder}/{name} cannot be written: {files.reason(error)}"
            self.cannot_write(OSError(message))

    def cannot_write(self, error: OSError) -> None:
        """Stop all processes, see `StopFlag`, or continue without it: `--on-save-error`."""
        if self.options.on_save_error == "stop":
            self.write_error = self.write_error or error
            self.stop.ask(FAILED)
        elif str(error) != str(self.write_error):  # the same error is reported once
            self.write_error = error
            self.note(f"{error}; continuing without it")

    def raise_write_error(self) -> None:
        """Raise the OSError of what could not be written, where that is to stop the run."""
        if self.write_error is not None and self.options.on_save_error == "stop":
            raise self.write_error

    def stopped(self, name: str) -> None:
        """Say that the signal `name` stopped the run, whose steps are all saved."""
        with suppress(OSError):  # the exit code says it too
            self.run.write("stopped.json", {"signal": name, "step": self.state.step})
        self.screen.stopped(name)

    def finish(self, stopped_early: bool = False) -> dict[str, Any]:
        """Write and return the summary.

        Args:
            stopped_early: the run ends before its last step, by --patience.

        Raises:
            OSError: the folder cannot be written.
        """
        state = self.state
        # a run that something cut short is not finished
        if state.step != self.plan.total_steps and not stopped_early:
            raise RuntimeError(
                f"the training ended after step {state.step} of {self.plan.total_steps}, which no"
                " rule of the run asked for: something that it calls ended an iteration"
                " (StopIteration)"
            )
        self.writer.wait()
        self.report_saves()
        self.raise_write_error()  # without its last checkpoint a run is not finished
        summary = {
            "final": state.results,
            "best": {self.recipe.headline: state.best, "step": state.best_step},
            "steps": state.step,
            "stopped_early_at": state.step if stopped_early else None,
            "images": state.images,
            "skipped_steps": state.skipped_steps,
            "bad_images": state.bad_images,
            "seconds": state.seconds,
            "images_per_s": state.images / state.train_seconds,
            "peak_memory_gib": self.throughput.peak_memory_gib(),
            "num_processes": self.accelerator.num_processes,
            "data": {"train": used(self.recipe.train_data), "val": used(self.recipe.val_data)},
            "warnings": [
                *self.warnings,
                *interval_warnings(state.intervals_without_targets),
                *evaluation_warnings(state.results, self.recipe.task),
            ],
        }
        with self.writing("summary.json"):
            self.run.write("summary.json", summary)
        self.raise_write_error()
        return summary
