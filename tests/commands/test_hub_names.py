"""Names on the Hugging Face Hub, fetched over HTTP from a server that answers as the Hub does."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image

from helpers.hub_server import HubServer, Stored, running
from helpers.processes import run as command
from trainkit.cli import main

FAST = ("--workers", "0")
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A folder with a photo, a short run, and what is published of it."""
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ["--sample", *FAST, "--epochs", "0.5", "--warmup-epochs", "0", "--out", "run"]
        assert main(["recog_folder", *words]) == 0
        assert main(["push", "run", "me/model", "--folder", "model"]) == 0
        pixels = np.random.default_rng(0).integers(0, 255, (80, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save("photo.png")
        assert main(["predict", "run", "photo.png", *FAST, "--out", "expected"]) == 0
    return folder


def take_endpoint(patch: pytest.MonkeyPatch, url: str) -> None:
    """What HF_ENDPOINT does where `huggingface_hub` is imported."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + template)
    patch.setattr(constants, "ENDPOINT", url)


@pytest.fixture
def hub(published, tmp_path, monkeypatch):
    """The server with the model me/model, and an empty cache."""
    monkeypatch.chdir(published)
    with running() as server:
        server.add("me/model", published / "model")
        take_endpoint(monkeypatch, server.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server


def predicted(out: Path, name: str = "me/model") -> int:
    return main(["predict", name, "photo.png", *FAST, "--out", str(out)])


def lines(folder: Path) -> str:
    return (folder / "predictions.jsonl").read_text()


def blob(cache: Path, server: HubServer) -> Path:
    return cache / "models--me--model" / "blobs" / server.models["me/model"][WEIGHTS].etag


@pytest.mark.nightly
def test_a_command_fetches_from_the_endpoint(hub, tmp_path):
    """As a person types it, with HF_ENDPOINT; each file once, and no pickle nor what else lies
    there."""
    files = hub.models["me/model"]
    files["optimizer.bin"] = files["photo.png"] = files["README.md"]
    asked = ["predict", "me/model", "photo.png", *FAST, "--out", str(tmp_path / "out")]
    python = Path(sys.executable).with_name("trainkit")
    command(str(python), *asked, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path))
    assert lines(tmp_path / "out") == lines(Path("expected"))
    assert sorted(hub.files_sent) == sorted(files.keys() - {"optimizer.bin", "photo.png"})


def test_all_commands_fetch_once(hub, tmp_path, capsys):
    assert predicted(tmp_path / "predicted") == 0
    assert lines(tmp_path / "predicted") == lines(Path("expected"))
    sent = len(hub.files_sent)
    assert main(["export", "me/model", "--out", str(tmp_path / "weights.safetensors")]) == 0
    assert main(["evaluate", "me/model", *FAST, "--out", str(tmp_path / "evaluated")]) == 0
    results = json.loads((tmp_path / "evaluated" / "results.json").read_text())
    final = json.loads(Path("run/summary.json").read_text())["final"]
    assert results["top1"] == final["top1"] and results["num_images"] == final["num_images"]
    begun = ["recog_folder", "--sample", *FAST, "--epochs", "0.1", "--warmup-epochs", "0"]
    assert main([*begun, "--init-from", "me/model", "--out", str(tmp_path / "tuned")]) == 0
    assert "starting from the weights in " in capsys.readouterr().out
    assert len(hub.files_sent) == sent, "later commands take the cache's files"


def test_a_download_that_breaks_off_is_resumed(hub, tmp_path):
    stored = hub.models["me/model"][WEIGHTS]
    stored.cuts, stored.cut_after = 1, 1000
    assert predicted(tmp_path) == 0 and lines(tmp_path) == lines(Path("expected"))
    assert hub.files_sent.count(WEIGHTS) == 2


@pytest.mark.nightly  # the Hub's library tries for half a minute
def test_a_download_that_always_breaks_off_ends_with_a_message(hub, tmp_path, capsys):
    hub.models["me/model"][WEIGHTS].cuts = 100
    assert predicted(tmp_path) == 1
    message = capsys.readouterr().err
    assert "the download of me/model from the Hugging Face Hub broke off" in message


@pytest.mark.parametrize("name", [WEIGHTS, "model.json"])
@pytest.mark.parametrize("change", [lambda sent: sent[:-9], lambda sent: sent[:-2] + b"\n\n"])
def test_what_is_not_the_hubs_is_refused(hub, tmp_path, capsys, name, change):
    """Cut short or changed on its way, with a header that says the same length."""
    stored = hub.models["me/model"][name]
    stored.sent = change(stored.content)
    assert predicted(tmp_path / "first") == 2
    message = " ".join(capsys.readouterr().err.split())
    assert f"{name} of me/model is not what the Hugging Face Hub has" in message
    bad = tmp_path / "cache" / "models--me--model" / "blobs" / stored.etag
    assert f"Delete {bad}, and run the command again" in message
    stored.sent = None
    bad.unlink()
    assert predicted(tmp_path / "then") == 0
    assert lines(tmp_path / "then") == lines(Path("expected"))


def test_what_lies_deeper_is_compared_too(hub, tmp_path, capsys):
    """As of a whole run that somebody uploaded, whose checkpoints are read."""
    files = hub.models["me/model"]
    content = files[WEIGHTS].content[::-1]  # others: the cache keeps one copy of equal files
    files[f"checkpoints/step-000000001/{WEIGHTS}"] = Stored(content, True, content[:-1] + b"?")
    assert predicted(tmp_path / "out") == 2
    assert "is not what the Hugging Face Hub has" in " ".join(capsys.readouterr().err.split())


def test_a_cache_that_was_damaged_later_is_refused(hub, tmp_path, capsys):
    assert predicted(tmp_path / "first") == 0
    file = blob(tmp_path / "cache", hub)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert predicted(tmp_path / "then") == 2
    assert "was damaged on its way or on this disk" in capsys.readouterr().err


def test_names_that_are_not_there_and_no_network(hub, tmp_path, capsys, monkeypatch):
    def stderr() -> str:
        return " ".join(capsys.readouterr().err.split())

    assert predicted(tmp_path / "out", "me/nothing") == 2
    assert "nothing at me/nothing, and no model of that name on the Hugging Face Hub" in stderr()
    assert predicted(tmp_path / "out") == 0
    take_endpoint(monkeypatch, "http://127.0.0.1:9")  # nobody answers there
    assert predicted(tmp_path / "again") == 0, "the cache is enough"
    stderr()
    assert predicted(tmp_path / "out", "me/other") == 2
    assert "it is not in the cache, and the Hub cannot be reached" in stderr()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert predicted(tmp_path / "offline") == 0
    assert lines(tmp_path / "offline") == lines(Path("expected"))
