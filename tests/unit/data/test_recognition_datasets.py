"""MINC-2500, CIFAR-100 and ImageNet in their true layouts, with their kinds of files."""

import io
import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Features
from datasets import Dataset as Table
from datasets import Image as ImageFeature
from PIL import Image

from helpers.processes import ROOT
from helpers.recognition_datasets import CATEGORIES, GREY, RGB, X, minc_files
from trainkit.cli import main
from trainkit.commands.recipe_file import build, load_recipe
from trainkit.data.datasets.class_source import ClassSource
from trainkit.data.datasets.folder import ClassFolder
from trainkit.data.datasets.hub import HubImages
from trainkit.data.datasets.minc import MINC


def write_kinds(folder):
    """One file of each kind that recognition sets hold; name -> the RGB that a person sees."""
    folder.mkdir(parents=True, exist_ok=True)
    fine = {"quality": 95, "subsampling": 0}
    Image.fromarray(RGB).save(folder / "colour.JPEG", **fine)
    Image.fromarray(GREY).save(folder / "grey.JPEG", quality=95)
    black = np.full_like(GREY, 51)  # a fifth of the light is taken by black ink
    Image.fromarray(np.dstack([255 - RGB, black]), "CMYK").save(folder / "inks.JPEG", **fine)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side: turned by 90 degrees clockwise to be seen
    Image.fromarray(np.rot90(RGB).copy()).save(folder / "turned.JPEG", exif=exif, **fine)
    palette = Image.fromarray((X % 4).astype(np.uint8), "P")
    colours = np.array([[255, 0, 0], [0, 200, 0], [0, 0, 250], [9, 8, 7]], np.uint8)
    palette.putpalette(colours.flatten().tolist())
    palette.save(folder / "palette.png")
    Image.fromarray(RGB).save(folder / "a-png.JPEG", "PNG")
    return {
        "a-png.JPEG": RGB,
        "colour.JPEG": RGB,
        "grey.JPEG": np.stack([GREY] * 3, -1),
        "inks.JPEG": 0.8 * RGB,
        "palette.png": colours[X % 4],
        "turned.JPEG": RGB,
    }


def assert_seen(image, expected, exact):
    """uint8 (3, H, W) against (H, W, 3): bit for bit, or within what JPEG loses."""
    assert image.dtype == torch.uint8 and type(image) is torch.Tensor
    seen = image.permute(1, 2, 0).numpy()
    assert seen.shape == expected.shape
    if exact:
        assert np.array_equal(seen, expected)
    else:
        difference = np.abs(seen.astype(int) - expected)
        assert difference.mean() < 2 and difference.max() < 16


def test_imagenet_with_every_kind_of_file(tmp_path):
    """Classes are the sorted synsets; the same pixels as files, and as bytes in a table."""
    expected = write_kinds(tmp_path / "train" / "n01440764")
    # `datasets` would take the words below for splits and drop the files.
    odd = [
        "n01440764_bullet_train.JPEG",
        "n01440764_test.JPEG",
        "validation-0.JPEG",
        "n01440764.TRAIN.jpeg",
    ]
    (tmp_path / "train" / "n01443537").mkdir()
    for name in odd:
        Image.fromarray(RGB).save(tmp_path / "train" / "n01443537" / name, "JPEG")
    (tmp_path / "train" / "n01443537" / ".hidden.JPEG").write_bytes(b"")
    (tmp_path / "train" / "n01443537" / "notes.txt").write_text("no image")
    data = ClassSource(tmp_path).open("train")
    assert isinstance(data, ClassFolder) and data.classes == ["n01440764", "n01443537"]
    assert [data.name_of(index).name for index in range(6)] == sorted(expected)
    assert (
        sorted(data.name_of(index).name for index in range(6, 10)) == sorted(odd)
        and len(data) == 10
    )
    assert data.targets.tolist() == [0] * 6 + [1] * 4
    for index, (name, pixels) in enumerate(sorted(expected.items())):
        assert_seen(data[index][0], pixels, exact="png" in name)

    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["n01440764"])})
    files = [
        {"bytes": data.name_of(index).read_bytes(), "path": f"{index}.JPEG"} for index in range(6)
    ]
    Table.from_dict({"image": files, "label": [0] * 6}, features).to_parquet(
        tmp_path / "train-0.parquet"
    )
    table = HubImages(tmp_path, "train")
    assert all(torch.equal(table[index][0], data[index][0]) for index in range(6))


@pytest.fixture
def minc(tmp_path):
    return minc_files(tmp_path)


def test_minc(minc):
    data = MINC(minc, "train")
    assert data.classes == CATEGORIES and len(data.classes) == 23 and len(data) == 24
    assert data.targets.tolist() == [0, 1, 2, 22, *range(3, 23)]
    assert data.name_of(3) == minc / "images" / "wood" / "wood_002499.jpg"
    image, target = data[12]
    assert target == 11 and image.shape == (3, 20, 20) and abs(int(image[0, 9, 9]) - 110) < 4
    assert_seen(data[3][0], np.stack([GREY] * 3, -1), exact=False)
    assert len(MINC(minc, "test")) == 23 and MINC(minc, "test").targets.tolist() == list(range(23))
    assert len(MINC(minc, "train", 5)) == 46
    validate = MINC(minc, "validate", transform=lambda image: image[:, :4])
    assert (
        len(validate) == 1
        and validate[0][1] == CATEGORIES.index("other")
        and validate[0][0].shape == (3, 4, 20)
    )


def test_user_errors_of_minc(minc, tmp_path):
    with pytest.raises(ValueError, match="split is 'val'; it is one of train, validate, test"):
        MINC(minc, "val")
    with pytest.raises(ValueError, match="number is 6; its splits are numbered 1 to 5"):
        MINC(minc, "train", 6)
    with pytest.raises(
        FileNotFoundError, match=r"no MINC-2500 at .*looked for categories.txt.*minc-2500.tar.gz"
    ):
        MINC(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match=r"looked for labels/train2.txt"):
        MINC(minc, "train", 2)
    (minc / "labels" / "train2.txt").write_text(
        "images/brick/brick_000000.jpg\nimages/gold/gold_000000.jpg\n"
    )
    with pytest.raises(
        ValueError, match=r"train2.txt, line 2: 'images/gold/gold_000000.jpg' is not images/<class>"
    ):
        MINC(minc, "train", 2)
    (minc / "labels" / "train2.txt").write_text("")
    with pytest.raises(ValueError, match="train2.txt is empty"):
        MINC(minc, "train", 2)


def test_minc_in_its_recipe(minc, tmp_path):
    """The doctor finds every class in both lists, and nothing to object to."""
    recipe = str(ROOT / "recipes" / "recog_minc.py")
    words = [
        "--data",
        str(minc),
        "--backbone",
        "small",
        "--no-pretrained",
        "--workers",
        "0",
        "--out",
        str(tmp_path),
    ]
    assert main(["doctor", recipe, *words]) == 0
    report = json.loads((tmp_path / "doctor.json").read_text())
    assert (
        report["warnings"] == []
        and report["train"]["num_images"] == 24
        and report["val"]["num_images"] == 23
    )
    assert [row["name"] for row in report["train"]["classes"]] == CATEGORIES
    assert [row["images"] for row in report["train"]["classes"]] == [1] * 22 + [2]


@pytest.fixture
def cifar100(tmp_path, monkeypatch):
    """CIFAR-100's columns: img, and two of labels."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    fine, coarse = (
        [f"fine-{index}" for index in range(100)],
        [f"coarse-{index}" for index in range(20)],
    )
    features = Features(
        {
            "img": ImageFeature(),
            "fine_label": ClassLabel(names=fine),
            "coarse_label": ClassLabel(names=coarse),
        }
    )
    for split, labels in (("train", [0, 19, 99, 50]), ("test", [99, 3])):
        images = []
        for label in labels:
            file = io.BytesIO()
            Image.new("RGB", (32, 32), (label, 2 * label, 5)).save(file, "PNG")
            images.append({"bytes": file.getvalue(), "path": None})
        rows = {
            "img": images,
            "fine_label": labels,
            "coarse_label": [label // 5 for label in labels],
        }
        (tmp_path / "cifar100").mkdir(exist_ok=True)
        Table.from_dict(rows, features).to_parquet(
            tmp_path / "cifar100" / f"{split}-00000-of-00001.parquet"
        )
    return tmp_path / "cifar100"


def test_cifar100(cifar100):
    message = (
        r"2 columns that could be the label .fine_label, coarse_label.; say which with label_column"
        r" .--label-column"
    )
    with pytest.raises(ValueError, match=message):
        HubImages(cifar100, "train")
    fine = HubImages(cifar100, "train", label_column="fine_label")
    assert len(fine.classes) == 100 and [int(target) for _, target in fine] == [0, 19, 99, 50]
    assert fine[2][0][:, 4, 4].tolist() == [99, 198, 5]
    coarse = ClassSource(cifar100, label_column="coarse_label").open("val")
    assert len(coarse.classes) == 20 and [int(target) for _, target in coarse] == [19, 0]
    with pytest.raises(ValueError, match="no column 'picture'"):
        ClassSource(cifar100, image_column="picture", label_column="fine_label").open("train")


def test_cifar100_in_the_recipes(cifar100):
    for name, more in (("recog_cifar10", {}), ("recog_folder", {"pretrained": False})):
        function = load_recipe(ROOT / "recipes" / f"{name}.py")
        settings = {"data": str(cifar100), "model": "small", "label_column": "fine_label", **more}
        recipe = build(function, settings)
        assert recipe.task.num_classes == 100 and recipe.task.classes[99] == "fine-99"
        with torch.no_grad():
            assert recipe.model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 100)
        with pytest.raises(ValueError, match="--label-column"):
            build(function, {**settings, "label_column": None})
