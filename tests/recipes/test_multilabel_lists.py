"""recog_multilabel from the command line: lists, folders, predictions with thresholds, export."""

import csv
import json
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

import trainkit
from helpers.processes import ROOT
from trainkit.cli import main
from trainkit.commands.predict import predict
from trainkit.commands.recipe_file import build, load_recipe
from trainkit.errors import UserError
from trainkit.options import PredictOptions
from trainkit.prediction.loading import Source
from trainkit.report.page import render
from trainkit.report.run_data import read_run
from trainkit.tasks.multilabel import MultiLabel

RECIPE = str(ROOT / "recipes" / "recog_multilabel.py")
TINY = [RECIPE, "--model", "small", "--no-pretrained", "--size", "16", "--batch-size", "8"]
TINY += ["--warmup-epochs", "0", "--workers", "0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with images of a red and a green half, a list of them, and a run of 3 epochs."""
    folder = tmp_path_factory.mktemp("labels")
    lines = ["path,labels"]
    for place in range(48):
        pixels = np.random.default_rng(place).integers(0, 60, (16, 16, 3), dtype=np.uint8)
        names = [name for bit, name in enumerate(("red", "green")) if place >> bit & 1]
        for channel, name in enumerate(("red", "green")):
            if name in names:
                pixels[:, 8 * channel : 8 * channel + 8, channel] += 190
        Image.fromarray(pixels).save(folder / f"{place}.png")
        lines.append(f"{place}.png,{';'.join(names)}")
    (folder / "all.csv").write_text("\n".join(lines))
    words = [*TINY, "--data", str(folder / "all.csv"), "--val-share", "0.25", "--epochs", "3"]
    assert main([*words, "--lr", "0.1", "--out", str(folder / "run")]) == 0
    return folder


def lines_of(file):
    return file.read_text().splitlines()


def log_rows(run):
    rows = map(json.loads, lines_of(run / "log.jsonl"))
    return [row for row in rows if row["event"] == "evaluate"]


def test_what_a_run_leaves(trained):
    run = trained / "run"
    last = log_rows(run)[-1]
    assert last["num_images"] == 12 and last["best"] > 0.9
    assert {"mAP", "micro_f1", "macro_f1", "macro_f1_best", "AP", "thresholds"} <= last.keys()
    kept = np.load(run / "evaluations" / f"step-{last['step']:09d}.npz")
    assert kept["target"].shape == kept["score"].shape == (12, 2) and len(kept["loss"]) == 12
    for label, name in enumerate(("green", "red")):
        expected = average_precision_score(kept["target"][:, label], kept["score"][:, label])
        assert last["AP"][name] == pytest.approx(expected)
    about = json.loads((run / "evaluations" / f"step-{last['step']:09d}.json").read_text())
    assert about["task"] == "multilabel" and about["classes"] == ["green", "red"]
    for name in ("train_batch.jpg", "worst.jpg", "val_predictions.jpg"):
        assert (run / name).is_file()
    page = render(read_run(run)).decode()
    assert "Average precision of each class" in page and 'id="confusions"' not in page


def test_predictions_need_no_data(trained, tmp_path, capsys):
    """By the thresholds of the run's own evaluation, also after a push, and by a given one."""
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)
    photos = [str(trained / f"{place}.png") for place in range(8)]
    (tmp_path / "photos").mkdir()
    for photo in photos:
        shutil.copy(photo, tmp_path / "photos")
    words = [str(tmp_path / "photos"), "--workers", "0", "--out"]
    assert main(["predict", str(run), *words, str(tmp_path / "p"), "--probabilities"]) == 0
    shown = capsys.readouterr().out
    lines = [json.loads(line) for line in lines_of(tmp_path / "p" / "predictions.jsonl")]
    table = list(csv.DictReader(lines_of(tmp_path / "p" / "predictions.csv")))
    kept = np.load(tmp_path / "p" / "probabilities.npz")
    assert table[0].keys() == {"file", "label", "green", "red"}
    best_step = log_rows(run)[-1]["best_step"]
    best = next(row for row in log_rows(run) if row["step"] == best_step)
    used = ", ".join(f"{name} {best['thresholds'][name]:.2f}" for name in ("green", "red"))
    assert f"thresholds: {used} (the best F1 of each on the validation images;" in shown
    for line, row, probabilities in zip(lines, table, kept["probabilities"], strict=True):
        called = {each["name"] for each in line["labels"]}
        above = {
            name
            for name, probability in zip(("green", "red"), probabilities.astype(float))
            if probability > best["thresholds"][name]
        }
        assert called == above and row["label"] == ";".join(sorted(called))
        assert float(row["red"]) == pytest.approx(float(probabilities[1]), abs=1e-6)
    assert any(line["labels"] for line in lines) and not all(line["labels"] for line in lines)

    assert main(["predict", str(run), *words, str(tmp_path / "q"), "--threshold", "0"]) == 0
    assert "threshold of each class: 0 (--threshold)" in capsys.readouterr().out
    lines = [json.loads(line) for line in lines_of(tmp_path / "q" / "predictions.jsonl")]
    assert all(len(line["labels"]) == 2 for line in lines)
    assert main(["predict", str(run), *words, str(tmp_path / "q"), "--threshold", "2"]) == 2
    assert "threshold is 2.0; it must be in [0, 1]" in "".join(capsys.readouterr())

    pushed = tmp_path / "pushed"
    assert main(["push", str(run), "me/labels", "--folder", str(pushed)]) == 0
    assert main(["predict", str(pushed), *words, str(tmp_path / "r")]) == 0
    same = [(tmp_path / each / "predictions.csv").read_text() for each in "pr"]
    assert same[0] == same[1]
    model, info = trainkit.load(run)
    found = info.predict(photos)
    assert [sorted(each["name"] for each in row["labels"]) for row in found] == [
        row["label"].split(";") if row["label"] else [] for row in table
    ]
    assert isinstance(info.task, MultiLabel)
    assert info.thresholds == [best["thresholds"][name] for name in ("green", "red")]


def test_an_evaluation_has_an_interval(trained, tmp_path, capsys):
    assert main(["evaluate", str(trained / "run"), "--workers", "0", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["positives"].keys() == {"green", "red"}
    if results["mAP"] == 1:  # every resampling has the same
        assert results["no_interval"].startswith("every image has the same score")
    else:
        low, high = results["mAP_95"]
        assert low <= results["mAP"] <= high
    assert "AP" in capsys.readouterr().out


@pytest.mark.nightly
def test_export(trained, tmp_path):
    file = tmp_path / "m.onnx"
    assert main(["export", str(trained / "run"), "--out", str(file)]) == 0
    model, info = trainkit.load(trained / "run")
    image = info.preprocess(trained / "3.png")
    session = onnxruntime.InferenceSession(str(file))
    (found,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, model(image).numpy(), atol=1e-4)


def test_another_task_has_no_threshold(tmp_path, capsys):
    """The option is refused where nothing would come of it."""
    folder = load_recipe(ROOT / "recipes" / "recog_folder.py")
    recipe = build(folder, {**folder.sample_settings(), "sample": True})
    asked = PredictOptions(paths=(tmp_path,), out=tmp_path / "out", threshold=0.3)
    with pytest.raises(UserError, match="--threshold is of the task MultiLabel"):
        predict(recipe, tmp_path, asked)


@pytest.mark.parametrize("words, message", [
    (["--loss", "asl", "--pos-weight", "auto"], "loss is asl, and pos_weight and label_smoothing"),
    (["--loss", "focal", "--label-smoothing", "0.1"], "loss is focal, and pos_weight"),
    (["--metrics", "evaluate:f1"], "is given single labels, and each image has any number"),
    (["--classes", "red,blue"], "are of classes green, which are not among"),
])  # fmt: skip
def test_settings_that_are_refused(trained, tmp_path, capsys, words, message):
    data = ["--data", str(trained / "all.csv"), "--val-share", "0.25"]
    assert main([*TINY, *data, *words, "--out", str(tmp_path / "run")]) == 2
    assert message in " ".join("".join(capsys.readouterr()).split())


def test_further_settings(trained, tmp_path):
    data = ["--data", str(trained / "all.csv"), "--val-share", "0.25", "--epochs", "1"]
    more = ["--pos-weight", "auto", "--mixup", "0.4", "--metrics", "torchmetrics:HammingDistance"]
    run = tmp_path / "run"
    assert main([*TINY, *data, *more, "--ema", "0.9", "--out", str(run)]) == 0
    row = log_rows(run)[-1]
    assert {"ema_mAP", "ema_thresholds", "HammingDistance"} <= row.keys()
    recorded = json.loads((run / "settings.json").read_text())
    assert all(0.5 < each < 2 for each in recorded["input"]["pos_weight"])
    assert Source.at(run).info().thresholds == [row["ema_thresholds"][n] for n in ("green", "red")]
    again = [*TINY, *data, *more, "--ema", "0.9", "--out", str(run)]
    assert main(again) == 0  # it is finished, with the same weights
