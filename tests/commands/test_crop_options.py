"""`--crops`: of evaluate and predict, against torchvision's ten crops."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

import trainkit
from trainkit.cli import main
from trainkit.data.datasets.synthetic import class_folder
from trainkit.data.image_io import read_image
from trainkit.data.transforms.recognition import eval_transform
from trainkit.prediction.crops import cropped

FAST = ("--workers", "0")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A short run on generated images, evaluated on crops of 32 from the centre."""
    out = tmp_path_factory.mktemp("crops") / "run"
    words = ["--sample", *FAST, "--epochs", "1", "--warmup-epochs", "0", "--size", "32"]
    assert main(["recog_folder", *words, "--out", str(out)]) == 0
    return out


def by_torchvision(model, files: list[Path]) -> torch.Tensor:
    """The mean of the probabilities of torchvision's ten crops of each image: (N, C)."""
    rows = []
    for file in files:
        image = F.resize(read_image(file), [round(32 / 0.875)], antialias=True)
        crops = torch.stack(v2.TenCrop(32)(image)) / 255
        crops = F.normalize(crops, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        with torch.no_grad():
            rows.append(model(crops).softmax(1).mean(0))
    return torch.stack(rows)


def test_ten_crops_are_torchvisions(run, tmp_path, capsys):
    model, info = trainkit.load(run)
    val = class_folder() / "val"
    names = sorted(path.name for path in val.iterdir())
    assert names == info.classes
    files = [file for name in names for file in sorted((val / name).iterdir())]
    expected = by_torchvision(model, files)
    truth = torch.tensor([names.index(file.parent.name) for file in files])

    words = ["predict", str(run), *map(str, files), "--crops", "ten", "--probabilities", *FAST]
    assert main([*words, "--out", str(tmp_path / "predicted")]) == 0
    stored = np.load(tmp_path / "predicted" / "probabilities.npz")
    torch.testing.assert_close(torch.from_numpy(stored["probabilities"]), expected)

    words = ["evaluate", str(run), "--crops", "ten", *FAST, "--out", str(tmp_path / "evaluated")]
    assert main(words) == 0
    results = json.loads((tmp_path / "evaluated" / "results.json").read_text())
    assert results["top1"] == pytest.approx((expected.argmax(1) == truth).float().mean().item())
    assert results["protocol"] == (
        "ten crops of 32, mean of their probabilities, short side 37, bilinear"
    )
    assert results["num_images"] == len(files)


def test_the_centre_again_is_as_the_run_had_it(run, tmp_path):
    final = json.loads((run / "summary.json").read_text())["final"]
    words = ["evaluate", str(run), "--crops", "center", *FAST, "--out", str(tmp_path)]
    assert main(words) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["top1"], results["protocol"]) == (final["top1"], final["protocol"])


def test_where_no_crop_is_known_it_is_refused(tmp_path, capsys):
    one = cropped(eval_transform(32, ten_crop=True), "center")
    assert one(torch.zeros(3, 40, 50, dtype=torch.uint8)).shape == (3, 32, 32)
    words = ["--sample", *FAST, "--epochs", "0.2", "--warmup-epochs", "0"]
    assert main(["recog_cifar10", *words, "--out", str(tmp_path / "run")]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--crops", "ten", *FAST]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "crops is 'ten', and the validation images are not cut by trainkit.data" in message
    (tmp_path / "a.png").write_bytes(b"")
    out = ("--out", str(tmp_path / "out"))
    words = ["predict", str(tmp_path / "run"), str(tmp_path / "a.png"), "--crops", "ten", *out]
    assert main(words) == 2 and "leave --crops out" in " ".join(capsys.readouterr().err.split())
