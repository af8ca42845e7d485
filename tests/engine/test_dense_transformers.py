"""Trainings of dense heads on a vision transformer: resumed, frozen, shared out, exported."""

import shutil

import pytest
import torch

from helpers.logs import assert_bit_equal, assert_same_training, weights
from helpers.processes import TESTS, torchrun
from helpers.vit_recipes import network, recipe, run, without_norms
from trainkit.commands.export_formats import FORMATS, Logits
from trainkit.models.outputs import fill_up, size_divisor
from trainkit.storage.checkpoint import list_checkpoints

pytest.importorskip("timm")

HEADS = [
    "linear",
    *(
        pytest.param(head, marks=pytest.mark.nightly)
        for head in ("upernet", "dpt", "linear4", "maxvit")
    ),
]
SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Block",
}


@pytest.mark.parametrize("head", HEADS)
def test_a_training_resumes_bit_equal(head, tmp_path):
    """With EMA and layer-wise decay, evaluated at sides that patches do not divide."""
    run(recipe(head), tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    shutil.rmtree(list_checkpoints(tmp_path / "two" / "checkpoints")[-1])
    (tmp_path / "two" / "summary.json").unlink()
    run(recipe(head), tmp_path / "two")
    assert_bit_equal(tmp_path / "one", tmp_path / "two")
    before, after = network(head).state_dict(), weights(tmp_path / "one")
    assert all(not torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.nightly
@pytest.mark.parametrize("head", ["linear", "upernet"])
def test_a_frozen_backbone_stays_as_it_is(head, tmp_path):
    run(recipe(head, freeze=("backbone",), layer_decay=1.0), tmp_path)
    before, after = network(head).state_dict(), weights(tmp_path)
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert changed == {name for name in before if not name.startswith("backbone.")}


@pytest.mark.nightly
@pytest.mark.parametrize("head", ["linear", "upernet", "dpt", "linear4", "maxvit"])
def test_processes_and_micro_batches_do_not_change_the_training(head, tmp_path):
    script = TESTS / "helpers" / "vit_recipes.py"
    run(without_norms(head), tmp_path / "one")
    run(without_norms(head), tmp_path / "micro", micro_batch=2)
    torchrun(2, script, tmp_path / "ddp", head)
    torchrun(2, script, tmp_path / "fsdp2", head, **SHARDED)
    for other in ("micro", "ddp", "fsdp2"):
        assert_same_training(tmp_path / "one", tmp_path / other)


@pytest.mark.nightly
@pytest.mark.parametrize("head", ["linear", "upernet", "dpt"])
def test_onnx_at_odd_sides(head, tmp_path):
    """Filled up as the file's description says, and as the network does itself."""
    pytest.importorskip("onnxruntime")
    write, load = FORMATS["onnx"]
    built = network(head).eval()
    images = torch.randn(1, 3, 67, 93, generator=torch.Generator().manual_seed(0))
    filled = fill_up(images, size_divisor(built))
    assert filled.shape[-2:] == ((96, 96) if head == "dpt" else (80, 96))
    model = Logits(built).eval()
    write(model, filled, (), tmp_path / "network.onnx", "{}")
    found = load(tmp_path / "network.onnx", model)(filled)[..., :67, :93]
    with torch.no_grad():
        expected = model(images)
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-4 * max(1.0, float(expected.abs().max()))
