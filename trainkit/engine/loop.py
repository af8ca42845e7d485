"""The one loop, for every task, on any number of processes.

A step, from a batch to one optimizer update, is in step.py; an evaluation in evaluator.py; what a
training writes in reporting.py and checkpointing.py; how its parts are made in training.py.
"""

import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from torch.profiler import record_function

from trainkit.data.workers import worker_deaths_reported
from trainkit.distributed.accelerator import fail_first, fail_last, lost_processes_reported
from trainkit.engine.checkpointing import Checkpointer
from trainkit.engine.profiling import BETWEEN, profiled
from trainkit.engine.reporting import Reporter
from trainkit.engine.run_opening import Found, on_main_process, open_run
from trainkit.engine.run_report import record_start, reporting_failure, write_report
from trainkit.engine.setup import Setup
from trainkit.engine.stop_signal import FAILED, Interrupted, Stopped
from trainkit.engine.tracking import tracked
from trainkit.engine.training import Training
from trainkit.options import Options
from trainkit.recipe import Recipe
from trainkit.storage.recipe_source import RecipeSource
from trainkit.storage.run_folder import RunFolder

Watch = Callable[[Training, Iterable[Any]], Iterable[Any]]


@lost_processes_reported()
def train(
    recipe: Recipe,
    options: Options,
    settings: Mapping[str, Any] | None = None,
    source: RecipeSource | None = None,
    trackers: Sequence[Any] = (),
    watch: Watch | None = None,
    advice: Sequence[str] = (),
) -> dict[str, Any]:
    """Train `recipe` in the folder `options.out`, or resume where an earlier call stopped.

    Seed before building the recipe: its initial weights are drawn there.

    Args:
        recipe: that is trained.
        options: of the run.
        settings: the recipe's, kept in the folder.
        source: where the recipe came from, for what the folder keeps of it.
        trackers: own ones, accelerate's `GeneralTracker`, beside those of `options.track`.
        watch: passes the batches of the loop on, and sees what each step makes of them.
        advice: lines about the settings, shown before the first step of a run that begins.

    Returns:
        The run's summary, as in summary.json.

    Raises:
        UserError: settings and images that cannot work.
        NonFiniteError: a non-finite loss or gradient.
        OSError: the folder cannot be written.
        MemoryError: a single image does not fit.
        Stopped: after a signal; a SystemExit.
    """
    begun = time.perf_counter()
    setup = Setup(recipe, options)
    run, found = open_run(setup, settings or {}, source)
    if run.summary is not None:
        setup.display.note(_finished(run.folder, run.summary))
        run.close()
        return run.summary

    try:
        with tracked(setup, run, settings or {}, source, trackers) as report_trackers:
            return _train(setup, run, found, begun, report_trackers, watch, advice)
    finally:
        setup.display.stop()
        run.close()


def _train(
    setup: Setup,
    run: RunFolder,
    found: Found,
    begun: float,
    report_trackers: Callable[[], None],
    watch: Watch | None,
    advice: Sequence[str],
) -> dict[str, Any]:
    """Train in the open folder, from what was found in it, to the summary."""
    display, options = setup.display, setup.options
    initial_weights = setup.load_initial_weights() if found.path is None else []
    training = Training(setup, run)
    training.resume(found)
    training.record.tidy(training.state)
    reporter, checkpointer = training.reporter, training.checkpointer
    reporter.after_row = report_trackers
    if setup.accelerator.is_main_process:
        reporter.warnings = setup.introduction.label_warnings()
    for line in setup.introduction.unsaid(reporter.warnings):
        display.note(f"warning: {line}")
    if found.path is None:
        for line in advice:
            display.note(line)
    plan = setup.plan
    display.start(plan.total_steps, training.state.step, plan.order.steps_per_epoch)
    record_start(reporter, initial_weights)
    with (
        reporting_failure(reporter),
        training.stop,
        worker_deaths_reported(),
        checkpointer.saving_on_error(),
    ):
        if found.path is None and setup.accelerator.is_main_process:
            unrepeatable = setup.introduction.unrepeatable(options.seed, setup.workers)
            if unrepeatable:
                display.note(f"warning: {unrepeatable}")
        stopped_by = _train_to_the_end(training, begun, watch)
        if stopped_by:
            _leave(stopped_by, checkpointer, reporter)
        stopped_early = training.state.step != plan.total_steps and _ends_early(training)
        if stopped_early:
            checkpointer.save_rest()  # where a larger --patience resumes
    summary = reporter.finish(stopped_early)
    reporter.screen.end(stopped_early)
    write_report(reporter)
    return summary


def _finished(folder: Path, summary: Mapping[str, Any]) -> str:
    how = "finished"
    if summary.get("stopped_early_at") is not None:
        how = "finished by early stopping, and a larger --patience resumes it"
    return f"{folder} is {how} ({summary['steps']} steps). To train again: --resume never"


def _train_to_the_end(training: Training, begun: float, watch: Watch | None) -> int:
    """Train up to the last step, and log, evaluate and save where it is due.

    `begun` is when this process began with the run, on the clock of `time.perf_counter`; `watch` as
    of `train`. Returns the signal to stop for, or 0.
    """
    setup, state = training.setup, training.state
    options, plan = setup.options, setup.plan
    seconds_before = state.seconds
    stopped_by = _save_and_evaluate(training)  # what a stop left undone
    if stopped_by or _ends_early(training):
        return stopped_by
    first_step = state.step
    batches = plan.loader(first_step, plan.total_steps, setup.accelerator, setup.workers)
    batches = profiled(batches, setup, training.reporter.run, training.stepper.task_module)
    if watch is not None:
        batches = watch(training, batches)
    training.stepper.start()
    throughput = training.reporter.throughput
    clock = time.perf_counter()
    for step, (images, targets, bad_images) in enumerate(batches, first_step):
        throughput.waited_s += time.perf_counter() - clock
        if step == 0:
            training.stepper.show_batch = partial(training.record.first_batch, images)
        stats = training.stepper(step, images, targets)
        if step == first_step:  # the optimizer has made its state
            training.checkpointer.require_savable()
        state.advance(plan.order.num_images_of(step), time.perf_counter() - clock)
        state.seconds = seconds_before + time.perf_counter() - begun
        training.reporter.step(stats, bad_images)
        if state.step % options.log_every == 0 or state.step == plan.total_steps:
            training.reporter.log_row()
        stopped_by = training.stop.agreed_in_step() or _save_and_evaluate(training)
        if not stopped_by and training.checkpointer.saved == state.step:
            stopped_by = training.stop.agreed()  # a save that failed costs no further step
        if stopped_by or (state.evaluated == state.step and _ends_early(training)):
            return stopped_by
        clock = time.perf_counter()
    return 0


def _save_and_evaluate(training: Training) -> int:
    """Save and evaluate where it is due and not done yet; the signal to stop for, or 0.

    Saved first: an evaluation that fails or is cut short takes no step with it.
    """
    options, plan, step = training.setup.options, training.setup.plan, training.state.step
    checkpointer, reporter = training.checkpointer, training.reporter
    steps_per_epoch = plan.order.steps_per_epoch
    is_last = step == plan.total_steps
    save_every = options.checkpoint_every or steps_per_epoch
    if step and checkpointer.saved != step and (is_last or step % save_every == 0):
        # such as for a row of the log that could not be written
        stopped_by = training.stop.agreed()
        if stopped_by:
            return stopped_by
        with record_function(BETWEEN):
            checkpointer.save()
    is_due = is_last or step % (options.evaluate_every * steps_per_epoch) == 0
    if not is_due or training.state.evaluated >= step:
        return 0
    reporter.read_unlogged()  # non-finite weights are not worth an evaluation
    steps, keep = (step, plan.total_steps), training.record.of_step(step, is_last)
    with record_function(BETWEEN):
        results = training.evaluator.run(training.stop.agreed_lately, steps, keep)
    if results is None:
        return training.stop.last_answer
    improved = reporter.evaluation(results, training.evaluator.loss_fault)
    if improved and checkpointer.saved != step:
        checkpointer.save()
    training.record.tidy(training.state)
    return 0


def _ends_early(training: Training) -> bool:
    """Whether early stopping ends the run; the main process reads the log for all."""
    early_stopping, log = training.early_stopping, training.reporter.run.log
    if early_stopping.patience is None:
        return False
    return on_main_process(training.setup.accelerator, lambda: early_stopping.is_due(log))


def _leave(number: int, checkpointer: Checkpointer, reporter: Reporter) -> NoReturn:
    """Save what is not saved, report how to resume, and exit with the signal's exit code."""
    if number == FAILED:
        if reporter.write_error is not None:
            fail_first()
            raise reporter.write_error
        fail_last()
        raise Stopped(FAILED)
    checkpointer.save_rest()
    checkpointer.accelerator.wait_for_everyone()
    reporter.raise_write_error()
    reporter.stopped(signal.Signals(number).name)
    if number == signal.SIGINT:
        raise Interrupted(reporter.state.step)
    raise Stopped(number)
