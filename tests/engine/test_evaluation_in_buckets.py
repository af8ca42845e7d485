"""Images of unlike sizes, those of one size in one forward pass: as one by one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils import TorchDynamoPlugin
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.logs import rows
from helpers.processes import TESTS, torchrun
from helpers.toy_recipes import recognition, segmentation
from helpers.unlike_images import IN_WINDOWS, SCALED, SIZES, classed, unlike
from trainkit import Options, evaluate, train
from trainkit.data.buckets import LOOK_AHEAD, Alike, Buckets
from trainkit.distributed.accelerator import start_accelerator
from trainkit.engine.evaluation_module import EvaluationModule
from trainkit.engine.sliding_window import SlidingWindowInferer
from trainkit.engine.task_module import TaskModule


@given(st.lists(st.lists(st.integers(1, 4), max_size=5), max_size=40), st.integers(1, 5))
def test_each_image_goes_once_with_its_like(read, batch_size):
    """A kind is a width; the number waiting is bounded, and only the last ones go in part."""
    buckets, index, gone, passes = Buckets(batch_size), 0, [], []
    for batch in read:
        kinds = []
        for width in dict.fromkeys(batch):
            indices = [index + place for place, each in enumerate(batch) if each == width]
            images = torch.tensor(indices).view(-1, 1, 1, 1).expand(-1, 1, 1, width)
            kinds.append(Alike(images, images[:, 0], indices))
        index += len(batch)
        passes += list(buckets.add(kinds))
        gone = [number for parts in passes for part in parts for number in part.indices]
        assert index - len(gone) <= LOOK_AHEAD * batch_size
        if index <= LOOK_AHEAD * batch_size:
            assert all(sum(len(part.indices) for part in parts) == batch_size for parts in passes)
    passes += list(buckets.rest())
    gone = [number for parts in passes for part in parts for number in part.indices]
    assert sorted(gone) == list(range(index))
    for parts in passes:
        assert len({part.images.shape[1:] for part in parts}) == 1
        assert 0 < sum(len(part.indices) for part in parts) <= batch_size
        for part in parts:
            assert part.images[:, 0, 0, 0].tolist() == list(part.indices)


def saved(folder: Path, recipe) -> Path:
    torch.save(recipe.model.state_dict(), folder / "weights.pth")
    return folder / "weights.pth"


def arrays(folder: Path) -> dict[str, np.ndarray]:
    (file,) = (folder / "evaluations").glob("*.npz")
    return dict(np.load(file))


def assert_close(one: dict, other: dict) -> None:
    """Metrics from counts are equal, those from scores to 1e-5."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        if name.startswith(("val_loss", "calibration")):
            assert other[name] == pytest.approx(value, rel=1e-5)
        else:
            assert other[name] == value, name


@pytest.mark.parametrize("together", [2, 4, 64])
@pytest.mark.parametrize("channels_last", [False, True])
def test_as_one_by_one(tmp_path, together, channels_last):
    """Results, the rows of images and their order; the passes are as many as sizes need."""
    weights = saved(tmp_path, unlike())
    found, number, passes = [], [], []
    for size in (1, together):
        recipe = unlike(size)
        recipe.model.register_forward_pre_hook(lambda _, inputs: passes.append(inputs[0]))
        passes.clear()
        out = tmp_path / str(size)
        out.mkdir()
        found.append(
            evaluate(
                recipe, weights, workers=0, channels_last=channels_last, out=out, pictures=False
            )
        )
        number.append(len(passes))
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert all(each.is_contiguous(memory_format=layout) for each in passes)
    assert_close(*found)
    assert found[0]["num_images"] == len(SIZES)
    of_a_size = [SIZES.count(size) for size in set(SIZES)]
    assert number == [len(SIZES), sum(-(-count // together) for count in of_a_size)]
    one, other = (arrays(tmp_path / str(size)) for size in (1, together))
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_allclose(other[name], values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_recognition_of_unlike_images(tmp_path, workers):
    weights = saved(tmp_path, classed())
    alone = evaluate(classed(), weights, workers=0)
    assert_close(alone, evaluate(classed(3), weights, workers=workers))


def test_equal_images_are_batched_as_they_are_read(tmp_path):
    """Bit-equal to the batches that the data is cut into."""
    weights = saved(tmp_path, recognition())
    recipe, passes = recognition(eval_batch_size=5), []
    recipe.model.register_forward_pre_hook(lambda _, inputs: passes.append(inputs[0].clone()))
    evaluate(recipe, weights, workers=0)
    assert [len(each) for each in passes] == [5, 5, 3]
    images = torch.stack([recipe.val_data[index][0] for index in range(13)]) / 255
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (recipe.mean, recipe.std))
    torch.testing.assert_close(torch.cat(passes), (images - mean) / std)


def test_processes_do_not_change_it(tmp_path):
    """Unlike numbers of passes, whole, at scales and in windows: with DDP, and sharded."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import json, sys; sys.path.insert(0, {str(TESTS)!r})
from pathlib import Path
from helpers.unlike_images import IN_WINDOWS, SCALED, classed, unlike
from trainkit import evaluate
recipes = (unlike(3), unlike(2, SCALED), unlike(2, IN_WINDOWS), classed(2))
found = [evaluate(each, Path(file), workers=0) for each, file in zip(recipes, sys.argv[2:])]
Path(sys.argv[1]).write_text(json.dumps(found))
""")
    recipes = (unlike(), unlike(1, SCALED), unlike(1, IN_WINDOWS), classed())
    files, alone = [], []
    for number, recipe in enumerate(recipes):
        (tmp_path / str(number)).mkdir()
        files.append(saved(tmp_path / str(number), recipe))
        alone.append(json.loads(json.dumps(evaluate(recipe, files[-1], workers=0))))
    for way in ({}, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}):
        torchrun(2, script, tmp_path / "found.json", *files, **way)
        found = json.loads((tmp_path / "found.json").read_text())
        for mine, theirs in zip(alone, found, strict=True):
            assert_close(mine, theirs)
            assert theirs["num_images"] == len(SIZES)


class _Waits(TorchDispatchMode):
    """Counts what has the host wait for a device."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def test_one_process_waits_for_nothing_between_windows():
    recipe = unlike()
    module = TaskModule(recipe.model, recipe.task).eval()
    black = torch.zeros(3, 1, 1)
    samples = [
        (torch.rand(1, 3, *size), torch.zeros(1, *size, dtype=torch.uint8)) for size in SIZES
    ]
    inferer = SlidingWindowInferer(IN_WINDOWS, module, start_accelerator(), black)
    with _Waits() as waits:
        assert sum(map(len, inferer.infer(samples))) == len(SIZES)
    assert waits.number == 0


class Gradients(nn.Module):
    """Moves its images along a gradient, which inference mode does not record."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, images):
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.net(images).square().sum(), images)
        return self.net(images.detach() + slope)


def test_a_network_that_takes_gradients_is_evaluated(tmp_path):
    net = unlike().model
    recipe = segmentation(model=Gradients(net), val_data=unlike().val_data)
    weights = saved(tmp_path, recipe)
    found = evaluate(recipe, weights, workers=0)
    module = EvaluationModule(recipe.model.eval(), None, is_dense=True)
    images = torch.rand(1, 3, 9, 11)
    expected = recipe.model(images).detach()
    with torch.inference_mode():
        assert torch.equal(module(images), expected) and torch.equal(module(images), expected)
    assert found["num_images"] == len(SIZES) and found["val_loss"] > 0


class Remembers(nn.Module):
    """Keeps a tensor of its first pass in evaluation mode, and multiplies by it from then on."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.kept = net, None

    def forward(self, images):
        if not self.training and self.kept is None:
            self.kept = 1 + images.new_ones(()) / 8
        maps = self.net(images)
        return maps if self.kept is None else maps * self.kept


def test_what_a_network_keeps_of_an_evaluation_can_be_trained_with(tmp_path):
    model = Remembers(segmentation().model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recipe = segmentation(epochs=2, batch_size=9, model=model, optimizer=optimizer)
    train(recipe, Options(out=tmp_path, workers=0, evaluate_every=1, pictures=False))
    assert model.kept is not None and not model.kept.is_inference()
    assert len(rows(tmp_path, "evaluate")) == 2


@pytest.mark.nightly  # it imports and runs torch's compiler
def test_compiled_once_for_all_sizes():
    """By the backend that compiles nothing, so that only what is traced counts."""
    recipe = unlike()
    accelerator = start_accelerator()
    module = TaskModule(recipe.model, recipe.task).eval()
    plain = EvaluationModule(module, accelerator, is_dense=True)
    before = accelerator.state.dynamo_plugin
    accelerator.state.dynamo_plugin = TorchDynamoPlugin(backend="eager")
    try:
        prepared = torch.compile(module, backend="eager")
        compiled = EvaluationModule(prepared, accelerator, is_dense=True)
    finally:
        accelerator.state.dynamo_plugin = before
    counters.clear()
    with torch.inference_mode():
        for height, width in sorted(set(SIZES)):
            for number in (2, 3):
                images = torch.rand(number, 3, height, width)
                targets = torch.zeros(number, height, width, dtype=torch.uint8)
                expected, losses = plain(images, targets, with_losses=True)
                found, same = compiled(images, targets, with_losses=True)
                assert torch.equal(found, expected)
                torch.testing.assert_close(same, losses)
    assert 0 < counters["stats"]["unique_graphs"] < len(set(SIZES))


@pytest.mark.nightly
def test_what_cannot_be_compiled_is_evaluated_as_it_is():
    def broken(graph, inputs):
        raise ValueError("no such shape")

    module = TaskModule(unlike().model, unlike().task).eval()
    images, targets = torch.rand(2, 3, 9, 11), torch.zeros(2, 9, 11, dtype=torch.uint8)
    evaluated = EvaluationModule(module, None, is_dense=True)
    expected = evaluated(images, targets)
    evaluated._module, evaluated._compiled_anew = torch.compile(module, backend=broken), True
    with torch.no_grad():
        with pytest.warns(RuntimeWarning, match="without torch.compile, which failed: .*no such"):
            assert torch.equal(evaluated(images, targets), expected)
        assert torch.equal(evaluated(images, targets), expected)
