"""Reads all that a run's folder holds for a report; what is damaged is left out and named."""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from trainkit.errors import MissingFileError, UserError
from trainkit.report.evaluation_data import EvaluationData, find_evaluation
from trainkit.storage.recorded import is_run, meant_run, read_recorded
from trainkit.storage.run_files import (
    read_memory,
    read_report,
    read_results,
    read_stopped,
    read_summary,
)
from trainkit.storage.starts import read_starts
from trainkit.storage.train_log import read_rows

Found = TypeVar("Found")
# names of a row of an evaluation that are no metrics
NO_METRICS = frozenset({
    "event", "step", "epoch", "best", "best_step", "split", "protocol", "precise_bn", "num_images",
    "seconds", "checkpoint", "sha256", "settings",
})  # fmt: skip


@dataclass
class RunData:
    """What a run's folder holds; everything but `settings.json` may be missing.

    Attributes:
        folder: of the run.
        recorded: settings.json.
        rows: of the log.
        starts: of the run, see `trainkit.storage.starts`.
        summary: summary.json; None where the run has not finished.
        results: results.json of `trainkit evaluate`; None where there is none.
        stopped: stopped.json; None where no signal stopped it.
        failures: report.json of each failed step, in their order.
        evaluation: what the last evaluation, or that of the best weights, says of each image.
        faults: what is damaged and left out, a line each.
        under_way: whether a training holds the folder now.
    """

    folder: Path
    recorded: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    starts: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] | None = None
    results: dict[str, Any] | None = None
    stopped: dict[str, Any] | None = None
    failures: list[dict[str, Any]] = field(default_factory=list)
    evaluation: EvaluationData | None = None
    faults: list[str] = field(default_factory=list)
    under_way: bool = False

    @property
    def steps(self) -> list[dict[str, Any]]:
        """Rows of training."""
        return [row for row in self.rows if row["event"] == "step"]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """Rows of evaluations."""
        return [row for row in self.rows if row["event"] == "evaluate"]

    @property
    def settings(self) -> dict[str, Any]:
        """Of the recipe."""
        return self.recorded.get("settings", {})

    @property
    def total_steps(self) -> int | None:
        """Steps that the run is to have."""
        total = self.recorded.get("total_steps")
        return total if type(total) is int else None

    @property
    def last_step(self) -> int:
        """The last step that anything here tells of."""
        found = [row["step"] for row in self.rows]
        found += [self.summary["steps"]] if self.summary else []
        return max(found, default=0)

    @property
    def headline(self) -> str | None:
        """The metric that decides which weights are the best; None where nothing tells."""
        if self.evaluation is not None and self.evaluation.headline:
            return self.evaluation.headline
        if self.summary is not None:
            names = [name for name in self.summary["best"] if name != "step"]
            if names:
                return names[0]
        for row in self.evaluations:  # the first is the best so far
            if row["best"] is not None and row["best_step"] == row["step"]:
                equal = [name for name in metrics_of(row) if row[name] == row["best"]]
                if equal:
                    return next((each for each in equal if not each.startswith("ema_")), equal[0])
        return next((name for row in self.evaluations for name in metrics_of(row)), None)

    @property
    def best_step(self) -> int | None:
        """The step of the best weights; None where no evaluation ranked any."""
        return self.evaluations[-1]["best_step"] if self.evaluations else None

    @property
    def best(self) -> float | None:
        """The headline metric of the best weights."""
        return self.evaluations[-1]["best"] if self.evaluations else None

    @property
    def task(self) -> str:
        """Recognition, segmentation, multilabel, or other."""
        if self.evaluation is not None:
            return self.evaluation.task
        names = {name.removeprefix("ema_") for row in self.evaluations for name in metrics_of(row)}
        if "mIoU" in names:
            return "segmentation"
        if "mAP" in names and "thresholds" in self.evaluations[-1]:
            return "multilabel"
        return "recognition" if "top1" in names else "other"

    @property
    def ending(self) -> tuple[str, str]:
        """How the run ended: a word for its colour (good, bad, open), and a sentence."""
        if self.summary is not None:
            early = self.summary.get("stopped_early_at")
            if early is not None:
                return "good", f"finished: stopped early after step {early:,}"
            return "good", f"finished: {self.summary['steps']:,} steps"
        last = f"after step {self.last_step:,}"
        if self.total_steps:
            last += f" of {self.total_steps:,}"
        if self.under_way:
            return "open", f"under way, {last}"
        if self.stopped is not None:
            return "bad", f"stopped by {self.stopped['signal']} after step {self.stopped['step']:,}"
        skips = self.recorded.get("options", {}).get("on_nonfinite") == "skip"
        if self.failures and not skips and self.failures[-1]["step"] >= self.last_step:
            return "bad", f"stopped: non-finite (NaN/Inf) in step {self.failures[-1]['step']:,}"
        return "bad", f"ended without a word (killed, or the machine failed), {last}"


def metrics_of(row: Mapping[str, Any]) -> list[str]:
    """Names of the single numbers of an evaluation, which may be None."""
    return [
        name
        for name, value in row.items()
        if name not in NO_METRICS and (value is None or type(value) in (int, float))
    ]


def read_run(folder: Path, under_way: bool | None = None) -> RunData:
    """Read what a run's folder holds.

    Args:
        folder: of the run.
        under_way: whether it is trained now; None: see whether somebody holds its lock. A process
            that trains in the folder must say so itself, for to look would release its lock.

    Raises:
        MissingFileError: it is no run.
        UserError: settings.json is damaged.
    """
    if not is_run(folder):
        raise MissingFileError(
            f"{folder} is not a run: give the folder that the training wrote (its --out)"
            f"{meant_run(folder)}"
        )
    run = RunData(folder, read_recorded(folder))
    run.rows, faults = read_rows(folder / "log.jsonl")
    run.starts, more = read_starts(folder)
    run.faults += [*faults, *more]
    run.summary = _unless_damaged(run, lambda: read_summary(folder))
    run.results = _unless_damaged(run, lambda: read_results(folder))
    run.stopped = _unless_damaged(run, lambda: read_stopped(folder))
    _unless_damaged(run, lambda: read_memory(folder))
    for path in sorted(folder.glob("failures/step-*")):
        if re.fullmatch(r"step-\d+", path.name):
            report = _unless_damaged(run, partial(read_report, path))
            run.failures += [report] if report is not None else []
    try:
        run.evaluation = find_evaluation(folder, run.best_step, run.faults)
    except OSError as error:
        run.faults.append(f"evaluations/ is left out: {error.strerror or error}")
    run.under_way = _is_locked(folder) if under_way is None else under_way
    return run


def _unless_damaged(run: RunData, read: Callable[[], Found]) -> Found | None:
    """What `read` gives; None, and a line in the run's faults, where the file is damaged."""
    try:
        return read()
    except UserError as error:
        run.faults.append(str(error).split(". ")[0])
        return None


def _is_locked(folder: Path) -> bool:
    """Whether a process holds the run's folder; no where nothing can be locked."""
    with suppress(ImportError, OSError):
        import fcntl

        if not (folder / ".lock").is_file():
            return False
        with (folder / ".lock").open("r+") as lock:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return True
    return False
