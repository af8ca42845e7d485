"""best.safetensors and last.safetensors: which checkpoint they are of, always one that is there."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.interruptions import resume
from helpers.logs import rows
from helpers.processes import TOYS, Script
from helpers.toy_recipes import RUNS, everything, recognition
from trainkit import Options, evaluate, train
from trainkit.errors import MissingFileError
from trainkit.storage.checkpoint import checkpoint_path
from trainkit.storage.lookup import find_weights
from trainkit.storage.weight_links import BEST, LAST, WeightLinks, pointed
from trainkit.storage.weights import start_from


def trained(folder: Path, build=recognition, **options) -> Path:
    torch.manual_seed(0)
    train(build(), Options(out=folder, workers=0, pictures=False, report=False, **options))
    return folder


def best_and_last(run: Path) -> tuple[Path, Path]:
    row = rows(run, "evaluate")[-1]
    folder = run / "checkpoints"
    return checkpoint_path(folder, row["best_step"]), checkpoint_path(folder, row["step"])


def test_they_are_links_that_other_programs_read(tmp_path):
    run = trained(tmp_path / "run")
    for name, path in zip((BEST, LAST), best_and_last(run)):
        assert not Path(os.readlink(run / name)).is_absolute()
        found, expected = load_file(run / name), load_file(path / "model.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert find_weights(run / name) == (path, run)


@pytest.mark.parametrize("name", [BEST, LAST])
def test_commands_take_them_for_the_checkpoint(tmp_path, name):
    """Of a run with EMA weights these are meant, as where the checkpoint is named."""
    run = trained(tmp_path / "run", everything)
    path = dict(zip((BEST, LAST), best_and_last(run)))[name]
    assert find_weights(run / name) == (path, run)
    assert evaluate(everything(), run / name, workers=0) == evaluate(everything(), path, workers=0)
    one, other = everything().model, everything().model
    start_from(one, run / name)
    start_from(other, path)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))
    with pytest.raises(Exception, match="[Hh]eader"):  # and never for the raw weights
        load_file(run / name)


@pytest.mark.parametrize("build", [recognition, everything])
def test_a_run_may_be_moved_and_copied(tmp_path, build):
    run = trained(tmp_path / "run", build)
    places = [path.name for path in best_and_last(run)]
    shutil.copytree(run, tmp_path / "copy", symlinks=True)
    run = run.rename(tmp_path / "moved")
    for folder in (run, tmp_path / "copy"):
        for name, place in zip((BEST, LAST), places):
            assert find_weights(folder / name) == (folder / "checkpoints" / place, folder)
    if build is everything:
        shutil.copy(run / BEST, tmp_path / "alone.safetensors")
        with pytest.raises(MissingFileError, match="alone.safetensors says which checkpoint"):
            find_weights(tmp_path / "alone.safetensors")
    else:
        shutil.copy(run / BEST, tmp_path / "alone.safetensors")
        assert find_weights(tmp_path / "alone.safetensors")[0] == tmp_path / "alone.safetensors"


@pytest.mark.parametrize("background", [False, True])
def test_none_leads_to_a_checkpoint_that_is_gone(tmp_path, background):
    """Looked at before every forward pass, while old checkpoints are removed."""
    recipe, seen = recognition(epochs=6), 0

    def look(*_):
        nonlocal seen
        for name in (BEST, LAST):
            if os.path.lexists(tmp_path / "run" / name):
                folder = pointed(tmp_path / "run" / name)
                is_there = (folder / "manifest.json").is_file()
                # the link may be replaced between the two calls, and so is looked at once more
                assert is_there or folder != pointed(tmp_path / "run" / name)
                seen += 1

    recipe.model.register_forward_pre_hook(look)
    options = {"keep_checkpoints": 1, "checkpoint_every": 1, "async_checkpoint": background}
    train(recipe, Options(out=tmp_path / "run", workers=0, pictures=False, **options))
    assert seen > 50
    best, last = best_and_last(tmp_path / "run")
    assert pointed(tmp_path / "run" / BEST) == best and pointed(tmp_path / "run" / LAST) == last


@pytest.mark.parametrize("reads", [62, 75])
def test_a_kill_leaves_none_that_leads_nowhere(tmp_path, reads):
    process = Script(TOYS, tmp_path, "all", TOY_READS=str(reads))
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    found = [name for name in (BEST, LAST) if os.path.lexists(tmp_path / "all" / name)]
    assert LAST in found
    assert all((pointed(tmp_path / "all" / name) / "manifest.json").is_file() for name in found)
    resume(tmp_path, "all")
    best, last = best_and_last(tmp_path / "all")
    assert pointed(tmp_path / "all" / BEST) == best and pointed(tmp_path / "all" / LAST) == last


def test_what_others_put_there_stays(tmp_path, capsys):
    run = trained(tmp_path / "run", epochs_of_one)
    (run / BEST).unlink()
    (run / BEST).write_bytes(b"weights of mine")
    build, options = RUNS["recognition"]
    train(
        build(),
        Options(out=run, workers=0, pictures=False, allow_schedule_change=True, **options),
    )
    assert (run / BEST).read_bytes() == b"weights of mine"
    message = f"warning: {run}: best.safetensors is not of trainkit, and stays"
    assert capsys.readouterr().out.count(message) == 1
    assert pointed(run / LAST) == best_and_last(run)[1]


def epochs_of_one():
    return recognition(epochs=1)


def test_without_a_checkpoint_there_is_none(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for averaged in (False, True):
        WeightLinks(tmp_path, averaged, lambda: None).update()
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
