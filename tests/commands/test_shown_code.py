"""The Python that README and model cards show, run as shown."""

import re
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

import trainkit
from helpers.image_files import picture
from helpers.processes import ROOT
from trainkit.cli import main
from trainkit.commands.plain_code import plain_code
from trainkit.models.rebuild import transform_from
from trainkit.storage.model_json import read_model_json

BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A photograph, a run of a ResNet at README's size and one of an FCN, both published."""
    folder = tmp_path_factory.mktemp("shown")
    short = ("--sample", "--workers", "0", "--batch-size", "4", "--epochs", "0.01")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        recognition = ("--model", "resnet18", "--size", "224", "--warmup-epochs", "0")
        assert main(["recog_folder", *short, *recognition]) == 0
        dense = ("--model", "fcn", "--backbone", "resnet50", "--long-side", "64", "--crop", "64")
        assert main(["seg_folder", *short, *dense, "--epochs", "0.04"]) == 0
        for name in ("recog_folder", "seg_folder"):
            assert main(["push", f"runs/{name}", f"me/{name}", "--folder", f"hub/{name}"]) == 0
        words = ["export", "runs/recog_folder", "--out", "model.safetensors"]
        assert main(words) == 0
    picture(folder / "my_photos" / "0001.jpg", 300, 260, 3)
    with Image.open(folder / "my_photos" / "0001.jpg") as image:
        exif = image.getexif()
        exif[0x0112] = 6  # on its side, as telephones store photographs
        image.save(folder / "photo.jpg", exif=exif)
    shutil.copy(folder / "photo.jpg", folder / "my_photos" / "0001.jpg")
    return folder


def shown(code: str, folder: Path, monkeypatch, capsys) -> str:
    """What a block of code prints in a folder."""
    monkeypatch.chdir(folder)
    (folder / "shown.py").write_text(code)
    capsys.readouterr()
    runpy.run_path("shown.py")
    return capsys.readouterr().out


def numbers(text: str) -> list[float]:
    return [float(each) for each in re.findall(r"\d+\.\d+(?:e-\d+)?", text)]


def test_readme(here, monkeypatch, capsys):
    """The second block is of a network with other classes than here, in name and number."""
    loaded, plain = BLOCK.findall((ROOT / "README.md").read_text())
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
    assert len(plain.strip().splitlines()) <= 11, "ten lines and an empty one"
    printed = shown(loaded, here, monkeypatch, capsys)
    (found,) = trainkit.load("runs/recog_folder")[1].predict("my_photos", top_k=8)
    best = found["top"][0]
    assert printed == f"my_photos/0001.jpg {best['name']} {best['probability']}\n"
    plain = plain.replace('"resnet50", num_classes=2', '"resnet18", num_classes=8')
    probabilities = numbers(shown(plain, here, monkeypatch, capsys))
    expected = {each["class"]: each["probability"] for each in found["top"]}
    assert probabilities == pytest.approx([expected[k] for k in range(8)], abs=2e-3)


@pytest.mark.parametrize("name", ["recog_folder", "seg_folder"])
def test_model_cards(here, name, monkeypatch, capsys, tmp_path):
    card = (here / "hub" / name / "README.md").read_text()
    assert f"trainkit predict me/{name} my_photos --out predictions\n" in card
    loaded, plain = BLOCK.findall(card)
    assert "Neither torchvision nor timm" not in card
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / f"models--me--{name}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("b" * 40)
    shutil.copytree(here / "hub" / name, repository / "snapshots" / ("b" * 40))
    found = trainkit.load(f"me/{name}")[1].predict(here / "photo.jpg")
    assert shown(loaded, here, monkeypatch, capsys) == f"{found}\n".replace(
        str(here / "photo.jpg"), "photo.jpg"
    )
    shutil.copy(here / "photo.jpg", here / "hub" / name / "photo.jpg")
    printed = shown(plain, here / "hub" / name, monkeypatch, capsys)
    if name == "recog_folder":
        top = found[0]["top"][0]
        assert numbers(printed)[top["class"]] == pytest.approx(top["probability"], abs=1e-3)
    else:
        assert printed.startswith("tensor([[[")
        plain = plain.replace("print(", "found = (")
        (here / "hub" / name / "masks.py").write_text(plain)
        monkeypatch.chdir(here / "hub" / name)
        mask = runpy.run_path("masks.py")["found"]
        logits = trainkit.load(here / "hub" / name)[0](
            trainkit.load(here / "hub" / name)[1].preprocess(here / "photo.jpg")
        )["out"]
        assert (mask == logits.argmax(1)).float().mean() > 0.99
    assert len(plain.strip().splitlines()) <= 12


def test_a_network_of_trainkits_own_has_no_plain_code(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--sample", "--workers", "0", "--epochs", "0.1", "--warmup-epochs", "0"]
    assert main(["recog_folder", *words]) == 0
    assert main(["push", "runs/recog_folder", "me/small", "--folder", "published"]) == 0
    (loaded,) = BLOCK.findall(Path("published/README.md").read_text())
    assert 'trainkit.load("me/small")' in loaded
    hint = "Neither torchvision nor timm has this network: without trainkit take a file that needs"
    assert hint in Path("published/README.md").read_text()
    capsys.readouterr()
    assert main(["export", "runs/recog_folder", "--out", "model.safetensors"]) == 0
    assert (
        "neither torchvision nor timm has this network (SmallClassifier): trainkit.load takes"
        " the run, and .pt2 or .onnx" in capsys.readouterr().out
    )


def test_no_code_without_trainkit_for_windows(here):
    folder = here / "hub" / "seg_folder"
    described, weights = read_model_json(folder), folder / "model.safetensors"
    assert described is not None and plain_code(described, weights) is not None
    windows = {"scales": [1.0], "flip": False, "window": 48, "stride": 32, "window_batch": 8}
    assert plain_code({**described, "inference": windows}, weights) is None


@pytest.mark.parametrize("size", [(427, 640), (640, 427), (33, 900)])
def test_the_long_side_is_rounded_as_trainkit_does(here, size):
    """Of the published network's code the line that prepares an image, for another long side."""
    described = read_model_json(here / "hub" / "seg_folder")
    assert described is not None
    arguments = {"long_side": 520, "crop": None}
    described["transform"] = {**described["transform"], "arguments": arguments}
    lines = plain_code(described, here / "hub" / "seg_folder" / "model.safetensors")
    (line,) = (each for each in lines or () if each.endswith(" / 255"))
    image = tv_tensors.Image(torch.randint(0, 256, (3, *size), dtype=torch.uint8))
    seen = {"F": functional, "image": image}
    exec(line, seen)
    assert torch.equal(seen["image"], transform_from(described)(image) / 255)
