"""trainkit report --plots: pictures for READMEs, and push, which puts them on the model card."""

import sys

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from helpers.processes import RECOG
from helpers.run_folders import add_pictures, add_recognition, add_segmentation, run_folder
from trainkit.cli import main
from trainkit.report.plots import PLOTS


@pytest.mark.parametrize("segmentation", [False, True])
def test_what_is_drawn(tmp_path, capsys, segmentation):
    pytest.importorskip("matplotlib", reason="plots are an extra: trainkit[plots]")
    folder = run_folder(tmp_path / "one", classes=["a $x$", "b\udce9", "c"])
    (add_segmentation if segmentation else add_recognition)(folder)
    add_pictures(folder, segmentation=segmentation)
    assert main(["report", str(folder), "--plots"]) == 0
    printed = capsys.readouterr().out.replace("\n", "")
    for name in PLOTS:
        assert str(folder / name) in printed
        with Image.open(folder / name) as picture:
            drawn = np.asarray(picture.convert("RGB"))
        assert drawn.shape[1] >= 300 and len(np.unique(drawn.reshape(-1, 3), axis=0)) > 1, name


def test_nothing_is_left_of_an_earlier_run(tmp_path):
    pytest.importorskip("matplotlib", reason="plots are an extra: trainkit[plots]")
    folder = run_folder(tmp_path / "one")
    for name in PLOTS:
        (folder / name).write_bytes(b"old")
    assert main(["report", str(folder), "--plots"]) == 0
    assert [name for name in PLOTS if (folder / name).exists()] == ["curves.png"]


def test_without_matplotlib(tmp_path, capsys, monkeypatch):
    folder = run_folder(tmp_path / "one")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["report", str(folder), "--plots"]) == 2
    assert 'pip install "trainkit[plots]"' in capsys.readouterr().err
    assert (folder / "report.html").exists()


def test_push_puts_them_on_the_card(tmp_path, monkeypatch):
    """Those that are in the run's folder, whoever drew them, and no others."""
    monkeypatch.chdir(tmp_path)
    short = ["--sample", "--epochs", "0.2", "--warmup-epochs", "0", "--workers", "0"]
    assert main([RECOG, *short, "--out", "run", "--no-report"]) == 0
    for name in ("curves.png", "predictions.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "run" / name)
    assert main(["push", "run", "me/mine", "--folder", "pub"]) == 0
    card = ModelCard.load(tmp_path / "pub/README.md").text
    assert "![Curves of the training](curves.png)" in card and "](predictions.png)" in card
    assert "confusion.png" not in card
    assert (tmp_path / "pub/curves.png").read_bytes() == (tmp_path / "run/curves.png").read_bytes()
