"""The line that proposes a learning rate; nothing changes by itself."""

import inspect

import pytest

from helpers.processes import ROOT
from trainkit.cli import main
from trainkit.commands.proposals import proposals
from trainkit.commands.recipe_file import load_recipe
from trainkit.commands.starting_weights import starting_weights


def lines(name="recog_imagenet", **changes):
    recipe_file = load_recipe(ROOT / "recipes" / f"{name}.py")
    parameters = inspect.signature(recipe_file).parameters
    settings = {name: each.default for name, each in parameters.items()}
    if changes.get("sample"):
        settings |= recipe_file.sample_settings()
    return proposals(recipe_file, {**settings, **changes})


@pytest.mark.parametrize(
    "changes, line",
    [
        (
            {"batch_size": 128},
            "lr 0.2 is the recipe's for batches of 512; for those of 128 the linear rule proposes"
            " 0.05, which is not applied: give --lr 0.05",
        ),
        (
            {"batch_size": 2048, "optimizer": "nesterov"},
            "the linear rule proposes 0.8, which is not applied: give --lr 0.8",
        ),
        (
            {"optimizer": "adamw"},
            "for sgd, and is used; adamw takes another one, 0.001 being usual",
        ),
        (
            {"optimizer": "schedulefree", "lr": 0.002},
            "schedulefree is made for --schedule constant, and the schedule is cos",
        ),
        (
            {"sample": True, "batch_size": 16},
            "lr 0.05 is the recipe's for batches of 32",
        ),
    ],
)
def test_a_rate_is_proposed(changes, line):
    (found,) = lines(**changes)
    assert line in found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch_size": 128, "lr": 0.05},
        {"optimizer": "adamw:eps=1e-6", "lr": 0.001, "batch_size": 64},
        {"optimizer": "schedulefree", "lr": 0.002, "schedule": "constant"},
        {"sample": True},
    ],
)
def test_nothing_is_reported_where_the_rate_is_given_or_nothing_changed(changes):
    assert lines(**changes) == []


def test_adaptive_optimizers_by_the_square_root(tmp_path):
    (tmp_path / "adam.py").write_text(
        "from trainkit.settings import OptimizerSettings\n\n\n"
        "def recipe(batch_size: int = 64,"
        " optimizer: OptimizerSettings = OptimizerSettings(lr=0.004, optimizer='adamw')):\n"
        "    pass\n"
    )
    recipe_file = load_recipe(tmp_path / "adam.py")
    own = {name: each.default for name, each in inspect.signature(recipe_file).parameters.items()}
    (line,) = proposals(recipe_file, {**own, "batch_size": 16})
    assert line.endswith(
        "for those of 16 the square root rule proposes 0.002, which is not applied: give --lr 0.002"
    )
    (tmp_path / "other.py").write_text("def recipe(batch_size: int = 64):\n    pass\n")
    assert proposals(load_recipe(tmp_path / "other.py"), {"batch_size": 8}) == []


def test_a_run_that_is_there_keeps_its_rate(tmp_path, capsys):
    """Nothing is proposed for it: a changed rate would be refused."""
    words = ["recog_folder", "--sample", "--epochs", "0.1", "--warmup-epochs", "0", "--workers"]
    words += ["0", "--batch-size", "16", "--no-report", "--no-pictures", "--out", str(tmp_path)]
    assert main(words) == 0
    assert "rule proposes 0.025, which is not applied" in " ".join(capsys.readouterr().out.split())
    assert main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "is finished" in shown and "proposes" not in shown


def test_nothing_is_proposed_for_a_batch_size_that_is_refused():
    assert len(lines(batch_size=32)) == 1 and lines(batch_size=0) == []


def test_nothing_is_proposed_where_the_settings_are_refused(tmp_path, capsys):
    words = ["recog_folder", "--sample", "--batch-size", "16", "--workers", "0"]
    assert main([*words, "--headline", "top9", "--out", str(tmp_path / "run")]) == 2
    out, err = capsys.readouterr()
    assert "proposes" not in out and "top9" in err


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"model": "small", "pretrained": True}, True),
        ({"model": "lraspp", "backbone": "small", "pretrained": True}, True),
        ({"model": "lraspp", "backbone": "small", "pretrained": False}, False),
        ({"model": "resnet50", "pretrained": True}, False),
        ({"model": "small"}, False),
        ({"model": "hf:network", "backbone": "small", "pretrained": True}, False),
    ],
)
def test_random_weights_in_place_of_published_ones_are_reported(settings, expected):
    line = "small has no published weights: it starts from random ones"
    assert starting_weights(settings) == ([line] if expected else [])
