"""What runs left: rows of their logs, final weights, and comparisons of two runs."""

import json
from pathlib import Path

import pytest
import torch

from trainkit.storage.checkpoint import list_checkpoints, load

MEASURED = ("images_per_s", "images_per_s_per_device", "data_wait", "memory_gib")


def rows(folder, event="step"):
    """Rows of a log; of evaluations without the seconds of the run, which no two runs share."""
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    timed = ("seconds",) if event == "evaluate" else ()
    return [
        {name: value for name, value in row.items() if name not in timed}
        for row in log
        if row["event"] == event
    ]


def timeless_row(row: dict) -> dict:
    """A row without what is measured, which no two runs share."""
    return {name: value for name, value in row.items() if name not in MEASURED}


def weights(folder):
    return load(list_checkpoints(folder / "checkpoints")[-1])[0]


THOROUGH = ("_95", "accuracy", "confusion", "calibration_error")


def without_intervals(results: dict) -> dict:
    """What an evaluation during the training gives too."""
    return {name: value for name, value in results.items() if not name.endswith(THOROUGH)}


def assert_same_results(one: dict, other: dict) -> None:
    """Metrics are fractions of whole numbers, and equal; a loss is a sum of floats."""
    losses = {name for name in one if name.removeprefix("ema_").startswith("val_loss")}
    assert one.keys() == other.keys()
    assert {n: v for n, v in one.items() if n not in losses} == {
        n: v for n, v in other.items() if n not in losses
    }
    for name in losses:
        assert other[name] == pytest.approx(one[name], rel=1e-5), name


def assert_same_training(one, other):
    losses = [row["loss"] for row in rows(one)]
    assert [row["loss"] for row in rows(other)] == pytest.approx(losses, rel=1e-5)
    assert [row["lr"] for row in rows(other)] == [row["lr"] for row in rows(one)]
    found = weights(other)  # read once: each reading checks the checkpoint's digests
    for name, value in weights(one).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    for mine, theirs in zip(rows(one, "evaluate"), rows(other, "evaluate"), strict=True):
        assert_same_results(mine, theirs)


def assert_bit_equal(one: Path, other: Path) -> None:
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys() and all(
        torch.equal(mine[name], theirs[name]) for name in mine
    )
    averages = [load(list_checkpoints(each / "checkpoints")[-1])[1]["ema"] for each in (one, other)]
    if averages != [None, None]:
        assert averages[0]["count"] == averages[1]["count"] > 0
        mine, theirs = (each["averages"] for each in averages)
        assert mine.keys() == theirs.keys() and all(
            torch.equal(mine[name], theirs[name]) for name in mine
        )
    timeless = [
        [timeless_row(row) for row in rows(each, event)]
        for each in (one, other)
        for event in ("step", "evaluate")
    ]
    assert timeless[:2] == timeless[2:], "the logs tell the same story"
