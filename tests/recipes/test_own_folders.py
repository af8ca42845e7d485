"""recog_folder and seg_folder from the command line, on folders as people have them."""

import csv
import json
import shutil

import pytest

from helpers.image_files import mask, picture
from helpers.processes import RECOG, SEG
from trainkit.cli import main

TINY = ["--epochs", "1", "--batch-size", "4", "--workers", "0", "--no-pretrained"]
RECOG_TINY = [RECOG, "--model", "small", "--size", "16", *TINY]
SEG_TINY = [SEG, "--model", "lraspp", "--backbone", "small", "--classes", "a,b", *TINY]
SEG_TINY += ["--long-side", "16", "--crop", "16"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listed(file):
    return [row["path"] for row in csv.DictReader(file.read_text().splitlines())]


def test_a_share_is_kept_by_resume_and_evaluate(here, capsys):
    for place in range(20):
        picture(here / "my" / ("cat", "dog")[place % 2] / f"{place}.png", 16, 16, place)
    words = [*RECOG_TINY, "--data", "my", "--val-share", "0.2", "--out", "run"]
    assert main(words) == 0
    train, val = listed(here / "run" / "train.csv"), listed(here / "run" / "val.csv")
    assert len(train) == 16 and len(val) == 4
    assert {*train, *val} == {str(f.relative_to(here / "my")) for f in here.glob("my/*/*.png")}
    recorded = json.loads((here / "run" / "settings.json").read_text())
    assert recorded["settings"]["val_share"] == 0.2 and recorded["settings"]["split_seed"] == 0
    assert recorded["train_data"].endswith("of 16 train and 4 val images")
    capsys.readouterr()
    assert main(words) == 0 and "is finished" in capsys.readouterr().out
    assert main(["evaluate", "run", "--workers", "0"]) == 0
    assert json.loads((here / "run" / "results.json").read_text())["num_images"] == 4

    # another length, whose schedule follows from it; a recipe of another kind
    capsys.readouterr()
    assert main([*words, "--epochs", "3"]) == 2
    message = "".join(capsys.readouterr())
    assert "epochs was " in message and "schedule was" not in message
    assert main([*SEG_TINY, "--sample", "--out", "run"]) == 2
    assert "run in run, of recog_folder and not of seg_folder, was started with" in "".join(
        capsys.readouterr()
    )

    # another division, and the same settings of another folder
    capsys.readouterr()
    assert main([*words, "--split-seed", "1"]) == 2
    message = "".join(capsys.readouterr())
    assert "train_data was 'lists" in message and "split_seed was 0 and is 1" in message
    shutil.move(here / "my" / val[0], here / "my" / "cat" / "renamed.png")
    shutil.move(here / "my" / val[1], here / "my" / "cat" / "renamed too.png")
    assert main(words) == 2
    assert "was started with different settings: train_data was" in "".join(capsys.readouterr())
    assert main(["evaluate", "run", "--workers", "0", "--split-seed", "1"]) == 2
    assert "images held out now are among those that the run in run trained on" in "".join(
        capsys.readouterr()
    )
    assert listed(here / "run" / "val.csv") == val, "the run's own lists stay"
    # all images of another folder
    for place in range(3):
        picture(here / "new" / "dog" / f"{place}.png", 16, 16, place)
    more = ["--data", "new", "--val-share", "1", "--workers", "0", "--out", "elsewhere"]
    (here / "elsewhere").mkdir()
    assert main(["evaluate", "run", *more]) == 0
    assert json.loads((here / "elsewhere" / "results.json").read_text())["num_images"] == 3


def test_masks_from_a_list(here):
    for place in range(8):
        picture(here / "scenes" / f"{place}.png", 16, 16, place)
        mask(here / "drawn" / f"{place}.png", 16, 16, [(0, 100), (1, 156)])
    rows = [f"scenes/{i}.png,drawn/{i}.png,night{i // 2}" for i in range(8)]
    (here / "all.csv").write_text("\n".join(["path,mask,night", *rows]))
    words = ["--data", "all.csv", "--fold", "2/4", "--group-by", "night", "--out", "run"]
    assert main([*SEG_TINY, *words]) == 0
    val = listed(here / "run" / "val.csv")
    assert len(val) == 2 and len({int(path[7]) // 2 for path in val}) == 1
    rows = map(json.loads, (here / "run" / "log.jsonl").read_text().splitlines())
    assert [row["num_images"] for row in rows if "mIoU" in row] == [2]
