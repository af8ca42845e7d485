"""Weights from elsewhere: nests, prefixes, what does not fit, and fine-tuning from them."""

import json
import shutil
from argparse import Namespace
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from helpers.logs import assert_same_results
from helpers.toy_recipes import (
    CLASSES,
    Net,
    everything,
    recognition,
    segmentation,
    write_checkpoint,
)
from trainkit import Options, evaluate, train
from trainkit.data.seeding import seed_host
from trainkit.engine.ema import EMA
from trainkit.storage import checkpoint
from trainkit.storage.weight_files import load_weights
from trainkit.storage.weights import fit, load_model, read_weights, take_weights
from trainkit.tasks.segmentation import Segmentation


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + name: value for name, value in state.items()}


WRAPPED = {
    "plain": lambda state: state,
    "ordered": lambda state: OrderedDict(state),
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {}}},
    "model": lambda state: {"epoch": 3, "model": state},
    "both": lambda state: {"model": {"state_dict": state}},
    "ddp": lambda state: prefixed(state, "module."),
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "ddp_compiled": lambda state: {"state_dict": prefixed(state, "module._orig_mod.")},
    "compiled_ddp": lambda state: prefixed(state, "_orig_mod.module."),
    "compiled_inside": lambda state: {
        name.replace("backbone.", "backbone._orig_mod."): v for name, v in state.items()
    },
    "with_numbers": lambda state: {**state, "best": 0.7},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_every_wrapping_of_a_state_dict(tmp_path, kind):
    seed_host(1)
    source, target = Net(False), Net(False)
    torch.save(WRAPPED[kind](source.state_dict()), tmp_path / "w.pth")
    assert load_model(target, load_weights(tmp_path / "w.pth")[0], tmp_path / "w.pth").exact
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name


def test_safetensors_with_a_prefix(tmp_path):
    source, target = Net(False), Net(False)
    save_file(prefixed(source.state_dict(), "module."), tmp_path / "w.safetensors")
    load_model(target, load_weights(tmp_path / "w.safetensors")[0], tmp_path)
    assert torch.equal(target.head.weight, source.head.weight)


def test_a_part_of_the_model_that_is_called_module_keeps_its_name():
    model = nn.Sequential(OrderedDict(module=nn.Linear(2, 3), weight=nn.PReLU()))
    state = {name: torch.full_like(value, 3.0) for name, value in model.state_dict().items()}
    assert fit(model, state).exact
    assert fit(model, prefixed(state, "module.")).exact
    assert fit(model, prefixed(state, "_orig_mod.module.")).exact


def test_files_older_than_batch_norms_counter():
    model = nn.Sequential(nn.BatchNorm2d(2))
    state = {
        name: value + 1 for name, value in model.state_dict().items() if "num_batches" not in name
    }
    assert load_model(model, state, "old.pth").lines() == []
    assert model[0].running_var.tolist() == [2, 2]


def test_what_does_not_fit_is_listed_and_refused():
    model = Net(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = {f"extra.{i}": torch.zeros(1) for i in range(6)}
    other |= {name: value + 1 for name, value in before.items() if name != "backbone.0.bias"}
    other["head.weight"] = torch.zeros(21, 8, 1, 1)
    with pytest.raises(ValueError) as caught:
        load_model(model, other, "file.pth")
    text = str(caught.value)
    assert "file.pth do not fit Net" in text and "--partial" in text
    assert "1 of another shape: head.weight (file [21, 8, 1, 1], model [7, 8, 1, 1])" in text
    assert "1 missing in the file: backbone.0.bias;" in text
    assert "6 unknown to the model: extra.0, extra.1, extra.2, extra.3, extra.4, extra.5." in text
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), (
        "nothing was loaded"
    )

    lines = load_model(model, other, "file.pth", partial=True).lines()
    assert [line.split()[0] for line in lines] == ["1", "1", "6"]
    for name, value in model.state_dict().items():
        kept = name in ("head.weight", "backbone.0.bias")
        assert torch.equal(value, before[name] if kept else before[name] + 1), name


@pytest.mark.parametrize("partial", [False, True])
def test_weights_of_another_network(partial):
    with pytest.raises(
        ValueError,
        match=r"none of its 2 names and shapes match \(weight, bias; the model has backbone",
    ):
        load_model(Net(False), nn.Linear(2, 2).state_dict(), "linear.pth", partial)


def test_files_without_weights(tmp_path):
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "epoch.pth")
    with pytest.raises(
        ValueError, match=r"epoch.pth holds no weights: it is a mapping with epoch, lr"
    ):
        load_weights(tmp_path / "epoch.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="it is list"):
        load_weights(tmp_path / "list.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\x00")
    with pytest.raises(
        ValueError, match=r"cut.safetensors is not a safetensors file, or is cut short"
    ):
        load_weights(tmp_path / "cut.safetensors")
    torch.save(Net(False).state_dict(), tmp_path / "cut.pth")
    data = (tmp_path / "cut.pth").read_bytes()
    torch.save(torch.zeros(20_000), tmp_path / "large.pth")
    large = (tmp_path / "large.pth").read_bytes()
    # torch raises errors of three kinds
    for cut in (data[: len(data) // 2], data[:100], large[:5000], b""):
        (tmp_path / "cut.pth").write_bytes(cut)
        with pytest.raises(ValueError, match=r"cut.pth cannot be read as weights"):
            load_weights(tmp_path / "cut.pth")


def test_options_beside_the_weights(tmp_path):
    """torchvision's and timm's scripts save an argparse.Namespace; loading it runs no code."""
    net = Net(False)
    torch.save(
        {"model": net.state_dict(), "args": Namespace(lr=0.1, model="net")}, tmp_path / "w.pth"
    )
    assert load_weights(tmp_path / "w.pth")[0].keys() == net.state_dict().keys()


def test_averaged_weights_come_first(tmp_path):
    model = everything().model
    averaged = EMA(model, 0.9)
    with torch.no_grad():
        model.head.weight += 1
    averaged.update()  # 0.1 of the old one and 0.9 of the new one, as d = (1 + 0) / (10 + 0)
    path = write_checkpoint(tmp_path, 1, model.state_dict(), {"ema": averaged.state_dict()})
    torch.testing.assert_close(
        read_weights(path)[0]["head.weight"], model.head.weight.detach() - 0.1
    )
    path = write_checkpoint(tmp_path, 2, model.state_dict(), {"ema": None})
    assert torch.equal(read_weights(path)[0]["head.weight"], model.head.weight)


def test_evaluate_in_part(tmp_path):
    recipe = recognition()
    torch.save(
        recipe.model.backbone.state_dict() | recipe.model.state_dict(), tmp_path / "more.pth"
    )
    whole = tmp_path / "whole.pth"
    torch.save(recipe.model.state_dict(), whole)
    with pytest.raises(ValueError, match="unknown to the model"):
        evaluate(recognition(), tmp_path / "more.pth", workers=0)
    in_part = evaluate(recognition(), tmp_path / "more.pth", workers=0, partial=True)
    assert in_part == evaluate(recognition(), whole, workers=0)


def still(build, **changes):
    """A recipe that trains at rate 0: its weights stay what they were at the start."""
    recipe = build(**{"epochs": 0.5, **changes})
    for group in recipe.optimizer.param_groups:
        group["lr"] = group["weight_decay"] = 0.0
    return recipe


def test_init_from_a_run_with_other_classes(tmp_path, capsys):
    seed_host(3)
    first = recognition(epochs=0.5)
    train(first, Options(out=tmp_path / "first", workers=0))
    second = segmentation(epochs=0.5, task=Segmentation(CLASSES + 2))
    second.model.head = nn.Conv2d(8, CLASSES + 2, 1)
    second = replace(second, optimizer=torch.optim.SGD(second.model.parameters(), lr=0.0))
    head = second.model.head.weight.detach().clone()
    train(second, Options(out=tmp_path / "second", workers=0, init_from=tmp_path / "first"))
    assert torch.equal(second.model.backbone[0].weight, first.model.backbone[0].weight)
    assert torch.equal(second.model.head.weight, head)
    message = " ".join(capsys.readouterr().out.split())
    assert "starting from the weights in" in message
    assert (
        "left as they are, 2 of another shape: head.weight (file [7, 8, 1, 1], model [9, 8, 1, 1]),"
        " head.bias" in message
    )


def test_init_counts_only_at_the_start(tmp_path):
    file = tmp_path / "w.pth"
    torch.save(Net(False).state_dict(), file)
    train(still(recognition), Options(out=tmp_path / "run", workers=0, init_from=file))
    weights = torch.load(file, weights_only=True)
    # others now, which a run that goes on does not look at
    torch.save(Net(False).state_dict(), file)
    longer = still(recognition, epochs=1)
    train(
        longer, Options(out=tmp_path / "run", workers=0, init_from=file, allow_schedule_change=True)
    )
    assert all(
        torch.equal(value, weights[name]) for name, value in longer.model.state_dict().items()
    )


def test_init_with_averages_begins_them_there(tmp_path):
    file = tmp_path / "w.pth"
    source = Net(False)
    torch.save(source.state_dict(), file)
    train(still(recognition, ema=0.9), Options(out=tmp_path / "run", workers=0, init_from=file))
    saved = checkpoint.list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    torch.testing.assert_close(read_weights(saved)[0]["head.weight"], source.head.weight.detach())


def test_init_that_fits_nowhere_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(ValueError, match="none of its 2 names and shapes match"):
        train(
            recognition(),
            Options(out=tmp_path / "run", workers=0, init_from=tmp_path / "linear.pth"),
        )
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        train(
            recognition(), Options(out=tmp_path / "run", workers=0, init_from=tmp_path / "nowhere")
        )
    # the same command without the mistake
    summary = train(recognition(), Options(out=tmp_path / "run", workers=0))
    assert summary["steps"] == 10


def rewrite(path, model=None, **changes):
    """The checkpoint at `path` with other weights, if any, and other values in its manifest.

    None takes one out.
    """
    if model is not None:
        _, state = checkpoint.load(path)
        shutil.rmtree(path)
        write_checkpoint(path.parent, checkpoint.step_of(path), model, state)
    manifest = json.loads((path / "manifest.json").read_text()) | changes
    (path / "manifest.json").write_text(
        json.dumps({n: value for n, value in manifest.items() if value is not None})
    )


def last(run):
    return checkpoint.list_checkpoints(run / "checkpoints")[-1]


def test_a_run_of_the_first_format_is_resumed_where_nothing_changed(tmp_path):
    seed_host(5)
    half = recognition(epochs=1.5)
    train(half, Options(out=tmp_path / "run", workers=0, seed=5))
    assert (
        json.loads((last(tmp_path / "run") / "manifest.json").read_text())["format"]
        == checkpoint.FORMAT
        == 2
    )
    shutil.copytree(tmp_path / "run", tmp_path / "older")
    rewrite(last(tmp_path / "older"), format=None)
    assert checkpoint.is_older(tmp_path / "older" / "checkpoints")
    ends = []
    for name in ("run", "older"):
        seed_host(5)
        whole = recognition(epochs=2.5)
        train(whole, Options(out=tmp_path / name, workers=0, seed=5, allow_schedule_change=True))
        ends.append(whole.model.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.parametrize("older", [True, False])
def test_a_run_whose_names_changed_is_not_resumed(tmp_path, older):
    train(recognition(epochs=1.5), Options(out=tmp_path, workers=0))
    path = last(tmp_path)
    names = prefixed(checkpoint.load(path)[0], "net.")
    rewrite(path, names, format=None if older else 2)
    with pytest.raises(
        ValueError, match="cannot be resumed: it has net.backbone.0.bias, .* lacks backbone"
    ) as caught:
        train(recognition(epochs=2.5), Options(out=tmp_path, workers=0, allow_schedule_change=True))
    assert (
        "An older trainkit named them so" in str(caught.value)
    ) == older and "--init-from" in str(caught.value)
    assert fit(recognition().model, names).exact  # for evaluate, predict and export they fit


def test_other_groups_of_an_older_run_are_reported(tmp_path):
    train(recognition(epochs=1.5), Options(out=tmp_path, workers=0))
    other = recognition(epochs=1.5)
    other.optimizer.param_groups[0]["lr"] = 0.2
    for format, is_older in ((2, False), (None, True)):
        rewrite(last(tmp_path), format=format)
        with pytest.raises(ValueError, match="lrs was") as caught:
            train(other, Options(out=tmp_path, workers=0))
        assert ("An older trainkit began it" in str(caught.value)) == is_older


def test_a_newer_format_is_not_read(tmp_path):
    path = write_checkpoint(tmp_path, 1, {"w": torch.ones(1)}, {})
    rewrite(path, format=checkpoint.SHARDED_FORMAT + 1)
    with pytest.raises(
        ValueError, match="is of format 4, of a newer trainkit; this one reads up to 3"
    ):
        checkpoint.load(path)


class Named(nn.Module):
    """A network that says which of its layers is its head."""

    head_names = ("fc",)

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))


def test_averages_of_older_runs_are_evaluated(tmp_path):
    """By the names that parts had then, backbone and head; both the weights and their average."""

    def recipe():
        model = Named()
        return recognition(
            model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), ema=0.9
        )

    def as_then(state):
        return {
            n.replace("fc.", "head.") if n.startswith("fc.") else f"backbone.{n}": v
            for n, v in state.items()
        }

    weights, averages = Named().state_dict(), {n: v * 50 for n, v in Named().state_dict().items()}
    now = write_checkpoint(tmp_path, 1, weights, {"ema": {"count": 3, "averages": averages}})
    then = write_checkpoint(
        tmp_path, 2, as_then(weights), {"ema": {"count": 3, "averages": as_then(averages)}}
    )
    results = [evaluate(recipe(), path, workers=0) for path in (now, then)]
    assert_same_results(*results)
    assert results[0]["val_loss"] != results[0]["ema_val_loss"]
    model = Named()
    take_weights(model, then)
    assert all(torch.equal(value, averages[name]) for name, value in model.state_dict().items())
