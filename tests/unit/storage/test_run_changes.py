"""Which settings a run may be resumed with: each of every recipe, and what best was chosen by."""

import inspect
import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from helpers.logs import rows
from helpers.processes import ROOT
from helpers.toy_recipes import Images, recognition
from trainkit import Options, train
from trainkit.commands.recipe_file import load_recipe
from trainkit.errors import MissingFileError, UserError
from trainkit.storage.checkpoint import Snapshot, write
from trainkit.storage.run_changes import compare_settings
from trainkit.storage.setting_values import plain

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
KEPT = {"input": {}, "seed": 0, "total_steps": 9}


@cache
def settings_of(name: str) -> dict:
    parameters = inspect.signature(load_recipe(ROOT / "recipes" / f"{name}.py")).parameters
    return {name: plain(each.default) for name, each in parameters.items()}


def another(value):
    """A value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [*value, 7]
    if isinstance(value, str):
        return f"{value}-2"
    return 7 if value is None else value + 1


@pytest.fixture
def begun(tmp_path):
    """The folder of a run with a checkpoint."""
    (tmp_path / "checkpoints").mkdir()
    write(tmp_path / "checkpoints", 4, Snapshot({"weight": torch.zeros(1)}, {}, {}))
    return tmp_path


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_must_stay_but_the_place_of_the_data(begun, name):
    before = settings_of(name)
    recorded = {"settings": before, **KEPT}
    assert compare_settings(begun, recorded, before, KEPT).changes == []
    for setting, value in before.items():
        now = another(value)
        changed = {**before, setting: now}
        if setting == "data":
            (found,) = compare_settings(begun, recorded, changed, KEPT).changes
            assert (found.name, found.before, found.now) == ("data", value, now)
            continue
        with pytest.raises(UserError) as refused:
            compare_settings(begun, recorded, changed, KEPT)
        assert f": {setting} was {value!r} and is {now!r}. " in str(refused.value)
        flag = "--allow-change " + setting
        if setting in ("epochs", "warmup_epochs", "schedule"):
            flag = "--allow-schedule-change"
        assert f"give its settings, or {flag} to train on otherwise" in str(refused.value)
        longer = flag == "--allow-schedule-change"
        allowed = () if longer else (setting,)
        (found,) = compare_settings(begun, recorded, changed, KEPT, longer, allowed).changes
        assert found.recorded(4) == {"step": 4, "name": setting, "was": value, "is": now}


def test_what_a_resume_must_keep_is_not_allowed_by_name(begun):
    before, now = {"lr": 0.1, "size": 56}, {"lr": 0.2, "size": 64}
    recorded = {"settings": before, **KEPT, "lrs": [0.1, 1.0]}
    with pytest.raises(UserError, match=r"lrs was .0.1, 1. and is .* give its settings; --resume"):
        kept = {**KEPT, "lrs": [0.2, 2.0]}
        compare_settings(begun, recorded, {**before, "lr": 0.2}, kept, allow_change=["lr"])
    recorded = {"settings": before, **KEPT, "evaluation_protocol": "crop of 56"}
    with pytest.raises(UserError, match="'crop of 56' and is 'crop of 64'.*trainkit evaluate"):
        kept = {**KEPT, "evaluation_protocol": "crop of 64"}
        compare_settings(begun, recorded, {**now, "lr": 0.1}, kept, allow_change=["size"])
    with pytest.raises(UserError, match="no such setting; did you mean size"):
        compare_settings(begun, recorded, before, KEPT, allow_change=["sizes"])


def test_what_is_not_known_is_not_refused(begun):
    """Settings that a recipe gained or lost, what earlier versions did not write, and objects."""
    recorded = {"settings": {"gone": 1, "loss": "<mine.Loss object at 0x7f01>"}, **KEPT}
    kept = {**KEPT, "evaluation_protocol": "whole images", "evaluation_images": 3}
    now = {"new": 2, "loss": "<mine.Loss object at 0x7f9e>"}
    found = compare_settings(begun, recorded, now, kept)
    assert [str(each) for each in found.changes] == [
        "gone was 1 and is no setting", "new was no setting and is 2",
    ]  # fmt: skip
    with pytest.raises(UserError, match="loss was"):
        compare_settings(begun, recorded, {"loss": "<mine.Other object at 0x7f9e>"}, kept)


SETTINGS = {"label_smoothing": 0.1, "clip_norm": None, "data": "a"}


def resumed(folder, settings, **changes):
    options = Options(out=folder, workers=0, pictures=False, report=False)
    names = changes.keys() & {"precise_bn", "allow_change", "init_from"}
    options = replace(options, **{name: changes.pop(name) for name in names})
    return train(recognition(epochs=1, **changes), options, settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    resumed(folder, SETTINGS)
    return folder


@pytest.fixture
def finished(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def interrupted(finished):
    (finished / "summary.json").unlink()
    return finished


@pytest.mark.parametrize("state", ["finished", "interrupted"])
def test_what_is_refused(request, state):
    """Alike for both; of evaluations also where the settings say nothing of it."""
    run = request.getfixturevalue(state)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for changes, message in (
        ({"val_data": Images(12, augment=False)}, "evaluation_images was 13 and is 12"),
        ({"mean": [0.5] * 3}, "evaluation_protocol was 'as .*mean 0.5 0.5 0.5"),
        ({"precise_bn": 16}, "precise_bn was None and is 16"),
        ({"init_from": run}, "began without --init-from, and is resumed with --init-from"),
    ):
        with pytest.raises(UserError, match=message):
            resumed(run, SETTINGS, **changes)
    with pytest.raises(UserError, match="label_smoothing was 0.1 and is 0.2"):
        resumed(run, {**SETTINGS, "label_smoothing": 0.2})
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_what_is_allowed_trains_no_finished_run(finished, capsys):
    settings, summary = (finished / "settings.json", finished / "summary.json")
    before = settings.read_bytes(), summary.read_bytes()
    resumed(finished, {**SETTINGS, "data": "b"})
    resumed(finished, {**SETTINGS, "label_smoothing": 0.2}, allow_change=("label_smoothing",))
    assert before == (settings.read_bytes(), summary.read_bytes())
    assert capsys.readouterr().out.count("is finished (4 steps)") == 2


def test_an_allowed_change_is_recorded_with_its_step(interrupted, capsys):
    resumed(interrupted, {**SETTINGS, "clip_norm": 1.0}, allow_change=("clip_norm",))
    assert "changed since this run began: clip_norm was None" in capsys.readouterr().out
    first = {"step": 4, "name": "clip_norm", "was": None, "is": 1.0}
    content = json.loads((interrupted / "settings.json").read_text())
    assert content["settings"] == {**SETTINGS, "clip_norm": 1.0} and content["changes"] == [first]
    (interrupted / "summary.json").unlink()
    resumed(interrupted, {**SETTINGS, "clip_norm": 1.0, "data": "b"})
    content = json.loads((interrupted / "settings.json").read_text())
    assert content["changes"] == [first, {"step": 4, "name": "data", "was": "a", "is": "b"}]


def test_before_the_first_checkpoint_a_setting_may_change(tmp_path):
    """As after an OOM of the first step."""
    with pytest.raises(MissingFileError):
        resumed(tmp_path, {"crop": 96}, init_from=tmp_path / "nowhere")
    assert resumed(tmp_path, {"crop": 64})["steps"] == 4
    content = json.loads((tmp_path / "settings.json").read_text())
    assert content["settings"] == {"crop": 64} and "changes" not in content


@pytest.mark.parametrize("higher", [True, False])
def test_of_equal_bests_the_earliest_is_kept(tmp_path, higher):
    """At a rate of 0 all evaluations are equal: of 4 and 8 steps the best is that of 4."""
    recipe = recognition(epochs=2, best_by=("top1", higher))
    for group in recipe.optimizer.param_groups:
        group["lr"] = group["weight_decay"] = 0.0
    summary = train(recipe, Options(out=tmp_path, workers=0, pictures=False, report=False))
    found = rows(tmp_path, "evaluate")
    assert len({row["top1"] for row in found}) == 1
    assert [(row["step"], row["best_step"]) for row in found] == [(4, 4), (8, 4)]
    assert summary["best"]["step"] == 4
