"""How images are looked at.

As the network was trained, kept with the run, and in older runs as it was then.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from helpers.processes import ROOT
from trainkit.cli import main
from trainkit.commands.recipe_file import build, load_recipe
from trainkit.data.transforms.recognition import CROP_MODES, eval_transform
from trainkit.models.recognition import published_input
from trainkit.models.segmentation import segmenter
from trainkit.storage.run_changes import ADDED

timm = pytest.importorskip("timm")
HALF, IMAGENET = (
    "mean 0.5 0.5 0.5, std 0.5 0.5 0.5",
    "mean 0.485 0.456 0.406, std 0.229 0.224 0.225",
)
INPUT = {"mean", "std", "interpolation", "crop_fraction", "crop_mode"}
RECIPES = {
    name: ROOT / "recipes" / f"{name}.py"
    for name in ("recog_imagenet", "recog_folder", "recog_imagenet_resnest")
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Images of two classes, one long."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(4):
            (folder / split / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 256, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / f"class{number % 2}" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory) -> Path:
    """A run of each recipe on a network whose mean and std are 0.5, not a pretrained one."""
    folder = tmp_path_factory.mktemp("runs")
    for name in RECIPES:
        assert main(command(name, data, folder)) == 0
    return folder


def command(name: str, data: Path, folder: Path, *more: str) -> list[str]:
    settings = {"data": data, "model": "timm:test_vit", "size": 32, "epochs": 1, "batch-size": 4}
    settings |= {"warmup-epochs": 0, "workers": 0}
    words = [str(word) for each, value in settings.items() for word in (f"--{each}", value)]
    words += ["--no-pretrained"] if name == "recog_folder" else []
    return [str(RECIPES[name]), *words, "--out", str(folder / name), *more]


def change(run: Path, edit) -> Path:
    """settings.json with something changed."""
    content = json.loads((run / "settings.json").read_text())
    edit(content)
    (run / "settings.json").write_text(json.dumps(content))
    return run


def as_then(run: Path, **settings) -> Path:
    """The run as trainkit wrote it before it kept how images are looked at and evaluated, and
    before checkpoints had a format."""

    def edit(content):
        del content["input"]
        for name in ADDED:
            del content[name]
        content["settings"] = {
            n: v for n, v in content["settings"].items() if n not in {*INPUT, "pretrained"}
        } | settings

    for manifest in run.glob("checkpoints/*/manifest.json"):
        content = json.loads(manifest.read_text())
        del content["format"]
        manifest.write_text(json.dumps(content))
    return change(run, edit)


def copied(runs: Path, name: str, folder: Path) -> Path:
    return Path(shutil.copytree(runs / name, folder / name))


def evaluated(name: str, run: Path, *more: str) -> dict:
    assert (
        main(["evaluate", str(RECIPES[name]), "--weights", str(run), "--workers", "0", *more]) == 0
    )
    return json.loads((run / "results.json").read_text())


@pytest.mark.parametrize("name", RECIPES)
def test_the_run_keeps_its_inference_settings(runs, name, tmp_path):
    """What timm says of the network when it is evaluated, and whether weights are fetched then, is
    no matter."""
    run = copied(runs, name, tmp_path)
    kept = json.loads((run / "settings.json").read_text())["input"]
    half, crop = [0.5, 0.5, 0.5], {"crop_fraction": 0.95, "crop_mode": "center"}
    assert kept == {"mean": half, "std": half, "interpolation": "bicubic", **crop}
    results = evaluated(name, run)
    assert results["protocol"] == f"centre crop of 32, short side 34, bicubic, {HALF}"
    if name == "recog_folder":
        change(run, lambda content: content["settings"].update(pretrained=True))
        assert evaluated(name, run, "--no-pretrained") | {"settings": 0} == results | {
            "settings": 0
        }
        change(run, lambda content: content["settings"].update(pretrained=False))
    change(
        run, lambda content: content["input"].update(mean=[0.1, 0.2, 0.3], interpolation="bilinear")
    )
    other = evaluated(name, run)
    assert (
        other["protocol"]
        == "centre crop of 32, short side 34, bilinear, mean 0.1 0.2 0.3, std 0.5 0.5 0.5"
    )
    assert other["calibration_error"] != results["calibration_error"]
    again = evaluated(name, run, "--mean", "0.5", "0.5", "0.5", "--interpolation", "bicubic")
    assert again["calibration_error"] == results["calibration_error"]


THEN = {  # what settings.json had, and how the images were looked at
    "recog_imagenet": (
        {"interpolation": "bicubic", "crop_fraction": 0.8},
        "short side 40, bicubic",
    ),
    "recog_imagenet_resnest": ({}, "short side 37, bicubic"),
    "recog_folder": ({"pretrained": False}, "short side 37, bilinear"),
}


@pytest.mark.parametrize("name", THEN)
def test_older_runs_are_evaluated_as_they_were_trained(runs, data, name, tmp_path, capsys):
    """Evaluated, predicted and resumed with ImageNet's mean and std, or not resumed."""
    settings, protocol = THEN[name]
    run = as_then(copied(runs, name, tmp_path), **settings)
    given = [
        "--mean",
        "0.485",
        "0.456",
        "0.406",
        "--std",
        "0.229",
        "0.224",
        "0.225",
        "--crop-mode",
        "center",
    ]
    given += (
        f"--interpolation {protocol.split()[-1]} --crop-fraction"
        f" {settings.get('crop_fraction', 0.875)}".split()
    )
    expected = evaluated(name, copied(runs, name, tmp_path / "now"), *given)
    results = evaluated(name, run)
    assert results["protocol"] == expected["protocol"] == f"centre crop of 32, {protocol}"
    assert results["calibration_error"] == expected["calibration_error"]

    assert main(command(name, data, tmp_path)) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert (
        "was started with different settings" in message
        and "mean was [0.485, 0.456, 0.406] and is [0.5, 0.5, 0.5]" in message
    )
    assert (
        "crop_fraction was" in message
        and "crop_mode" not in message
        and "no setting" not in message
    )
    assert main(command(name, data, tmp_path, *given)) == 0
    assert (
        f"is finished ({json.loads((run / 'summary.json').read_text())['steps']} steps)"
        in capsys.readouterr().out
    )


def test_predictions_and_exports_of_older_runs(runs, data, tmp_path):
    """Scores are those of the same weights with ImageNet's mean and std given.

    Exported files say them.
    """
    then, now = (
        as_then(copied(runs, "recog_imagenet", tmp_path)),
        copied(runs, "recog_imagenet", tmp_path / "now"),
    )
    given = [
        "--mean",
        "0.485",
        "0.456",
        "0.406",
        "--std",
        "0.229",
        "0.224",
        "0.225",
        "--crop-fraction",
        "0.875",
    ]
    found = []
    for run, more in ((then, []), (now, given), (now, [])):
        out = tmp_path / str(len(found))
        words = [str(RECIPES["recog_imagenet"]), "--weights", str(run), *more, "--out"]
        assert main(["predict", *words, str(out), str(data / "val" / "class0")]) == 0
        assert main(["export", *words, f"{out}.safetensors"]) == 0
        with safe_open(f"{out}.safetensors", "pt") as file:
            found.append(
                (
                    (out / "predictions.csv").read_text(),
                    "[0.485, 0.456, 0.406]" in str(file.metadata()),
                )
            )
    assert found[0] == found[1] and found[0][1] and not found[2][1] and found[2][0] != found[0][0]


def test_older_runs_of_pretrained_networks_had_their_own(runs, tmp_path):
    run = as_then(copied(runs, "recog_folder", tmp_path), pretrained=True)
    results = evaluated("recog_folder", run, "--no-pretrained")
    assert results["protocol"] == f"centre crop of 32, short side 37, bilinear, {HALF}"


def test_a_run_is_not_resumed_with_other_input(runs, data, tmp_path, capsys):
    copied(runs, "recog_folder", tmp_path)
    for flag, message in {
        "--std 1 1 1": "std was",
        "--crop-mode squash": "crop_mode was 'center' and is 'squash'",
    }.items():
        assert main(command("recog_folder", data, tmp_path, *flag.split())) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    # as it was
    assert main(command("recog_folder", data, tmp_path, "--mean", "0.5", "0.5", "0.5")) == 0


def test_timms_input_is_timms():
    """Of every network that timm has weights of, as timm's own loaders take it."""
    modes = {}
    for name in timm.list_models(pretrained=True):
        cfg = timm.models.get_pretrained_cfg(name)
        known = timm.data.resolve_data_config(pretrained_cfg=cfg.to_dict())
        modes[known["crop_mode"]] = name
        if known["crop_mode"] not in CROP_MODES:
            with pytest.raises(
                ValueError,
                match=rf"timm:{name} with crop_mode 'border', and here are center and squash",
            ):
                published_input(f"timm:{name}", "bilinear")
            continue
        found = published_input(f"timm:{name}", "bilinear")
        assert found.pop("crop_fraction") == known["crop_pct"], name
        assert found == {setting: known[setting] for setting in found} and found.keys() == INPUT - {
            "crop_fraction"
        }
    assert modes.keys() == {"center", "squash", "border"}
    border = modes["border"]
    assert (
        published_input(f"timm:{border}", "bilinear", crop_mode="squash")["crop_mode"] == "squash"
    )


def test_others_have_imagenets():
    assert published_input("resnet50", "bilinear") == {
        "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
        "interpolation": "bilinear", "crop_fraction": 0.875, "crop_mode": "center",
    }  # fmt: skip


@pytest.mark.parametrize("crop", CROP_MODES)
@pytest.mark.parametrize("fraction", [0.875, 1.0])
def test_crops_are_timms(crop, fraction):
    pixels = torch.nn.functional.interpolate(
        torch.rand(1, 3, 9, 12), (90, 160), mode="bicubic"
    ).clamp(0, 1)[0]
    image = (pixels * 255).to(torch.uint8)
    theirs = timm.data.create_transform(
        (3, 64, 64), crop_pct=fraction, crop_mode=crop, normalize=False
    )
    expected = theirs(Image.fromarray(image.permute(1, 2, 0).numpy()))
    look = eval_transform(64, fraction, crop_mode=crop)
    assert look(image).shape == expected.shape == (3, 64, 64)
    assert (look(image).int() - expected.int()).abs().max() <= 2  # Pillow and torch round otherwise
    assert ("both sides" in look.label) == (crop == "squash")


def test_a_crop_that_there_is_not():
    with pytest.raises(ValueError, match="crop_mode is 'border'; it must be center or squash"):
        eval_transform(32, crop_mode="border")


@pytest.mark.parametrize("size", [160, 96])
def test_networks_of_a_fixed_size_are_built_for_the_size_asked_for(data, size):
    """test_vit is published for 160."""
    recipe = build(load_recipe(RECIPES["recog_folder"]), {
        "data": str(data), "model": "timm:test_vit", "pretrained": False, "size": size,
    })  # fmt: skip
    image, _ = recipe.val_data[0]
    assert image.shape == (3, size, size) and recipe.model(image[None] / 255).shape == (1, 2)


def test_a_size_of_segformer_needs_no_file(monkeypatch):
    """Its pixels are ImageNet's, by the usual settings, and random weights are built offline."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert published_input("hf:segformer_b0", "bilinear") == published_input("small", "bilinear")
    network = segmenter("hf:segformer_b0", 150, pretrained=False)
    assert sum(each.numel() for each in network.parameters()) == 3_752_694  # as published
