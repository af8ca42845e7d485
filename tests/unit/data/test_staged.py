"""Images that grow with the epochs.

Which epoch has which size, and the same pixels whatever happens to the run.
"""

import json
import shutil

import pytest
import torch
from torch.utils.data import Subset

from helpers.logs import assert_bit_equal
from helpers.processes import ROOT
from helpers.toy_recipes import Cropped, Images, growing, recognition, run
from trainkit import Options
from trainkit.cli import main
from trainkit.commands.check import check
from trainkit.commands.dataset_check import untransformed
from trainkit.commands.recipe_file import build, load_recipe
from trainkit.data.datasets.repeated import Repeated
from trainkit.data.datasets.staged import Stages, sizes_by_epoch
from trainkit.data.loader import make_loader
from trainkit.data.reader import name_of
from trainkit.data.sampler import Batches, TrainOrder
from trainkit.data.seeding import Seeded
from trainkit.storage.checkpoint import list_checkpoints

ORDER = TrainOrder(27, 8, seed=5)  # 4 steps an epoch


def batches(start: int, workers: int) -> list[torch.Tensor]:
    keys = Batches(ORDER, start, 10, 0)
    return [
        images
        for images, _, _ in make_loader(growing().train_data, 5, keys, workers, torch.device("cpu"))
    ]


def test_each_epoch_has_its_size_and_its_own_crops():
    whole = batches(0, workers=0)
    assert [each.shape[-1] for each in whole] == [6] * 4 + [9] * 4 + [12] * 2
    seen, data = whole[5], growing().train_data
    for (epoch, index), image in zip(ORDER.keys(5), seen):
        assert epoch == 1 and torch.equal(Seeded(data, 5)[epoch, index][0], image)
    for workers, start in ((2, 0), (0, 3), (2, 5)):
        assert all(
            torch.equal(a, b) for a, b in zip(whole[start:], batches(start, workers), strict=True)
        )


def test_going_on_across_a_change(tmp_path):
    """Bit for bit, from before, on and after the first step of another size, with other workers."""
    run("growing", tmp_path / "whole", checkpoint_every=1, keep_checkpoints=20)
    for step, workers in ((2, 0), (3, 1), (4, 0), (5, 2)):
        folder = tmp_path / str(step)
        shutil.copytree(tmp_path / "whole", folder)
        (folder / "summary.json").unlink()
        for path in list_checkpoints(folder / "checkpoints")[step:]:
            shutil.rmtree(path)
        net = run("growing", folder, checkpoint_every=1, keep_checkpoints=20, workers=workers)
        assert len(net.seen) == sum([8, 8, 8, 3, 8, 8, 8, 3, 8, 8][step:])
        assert_bit_equal(tmp_path / "whole", folder)


def test_repeated_too():
    data = Repeated(growing().train_data, 2)
    assert [Seeded(data, 5)[epoch, 30][0].shape[-1] for epoch in range(4)] == [6, 9, 12, 12]
    assert data.final_epoch == 2 and Repeated(Images(3)).final_epoch == 0
    assert name_of(data, 30) == name_of(Cropped(27), 3)


def test_as_a_setting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = ROOT / "recipes" / "recog_imagenet.py"
    words = [
        str(path),
        "--sample",
        "--workers",
        "0",
        "--warmup-epochs",
        "0",
        "--image-sizes",
        "32:0,56:1",
    ]
    assert main([*words, "--epochs", "1.1", "--precise-bn", "16"]) == 0
    settings = json.loads((tmp_path / "runs/recog_imagenet/settings.json").read_text())["settings"]
    assert settings["image_sizes"] == "32:0,56:1"
    recipe = build(
        load_recipe(path),
        {"sample": True, "model": "small", "image_sizes": "32:0,56:1", "eval_size": 40},
    )
    assert [Seeded(recipe.train_data, 0)[epoch, 0][0].shape[-1] for epoch in (0, 1, 9)] == [
        32,
        56,
        56,
    ]
    assert recipe.protocol == "centre crop of 40, short side 46, bicubic"
    bare, reason = untransformed(recipe.train_data)
    assert reason is None and bare[0][0].shape[-2:] == (64, 64)


def test_the_forecast_is_of_the_first_size():
    warnings = check(growing(), Options(workers=0, log_every=1))["warnings"]
    assert "images change until epoch 2 of 2.5; the results above are of the first ones" in warnings


@pytest.mark.parametrize(
    "text",
    ["", "128", "128:1", "128:0,192:30,224:30", "128:0,192:40,224:30", "0:0", "a:0", "1:0:2"],
)
def test_sizes_that_cannot_be(text):
    with pytest.raises(ValueError, match="image sizes are .*such as 128:0,192:30,224:60"):
        sizes_by_epoch(text)
    assert sizes_by_epoch("128:0, 192:30") == {0: 128, 30: 192}


def test_user_errors():
    with pytest.raises(ValueError, match=r"begin in epochs \[1, 3\]; one must be of epoch 0"):
        Stages(Cropped(27), {3: None, 1: None})
    with pytest.raises(ValueError, match="Images has no attribute `transform`"):
        Stages(Images(27), {0: None})
    with pytest.raises(TypeError, match="no Subset of it can"):
        Seeded(Subset(growing().train_data, [3]), 5)[1, 0]
    assert recognition().train_data[0][0].shape[-1] == 12  # the others are read as before
