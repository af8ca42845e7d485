"""Runs of earlier versions: settings and options by the names that they had then."""

import inspect
import json

import pytest

from helpers.processes import ROOT, TESTS
from trainkit.cli import main
from trainkit.commands.recipe_file import load_recipe
from trainkit.models.segmentation import segmenter
from trainkit.storage.old_names import (
    renamed_kept,
    renamed_options,
    renamed_settings,
    renamed_state,
)
from trainkit.storage.recorded import read_recorded
from trainkit.storage.setting_values import read_settings_as

RECIPE = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from helpers.toy_recipes import segmentation
from trainkit.recipe import Recipe

def recipe(
    long_side: int = 20, head_lr_mult: float = 1.0, cat_max_ratio: float | None = None
) -> Recipe:
    assert long_side == 24, "the setting of the run"
    return segmentation()
"""
OLD = RECIPE.replace("trainkit.recipe import", "trainkit.segmenting import").replace(
    "def recipe", "raise SystemExit('it was run')\n\ndef recipe"
)


def test_names_of_what_is_kept_and_saved():
    assert renamed_kept({"lanes": 16, "seed": 3}) == {"interleaved_row_groups": 16, "seed": 3}
    old = {"progress": {"step": 4, "windows_without_targets": 1, "window_targets": 2.0}}
    new = {"progress": {"step": 4, "intervals_without_targets": 1, "interval_targets": 2.0}}
    assert renamed_state({**old, "window": [5]}) == {**new, "unlogged": [5]}
    assert renamed_state({**new, "unlogged": [5]}) == {**new, "unlogged": [5]}


def test_the_width_of_a_head_is_no_number_of_channels():
    known = ("channels", "head_channels", "model", "backbone")
    old = {"model": "fcn", "backbone": "small", "channels": 512}
    new = {"model": "fcn", "backbone": "small", "head_channels": 512}
    assert renamed_settings(old, known) == new == renamed_settings(old, known[1:])
    todays = {**new, "channels": 4}
    assert renamed_settings(todays, known) == todays


def test_names():
    known = ("model", "backbone", "long_side", "head_lr_mult", "lr")
    old = {"model": "fcn_resnet50", "base": 520, "head": 10.0, "lr": 0.1}
    assert renamed_settings(old, known) == {
        "model": "fcn", "backbone": "resnet50", "long_side": 520, "head_lr_mult": 10.0, "lr": 0.1
    }  # fmt: skip
    small = renamed_settings({"model": "small_lraspp"}, known)
    assert small == {"model": "lraspp", "backbone": "small", "pretrained": False}
    own = {"base": 2, "head": "linear", "model": "fcn_resnet50"}
    assert renamed_settings(own, ("base", "head", "model")) == own, "a recipe's own names"
    assert renamed_settings({"base": 2}, ("base", "long_side")) == {"base": 2}
    assert renamed_settings({"base": 2, "long_side": 3}, ("long_side",))["base"] == 2, (
        "refused later"
    )
    new = {"model": "deeplabv3", "backbone": "resnet101", "long_side": 1}
    assert renamed_settings(new, known) == new
    assert renamed_options({"init": None, "keep": 2, "rebase": False, "background_save": True,
                            "tf32": True}) == {
        "init_from": None, "keep_checkpoints": 2, "allow_schedule_change": False,
        "async_checkpoint": True, "tf32": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    "name, before, after",
    [
        ("seg_ade20k", {"model": "deeplabv3_resnet101"},
            {"model": "deeplabv3", "backbone": "resnet101"}),
        (
            "seg_ade20k",
            {"model": "small_fcn", "pretrained": True, "sample": True},
            {"model": "fcn", "backbone": "small", "pretrained": False, "sample": True},
        ),
        ("seg_folder", {"model": "small_lraspp"},
            {"model": "lraspp", "backbone": "small", "pretrained": False}),
        (
            "seg_folder",
            {"model": "lraspp_mobilenet_v3_large"},
            {"model": "lraspp", "backbone": "mobilenet_v3_large"},
        ),
    ],
)  # fmt: skip
def test_networks_of_older_runs_are_built(name, before, after):
    """Under --model they had the backbone too, and a small one began at random whatever
    --pretrained said."""
    recipe = load_recipe(ROOT / "recipes" / f"{name}.py")
    found = read_settings_as(before, inspect.signature(recipe), recipe.path)
    assert found == after
    segmenter(found["model"], 3, found["backbone"], pretrained=False)


# What commit 1f9f3c5 wrote of `recipes/seg_folder.py --sample --epochs 3`.
WRITTEN = {
    "data": "data/my_images", "classes": "", "ignore": [255], "label_shift": 0, "stream": None,
    "model": "small_lraspp", "pretrained": False, "epochs": 3.0, "lr": 0.05, "batch_size": 8,
    "weight_decay": 0.0001, "warmup_epochs": 0, "base": 112, "crop": 88, "head": 1.0,
    "aux_weight": 0.2, "loss": ["cross_entropy"], "class_weights": None, "photometric": False,
    "max_share": None, "sync_batch_norm": False, "eval_window": None, "eval_crop": None,
    "sample": True,
}  # fmt: skip


def test_the_settings_of_a_real_run_are_those_of_the_same_command_today():
    """But for what is new since, which keeps its default."""
    recipe = load_recipe(ROOT / "recipes" / "seg_folder.py")
    found = read_settings_as(WRITTEN, inspect.signature(recipe), recipe.path)
    defaults = {n: each.default for n, each in inspect.signature(recipe).parameters.items()}
    today = {**defaults, **recipe.sample_settings(), "sample": True, "epochs": 3.0}
    assert {**today, **found} == today
    assert {"long_side", "head_lr_mult", "cat_max_ratio", "backbone"} <= found.keys()


@pytest.fixture
def old_run(tmp_path, monkeypatch):
    """A folder with a run of one epoch of two, whose settings.json and recipe.py are those of an
    earlier version."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(RECIPE)
    assert main(["mine.py", "--long-side", "24", "--workers", "0", "--out", "run"]) == 0
    file = tmp_path / "run" / "settings.json"
    content = json.loads(file.read_text())
    assert content["settings"] == {"long_side": 24, "head_lr_mult": 1.0, "cat_max_ratio": None}
    content["settings"] = {"base": 24, "head": 1.0, "max_share": None}
    for new, old in {
        "init_from": "init",
        "keep_checkpoints": "keep",
        "allow_schedule_change": "rebase",
        "async_checkpoint": "background_save",
    }.items():
        content["options"][old] = content["options"].pop(new)
    file.write_text(json.dumps(content))
    (tmp_path / "run" / "recipe.py").write_text(OLD)
    return tmp_path / "run"


def test_an_old_run_is_read_with_the_recipe_of_today(old_run, capsys):
    assert (
        main(
            ["evaluate", "mine.py", "--weights", "run/checkpoints/step-000000010", "--workers", "0"]
        )
        == 0
    )
    summary = json.loads((old_run / "summary.json").read_text())
    results = json.loads((old_run / "results.json").read_text())
    assert {name: results[name] for name in summary["final"]} == summary["final"]
    assert main(["export", "mine.py", "--weights", "run", "--out", "w.safetensors"]) == 0
    assert read_recorded(old_run)["options"]["keep_checkpoints"] == 2
    capsys.readouterr()
    assert main(["evaluate", "run"]) == 2, "its own recipe is not executed"
    message = " ".join(capsys.readouterr().err.split())
    assert "was written for an older trainkit: it imports trainkit.segmenting" in message
    assert "trainkit evaluate RECIPE --weights run" in message


def test_an_old_run_is_resumed(old_run, capsys):
    """And is one of today's from then on.

    Its settings by today's names, and the recipe that it goes on with.
    """
    (old_run / "summary.json").unlink()
    words = ["mine.py", "--long-side", "24", "--workers", "0", "--out", "run"]
    assert main(words) == 0
    assert "resuming from step-000000010" in capsys.readouterr().out
    assert read_recorded(old_run)["settings"]["long_side"] == 24
    assert (old_run / "recipe.py").read_text() == RECIPE
    assert main(["evaluate", "run", "--workers", "0"]) == 0
