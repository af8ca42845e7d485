"""Each recipe of a published dataset trains and evaluates on a few files in the dataset's true
layout, and is evaluated where the training files are gone."""

import inspect
import json
import math
import shutil

import numpy as np
import pytest
import scipy.io
from datasets import ClassLabel, Features
from datasets import Dataset as Table
from datasets import Image as ImageFeature
from PIL import Image

from helpers.image_files import blocks, labels_png, photo
from helpers.logs import rows
from helpers.processes import ROOT
from helpers.recognition_datasets import minc_files
from helpers.segmentation_datasets import city_files, coco_files, sbd_files, voc_files
from trainkit.cli import main
from trainkit.commands.recipe_file import load_recipe

TRAINING = {  # files and folders of the training split alone
    *("train", "training", "train.txt", "train1.txt", "dataset", "benchmark_RELEASE"),
    *("train2017", "instances_train2017.json", "train-00000-of-00001.parquet"),
}


def evaluated_without_training(data, run):
    """`trainkit evaluate RUN` gives the results of the run's last evaluation."""
    row = json.loads((run / "summary.json").read_text())["final"]
    gone = [path for path in data.rglob("*") if path.name in TRAINING]
    assert gone, "some files are of the training split alone"
    for path in gone:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    last = max((run / "checkpoints").iterdir())  # whose results are the final ones
    assert main(["evaluate", str(last), "--workers", "0"]) == 0
    results = json.loads((run / "results.json").read_text())
    for name in ("top1", "mIoU", "num_images", "split", "protocol"):
        assert results.get(name) == row.get(name)


@pytest.fixture
def minc(tmp_path):
    return minc_files(tmp_path)


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
            scipy.io.savemat(
                root / f"trainval/{name}.mat",
                {"LabelMap": blocks(0, 2, 458, 284).astype(np.uint16)},
            )


def cityscapes(root):
    for split in ("train", "val"):
        city_files(root, split, "gtFine", "zurich", blocks(7, 33, 0, 11))


def coco(root):
    coco_files(root)
    shutil.copytree(root / "val2017", root / "train2017")
    shutil.copy(
        root / "annotations/instances_val2017.json", root / "annotations/instances_train2017.json"
    )


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
    small = [
        "--backbone",
        "small",
        "--no-pretrained",
        "--head-channels",
        "16",
        "--long-side",
        "64",
        "--crop",
        "48",
    ]
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
    evaluated_without_training(data, out)


def class_folders(root):
    """As ImageNet is unpacked, with a grey and a CMYK file among the others."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for number, name in enumerate(("n01440764", "n02102040", "n03000684")):
            (root / split / name).mkdir(parents=True)
            for image, mode in enumerate(("RGB", "L", "CMYK", "RGB")):
                pixels = random.integers(0, 255, (40 + number, 56, 3), dtype=np.uint8)
                Image.fromarray(pixels).convert(mode).save(
                    root / split / name / f"{name}_{image}.JPEG"
                )


def cifar10(root):
    """As uoft-cs/cifar10 has it: columns img and label, in files called after their split."""
    features = Features(
        {"img": ImageFeature(), "label": ClassLabel(names=[f"kind {i}" for i in range(10)])}
    )
    for split, count in (("train", 24), ("test", 10)):
        images = [Image.new("RGB", (32, 32), (9 * i, 200 - 5 * i, 7)) for i in range(count)]
        rows = {"img": images, "label": [i % 10 for i in range(count)]}
        Table.from_dict(rows, features).to_parquet(root / f"{split}-00000-of-00001.parquet")


def masks(root):
    for split in ("train", "val"):
        for name in ("a", "b", "c"):
            photo(root / f"images/{split}/{name}.jpg")
            labels_png(root / f"annotations/{split}/{name}.png", blocks(0, 1, 2, 255))


@pytest.mark.parametrize(
    "name, write, words, protocol",
    [
        (
            "recog_imagenet",
            class_folders,
            ("--model", "resnet18", "--size", "32"),
            "centre crop of 32",
        ),
        (
            "recog_imagenet_resnest",
            class_folders,
            ("--model", "timm:resnest14d", "--size", "64"),
            "centre crop of 64",
        ),
        (
            "recog_folder",
            class_folders,
            ("--model", "resnet18", "--no-pretrained", "--size", "32"),
            "centre crop of 32",
        ),
        ("recog_cifar10", cifar10, ("--model", "small"), "as stored"),
        (
            "seg_ade20k",
            ade20k,
            ("--model", "fcn", "--backbone", "small", "--no-pretrained"),
            "long side 64",
        ),
        (
            "seg_folder",
            masks,
            ("--model", "lraspp", "--backbone", "small", "--no-pretrained", "--classes", "3"),
            "long side 64",
        ),
    ],
)
def test_two_steps_of_the_others(tmp_path, monkeypatch, name, write, words, protocol):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    data, out = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    write(data)
    known = inspect.signature(load_recipe(ROOT / "recipes" / f"{name}.py")).parameters
    batch = "12" if name == "recog_cifar10" else "6" if name.startswith("recog") else "2"
    asked = [
        "--data",
        str(data),
        "--batch-size",
        batch,
        "--epochs",
        "2",
        "--workers",
        "0",
        "--log-every",
        "1",
        *words,
    ]
    asked += ["--long-side", "64", "--crop", "48"] if name.startswith("seg") else []
    asked += ["--warmup-epochs", "0"] if "warmup_epochs" in known else []
    assert main([str(ROOT / "recipes" / f"{name}.py"), *asked, "--out", str(out)]) == 0
    losses = [row["loss"] for row in rows(out)]
    assert len(losses) >= 2 and all(map(math.isfinite, losses))
    final = json.loads((out / "summary.json").read_text())["final"]
    assert final["protocol"].startswith(protocol)
    assert final["num_images"] == {"recog_cifar10": 10, "seg_ade20k": 2, "seg_folder": 3}.get(
        name, 12
    )
    evaluated_without_training(data, out)


def test_two_steps_of_materials(minc, tmp_path):
    words = [
        "--data",
        str(minc),
        "--backbone",
        "small",
        "--no-pretrained",
        "--size",
        "32",
        "--batch-size",
        "12",
    ]
    words += ["--epochs", "1", "--workers", "0", "--log-every", "1", "--out", str(tmp_path / "run")]
    assert main([str(ROOT / "recipes" / "recog_minc.py"), *words]) == 0
    assert len(rows(tmp_path / "run")) == 2
    final = json.loads((tmp_path / "run" / "summary.json").read_text())["final"]
    assert (final["split"], final["protocol"]) == (
        "test1",
        "centre crop of 32, short side 37, bilinear",
    )
    evaluated_without_training(minc, tmp_path / "run")
