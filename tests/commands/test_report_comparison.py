"""trainkit report of two runs, or of a run and a recipe: what differs, and whether it is noise."""

import json
import re

import numpy as np
import pytest

from helpers.run_folders import (
    RECIPE,
    add_recognition,
    evaluation_row,
    run_folder,
    step_row,
    write_json,
)
from trainkit.cli import main


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Two runs on the same images; the second has another learning rate, code and torch."""
    monkeypatch.chdir(tmp_path)
    one = run_folder(tmp_path / "one")
    rows = [step_row(10), evaluation_row(100, 0.9, 100, top1=0.9, top5=1.0)]
    versions = {"python": "3.12.0", "torch": "2.10.0"}
    other = run_folder(tmp_path / "two", rows, settings={"lr": 0.2}, versions=versions)
    (other / "recipe.py").write_text(RECIPE + "\nCHANGED = 1\n")
    return one, other


def text_of(capsys, *words) -> str:
    assert main(["report", *map(str, words), "--text"]) == 0
    return capsys.readouterr().out


def test_what_differs_as_text(two, capsys):
    text = text_of(capsys, *two)
    assert re.search(r"^  top1 +70\.00 % +90\.00 %$", text, re.M)
    assert re.search(r"^  lr +0\.05 +0\.2$", text, re.M)
    assert re.search(r"^  torch +2\.9\.0 +2\.10\.0$", text, re.M)
    assert "+CHANGED = 1" in text and "epochs" not in text and "3.12.0" not in text
    assert "two against one: not compared image by image: one has no evaluations/" in text


def test_within_noise(two, capsys):
    """Half of the images that one is wrong on, and as many that the other is."""
    arrays = add_recognition(two[0])
    add_recognition(two[1], seed=1)
    text = text_of(capsys, *two)
    assert re.search(r"two against one: top1 [+-]\d+\.\d+ %, 95 % interval .*: within noise", text)
    better = {**arrays, "predicted": arrays["target"]}
    np.savez(two[1] / "evaluations/step-000000100.npz", **better)
    share = 100 * (arrays["predicted"] != arrays["target"]).mean()
    text = text_of(capsys, *two)
    assert f"top1 +{share:.2f} %, 95 % interval" in text and "more than noise" in text


def test_other_images_are_refused(two, capsys):
    add_recognition(two[0])
    arrays = add_recognition(two[1])
    np.savez(
        two[1] / "evaluations/step-000000100.npz", **{**arrays, "names": arrays["names"][::-1]}
    )
    message = (
        "refused: they were not measured on the same validation images (the names of the images"
    )
    assert message in text_of(capsys, *two)


def test_another_headline_is_not_compared(two, capsys):
    add_recognition(two[0])
    add_recognition(two[1])
    about = json.loads((two[1] / "evaluations/step-000000100.json").read_text())
    write_json(two[1] / "evaluations/step-000000100.json", {**about, "headline": "top5"})
    assert "not compared: the headline is top1, and top5" in text_of(capsys, *two)


def test_another_way_of_measuring_is_reported(two, capsys):
    """Such as windows and scales, of which one of them may be the better."""
    add_recognition(two[0])
    add_recognition(two[1], seed=1)
    assert "not by the weights alone" not in text_of(capsys, *two)
    file = two[1] / "evaluations/step-000000100.json"
    write_json(file, {**json.loads(file.read_text()), "protocol": "ten crops of 32"})
    words = "; not by the weights alone: one was measured by as stored, two by ten crops of 32"
    assert words in text_of(capsys, *two)


def test_curves_over_each_other(two):
    add_recognition(two[0])
    add_recognition(two[1], seed=1)
    assert main(["report", *map(str, two), "--out", "both.html"]) == 0
    with open("both.html") as file:
        text = file.read()
    drawn = json.loads(re.search(r'id="curve-data">(.*?)</script>', text, re.S)[1])
    assert [run["name"] for run in drawn["runs"]] == ["one", "two"]
    (loss,) = (chart for chart in drawn["charts"] if chart["name"] == "loss")
    assert [(series["run"], series["label"]) for series in loss["series"]] == [
        (0, "training"), (0, "validation"), (1, "training"),
    ]  # fmt: skip
    assert "within noise" in text and "<ins>+CHANGED = 1</ins>" in text
    assert not (two[0] / "report.html").exists()


def test_three_runs_have_a_file_of_their_own(two, tmp_path, capsys):
    run_folder(tmp_path / "elsewhere" / "one")
    assert main(["report", "one", "two", "elsewhere/one"]) == 0
    (file,) = tmp_path.glob("report-*.html")
    above = tmp_path.name
    assert f"{above}/one" in file.read_text() and "elsewhere/one" in file.read_text()
    assert file.name in capsys.readouterr().out.replace("\n", "")


def test_a_recipe_in_place_of_a_run(two, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(RECIPE.replace("lr=0.1", "lr=0.3"))
    text = text_of(capsys, two[0], "mine.py")
    assert re.search(r"^  lr +0\.05 +0\.3$", text, re.M)
    assert "+    optimizer: OptimizerSettings = OptimizerSettings(lr=0.3" in text
    assert "A recipe has no data" in text
    assert main(["report", "one", "mine.py", "--out", "page.html"]) == 0
    by_name = text_of(capsys, "recog_cifar10", "recog_imagenet")
    assert re.search(r"^  epochs +200 +\d+$", by_name, re.M) and "Results" not in by_name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["one", "nothing"], "no command, file or recipe nothing"),
        (["one", "missing/run"], "missing/run is neither a run nor a recipe"),
        (["one", "--text", "--out", "x.html"], "leave out --out, or --text"),
    ],
)
def test_what_cannot_be_compared(two, capsys, words, message):
    assert main(["report", *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_one_run_as_text(two, capsys):
    add_recognition(two[0])
    text = text_of(capsys, two[0])
    assert "finished: 100 steps" in text and "best top1: 70.00 % (95 % interval" in text
    assert re.search(r"^  lr +0\.05 +0\.1$", text, re.M)
    assert "again: trainkit recog_images --lr 0.05" in text
