"""Each recipe of a published dataset trains and evaluates on a few files in the dataset's true layout."""

import json
import math
import shutil

import numpy as np
import pytest
import scipy.io
from conftest import ROOT
from test_loop import rows
from test_recog_datasets import minc  # noqa: F401
from test_seg_datasets import blocks, city_files, coco_files, labels_png, photo, sbd_files, voc_files

from trainkit.cli import main


def ade20k(root):
    for split, names in (("training", "abc"), ("validation", "de")):
        for name in names:
            photo(root / f"images/{split}/ADE_{name}.jpg")
            labels_png(root / f"annotations/{split}/ADE_{name}.png", blocks(0, 1, 150, 3))


def voc(root):
    voc_files(root, {"train": ["a", "b"], "val": ["c", "d"]})
    sbd_files(root, ["b", "e"], ["c", "f"])


def pcontext(root):
    for split, names in (("train", "ab"), ("val", "cd")):
        (root / f"{split}.txt").write_text("\n".join(names))
        for name in names:
            photo(root / f"JPEGImages/{name}.jpg")
            (root / "trainval").mkdir(exist_ok=True)
            scipy.io.savemat(root / f"trainval/{name}.mat", {"LabelMap": blocks(0, 2, 458, 284).astype(np.uint16)})


def cityscapes(root):
    for split in ("train", "val"):
        city_files(root, split, "gtFine", "zurich", blocks(7, 33, 0, 11))


def coco(root):
    coco_files(root)
    shutil.copytree(root / "val2017", root / "train2017")
    shutil.copy(root / "annotations/instances_val2017.json", root / "annotations/instances_train2017.json")


@pytest.mark.parametrize(
    "name, write, words",
    [
        ("seg_ade20k_encnet", ade20k, ()),
        ("seg_ade20k_encnet", ade20k, ("--model", "pspnet")),
        ("seg_voc", voc, ()),
        ("seg_voc", voc, ("--no-augmented", "--model", "upernet")),
        ("seg_pcontext", pcontext, ()),
        ("seg_cityscapes", cityscapes, ()),
        ("seg_coco", coco, ()),
    ],
)
def test_two_steps(tmp_path, monkeypatch, name, write, words):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data, out = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    write(data)
    small = ["--backbone", "small", "--no-pretrained", "--channels", "16", "--base", "64", "--crop", "48"]
    asked = [
        "--data",
        str(data),
        "--batch-size",
        "2",
        "--epochs",
        "2",
        "--workers",
        "0",
        "--log-every",
        "1",
        *small,
        *words,
    ]
    assert main([str(ROOT / "recipes" / f"{name}.py"), *asked, "--out", str(out)]) == 0
    losses = [row["loss"] for row in rows(out)]
    assert len(losses) >= 2 and all(map(math.isfinite, losses))
    final = json.loads((out / "summary.json").read_text())["final"]
    assert final["split"] == ("validation" if write is ade20k else "val")
    assert final["protocol"] == "long side 64, seen whole, scale 1"
    assert final["num_images"] == 2 and 0 <= final["mIoU"] <= 1


def test_two_steps_of_materials(minc, tmp_path):  # noqa: F811
    words = ["--data", str(minc), "--backbone", "small", "--no-pretrained", "--size", "32", "--batch-size", "12"]
    words += ["--epochs", "1", "--workers", "0", "--log-every", "1", "--out", str(tmp_path / "run")]
    assert main([str(ROOT / "recipes" / "recog_minc.py"), *words]) == 0
    assert len(rows(tmp_path / "run")) == 2
    final = json.loads((tmp_path / "run" / "summary.json").read_text())["final"]
    assert (final["split"], final["protocol"]) == ("test1", "centre crop of 32, short side 37, bilinear")
