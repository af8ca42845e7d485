"""A run that an earlier version began and was stopped in: today's code ends it, bit for bit."""

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.processes import PATIENCE, ROOT, run
from trainkit.cli import main

COMMIT = "1f9f3c5"  # names of settings and modules have changed since
WORDS = ("--sample", "--epochs", "1", "--workers", "0", "--checkpoint-every", "2")


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    """The code of that commit."""
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", COMMIT], capture_output=True)
    if archive.returncode:
        pytest.skip(f"the history does not go back to {COMMIT}")
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


def trained_then(old: Path, name: str, out: Path, stop: bool) -> None:
    """Train a recipe of that commit with its own code; `stop`: by a signal, after a few steps."""
    words = [sys.executable, "-m", "trainkit", str(old / "recipes" / f"{name}.py"), *WORDS]
    words += ["--out", str(out)]
    if not stop:
        run(*words, cwd=out.parent, PYTHONPATH=str(old))
        return
    environment = {**os.environ, "PYTHONPATH": str(old), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, cwd=out.parent, env=environment) as process:
        end = time.monotonic() + PATIENCE
        while not list(out.glob("checkpoints/step-*")) and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
    assert not (out / "summary.json").exists(), "stopped in the middle"


def last_weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(max(out.glob("checkpoints/step-*")) / "model.safetensors")


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["seg_folder", "recog_folder"])
def test_an_unfinished_run_of_an_earlier_version_is_ended(old, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    trained_then(old, name, tmp_path / "whole", stop=False)
    trained_then(old, name, tmp_path / "stopped", stop=True)
    assert main([name, *WORDS, "--out", "stopped"]) == 0
    assert "resuming from step-" in capsys.readouterr().out
    whole, ended = last_weights(tmp_path / "whole"), last_weights(tmp_path / "stopped")
    assert whole.keys() == ended.keys()
    assert all(torch.equal(whole[key], ended[key]) for key in whole)
    assert main(["evaluate", "stopped", "--workers", "0"]) == 0, "it is one of today's"
