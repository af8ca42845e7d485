"""Series of the charts: thinned without losing a peak, gaps for NaN, marks."""

import numpy as np
import pytest

from helpers.run_folders import evaluation_row, run_folder, step_row, write_json
from trainkit.report.curves import curves, thinned
from trainkit.report.run_data import read_run


def chart(drawn, name):
    (found,) = (each for each in drawn["charts"] if each["name"] == name)
    return found


def test_a_long_series_keeps_its_peaks_and_gaps():
    values = np.sin(np.arange(100_000) / 5000)
    values[54_321], values[77_777], values[11_111] = 9, -9, np.nan
    series = thinned(np.arange(100_000), values)
    assert series["rows"] == 100_000 and len(series["x"]) < 2000
    drawn = dict(zip(series["x"], series["y"]))
    assert drawn[54_321] == 9 and drawn[77_777] == -9 and drawn[11_111] is None
    assert series["x"] == sorted(series["x"])
    # means of 600 stretches, none of which holds the peak alone
    assert len(series["mean_y"]) == 600
    assert np.mean(series["mean_y"]) == pytest.approx(np.nanmean(values), abs=1e-3)


def test_a_short_series_is_drawn_whole():
    series = thinned(np.arange(3), np.array([1.0, np.nan, 1 / 3]))
    assert series == {"x": [0, 1, 2], "y": [1.0, None, 0.333333], "rows": 3}


def test_which_charts_there_are(tmp_path):
    rows = [
        step_row(10, loss_main=1.0, loss_aux=0.5, data_wait=0.1, memory_gib=2.0),
        step_row(20, loss=None, loss_main=None, loss_aux=0.4, data_wait=0.2, memory_gib=2.0),
        evaluation_row(
            20, 0.5, 20, mIoU=0.4, ema_mIoU=0.5, pixAcc=0.8, ema_pixAcc=0.9, val_loss=1.5,
            val_loss_main=1.0, macro_f1=0.3,
        ),
    ]  # fmt: skip
    drawn = curves([read_run(run_folder(tmp_path / "run", rows, finished=False))], ["run"])
    assert [each["name"] for each in drawn["charts"]] == [
        "loss", "loss_main", "loss_aux", "mIoU", "pixAcc", "macro", "lr", "grad_norm",
        "images_per_s", "data_wait", "memory_gib",
    ]  # fmt: skip
    loss = chart(drawn, "loss")["series"]
    assert [each["label"] for each in loss] == ["training", "validation"]
    assert loss[0]["y"] == [1.0, None] and loss[1]["y"] == [1.5]
    labels = [each["label"] for each in chart(drawn, "mIoU")["series"]]
    assert labels == ["weights", "EMA weights"]
    assert chart(drawn, "mIoU")["unit"] == "percent" and chart(drawn, "lr")["unit"] == "number"
    assert drawn["runs"][0]["per_epoch"] == 10


def test_what_is_marked(tmp_path):
    rows = [step_row(10), step_row(20, skipped_steps=2), step_row(30, skipped_steps=2)]
    run = run_folder(tmp_path / "run", [*rows, evaluation_row(30, 0.5, 30, top1=0.5)], False)
    start = {"step": 0, "when": "2026-01-02T03:04:05+00:00", "num_processes": 1, "device": "cpu"}
    start |= {"precision": "no", "machine": {}}
    lines = [start, {**start, "step": 20}]
    (run / "starts.jsonl").write_text("".join(f"{line}\n".replace("'", '"') for line in lines))
    failure = {
        "step": 31, "num_processes": 1, "precision": "no", "checkpoint": None, "micro_batch": None,
        "on_bad_image": "stop", "channels_last": False, "tf32": False,
    }  # fmt: skip
    write_json(run / "failures/step-000000031/report.json", failure)
    found = curves([read_run(run)], ["run"])["runs"][0]["marks"]
    assert [(mark["kind"], mark["step"]) for mark in found] == [
        ("best", 30), ("resume", 20), ("skip", 20), ("failure", 31),
    ]  # fmt: skip
    assert found[2]["text"] == "2 skipped steps up to here"
    assert read_run(run).ending == ("bad", "stopped: non-finite (NaN/Inf) in step 31")
