"""Networks of transformers from a Hub, or a folder, that is gone afterwards, by commands."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from helpers.hf_recipes import tiny
from helpers.hub_server import running
from helpers.processes import forked, trainkit
from helpers.toy_recipes import CLASSES

pytest.importorskip("transformers")

PREPROCESSOR = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_normalize": True}
SHORT = ("--sample", "--pretrained", "--epochs", "0.1", "--workers", "0", "--out", "run")


@pytest.fixture
def network(tmp_path):
    folder = tmp_path / "network"
    tiny("segformer").save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return folder


def final(folder):
    return json.loads((folder / "run" / "summary.json").read_text())["final"]


def assert_used_without_its_source(folder, start, **env):
    """Evaluated, predicted and exported as it was trained, with its own mean."""
    pixels = np.random.default_rng(0).integers(0, 255, (80, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    printed = start("evaluate", "run", "--workers", "0", cwd=folder, **env).stdout
    assert "random at first" not in printed
    results = json.loads((folder / "run" / "results.json").read_text())
    assert results["mIoU"] == final(folder)["mIoU"]
    start("predict", "run", "photo.png", "--out", "out", "--workers", "0", cwd=folder, **env)
    assert list((folder / "out").rglob("*.png"))
    start("export", "run", "--out", "weights.safetensors", cwd=folder, **env)
    settings = json.loads((folder / "run" / "settings.json").read_text())
    assert settings["input"]["mean"] == [0.5] * 3 and settings["input"]["std"] == [0.25] * 3


@pytest.mark.nightly
def test_a_folder_that_is_gone(network, tmp_path):
    printed = forked("seg_folder", "--model", "hf:network", *SHORT, cwd=tmp_path).stdout
    assert f"random at first, for 16 classes, published for {CLASSES} classes" in printed
    shutil.rmtree(network)
    assert_used_without_its_source(tmp_path, forked)


@pytest.mark.nightly
def test_a_name_on_a_hub_that_is_gone(network, tmp_path):
    """Fetched once over HTTP; the cache is emptied too."""
    cache = tmp_path / "cache"
    with running() as hub:
        hub.add("me/network", network)
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache)}
        trainkit("seg_folder", "--model", "hf:me/network", *SHORT, cwd=tmp_path, **env)
        assert "model.safetensors" in hub.files_sent and "config.json" in hub.files_sent
        sent = len(hub.files_sent)
        again = ("--resume", "never")
        trainkit("seg_folder", "--model", "hf:me/network", *SHORT, *again, cwd=tmp_path, **env)
        assert len(hub.files_sent) == sent, "the cache has them"
    shutil.rmtree(cache)
    assert_used_without_its_source(tmp_path, trainkit, **env)
