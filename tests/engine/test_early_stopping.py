"""Early stopping by --patience, and the choice of the metric by --headline."""

import json
import random
from dataclasses import replace

import pytest
import torch

from helpers.interruptions import resume, start
from helpers.logs import assert_bit_equal, rows
from helpers.toy_recipes import CLASSES, recognition, run
from trainkit import Options, train
from trainkit.engine.early_stopping import EarlyStopping
from trainkit.engine.metric_checks import with_headline
from trainkit.errors import UserError
from trainkit.storage.checkpoint import list_checkpoints
from trainkit.storage.train_log import TrainLog
from trainkit.tasks.recognition import Recognition

STOP, TOTAL = 24, 56  # of the run "patient": its EMA weights are best after step 8


def log_of(folder, values, name="top1", **more):
    """A log with one evaluation an epoch of 4 steps, and rows of steps between them."""
    log = TrainLog(folder / "log.jsonl", writes=True)
    for epoch, value in enumerate(values, 1):
        log.append({"event": "step", "step": 4 * epoch, "loss": 1.0})
        row = {"event": "evaluate", "step": 4 * epoch, "epoch": float(epoch)}
        log.append({**row, "best": None, "best_step": None, name: value, **more})
        log.append({"event": "save", "step": 4 * epoch, "bytes": 1})
    return log


@pytest.mark.parametrize("values, min_delta, number", [
    ([], 0, 0), ([0.5], 0, 0), ([None], 0, 1), ([None, None, 0.1], 0, 0),
    ([0.5, 0.5, 0.4], 0, 2), ([0.5, 0.4, 0.6], 0, 0), ([0.5, None, 0.6, None], 0, 1),
    # what a value must be better by counts from the last improvement, not from the best value
    ([0.5, 0.5625, 0.625], 0.0625, 0), ([0.5, 0.5625, 0.59375], 0.0625, 0),
    ([0.5, 0.53125, 0.5625, 0.59375], 0.0625, 0), ([0.5, 0.53125, 0.5625], 0.0625, 2),
    ([0.5, 0.6, 0.65], 0.0625, 1),
])  # fmt: skip
def test_evaluations_without_an_improvement(tmp_path, values, min_delta, number):
    log = log_of(tmp_path, values)
    stopping = EarlyStopping(recognition(), patience=2, min_delta=min_delta)
    assert stopping.num_without(log) == number and stopping.is_due(log) == (number >= 2)
    assert not replace(stopping, patience=None).is_due(log)
    # of a loss less is better
    log.path.unlink(missing_ok=True)
    log = log_of(tmp_path, [None if each is None else -each for each in values], "val_loss")
    of_loss = replace(stopping, recipe=with_headline(recognition(), "val_loss"))
    assert of_loss.num_without(log) == number


def test_the_value_of_the_ema_weights_decides(tmp_path):
    log = log_of(tmp_path, [0.1, 0.2, 0.3], ema_top1=0.5)
    assert EarlyStopping(recognition(), 2, 0.0).num_without(log) == 0
    assert EarlyStopping(recognition(ema=0.9), 2, 0.0).num_without(log) == 2


def test_an_evaluation_of_one_class_improves_nothing(tmp_path):
    lacking = [str(label) for label in range(1, CLASSES)]
    log = log_of(tmp_path, [0.1, 0.2, 0.3], classes_without_targets=lacking)
    assert EarlyStopping(recognition(), 2, 0.0).num_without(log) == 3


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the processes that are killed: sums of several threads have another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    run("patient", folder / "patient")
    return folder / "patient"


def test_it_stops_and_the_schedule_is_as_planned(stopped, tmp_path, capsys):
    summary = json.loads((stopped / "summary.json").read_text())
    assert summary["steps"] == summary["stopped_early_at"] == STOP
    assert summary["best"] == {"ema_top1": summary["best"]["ema_top1"], "step": 8}
    assert list_checkpoints(stopped / "checkpoints")[-1].name == f"step-{STOP:09d}"
    run("patient", tmp_path / "whole", patience=None)
    whole = json.loads((tmp_path / "whole/summary.json").read_text())
    assert whole["steps"] == TOTAL and whole["stopped_early_at"] is None
    rates = [(row["step"], row["lr"], row["loss"]) for row in rows(tmp_path / "whole")]
    assert [(row["step"], row["lr"], row["loss"]) for row in rows(stopped)] == rates[: STOP // 3]
    capsys.readouterr()
    run("patient", stopped)
    message = capsys.readouterr().out
    assert (
        f"finished by early stopping, and a larger --patience resumes it ({STOP} steps)" in message
    )
    assert json.loads((stopped / "summary.json").read_text()) == summary


@pytest.mark.nightly
def test_a_larger_patience_resumes_it(tmp_path):
    """Bit for bit the run that had it from the start, and so without any."""
    run("patient", tmp_path / "grown", patience=2)
    assert json.loads((tmp_path / "grown/summary.json").read_text())["stopped_early_at"] == 16
    run("patient", tmp_path / "grown", patience=5)
    run("patient", tmp_path / "large", patience=5)
    for each in ("grown", "large"):
        assert json.loads((tmp_path / each / "summary.json").read_text())["steps"] == 28
    assert_bit_equal(tmp_path / "grown", tmp_path / "large")
    run("patient", tmp_path / "grown", patience=None)
    run("patient", tmp_path / "large", patience=9)
    assert_bit_equal(tmp_path / "grown", tmp_path / "large")
    assert json.loads((tmp_path / "grown/summary.json").read_text())["stopped_early_at"] is None


def test_killed_anywhere_it_ends_alike(tmp_path, stopped):
    """At random images of training and evaluation, and between an evaluation's row and its save."""
    draw = random.Random(3)
    deaths = [{"TOY_EVALUATIONS": "2"}, *({"TOY_READS": str(draw.randint(30, 150))} for _ in "123")]
    deaths.append({"TOY_EVALUATIONS": "1"})
    killed = 0
    for death in deaths:
        process = start(tmp_path, "patient", sleep=0, **death)
        process.communicate()
        killed += process.returncode == -9
    assert killed >= 4
    resume(tmp_path, "patient")
    assert json.loads((tmp_path / "patient/summary.json").read_text())["stopped_early_at"] == STOP
    assert_bit_equal(stopped, tmp_path / "patient")


def test_killed_between_its_last_row_and_the_summary(tmp_path, stopped):
    process = start(tmp_path, "patient", sleep=0, TOY_EVALUATIONS="6")
    process.communicate()
    assert process.returncode == -9 and rows(tmp_path / "patient", "evaluate")[-1]["step"] == STOP
    assert not (tmp_path / "patient/summary.json").exists()
    resume(tmp_path, "patient")
    assert_bit_equal(stopped, tmp_path / "patient")


def test_processes_agree(tmp_path):
    resume(tmp_path, "patient", processes=2)
    summary = json.loads((tmp_path / "patient/summary.json").read_text())
    found = [row["ema_top1"] for row in rows(tmp_path / "patient", "evaluate")]
    first_best = found.index(max(found))
    assert summary["stopped_early_at"] == 4 * len(found) == 4 * (first_best + 1 + 4) < TOTAL


def test_options_that_cannot_work():
    with pytest.raises(UserError, match="patience is 0; it must be at least 1"):
        Options(patience=0)
    with pytest.raises(UserError, match="min_delta is -0.1; it must be at least 0"):
        Options(patience=1, min_delta=-0.1)
    with pytest.raises(UserError, match="min_delta is 0.1 and patience is None"):
        Options(min_delta=0.1)


class Unstated:
    """A metric that says nothing of its direction."""

    name = "spread"
    percent = ("spread",)
    counts = None

    def compute(self):
        return {"spread": 0.0}


@pytest.mark.parametrize("asked, best_by", [
    (None, None), ("top1", None), ("max:top1", None), ("top5", ("top5", True)),
    ("min:top1", ("top1", False)), ("val_loss", ("val_loss", False)),
    ("max:spread", ("spread", True)), ("ema_top5", ("top5", True)),
    ("torchmetrics_like", None), ("IoU", None), ("top2", None), ("spread", None), ("accuracy", None)
])  # fmt: skip
def test_which_metric_selects_the_best(asked, best_by):
    task = Recognition(CLASSES, extra_metrics=[Unstated()])
    refusals = {
        "torchmetrics_like": "no metric of the task computes; there are",
        "IoU": "no metric of the task computes",
        "top2": "no metric of the task computes; did you mean top5",
        "spread": "nothing says whether more of it is better: give max:spread or min:spread",
        "accuracy": "accuracy has a value for each class",
    }
    recipe = recognition(task=task)
    if asked in refusals:
        with pytest.raises(UserError, match=refusals[asked]):
            with_headline(recipe, asked)
    else:
        assert with_headline(recipe, asked).best_by == best_by


def test_another_metric_decides_and_a_resume_keeps_it(tmp_path):
    """The worst top1 is best by min:top1."""
    options = Options(out=tmp_path / "run", workers=0, log_every=4, headline="min:top1")
    summary = train(recognition(), options)
    found = [(row["top1"], row["step"]) for row in rows(tmp_path / "run", "evaluate")]
    assert (summary["best"]["top1"], summary["best"]["step"]) == min(found)
    assert max(found) != min(found)
    for other in (None, "max:top5", "top1"):
        with pytest.raises(UserError, match="headline was 'min:top1' and is"):
            train(recognition(), replace(options, headline=other))
    train(recognition(), options)


def test_a_name_that_only_the_evaluation_lacks(tmp_path):
    class Late(Unstated):
        percent = ()

        def __init__(self):
            self.counts = torch.zeros(1, dtype=torch.int64)

        def add_batch(self, *, predictions, references):
            self.counts = self.counts + len(references)

        def compute(self):
            return {"share": 1 / int(self.counts)}

    recipe = recognition(task=Recognition(CLASSES, extra_metrics=[Late()]))
    with pytest.raises(UserError, match=r"the evaluation has no number absent: there are .*share"):
        train(recipe, Options(out=tmp_path, workers=0, headline="max:absent"))
