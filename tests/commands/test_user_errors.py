"""User errors that newcomers made with the commands: reported before the work, in one message."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.processes import ROOT
from trainkit.cli import main
from trainkit.commands.option_checks import check_finite
from trainkit.data.image_io import read_image
from trainkit.files import require_room
from trainkit.storage.lookup import find_weights, read_settings
from trainkit.storage.run_settings import check_same_classes
from trainkit.storage.weight_files import load_weights
from trainkit.storage.weights import read_weights
from trainkit.tasks.recognition import Recognition

RECIPE = str(ROOT / "recipes" / "recog_folder.py")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with images of three classes, `my`, and a run on them, `run`."""
    folder, draw = tmp_path_factory.mktemp("trained"), np.random.default_rng(0)
    for split in ("train", "val"):
        for number, name in enumerate(("ant", "bee", "cat")):
            (folder / "my" / split / name).mkdir(parents=True)
            for each in range(4):
                pixels = draw.integers(80 * number, 80 * number + 60, (24, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "my" / split / name / f"{each}.png")
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
        main([RECIPE, "--data", str(folder / "my"), *settings, "--out", str(folder / "run")]) == 0
    )
    return folder


def stderr(capsys, *words: object, code: int = 2) -> str:
    assert main([str(word) for word in words]) == code
    return " ".join(capsys.readouterr().err.split())


def test_classes_of_other_names_are_refused(trained, tmp_path, capsys):
    """ant, bee, cat -> bee, cat, fly: each id would mean another class."""
    shutil.copytree(trained / "my", tmp_path / "ren")
    for split in ("train", "val"):
        (tmp_path / "ren" / split / "ant").rename(tmp_path / "ren" / split / "fly")
    common = (RECIPE, "--weights", trained / "run", "--data", tmp_path / "ren")
    image = trained / "my" / "val" / "ant" / "0.png"
    for words in (("evaluate", *common),
                  ("predict", RECIPE, image, *common[1:], "--out", tmp_path / "out"),
                  ("export", *common, "--out", tmp_path / "w.safetensors")):  # fmt: skip
        message = stderr(capsys, *words)
        assert (
            "has classes ['fly'] that the training folder has not, or the list of classes that was"
            " given" in message
        )
        message = stderr(capsys, *words, "--classes", "bee,cat,fly")
        assert (
            "was trained on 3 classes, number 0 of them ant; those of the data now are 3, number 0"
            " of them bee" in message
        )
    assert not (tmp_path / "out").exists() and not (tmp_path / "w.safetensors").exists()
    check_same_classes(trained / "run", Recognition(["ant", "bee", "cat"]))
    check_same_classes(trained / "run", Recognition(3))  # where names are not known, none is wrong
    check_same_classes(None, Recognition(["x", "y"]))


def test_some_of_the_classes_and_no_training_images(trained, tmp_path, capsys):
    """Each image is measured as in the whole folder.

    Class ids are those of the run, or of a list, by name.
    """
    whole, part = tmp_path / "whole", tmp_path / "part"
    for folder, names in ((whole, ("ant", "bee", "cat")), (part, ("bee", "cat"))):
        for name in names:
            shutil.copytree(trained / "my" / "val" / name, folder / "val" / name)
    (tmp_path / "names.txt").write_bytes("\ufeffant\r\nbee \r\ncat\r\n".encode())
    (checkpoint,) = (trained / "run" / "checkpoints").glob("step-*")
    shutil.copy(checkpoint / "model.safetensors", tmp_path / "bare.safetensors")
    settings = ("--model", "small", "--size", "16", "--classes", tmp_path / "names.txt")
    counts = {}
    for name, weights, more in (
        ("run", trained / "run", ()),
        ("bare", tmp_path / "bare.safetensors", settings),
    ):
        for data in (whole, part):
            words = (
                "evaluate",
                RECIPE,
                "--weights",
                weights,
                "--data",
                data,
                "--workers",
                0,
                *more,
            )
            assert (
                main([str(word) for word in (*words, "--out", tmp_path / f"{name}-{data.name}")])
                == 0
            )
            out = capsys.readouterr().out
            assert ("warning: val: 1 of 3 classes has no image in" in out) == (data == part)
            counts[name, data] = json.loads(
                (tmp_path / f"{name}-{data.name}" / "results.json").read_text()
            )["confusion"]
    assert (
        counts["run", whole] == counts["bare", whole]
        and counts["run", part] == counts["bare", part]
    )
    assert (
        counts["run", part] == [[0, 0, 0], *counts["run", whole][1:]]
        and sum(map(sum, counts["run", part])) == 8
    )
    words = (
        "evaluate",
        RECIPE,
        "--weights",
        tmp_path / "bare.safetensors",
        "--data",
        part,
        *settings[:-2],
    )
    assert "no train images in" in stderr(capsys, *words)
    words = ("evaluate", RECIPE, "--weights", trained / "run", "--data", part, "--classes", "3")
    assert "classes is 3: give the names of the classes" in stderr(capsys, *words)


def test_weights_in_a_checkpoint_have_the_settings_of_its_run(trained):
    (checkpoint,) = (trained / "run" / "checkpoints").glob("step-*")
    assert read_settings(checkpoint / "model.safetensors")["size"] == 16
    assert find_weights(checkpoint / "model.safetensors")[1] == trained / "run"
    for folder in (trained, trained / "run" / "checkpoints"):
        with pytest.raises(FileNotFoundError, match="is neither a run nor a checkpoint"):
            find_weights(folder)


def test_weights_may_be_read_by_others(trained):
    (checkpoint,) = (trained / "run" / "checkpoints").glob("step-*")
    assert len({file.stat().st_mode for file in checkpoint.iterdir()}) == 1


def test_where_nothing_can_be_written(trained, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    common = (RECIPE, "--data", trained / "my", "--model", "small")
    message = stderr(
        capsys, "evaluate", RECIPE, "--weights", trained / "run", "--out", tmp_path / "file"
    )
    assert (
        "out is" in message
        and "cannot hold results: File exists; choose another folder with --out" in message
    )
    assert "cannot hold results" in stderr(capsys, "doctor", *common, "--out", tmp_path / "file")
    message = stderr(capsys, "export", RECIPE, "--weights", trained / "run", "--out", tmp_path)
    assert "which is a folder: name the file" in message
    message = stderr(
        capsys, "export", RECIPE, "--weights", trained / "run", "--out", tmp_path / "w.pth"
    )
    assert "its suffix is of no format: a file's suffix says how it is written" in message
    assert (tmp_path / "file").read_text() == "mine" and os.listdir(tmp_path) == ["file"]
    require_room(tmp_path / "new" / "one")
    assert (tmp_path / "new" / "one").is_dir()


def test_photos_that_lie_in_the_folder_of_predictions(trained, tmp_path, capsys):
    photos = trained / "my" / "val" / "ant"
    message = stderr(
        capsys, "predict", RECIPE, photos, "--weights", trained / "run", "--out", trained / "my"
    )
    assert "which holds all images of" in message and "choose another folder with --out" in message


@pytest.mark.parametrize("name", ["lr", "weight-decay", "epochs"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_numbers_that_are_none(trained, tmp_path, capsys, name, value):
    message = stderr(
        capsys,
        RECIPE,
        "--data",
        trained / "my",
        "--model",
        "small",
        f"--{name}",
        value,
        "--out",
        tmp_path / "o",
    )
    assert (
        f"{name.replace('-', '_')} is {value}; it must be a finite number" in message
        and not (tmp_path / "o").exists()
    )
    with pytest.raises(ValueError, match="scales is nan"):
        check_finite({"scales": (1.0, float("nan")), "words": "nan", "none": None})


@pytest.mark.parametrize(
    "content",
    [
        b"hi\n",
        b"<!DOCTYPE html>",
        b"version https://git-lfs.github.com/spec/v1",
        b"\0" * 2000,
        b"\x93NUMPY",
    ],
)
def test_files_that_torch_never_wrote(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(
        ValueError, match="cannot be read as weights: it begins with .*, as no file of PyTorch does"
    ):
        load_weights(tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes(b"\x80\x04" + content)
    with pytest.raises(ValueError, match="w.pth (cannot be read as weights|is not read)"):
        load_weights(tmp_path / "w.pth")


def test_non_finite_weights_are_reported(trained, tmp_path, capsys):
    (checkpoint,) = (trained / "run" / "checkpoints").glob("step-*")
    weights, _ = read_weights(checkpoint)
    first = next(name for name, value in weights.items() if value.is_floating_point())
    weights[first][0] = float("nan")
    torch.save(weights, tmp_path / "w.pth")
    words = (
        "evaluate",
        RECIPE,
        "--weights",
        tmp_path / "w.pth",
        "--data",
        trained / "my",
        "--model",
        "small",
    )
    assert main([*map(str, words), "--size", "16"]) == 0
    assert f"1 weights contain NaN/Inf ({first})" in capsys.readouterr().out


def test_damaged_results_are_reported_before_anything_is_published(trained, tmp_path, capsys):
    shutil.copytree(trained / "run", tmp_path / "run")
    for content in ("{", "[]", json.dumps({"top1": 1})):
        (tmp_path / "run" / "results.json").write_text(content)
        message = stderr(capsys, "push", tmp_path / "run", "me/it", "--folder", tmp_path / "pub")
        assert "results.json is damaged" in message and not (tmp_path / "pub").exists()


def test_pictures_of_more_than_eight_bits(tmp_path):
    """16 bits are read by their upper eight, as those of a PNG.

    Floats and 32 bits have no known range.
    """
    grey = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    for suffix in ("png", "tif"):
        Image.fromarray(grey).save(tmp_path / f"p.{suffix}")
        read = read_image(tmp_path / f"p.{suffix}")
        assert read.shape == (3, 8, 8) and read.stride(0) == 1
        assert all(np.array_equal(channel.numpy(), grey >> 8) for channel in read)
    for dtype in (np.float32, np.int32):
        Image.fromarray(grey.astype(dtype)).save(tmp_path / "q.tif")
        with pytest.raises(
            ValueError,
            match="cannot read .*q.tif: its pixels are of mode [FI], .*save it with 8 or 16",
        ):
            read_image(tmp_path / "q.tif")


def test_an_unreadable_image_has_one_exit_code(trained, tmp_path, capsys, monkeypatch):
    """In the commands that end at it, and in those that look at the others first."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "my", tmp_path / "my")
    for split in ("train", "val"):
        damaged = tmp_path / "my" / split / "bee" / "2.png"
        damaged.write_bytes(damaged.read_bytes()[:60])
    settings = ("--data", "my", "--model", "small", "--size", "16", "--workers", "0")
    weights = ("--weights", trained / "run", "--data", "my", "--workers", "0")
    for words in ((RECIPE, *settings, "--batch-size", "12", "--epochs", "1", "--out", "other"),
                  ("doctor", RECIPE, *settings),
                  ("evaluate", RECIPE, *weights, "--out", "measured"),
                  ("predict", RECIPE, "my/val", *weights, "--out", "predicted")):  # fmt: skip
        assert main([str(word) for word in words]) == 2, words[0]
        printed = "".join(capsys.readouterr())
        assert "bee/2.png" in printed and "Traceback" not in printed, printed
