"""Losses and gradients that are no numbers: named, kept, run again, or left out."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from helpers.logs import rows, timeless_row, weights
from helpers.nonfinite import Planted, step_of
from helpers.processes import TESTS, forked
from helpers.toy_recipes import everything, recognition
from trainkit import Options, train
from trainkit.cli import main
from trainkit.data.sampler import TrainOrder
from trainkit.data.seeding import seed_host
from trainkit.storage.checkpoint import list_checkpoints, load

RECIPE = """
import sys
sys.path.insert(0, {tests!r})
import torch
from helpers.nonfinite import Planted
from helpers.toy_recipes import recognition
from trainkit.recipe import Recipe


def recipe(num_images: int = 27, planted: int = 11) -> Recipe:
    return recognition(train_data=Planted(num_images, planted))
"""


@pytest.mark.parametrize("log_every", [1, 3])
def test_the_first_bad_step_is_named_and_kept(tmp_path, log_every):
    step = step_of(11)
    options = Options(out=tmp_path, workers=0, log_every=log_every, checkpoint_every=1)
    with pytest.raises(FloatingPointError) as caught:
        train(recognition(train_data=Planted(27, 11)), options)
    message = str(caught.value)
    assert f"the loss is nan in step {step} (gradient norm nan, lr " in message, message
    batch = TrainOrder(27, 8, 0).epoch(0)[8 * (step - 1) : 8 * step].tolist()
    assert f"with images {batch[0]} (planted/{batch[0]}.png), {batch[1]} (planted/" in message
    folder = tmp_path / "failures" / f"step-{step:09d}"
    assert f"Kept in {folder}: `trainkit replay {tmp_path}` runs the step again" in message
    report = json.loads((folder / "report.json").read_text())
    assert [image["index"] for image in report["images"]] == batch and report["grad_norm"] == "nan"
    assert (
        report["images"][0]["name"] == f"planted/{batch[0]}.png"
        and report["lrs"][1] == 2 * report["lrs"][0]
    )
    kept = load_file(folder / "batch.safetensors")
    assert torch.equal(kept["images"].nan_to_num(7), Planted(27, 11).images[batch].nan_to_num(7))
    newest = list_checkpoints(tmp_path / "checkpoints")
    assert all(value.isfinite().all() for path in newest for value in load(path)[0].values()), (
        "none is poisoned"
    )
    if step > 1:
        assert (
            load(folder / "checkpoint")[1]["progress"]["step"]
            == step - 1
            == int(newest[-1].name[5:])
        )


def test_a_gradient_that_is_no_number_stops_the_run(tmp_path):
    """A finite loss with an infinite slope: sqrt at 0."""

    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(7))

        def forward(self, x):
            return self.weight.abs().sqrt().expand(len(x), 7)

    model = Root()
    recipe = recognition(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(
        FloatingPointError, match=r"the gradient norm is (nan|inf) in step 1 .loss 1\.9"
    ):
        train(recipe, Options(out=tmp_path, workers=0, log_every=5))


def test_it_is_noticed_before_an_evaluation(tmp_path):
    """Neither a row of the log nor a checkpoint is due when the epoch ends.

    The metrics of nothing are not logged.
    """
    options = Options(out=tmp_path, workers=0, log_every=100, checkpoint_every=1000)
    with pytest.raises(FloatingPointError, match=f"the loss is nan in step {step_of(11)}"):
        train(recognition(train_data=Planted(27, 11)), options)
    assert not (tmp_path / "log.jsonl").exists()


def test_the_norm_in_the_log(tmp_path):
    """Of the whole gradient, before it is clipped.

    Sum over weights of squares, by hand for one step.
    """
    seed_host(3)
    recipe = recognition(num_images=8, epochs=1)
    seed_host(3)
    net = recognition(num_images=8).model
    data = recipe.train_data
    data.augment = False
    train(recipe, Options(out=tmp_path, workers=0, log_every=1))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (recipe.mean, recipe.std))
    indices = TrainOrder(8, 8, 0).epoch(0)
    outputs = net((data.images[indices] / 255 - mean) / std)
    nn.functional.cross_entropy(outputs, data.targets[indices], label_smoothing=0.1).backward()
    norm = math.sqrt(sum(weight.grad.square().sum().item() for weight in net.parameters()))
    assert rows(tmp_path)[0]["grad_norm"] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("build", [recognition, everything])
def test_skip_leaves_the_update_out(tmp_path, build):
    """As a run by hand whose bad step does nothing: weights, momentum, batch norm."""
    step = step_of(11)
    options = Options(out=tmp_path / "skipped", workers=0, log_every=5, on_nonfinite="skip")
    seed_host(2)
    recipe = build(train_data=Planted(27, 11))
    recipe = replace(recipe, epochs=1)
    taken = []
    update = recipe.optimizer.step

    def watched(*arguments, **named):
        taken.append({name: value.clone() for name, value in recipe.model.state_dict().items()})
        update(*arguments, **named)

    recipe.optimizer.step = watched
    summary = train(recipe, options)
    assert summary["skipped_steps"] == 1 and summary["steps"] == 4
    assert rows(tmp_path / "skipped")[-1]["skipped_steps"] == 1
    assert math.isfinite(rows(tmp_path / "skipped")[0]["loss"])
    state = weights(tmp_path / "skipped")
    assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())
    before = taken[step - 1]
    after = taken[step] if step < 4 else state
    for name in (name for name, _ in recipe.model.named_parameters()):
        assert torch.equal(before[name], after[name]), name
    norms = [name for name in state if "num_batches" in name]
    assert all(int(state[name]) == 3 for name in norms) and bool(norms) == (build is everything)


def test_skip_in_the_first_step_is_a_run_that_begins_with_the_second(tmp_path):
    """AdamW, whose state is made in the first step."""

    def build(first: float):
        seed_host(4)
        net = recognition().model
        data = Planted(16, int(TrainOrder(16, 8, 0).epoch(0)[2]), first)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        return recognition(
            train_data=data, model=net, optimizer=optimizer, epochs=1, schedule=lambda *_: 1.0
        ), data

    recipe, _ = build(math.inf)
    train(recipe, Options(out=tmp_path / "a", workers=0, on_nonfinite="skip"))
    other, data = build(0.0)
    second = TrainOrder(16, 8, 0).epoch(0)[8:]
    outputs = other.model(data.images[second])
    nn.functional.cross_entropy(outputs, data.targets[second], label_smoothing=0.1).backward()
    other.optimizer.step()
    for name, value in weights(tmp_path / "a").items():
        torch.testing.assert_close(value, other.model.state_dict()[name], rtol=1e-5, atol=1e-7)


def test_skipped_steps_survive_a_resume(tmp_path):
    options = Options(
        out=tmp_path / "whole",
        workers=0,
        log_every=5,
        on_nonfinite="skip",
        checkpoint_every=1,
        keep_checkpoints=9,
    )
    seed_host(2)
    train(recognition(train_data=Planted(27, 11)), options)
    folder = tmp_path / "whole"
    expected, whole = rows(folder), weights(folder)
    (folder / "summary.json").unlink()
    for path in list_checkpoints(folder / "checkpoints"):
        # between the skipped step and the row that tells of it
        if int(path.name[5:]) > step_of(11):
            path.rename(path.with_name("removed-" + path.name))
    seed_host(2)
    train(recognition(train_data=Planted(27, 11)), options)
    timeless = [[timeless_row(row) for row in each] for each in (expected, rows(folder))]
    assert timeless[0] == timeless[1]
    assert all(torch.equal(value, whole[name]) for name, value in weights(folder).items())


def test_replay_finds_the_image_and_the_layer(tmp_path, capsys):
    recipe = tmp_path / "planted.py"
    recipe.write_text(RECIPE.format(tests=str(TESTS)))
    run = tmp_path / "run"
    step = step_of(11)
    done = forked(
        recipe,
        "--out",
        run,
        "--workers",
        "0",
        "--log-every",
        "4",
        "--checkpoint-every",
        "1",
        code=2,
    )
    assert f"the loss is nan in step {step}" in done.stderr and "Traceback" not in done.stderr
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    done = forked("replay", run, "--workers", "0")
    assert f"step {step} fails again: loss nan, gradient norm nan" in done.stdout, done.stdout
    assert "first in the images as they were read, for images 11 (planted/11.png)" in done.stdout
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    for path in (run / "failures").glob("*/checkpoint"):
        path.rename(run / "elsewhere")
    report = next((run / "failures").glob("*/report.json"))
    report.write_text(
        report.read_text().replace(f'"checkpoint": "step-{step - 1:09d}"', '"checkpoint": null')
    )
    assert main(["replay", str(run), "--workers", "0"]) == 0
    shown = capsys.readouterr().out
    assert f"training {step - 1} steps from step 0 on" in shown and "fails again: loss nan" in shown
    assert main(["replay", str(run), "--step", "9"]) == 2 and main(["replay", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "step 9 of" in message and "is not a run" in message
