"""trainkit average: weights and statistics by hand, measured before they are kept."""

import copy
import json

import pytest
import torch
from torch import nn

import trainkit
from helpers.logs import rows
from helpers.processes import TESTS
from helpers.teachers import write_teacher
from helpers.toy_recipes import CLASSES, Images
from trainkit.cli import main
from trainkit.data.sampler import TrainOrder
from trainkit.data.to_device import MEAN, STD, ToDevice
from trainkit.storage.checkpoint import list_checkpoints, load

RECIPE = """
import sys
sys.path.insert(0, {tests!r})
import torch
from helpers.toy_recipes import CLASSES, Images, recognition
from trainkit.models.recognition import classifier
from trainkit.recipe import Recipe


def recipe(lr: float = 0.05) -> Recipe:
    network = classifier("small", CLASSES)
    val_data = Images(13, augment=False)
    val_data.transform = None  # images are evaluated as they are stored
    return recognition(
        model=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9),
        train_data=Images(27, augment=False),
        val_data=val_data,
        epochs=2,
        ema=0.5,
    )
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("average")
    recipe = folder / "mine.py"
    recipe.write_text(RECIPE.format(tests=str(TESTS)))
    words = "--workers 0 --checkpoint-every 2 --keep-checkpoints 9 --no-report --no-pictures"
    assert main([str(recipe), "--out", str(folder / "run"), *words.split()]) == 0
    return folder / "run"


def test_checkpoints_of_a_run(run, tmp_path, capsys):
    out = tmp_path / "average"
    words = ["average", str(run), "--last", "3", "--out", str(out), "--keep", "--workers", "0"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    checkpoints = list_checkpoints(run / "checkpoints")[-3:]
    assert all(str(path) in shown for path in checkpoints) and len(checkpoints) == 3

    model, info = trainkit.load(out)
    found = model.state_dict()
    read = [load(path)[1]["ema"]["averages"] for path in checkpoints]  # EMA weights
    statistics = [name for name in found if name.endswith(("running_mean", "running_var"))]
    for name, value in found.items():
        if name.endswith("num_batches_tracked"):
            assert torch.equal(value, read[-1][name])
        elif name not in statistics:
            mean = sum(each[name].double() for each in read) / 3
            assert torch.equal(value, mean.float()), name

    # the first 16 of epoch 0's order, as one batch
    reference = copy.deepcopy(model)
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    data = Images(27, augment=False)
    chosen = TrainOrder(27, 8, 0).epoch(0).tolist()[:16]
    images = torch.stack([data[index][0] for index in chosen])
    with torch.no_grad():
        to_device = ToDevice(torch.device("cpu"), MEAN, STD)
        reference.train()(to_device(images, torch.empty(16))[0])
    assert statistics
    for name in statistics:
        expected = reference.state_dict()[name]
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(found[name], read[-1][name], rtol=1e-3)

    # what was measured is what other commands measure
    about = json.loads((out / "average.json").read_text())
    logged = {row["step"]: row["ema_top1"] for row in rows(run, "evaluate")}
    assert about["inputs"][-1]["top1"] == logged[8] and about["precise_bn"] == 1024
    results = trainkit.evaluate(str(out), workers=0)
    assert results["top1"] == about["average"] and results["num_images"] == 13
    assert len(info.predict([Images(1).images[0].permute(1, 2, 0).numpy()])) == 1
    assert main(["push", str(out), "me/it", "--folder", str(tmp_path / "pushed")]) == 0


def test_a_worse_average_is_not_kept(run, tmp_path, capsys):
    # of the same network, trained to nothing
    random = write_teacher(tmp_path / "random", seed=3, train_data=Images(27))
    out = tmp_path / "average"
    words = ["average", str(run), str(random), "--out", str(out), "--workers", "0"]
    best = max(row["top1"] for row in rows(run, "evaluate"))
    assert best > 1.5 / CLASSES
    assert main([*words, "--precise-bn", "0"]) == 1
    assert "it is not kept; --keep writes it all the same" in capsys.readouterr().out
    assert not out.exists()


def test_what_cannot_be_averaged_is_refused(run, tmp_path, capsys):
    def refused(*words):
        assert main(["average", *map(str, words), "--out", str(tmp_path / "out")]) == 2
        assert not (tmp_path / "out").exists()
        return " ".join(capsys.readouterr().err.split())

    last = list_checkpoints(run / "checkpoints")[-1]
    assert "is one checkpoint, and an average takes two or more" in refused(last)
    assert "are the same weights" in refused(run, run)
    assert "no checkpoint at" in refused(run, tmp_path / "nowhere")
    other = write_teacher(tmp_path / "other", classes=4)
    assert f"{run} and {other} cannot be averaged: " in refused(run, other)
    assert "average takes runs and checkpoints" in refused("recog_folder")
    assert "last is 1; it must be at least 2" in refused(run, "--last", 1)
    assert "last is 2, and several models are given" in refused(run, last, "--last", 2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    assert main(["average", str(run), "--out", str(tmp_path / "full")]) == 2
    assert "is not an empty folder" in capsys.readouterr().err
