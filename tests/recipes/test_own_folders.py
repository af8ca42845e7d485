"""recog_folder and seg_folder from the command line, on folders as people have them."""

import csv
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.image_files import mask, picture
from helpers.processes import RECOG, ROOT, SEG, torchrun
from trainkit.cli import main
from trainkit.commands.recipe_file import build, load_recipe
from trainkit.data.dataset_info import DatasetInfo

TINY = ["--epochs", "1", "--batch-size", "4", "--workers", "0", "--no-pretrained"]
RECOG_TINY = [RECOG, "--model", "small", "--size", "16", *TINY]
SEG_TINY = [SEG, "--model", "lraspp", "--backbone", "small", "--classes", "a,b", *TINY]
SEG_TINY += ["--long-side", "16", "--crop", "16"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listed(file, column="path"):
    return [row[column] for row in csv.DictReader(file.read_text().splitlines())]


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


def parquet(file, size=24, seed=0):
    """Rows without paths: an image, a label, and the patient it is of."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pictures = [
        picture(file.parent / "x.png", 16, 16, seed + row).read_bytes() for row in range(size)
    ]
    rows = {
        "image": [{"bytes": content, "path": None} for content in pictures],
        "label": [("cat", "dog")[row % 2] for row in range(size)],
        "patient": [row // 2 for row in range(size)],
    }
    (file.parent / "x.png").unlink()
    pq.write_table(pa.table(rows), file)


def test_a_share_of_parquet_files_is_kept_by_resume_and_evaluate(here, capsys, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", here / "cache")
    parquet(here / "my" / "train.parquet")
    share = ["--val-share", "0.25", "--group-by", "patient"]
    tiny = [*RECOG_TINY, "--batch-size", "6"]
    words = [*tiny, "--data", "my", *share, "--out", "run"]
    assert main(words) == 0
    train, val = (listed(here / "run" / f"{side}.csv", "row") for side in ("train", "val"))
    assert sorted(map(int, train + val)) == list(range(24)) and len(val) == 6
    assert not {int(row) // 2 for row in train} & {int(row) // 2 for row in val}
    recorded = json.loads((here / "run" / "settings.json").read_text())
    assert "of 18 train and 6 val images, rows " in recorded["train_data"]
    assert main(["evaluate", "run", "--workers", "0"]) == 0
    results = json.loads((here / "run" / "results.json").read_text())
    assert results["num_images"] == 6
    log = (here / "run" / "log.jsonl").read_text().splitlines()
    measured = [json.loads(line)["top1"] for line in log if '"top1"' in line]
    assert results["top1"] == measured[-1]

    # two processes see the same images
    script = ROOT / "trainkit" / "__main__.py"
    there = ["--data", here / "my", *share, "--out", here / "together"]
    torchrun(2, script, *tiny, *there, HF_DATASETS_CACHE=str(here / "cache"))
    for side in ("train", "val"):
        ours, theirs = (here / out / f"{side}.csv" for out in ("run", "together"))
        assert theirs.read_bytes() == ours.read_bytes()

    # other settings; other rows in the same place; the same rows elsewhere
    capsys.readouterr()
    assert main(["evaluate", "run", "--workers", "0", "--split-seed", "1"]) == 2
    assert "images held out now are among those" in "".join(capsys.readouterr())
    shutil.copytree(here / "my", here / "moved")
    assert main(["evaluate", "run", "--workers", "0", "--data", "moved", "--split-seed", "1"]) == 2
    assert "images held out now are among those" in "".join(capsys.readouterr())
    parquet(here / "my" / "train.parquet", seed=100)
    assert main(["evaluate", "run", "--workers", "0"]) == 2
    assert "the rows of my are others than those that the run in run" in "".join(
        capsys.readouterr()
    )
    assert main([*words, "--epochs", "2"]) == 2
    assert "train_data was" in "".join(capsys.readouterr())
    # all rows of another folder
    parquet(here / "new" / "images.parquet", size=5, seed=50)
    (here / "elsewhere").mkdir()
    more = ["--data", "new", "--val-share", "1", "--workers", "0", "--out", "elsewhere"]
    assert main(["evaluate", "run", *more]) == 0
    assert json.loads((here / "elsewhere" / "results.json").read_text())["num_images"] == 5


def test_data_is_divided_once(here):
    """Both sides hold the same lists, and not equal ones."""
    for place in range(12):
        picture(here / "my" / ("cat", "dog")[place % 2] / f"{place}.png", 16, 16, place)
        picture(here / "scenes" / "images" / f"{place}.png", 16, 16, place)
        mask(here / "scenes" / "masks" / f"{place}.png", 16, 16, [(0, 100), (1, 156)])
    share = {"val_share": 0.25, "pretrained": False, "channels": 3}
    recog = {"data": "my", "model": "small", "bits": 16, "size": 16}
    seg = {"data": "scenes", "model": "lraspp", "backbone": "small", "classes": "2"}
    for name, settings in ((RECOG, recog), (SEG, seg)):
        recipe = build(load_recipe(Path(name)), {**share, **settings})
        sides = [DatasetInfo.of(data) for data in (recipe.train_data, recipe.val_data)]
        assert sum(len(side.data) for side in sides) == 12
        assert sides[0].lists is sides[1].lists
