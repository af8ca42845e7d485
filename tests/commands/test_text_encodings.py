"""Names that an encoding lacks end no command.

They are escaped, and results are written before they are shown.
"""

import csv
import io
import json
import os
import sys
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from helpers.processes import ROOT
from trainkit.cli import main
from trainkit.storage.run_folder import RunFolder

RECIPE = str(ROOT / "recipes" / "recog_folder.py")
CLASSES = ("Käfer", "猫", "naïve", "😀")
LATIN = os.fsdecode(b"caf\xe9.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of four classes with names outside of most encodings, one file's name of other bytes,
    and a run."""
    folder, draw = tmp_path_factory.mktemp("encodings"), np.random.default_rng(0)
    for split in ("train", "val"):
        for number, name in enumerate(CLASSES):
            (folder / "my" / split / name).mkdir(parents=True)
            for each in (LATIN, "a\nb, 'c'.png"):
                pixels = draw.integers(50 * number, 50 * number + 50, (24, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "my" / split / name / each)
    settings = (
        "--model",
        "small",
        "--size",
        "16",
        "--epochs",
        "1",
        "--batch-size",
        "4",
        "--workers",
        "0",
    )
    assert (
        main([RECIPE, "--data", str(folder / "my"), *settings, "--out", str(folder / "日本")]) == 0
    )
    return folder


def test_predictions_of_any_names(folder, tmp_path):
    """JSON gives the file's name back, byte for byte."""
    broken = folder / "my" / "val" / "猫" / os.fsdecode(b"broken\xff.png")
    broken.write_bytes(b"no image")
    words = [
        "predict",
        RECIPE,
        str(folder / "my" / "val"),
        "--weights",
        str(folder / "日本"),
        "--out",
        str(tmp_path),
    ]
    assert main(words) == 2
    broken.unlink()
    lines = [
        json.loads(line)
        for line in (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    files = sorted(path for path in (folder / "my" / "val").rglob("*") if path.is_file())
    assert sorted(line["file"] for line in lines) == sorted(map(str, files)) and len(files) == 8
    assert {line["top"][0]["name"] for line in lines} <= set(CLASSES)
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    escaped = (str(each).encode("utf-8", "backslashreplace").decode() for each in files)
    assert sorted(row[0] for row in rows) == sorted(escaped)
    assert "broken\\udcff.png" in (tmp_path / "unreadable.txt").read_text(encoding="utf-8")


def test_bad_images_of_any_names(tmp_path):
    line = f"3, cannot read {LATIN}: it is\nno image 猫"
    run = RunFolder(tmp_path)
    assert run.list_bad_images([line, line]) == ["3, cannot read caf\\udce9.png: it is no image 猫"]
    assert run.list_bad_images([line, "other"]) == ["other"]
    assert len((tmp_path / "bad_images.txt").read_bytes().decode("utf-8").splitlines()) == 2


class Interrupted(io.StringIO):
    """A screen on which the user presses Ctrl-C as soon as metrics are shown."""

    def write(self, text):
        if "evaluation of" in text:
            raise KeyboardInterrupt
        return super().write(text)


def test_results_are_written_before_they_are_shown(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Interrupted())
    words = [
        "evaluate",
        RECIPE,
        "--weights",
        str(folder / "日本"),
        "--workers",
        "0",
        "--out",
        str(tmp_path / "out"),
    ]
    with suppress(KeyboardInterrupt):
        assert main(words) == 130
    assert json.loads((tmp_path / "out" / "results.json").read_bytes())["num_images"] == 8


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_any_screen(folder, tmp_path, monkeypatch, encoding):
    """What the encoding of the output lacks is escaped.

    Strict, as it is where output is redirected on Windows.
    """
    common = ["--data", str(folder / "my"), "--workers", "0", "--out"]
    for words in (
        ["evaluate", RECIPE, "--weights", str(folder / "日本"), *common, str(tmp_path / "测试")],
        ["doctor", RECIPE, "--model", "small", *common, str(tmp_path / os.fsdecode(b"\xff"))],
    ):
        screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
        monkeypatch.setattr(sys, "stdout", screen)
        assert main(words) == 0
        screen.flush()
        shown = screen.buffer.getvalue().decode(encoding)
        for name in CLASSES:
            assert name.encode(encoding, "backslashreplace").decode(encoding) in shown
    assert (tmp_path / "测试" / "results.json").is_file()
