"""depth_folder from the command line: a run, predictions in the data's steps, export."""

import json
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import trainkit
from helpers.processes import ROOT
from trainkit.cli import main
from trainkit.tasks.dense_regression import DenseRegression

RECIPE = str(ROOT / "recipes" / "depth_folder.py")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Images that are lighter where the map is higher, 24 x 16 pixels, and a run of 2 epochs."""
    folder = tmp_path_factory.mktemp("depth")
    for place in range(12):
        random = np.random.default_rng(place)
        metres = np.clip(random.uniform(1, 5) + np.linspace(0, 3, 24)[None].repeat(16, 0), 1, 7)
        stored = np.rint(metres * 1000).astype(np.uint16)
        stored[:4, : place % 5] = 0
        for kind in ("images", "depth"):
            (folder / "my" / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(stored).save(folder / "my" / "depth" / f"{place}.png")
        grey = (metres * 30).astype(np.uint8)[..., None].repeat(3, 2)
        Image.fromarray(grey).save(folder / "my" / "images" / f"{place}.png")
    words = [RECIPE, "--data", str(folder / "my"), "--val-share", "0.25", "--scale", "0.001"]
    words += ["--limits", "0.5", "10", "--model", "lraspp", "--backbone", "small"]
    words += ["--no-pretrained", "--long-side", "32", "--crop", "32", "--batch-size", "4"]
    words += ["--epochs", "2", "--warmup-epochs", "0", "--lr", "0.003", "--workers", "0"]
    words += ["--eval-window", "16", "8", "--eval-flip"]
    assert main([*words, "--out", str(folder / "run")]) == 0
    return folder


def test_what_a_run_leaves(trained):
    lines = map(json.loads, (trained / "run" / "log.jsonl").read_text().splitlines())
    last = [row for row in lines if row["event"] == "evaluate"][-1]
    assert last["num_images"] == 3 and last["protocol"].endswith("windows of 16 every 8, scale 1,"
                                                                 " flipped too")  # fmt: skip
    assert {"rmse", "mae", "abs_rel", "delta1", "delta2", "delta3", "val_loss"} <= last.keys()
    about = trained / "run" / "evaluations" / f"step-{last['step']:09d}.json"
    assert json.loads(about.read_text())["task"] == "dense_regression"
    shown = trained / "run" / "shown" / f"step-{last['step']:09d}"
    assert {"image", "target", "prediction"} <= {
        file.stem.split("-")[1] for file in shown.glob("*.webp")
    }
    for name in ("train_batch.jpg", "val_predictions.jpg", "worst.jpg", "report.html"):
        assert (trained / "run" / name).is_file()


def test_predictions_need_no_data(trained, tmp_path):
    """PNG in the data's steps, at each image's own size, of the values that Python gives."""
    photos = tmp_path / "photos"
    shutil.copytree(trained / "my" / "images", photos)
    Image.open(photos / "0.png").resize((50, 31)).save(photos / "0.png")
    out = tmp_path / "out"
    assert main(["predict", str(trained / "run"), str(photos), "--out", str(out),
                 "--workers", "0"]) == 0  # fmt: skip
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    model, info = trainkit.load(trained / "run")
    assert isinstance(info.task, DenseRegression) and tuple(info.task.limits) == (0.5, 10.0)
    found = info.predict([line["file"] for line in lines])
    for line, row in zip(lines, found, strict=True):
        name = line["file"].rsplit("/", 1)[-1]
        stored = np.asarray(Image.open(out / "raw" / name))
        values = row["values"].numpy()
        assert stored.dtype == np.uint16 and stored.shape == values.shape
        assert values.shape == ((31, 50) if name == "0.png" else (16, 24))
        np.testing.assert_allclose(stored * 0.001, values, atol=0.00051)
        assert line["mean"] == pytest.approx(values.mean(dtype=float), rel=1e-5)
        assert np.asarray(Image.open(out / "colour" / name)).shape == (*values.shape, 3)


def test_evaluate_has_an_interval(trained, tmp_path):
    assert main(["evaluate", str(trained / "run"), "--workers", "0", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    low, high = results["rmse_95"]
    assert low <= results["rmse"] <= high


@pytest.mark.nightly
def test_export(trained, tmp_path):
    file = tmp_path / "m.onnx"
    assert main(["export", str(trained / "run"), "--out", str(file)]) == 0
    model, info = trainkit.load(trained / "run")
    image = info.preprocess(trained / "my" / "images" / "3.png")
    session = onnxruntime.InferenceSession(str(file))
    found = session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(found, model(image)["out"].numpy(), atol=1e-4)


@pytest.mark.parametrize("words, message", [
    (["--output", "linear"], "the loss is silog, of logarithms of positive values"),
    (["--limits", "5", "1"], "limits are (5.0, 1.0); give the least and the largest value"),
    (["--scale", "0"], "scale is 0"),
    (["--data", "elsewhere"], "give a folder with images/ and depth/"),
])  # fmt: skip
def test_settings_that_are_refused(trained, tmp_path, capsys, words, message):
    data = ["--data", str(trained / "my"), "--val-share", "0.25"] if "--data" not in words else []
    small = ["--model", "lraspp", "--backbone", "small", "--no-pretrained", "--workers", "0"]
    assert main([RECIPE, *data, *small, *words, "--out", str(tmp_path / "run")]) == 2
    assert message in " ".join("".join(capsys.readouterr()).split())
