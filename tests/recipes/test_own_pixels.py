"""recog_folder and seg_folder on images of other channels and of 16 bits: train to predict."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch.nn import functional

import trainkit
from helpers.image_files import mask
from helpers.processes import RECOG, SEG
from trainkit.cli import main

SIZE = 24, 30
TINY = ["--epochs", "1", "--batch-size", "4", "--workers", "0", "--no-pretrained"]
NETWORK = ["--model", "lraspp", "--backbone", "small", "--long-side", "24", "--crop", "16"]


def rgba(random, file):
    Image.fromarray(random.integers(0, 256, (*SIZE, 4), dtype=np.uint8)).save(f"{file}.png")


def grey_of_12_bits(random, file):
    Image.fromarray(random.integers(0, 4096, SIZE).astype(np.uint16)).save(f"{file}.png")


def bands(random, file):
    tifffile = pytest.importorskip("tifffile")
    values = random.integers(0, 9000, (5, *SIZE)).astype(np.uint16)
    tifffile.imwrite(f"{file}.tif", values, photometric="minisblack", planarconfig="separate")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def exported_as_loaded(image, with_onnx):
    """A program, and an ONNX file, give the logits of the model that predicts, for one image."""
    model, info = trainkit.load("run")
    seen = info.preprocess(image)
    with torch.no_grad():
        expected = model(seen)
    expected = expected["out"] if isinstance(expected, dict) else expected
    words = ["export", "run", "--images", "1", "--format"]
    assert main([*words, "torch-export", "--out", "model.pt2"]) == 0
    found = [torch.export.load("model.pt2").module()(seen)]
    if with_onnx:
        assert main([*words, "onnx", "--out", "model.onnx"]) == 0
        session = onnxruntime.InferenceSession("model.onnx")
        found.append(torch.from_numpy(session.run(None, {"images": seen.numpy()})[0]))
    for logits in found:
        if logits.shape[-2:] != expected.shape[-2:]:
            expected = functional.interpolate(expected, logits.shape[-2:], mode="bilinear")
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "write, channels, bits",
    [
        (rgba, 4, 8),
        pytest.param(grey_of_12_bits, 1, 16, marks=pytest.mark.nightly),
        pytest.param(bands, 5, 16, marks=pytest.mark.nightly),
    ],
)
def test_classes(here, write, channels, bits, capsys):
    random = np.random.default_rng(0)
    for place in range(8):
        folder = here / "my" / ("cat", "dog")[place % 2]
        folder.mkdir(parents=True, exist_ok=True)
        write(random, folder / str(place))
    how = ["--channels", str(channels), "--bits", str(bits)]
    words = [RECOG, "--data", "my", "--val-share", "0.25", "--model", "small", "--size", "16"]
    assert main([*words, *TINY, "--warmup-epochs", "0", *how, "--out", "run"]) == 0
    recorded = json.loads((here / "run" / "settings.json").read_text())["input"]
    assert (recorded["channels"], recorded["bits"]) == (channels, bits)
    assert len(recorded["mean"]) == len(recorded["std"]) == channels
    # evenly drawn values: their mean and std, of 1
    top = {rgba: 1, grey_of_12_bits: 4095 / 65535, bands: 9000 / 65535}[write]
    assert recorded["mean"] == pytest.approx([top / 2] * channels, rel=0.05)
    assert recorded["std"] == pytest.approx([top / 12**0.5] * channels, rel=0.05)

    assert main(["evaluate", "run", "--workers", "0"]) == 0
    model, info = trainkit.load("run")
    assert (info.pixels.channels, info.pixels.bits) == (channels, bits)
    images = sorted(here.glob("my/cat/*"))
    assert info.preprocess(images[0]).shape == (1, channels, 16, 16)
    seen = info.preprocess(images[0])
    assert abs(float(seen.mean())) < 0.3 and 0.3 < float(seen.std()) < 1.2, "normalised"
    assert model(info.preprocess(images[0])).shape == (1, 2)
    assert main(["predict", "run", "my/cat", "--out", "found", "--workers", "0"]) == 0
    exported_as_loaded(images[0], with_onnx=write is bands)
    capsys.readouterr()
    other = ["--channels", str(channels + 1), "--out", "other"]
    assert main([*words, *TINY, *how, *other]) == 2
    message = "".join(capsys.readouterr())
    assert f"it has {channels} channels, and --channels is {channels + 1}" in message
    assert "my/" in message


@pytest.mark.nightly
def test_masks_of_bands(here):
    random = np.random.default_rng(1)
    (here / "my" / "images").mkdir(parents=True)
    for place in range(8):
        rgba(random, here / "my" / "images" / str(place))
        mask(here / "my" / "masks" / f"{place}.png", 30, 24, [(0, 300), (1, 420)])
    words = [SEG, "--data", "my", "--classes", "a,b", "--val-share", "0.25", "--channels", "4"]
    assert main([*words, *NETWORK, *TINY, "--out", "run"]) == 0
    assert len(json.loads((here / "run" / "settings.json").read_text())["input"]["mean"]) == 4
    assert main(["evaluate", "run", "--workers", "0"]) == 0
    assert (
        main(["predict", "run", "my/images", "--out", "found", "--overlay", "--workers", "0"]) == 0
    )
    exported_as_loaded(here / "my" / "images" / "0.png", with_onnx=False)
    assert main([*words, *NETWORK, *TINY, "--photometric", "--out", "other"]) == 2
    assert main([*words, *NETWORK, *TINY, "--mean", "0.5", "--out", "other"]) == 2
