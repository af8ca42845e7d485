"""seg_multilabel from the command line: a run in windows, masks of each class, export."""

import csv
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
from trainkit.tasks.multilabel_segmentation import MultiLabelSegmentation

RECIPE = str(ROOT / "recipes" / "seg_multilabel.py")
SMALL = ["--model", "lraspp", "--backbone", "small", "--no-pretrained", "--workers", "0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Red squares with lighter ones in them, which are of both classes, 24 x 16 pixels."""
    folder = tmp_path_factory.mktemp("overlap")
    for place in range(12):
        random = np.random.default_rng(place)
        pixels = random.integers(0, 60, (16, 24, 3)).astype(np.uint8)
        outer, inner = np.zeros((2, 16, 24), dtype=np.uint8)
        top, left = random.integers(0, 6), random.integers(0, 12)
        outer[top : top + 9, left : left + 11] = 255
        inner[top + 2 : top + 6, left + 2 : left + 7] = 255 if place % 4 else 0
        pixels[outer > 0, 0] = 200
        pixels[inner > 0] = 240
        files = {"images": pixels, "masks/organ": outer, "masks/lesion": inner}
        for kind, content in files.items():
            (folder / "my" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(folder / "my" / kind / f"{place}.png")
    words = [RECIPE, "--data", str(folder / "my"), "--val-share", "0.25", *SMALL]
    words += ["--classes", "organ,lesion", "--long-side", "32", "--crop", "32"]
    words += ["--batch-size", "4", "--epochs", "2", "--lr", "0.05"]
    words += ["--eval-window", "16", "8", "--eval-flip"]
    assert main([*words, "--out", str(folder / "run")]) == 0
    return folder


def test_what_a_run_leaves(trained):
    lines = map(json.loads, (trained / "run" / "log.jsonl").read_text().splitlines())
    last = [row for row in lines if row["event"] == "evaluate"][-1]
    assert last["num_images"] == 3 and last["protocol"].endswith("windows of 16 every 8, scale 1,"
                                                                 " flipped too")  # fmt: skip
    assert {"mIoU", "mDice", "val_loss_bce", "val_loss_dice"} <= last.keys()
    assert list(last["IoU"]) == list(last["Dice"]) == ["organ", "lesion"]
    name = f"step-{last['step']:09d}"
    about = json.loads((trained / "run" / "evaluations" / f"{name}.json").read_text())
    assert about["task"] == "segmentation" and about["classes"] == ["organ", "lesion"]
    with np.load(trained / "run" / "evaluations" / f"{name}.npz") as arrays:
        hits, found, there = (
            arrays[each].sum(0) for each in ("intersection", "predicted_pixels", "true_pixels")
        )
    assert list(last["IoU"].values()) == pytest.approx((hits / (found + there - hits)).tolist())
    shown = trained / "run" / "shown" / name
    assert {"image", "target", "prediction", "error"} <= {
        file.stem.split("-")[1] for file in shown.glob("*.webp")
    }
    for file in ("train_batch.jpg", "val_predictions.jpg", "worst.jpg", "classes.jpg"):
        assert (trained / "run" / file).is_file()
    report = (trained / "run" / "report.html").read_text()
    assert "IoU of each class" in report and "lesion" in report


def test_predictions_need_no_data_and_are_data(trained, tmp_path):
    """A mask of each class at each image's own size, as Python gives it, and read again."""
    photos = tmp_path / "photos"
    shutil.copytree(trained / "my" / "images", photos)
    Image.open(photos / "0.png").resize((50, 31)).save(photos / "0.png")
    out = tmp_path / "out"
    words = ["--out", str(out), "--overlay", "--probabilities", "--workers", "0"]
    assert main(["predict", str(trained / "run"), str(photos), *words]) == 0
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    _, info = trainkit.load(trained / "run")
    assert isinstance(info.task, MultiLabelSegmentation)
    found = info.predict([line["file"] for line in lines])
    for line, row in zip(lines, found, strict=True):
        name = line["file"].rsplit("/", 1)[-1]
        masks = row["masks"].numpy()
        assert masks.shape == (2, *((31, 50) if name == "0.png" else (16, 24)))
        with np.load(out / "probabilities" / name.replace("png", "npz")) as stored:
            scores = stored["probabilities"].astype(np.float32)
        for label, mask, score in zip(("organ", "lesion"), masks, scores):
            written = np.asarray(Image.open(out / "masks" / label / name))
            np.testing.assert_array_equal(written, mask * 255)
            sure = abs(score - 0.5) > 1e-3  # of half precision
            np.testing.assert_array_equal((score > 0.5)[sure], mask[sure] > 0)
        assert line["classes"] == row["classes"]
        overlay = np.asarray(Image.open(out / "overlay" / name.replace("png", "jpg")))
        assert overlay.shape == (*masks.shape[1:], 3)
    with (out / "classes.csv").open() as file:
        assert [row["folder"] for row in csv.DictReader(file)] == ["organ", "lesion"]


def test_a_threshold_of_predictions(trained, tmp_path):
    """None is above 1, and what is above a lower threshold is more."""
    photo, sizes = str(trained / "my" / "images" / "1.png"), {}
    for threshold in ("0.05", "0.5", "1"):
        out = tmp_path / threshold
        words = ["--out", str(out), "--threshold", threshold, "--workers", "0"]
        assert main(["predict", str(trained / "run"), photo, *words]) == 0
        sizes[threshold] = int(
            (np.asarray(Image.open(out / "masks" / "organ" / "1.png")) > 0).sum()
        )
    assert sizes["1"] == 0 and sizes["0.05"] >= sizes["0.5"] and sizes["0.05"] > 0


def test_evaluate_has_an_interval_and_pixels(trained, tmp_path):
    assert main(["evaluate", str(trained / "run"), "--workers", "0", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    low, high = results["mIoU_95"]
    assert low <= results["mIoU"] <= high
    assert list(results["pixels"]) == list(results["predicted_pixels"]) == ["organ", "lesion"]


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
    (["--loss", "dice", "--pos-weight", "2", "1"], "pos_weight is of bce, and the loss is dice"),
    (["--classes", "2"], "give their names, by which their masks are found"),
    (["--classes", "organ,spleen"], "none of spleen: correct --classes"),
    (["--mask-threshold", "1"], "threshold is 1.0; it must be between 0 and 1"),
    (["--data", "elsewhere"], "give a folder with images/ and masks/"),
])  # fmt: skip
def test_settings_that_are_refused(trained, tmp_path, capsys, words, message):
    data = ["--data", str(trained / "my"), "--val-share", "0.25"] if "--data" not in words else []
    assert main([RECIPE, *data, *SMALL, *words, "--out", str(tmp_path / "run")]) == 2
    assert message in " ".join("".join(capsys.readouterr()).split())
