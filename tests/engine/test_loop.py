"""Whole trainings in one process: what they compute, what they write, how they resume."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from helpers.logs import assert_same_training, rows, timeless_row, weights, without_intervals
from helpers.toy_recipes import Images, Net, recognition, run, segmentation
from trainkit import Options, Recipe, evaluate, train
from trainkit.data.sampler import TrainOrder
from trainkit.data.seeding import seed_host
from trainkit.inference import Inference
from trainkit.losses.functional import cross_entropy_sum
from trainkit.metrics.base import Counting
from trainkit.schedules import constant, cos
from trainkit.storage.checkpoint import checkpoint_path, list_checkpoints


def test_steps_by_hand(tmp_path):
    """Three steps against a loop written out with torch alone.

    Order, normalisation, loss, lr, momentum.
    """
    seed_host(5)
    net = Net(dense=False)
    data = Images(10, augment=False)
    recipe = recognition(
        num_images=10, batch_size=4, model=net, train_data=data, epochs=1,
        schedule=cos(warmup_steps=1),
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
    )  # fmt: skip
    seed_host(5)
    mine = Net(dense=False)
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.1, momentum=0.9)
    train(recipe, Options(out=tmp_path / "run", seed=3, workers=0, log_every=1))

    order = TrainOrder(10, 4, 3).epoch(0)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (recipe.mean, recipe.std))
    for step, row in enumerate(rows(tmp_path / "run")):
        indices = order[4 * step : 4 * step + 4]
        lr = 0.1 * [0, 1, 0.5][step]
        optimizer.param_groups[0]["lr"] = lr
        outputs = mine((data.images[indices] / 255 - mean) / std)
        loss = cross_entropy_sum(outputs, data.targets[indices], label_smoothing=0.1) / len(indices)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert row["loss"] == pytest.approx(loss.item(), rel=1e-5) and row["lr"] == pytest.approx(
            lr
        )
    for name, value in weights(tmp_path / "run").items():
        torch.testing.assert_close(value, mine.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_what_a_run_leaves(tmp_path):
    folder = tmp_path / "run"
    summary = train(recognition(), Options(out=folder, workers=0, log_every=3), {"lr": 0.1})
    steps, evaluations = rows(folder), rows(folder, "evaluate")
    assert [row["step"] for row in steps] == [3, 6, 9, 10] and steps[1]["epoch"] == 1.5
    assert {"event", "step", "epoch", "loss", "lr", "images_per_s"} <= steps[0].keys()
    assert [(row["step"], row["epoch"]) for row in evaluations] == [(4, 1.0), (8, 2.0), (10, 2.5)]
    assert all(
        row["num_images"] == 13 and 0 <= row["top1"] <= row["top5"] <= 1 for row in evaluations
    )
    best = max(evaluations, key=lambda row: row["top1"])
    assert summary["best"] == {"top1": best["top1"], "step": best["step"]}
    assert summary["final"]["top1"] == evaluations[-1]["top1"]
    assert summary["steps"] == 10 and summary["images"] == 27 * 2 + 16
    assert summary == json.loads((folder / "summary.json").read_text())
    settings = json.loads((folder / "settings.json").read_text())
    assert (
        settings["settings"] == {"lr": 0.1}
        and settings["seed"] == 0
        and settings["total_steps"] == 10
    )
    assert {"python", "torch", "torchvision", "accelerate", "trainkit"} <= settings[
        "versions"
    ].keys()
    kept = {path.name for path in list_checkpoints(folder / "checkpoints")}
    assert {f"step-{step:09d}" for step in (8, 10, best["step"])} == kept


def test_rows_of_any_length_add_up(tmp_path):
    """The loss of a row is the mean over its steps."""
    for every in (1, 4):
        run("segmentation", tmp_path / str(every), log_every=every)
    single, four = rows(tmp_path / "1"), rows(tmp_path / "4")
    windows = [single[0:4], single[4:8], single[8:10]]
    for row, window in zip(four, windows, strict=True):
        assert row["loss"] == pytest.approx(
            sum(each["loss"] for each in window) / len(window), rel=1e-6
        )


@pytest.mark.parametrize(
    "name",
    ["recognition-4", "recognition-3", "segmentation-4", "segmentation-3", "recognition-mixup-2"],
)
def test_micro_batches_do_not_change_the_step(tmp_path, name):
    whole = name.rpartition("-")[0]
    one, many = run(whole, tmp_path / "one"), run(name, tmp_path / "many")
    assert one.seen == many.seen
    assert_same_training(tmp_path / "one", tmp_path / "many")


@pytest.mark.parametrize("build", [recognition, segmentation])
def test_one_curve_for_all_micro_batches(tmp_path, build):
    """Batches of 16 in passes of 16, 8, 4 and 3, with clipping, and an epoch's last batch of 11."""
    for size in (16, 8, 4, 3):
        seed_host(5)
        options = Options(
            out=tmp_path / str(size), seed=5, workers=0, log_every=1, micro_batch=size
        )
        train(build(num_images=43, batch_size=16, clip_norm=0.5), options)
    for size in (8, 4, 3):
        assert_same_training(tmp_path / "16", tmp_path / str(size))
    norms = [[row["grad_norm"] for row in rows(tmp_path / str(size))] for size in (16, 8, 4, 3)]
    assert all(each == pytest.approx(norms[0], rel=1e-5) for each in norms) and max(norms[0]) > 0.5


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("name", ["recognition", "segmentation"])
def test_workers_do_not_change_the_pixels(tmp_path, name):
    nets = [run(name, tmp_path / str(workers), workers=workers) for workers in (0, 1, 3)]
    assert nets[0].seen == nets[1].seen == nets[2].seen and len(set(nets[0].seen)) > 50
    for workers in (1, 3):
        for key, value in weights(tmp_path / "0").items():
            assert torch.equal(value, weights(tmp_path / str(workers))[key])


class Drawing(Net):
    """Draws in evaluations too."""

    def forward(self, x):
        outputs = super().forward(x)
        return outputs + torch.rand_like(outputs) + random.random() * np.random.rand()


def draw_beside_the_seed(images, targets, seed):
    return images + torch.rand_like(images), targets.roll(random.randrange(2))


class Ending(Dataset):
    """Images that end a training after step 5."""

    def __init__(self, data, net):
        self.data, self.net = data, net

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        if len(self.net.seen) >= 27 + 8:
            raise InterruptedError("stopped")
        return self.data[index]


@pytest.mark.parametrize("inference", [None, Inference(window=10, stride=6)])
def test_what_is_drawn_depends_on_the_step_alone(tmp_path, inference):
    """By a model that draws in evaluations too, and a mix that does not keep to its seed.

    Read by this process and by two others; and gone on from a checkpoint.
    """

    def built():
        seed_host(5)
        net, build = (
            Drawing(dense=inference is not None),
            recognition if inference is None else segmentation,
        )
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        return build(model=net, optimizer=optimizer, mix=draw_beside_the_seed, inference=inference)

    ended = built()
    with pytest.raises(InterruptedError):
        train(
            replace(ended, train_data=Ending(ended.train_data, ended.model)),
            Options(out=tmp_path / "parts", workers=0, log_every=1),
        )
    for folder, workers in (("parts", 0), ("none", 0), ("two", 2)):
        train(built(), Options(out=tmp_path / folder, workers=workers, log_every=1))
    found = {}
    for folder in ("parts", "none", "two"):
        log = [*rows(tmp_path / folder), *rows(tmp_path / folder, "evaluate")]
        logged = [timeless_row(row) for row in log]
        found[folder] = logged, weights(tmp_path / folder)
    assert len(found["none"][0]) == 13
    for folder in ("parts", "two"):
        assert found[folder][0] == found["none"][0], folder
        assert all(
            torch.equal(value, found["none"][1][name]) for name, value in found[folder][1].items()
        ), folder
    last = list_checkpoints(tmp_path / "none" / "checkpoints")[-1]
    again = [evaluate(built(), last, workers=workers) for workers in (0, 2)]
    assert again[0] == again[1]


def test_a_mix_and_the_model_draw_other_numbers(tmp_path):
    drawn = []

    class Telling(Net):
        def forward(self, x):
            if self.training:
                drawn.append(torch.rand(()).item())
            return super().forward(x)

    def mix(images, targets, seed):
        drawn.append(torch.rand(()).item())
        return images, targets

    net = Telling(dense=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    train(
        recognition(model=net, optimizer=optimizer, mix=mix, epochs=1),
        Options(out=tmp_path, workers=0),
    )
    assert len(drawn) == len(set(drawn)) == 2 * 4


def test_a_seed_decides_everything(tmp_path):
    nets = [run("dropout", tmp_path / str(i), seed=seed) for i, seed in enumerate((5, 5, 6))]
    assert nets[0].seen == nets[1].seen != nets[2].seen
    assert [r["loss"] for r in rows(tmp_path / "0")] == [r["loss"] for r in rows(tmp_path / "1")]


def test_an_interrupted_run_resumes_from_its_last_checkpoint(tmp_path):
    """Stopped by an error after step 5, the same call ends with the same weights, bit for bit."""
    run("dropout", tmp_path / "whole")

    class Stopping(Images):
        def __getitem__(self, index):
            if len(net.seen) >= 27 + 8:
                raise InterruptedError("stopped")
            return super().__getitem__(index)

    seed_host(5)
    stopped = recognition(dropout=0.5, train_data=Stopping(27))
    net = stopped.model
    options = Options(out=tmp_path / "parts", seed=5, workers=0, log_every=1)
    with pytest.raises(InterruptedError):
        train(stopped, options)
    assert [row["step"] for row in rows(tmp_path / "parts")] == [1, 2, 3, 4, 5]
    assert run("dropout", tmp_path / "parts").seen[-8:] is not None
    for key, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(tmp_path / "parts")[key])
    names = ("event", "step", "loss", "lr", "top1")
    both = [
        [{k: row.get(k) for k in names} for row in rows(tmp_path / f, e)]
        for f in ("whole", "parts")
        for e in ("step", "evaluate")
    ]
    assert both[:2] == both[2:]


def test_a_finished_run_does_nothing_and_never_starts_afresh(tmp_path, capsys):
    folder = tmp_path / "run"
    options = Options(out=folder, workers=0, seed=5)
    first = train(recognition(), options)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
    assert train(recognition(), options) == first
    assert "is finished (10 steps)" in capsys.readouterr().out
    assert {
        path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"
    } == before
    again = train(recognition(epochs=1), Options(out=folder, workers=0, resume="never"))
    assert (
        again["steps"] == 4
        and json.loads((tmp_path / "run.1" / "summary.json").read_text()) == first
    )


@pytest.mark.parametrize(
    "changes, options, message",
    [
        ({"batch_size": 9}, {}, "batch_size was 8 and is 9"),
        ({"epochs": 3}, {}, "total_steps was 10 and is 12"),
        ({"schedule": constant()}, {}, "schedule was"),
        (
            {"model": torch.nn.Linear(2, 3)},
            {},
            "model was 'Net of 303 weights' and is 'Linear of 9 weights'",
        ),
        ({}, {"seed": 1}, "seed was 0 and is 1"),
    ],
)
def test_other_settings_are_refused(tmp_path, changes, options, message):
    train(recognition(), Options(out=tmp_path / "run", workers=0))
    with pytest.raises(ValueError, match=f"{message}.*--resume never"):
        train(recognition(**changes), Options(out=tmp_path / "run", workers=0, **options))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(ValueError, match="is not empty and not a run"):
        train(recognition(), Options(out=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]


def test_damaged_checkpoints_are_passed_over(tmp_path, capsys):
    run("recognition", tmp_path, checkpoint_every=1, keep_checkpoints=3)
    (tmp_path / "summary.json").unlink()
    newest = list_checkpoints(tmp_path / "checkpoints")
    whole = weights(tmp_path)
    file = newest[-1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    run("recognition", tmp_path, checkpoint_every=1, keep_checkpoints=3)
    shown = capsys.readouterr().out
    assert (
        "step-000000010 is damaged and skipped: model.safetensors" in shown
        and "resuming from step-000000009" in shown
    )
    assert all(torch.equal(value, weights(tmp_path)[key]) for key, value in whole.items())
    (tmp_path / "summary.json").unlink()
    for path in list_checkpoints(tmp_path / "checkpoints"):
        (path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="no checkpoint in .* is whole"):
        run("recognition", tmp_path)


def test_killed_between_the_last_checkpoint_and_the_summary(tmp_path):
    run("recognition", tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    (tmp_path / "summary.json").unlink()
    assert run("recognition", tmp_path).seen == []
    again = json.loads((tmp_path / "summary.json").read_text())
    for name in ("final", "best", "steps", "images"):
        assert again[name] == summary[name]


def test_training_data_may_be_opened_late(tmp_path):
    """An evaluation needs no training data."""
    opened = []
    recipe = recognition(train_data=lambda: opened.append(1) or Images(27))
    torch.save(recipe.model.state_dict(), tmp_path / "w.pth")
    assert evaluate(recipe, tmp_path / "w.pth", workers=0)["num_images"] == 13 and opened == []
    assert train(recipe, Options(out=tmp_path / "run", workers=0))["images"] == 70 and opened == [1]


def test_evaluate_measures_a_checkpoint(tmp_path):
    recipe = recognition()
    final = train(recipe, Options(out=tmp_path, workers=0))["final"]
    path = list_checkpoints(tmp_path / "checkpoints")[-1]
    for source in (path, path / "model.safetensors"):
        assert without_intervals(evaluate(recognition(), source, workers=0)) == final
    best = checkpoint_path(tmp_path / "checkpoints", rows(tmp_path, "evaluate")[-1]["best_step"])
    of_the_best = evaluate(recognition(), best, workers=0)
    for folder in (tmp_path, str(tmp_path)):
        assert evaluate(recognition(), folder, workers=0) == of_the_best
    with pytest.raises(
        FileNotFoundError, match="nowhere: give a run folder, a checkpoint in it, a weights file"
    ):
        evaluate(recognition(), tmp_path / "nowhere", workers=0)
    with pytest.raises(ValueError, match="do not fit Net"):
        bad = torch.nn.Linear(2, 2)
        torch.save(bad.state_dict(), tmp_path / "w.pth")
        evaluate(recognition(), tmp_path / "w.pth", workers=0)


def test_a_batch_without_valid_targets_does_no_harm(tmp_path):
    class Ignored(Images):
        def __getitem__(self, index):
            return self.images[index], torch.full((12, 12), 255, dtype=torch.uint8)

    recipe = segmentation(train_data=Ignored(8))
    before = {name: value.clone() for name, value in recipe.model.state_dict().items()}
    decay_free = [{**group, "weight_decay": 0.0} for group in recipe.optimizer.param_groups]
    recipe = segmentation(
        train_data=Ignored(8), model=recipe.model, optimizer=torch.optim.SGD(decay_free, lr=0.1)
    )
    train(recipe, Options(out=tmp_path, workers=0, log_every=1))
    assert [row["loss"] for row in rows(tmp_path)] == [0.0, 0.0]
    assert all(
        torch.equal(value, before[name]) for name, value in recipe.model.state_dict().items()
    )


def test_images_of_unlike_shapes_are_explained(tmp_path):
    class Unlike(Images):
        def __getitem__(self, index):
            return self.images[index][:, : 5 + index], self.targets[index]

    with pytest.raises(ValueError, match="unlike shapes .*crop them to one size"):
        train(recognition(train_data=Unlike(8)), Options(out=tmp_path, workers=0))


class SquaredError(Counting):
    """A metric of another task, from outside the package.

    Predictions and references (N,) in thousandths.
    """

    name = "squared_error"

    def __init__(self):
        self.counts = torch.zeros(2, dtype=torch.int64)

    def _count(self, predictions, references):
        return torch.stack(
            [torch.tensor(len(references)), (1000 * (predictions - references) ** 2).sum().long()]
        )

    def _results(self):
        return {"error": self.counts[1].item() / 1000 / self.counts[0].item()}


class Regression:
    """A task from outside the package: nothing in trainkit knows of it."""

    terms = ("squared_error",)
    headline = "error"
    higher_is_better = False

    def counts(self, targets):
        return torch.tensor([float(len(targets))])

    def losses(self, outputs, targets):
        return ((outputs.squeeze(1) - targets) ** 2).sum()[None]

    def predict(self, outputs, targets):
        return outputs.squeeze(1)

    def labels(self, predictions):
        return predictions

    def metrics(self):
        return [SquaredError()]


class Points(Dataset):
    """y = 2 x0 - x1 + 3, without noise."""

    def __init__(self, num_points):
        self.x = torch.randn(num_points, 2, generator=torch.Generator().manual_seed(num_points))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        x = self.x[index]
        return x, 2 * x[0] - x[1] + 3


def test_a_new_task_needs_no_change_of_the_loop(tmp_path):
    model = torch.nn.Linear(2, 1)
    recipe = Recipe(
        task=Regression(), model=model, train_data=Points(64), val_data=Points(10), epochs=30,
        batch_size=8, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), schedule=cos(),
    )  # fmt: skip
    summary = train(recipe, Options(out=tmp_path, workers=0))
    assert summary["best"]["error"] < 1e-3 and summary["final"]["num_images"] == 10
    torch.testing.assert_close(model.weight.data, torch.tensor([[2.0, -1.0]]), atol=1e-3, rtol=0)
    found = evaluate(recipe, list_checkpoints(tmp_path / "checkpoints")[-1], workers=0)
    assert found == summary["final"], (
        "a metric that does not know its images one by one has no interval"
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0"),
        ({"clip_agc": -0.1}, "clip_agc is -0.1; it must be above 0"),
        ({"clip_value": float("nan")}, "clip_value is nan; it must be above 0"),
        ({"clip_norm": 1.0, "clip_agc": 0.1}, "clip_norm is 1 and clip_agc is 0.1: gradients are"),
        ({"val_data": []}, "val_data is empty"),
        ({"task": object()}, "task object lacks terms, headline"),
    ],
)
def test_a_recipe_is_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        recognition(**changes)


@pytest.mark.parametrize(
    "name",
    [
        "workers",
        "log_every",
        "checkpoint_every",
        "evaluate_every",
        "micro_batch",
        "keep_checkpoints",
    ],
)
def test_options_are_checked(name):
    with pytest.raises(ValueError, match=f"{name} is -1"):
        Options(**{name: -1})


def test_a_warm_up_longer_than_the_run_stops_before_the_first_step(tmp_path):
    with pytest.raises(ValueError, match="the warm-up takes 16 steps and the whole run 10"):
        train(recognition(schedule=cos(warmup_epochs=4)), Options(out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
