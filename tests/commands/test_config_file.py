"""--config: settings and options from YAML, or from another run's settings.json."""

import json
import re

import pytest
import yaml

from helpers.logs import rows
from helpers.processes import ROOT
from trainkit.cli import main
from trainkit.commands.arguments import read_settings_and_options
from trainkit.commands.recipe_file import load_recipe
from trainkit.errors import MissingFileError, UserError

FOLDER = ROOT / "recipes" / "recog_folder.py"


def read(*words, command="train"):
    return read_settings_and_options(
        load_recipe(FOLDER), command, "trainkit", list(map(str, words))
    )


def written(path, **content):
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_yaml_file_gives_settings_and_options_and_the_command_line_wins(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "lr: 1e-3\nbatch-size: 16\noptimizer: adamw\nbetas: [0.8, 0.9]\nfreeze: backbone\n"
        "ema: null\nunfreeze_epoch: 2\nseed: 7\nkeep_checkpoints: 5\nout: runs/mine\n"
        "pretrained: no\n"
    )
    settings, options = read("--config", file, "--batch-size", 8, "--keep-checkpoints", 3)
    found = {
        name: settings[name]
        for name in ("lr", "batch_size", "optimizer", "betas", "freeze", "unfreeze_epoch")
    }
    assert found == {
        "lr": 0.001, "batch_size": 8, "optimizer": "adamw", "betas": (0.8, 0.9),
        "freeze": ("backbone",), "unfreeze_epoch": 2,
    }  # fmt: skip
    assert settings["pretrained"] is False and settings["weight_decay"] == 1e-4
    assert (options.seed, options.keep_checkpoints, str(options.out)) == (7, 3, "runs/mine")
    assert read(f"--config={file}")[0]["batch_size"] == 16
    assert not hasattr(options, "config")


def test_sample_in_a_file_is_as_on_the_command_line(tmp_path):
    settings, _ = read("--config", written(tmp_path / "a.yaml", sample=True, epochs=2))
    plain, _ = read("--sample", "--epochs", 2)
    assert settings == plain and settings["model"] == "small"


def test_another_runs_settings_but_not_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = (
        "--sample",
        "--workers",
        "0",
        "--seed",
        "3",
        "--epochs",
        "0.2",
        "--optimizer",
        "adamw:eps=1e-6",
        "--warmup-epochs",
        "0",
    )
    assert main([str(FOLDER), *words, "--lr", "0.003", "--out", "one"]) == 0
    again = ("--config", "one/settings.json", "--out", "two")
    assert main([str(FOLDER), *again]) == 0
    one, two = (
        json.loads((tmp_path / name / "settings.json").read_text()) for name in ("one", "two")
    )
    assert one["settings"] == two["settings"] and one["options"] | {"out": "two"} == two["options"]
    logs = [rows(tmp_path / name) for name in ("one", "two")]
    one, two = ([(row["loss"], row["grad_norm"]) for row in log] for log in logs)
    assert one == two and one
    _, options = read("--config", "one/settings.json")
    assert options.out is None and options.seed == 3


@pytest.mark.parametrize(
    "content, message",
    [
        ("learning_rate: 1\n", "run.yaml: there is no setting learning_rate"),
        ("batchsize: 1\n", "there is no setting batchsize; did you mean batch_size?"),
        ("keep_checkpoint: 1\n", "did you mean keep_checkpoints?"),
        ("lr: fast\n", "run.yaml: lr is 'fast': it must be a number"),
        ("resume: sometimes\n", "resume is 'sometimes': it must be one of 'auto', 'never'"),
        ("- lr\n", "holds no names with values"),
        ("lr: [1\n", "run.yaml cannot be read"),
    ],
)
def test_what_a_file_cannot_give_is_refused(tmp_path, content, message):
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=re.escape(message)):
        read("--config", file)


def test_a_file_that_is_not_there():
    with pytest.raises(MissingFileError, match="--config: there is no file nowhere.yaml"):
        read("--config", "nowhere.yaml")


def test_other_commands_pass_by_options_of_a_training(tmp_path):
    file = written(tmp_path / "run.yaml", lr=0.5, keep_checkpoints=5, workers=0)
    settings, options = read("--config", file, command="doctor")
    assert (
        settings["lr"] == 0.5 and options.workers == 0 and not hasattr(options, "keep_checkpoints")
    )
