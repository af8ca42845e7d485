"""Adapters (LoRA): where they are, what is trained, how they are merged, kept and resumed."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from helpers.logs import assert_bit_equal, assert_same_training, rows
from helpers.lora_recipes import NAME, SIDE, recipe, run
from helpers.processes import TESTS, torchrun
from helpers.toy_recipes import CLASSES
from trainkit.engine.ema import EMA
from trainkit.errors import MissingPackageError, UserError
from trainkit.models.outputs import main_logits
from trainkit.models.rebuild import network_from
from trainkit.models.recognition import fine_tuned
from trainkit.models.segmentation import segmenter
from trainkit.settings import OptimizerSettings
from trainkit.settings.rebuildable import built_by
from trainkit.storage.checkpoint import list_checkpoints
from trainkit.storage.checkpoint import load as load_checkpoint
from trainkit.storage.model_json import read_model_json
from trainkit.storage.weights import load_model, take_weights

peft = pytest.importorskip("peft")
pytest.importorskip("timm")


def images(side: int = SIDE) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def fresh(lora: int | None = 4, name: str = NAME, side: int = SIDE) -> nn.Module:
    torch.manual_seed(0)
    return fine_tuned(name, CLASSES, False, [side], lora=lora)


def logits(network: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return main_logits(network.eval()(batch))


def moved(network: nn.Module) -> nn.Module:
    """The same network with other values of what is trained, as after some steps."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.05)
    return network


def test_where_adapters_are_and_what_is_trained():
    """Names have no prefix; at first nothing is changed."""
    network, plain = fresh(), fresh(None)
    blocks = {name for name, _ in plain.named_modules() if name.endswith(("attn.qkv", "attn.proj"))}
    assert blocks and set(network.adapters.targets) == blocks
    trained = {name for name, each in network.named_parameters() if each.requires_grad}
    matrices = {f"{name}.lora_{which}.default.weight" for name in blocks for which in "AB"}
    assert trained == matrices | {"head.weight", "head.bias"}
    beside = {
        name.replace(".base_layer.", ".") for name in network.state_dict() if name not in matrices
    }
    assert beside == plain.state_dict().keys()
    assert load_model(network, plain.state_dict(), "a file", partial=True).missing
    assert torch.equal(logits(network, images()), logits(plain, images()))


def test_batch_norm_and_dropout_rest():
    network = fresh(name="timm:resnet18", side=64).train()
    norms = [each for each in network.modules() if isinstance(each, nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)
    assert network.fc.training and network.layer1[0].conv1.lora_A.training
    before = norms[0].running_mean.clone()
    network(images(64))
    assert torch.equal(norms[0].running_mean, before)


@pytest.mark.parametrize(
    ("name", "side", "some"),
    [
        (NAME, SIDE, "blocks.0.attn.qkv"),
        ("timm:resnet18", 64, "layer1.0.conv1"),
        # its attention reads its weights without calling a layer
        pytest.param("vit_b_32", 64, "encoder.layers.encoder_layer_0.mlp.0",
                     marks=pytest.mark.nightly),
        pytest.param("timm:beit_base_patch16_224", 224, "blocks.0.mlp.fc1",
                     marks=pytest.mark.nightly),
        pytest.param("timm:convnext_atto", 64, "stages.0.blocks.0.mlp.fc1",
                     marks=pytest.mark.nightly),
    ],
)  # fmt: skip
def test_merged_weights_are_the_same_network(name, side, some):
    """As peft merges them, and as a network that is built without peft takes them up."""
    network = moved(fresh(name=name, side=side))
    assert some in network.adapters.targets
    expected = logits(network, images(side))
    plain = network_from({"network": json.loads(json.dumps(built_by(network)))})
    assert not any("lora" in each for each in plain.state_dict())
    found = load_model(plain, network.state_dict(), "a file")
    assert found.renamed == "its adapters (LoRA) were merged into its weights"
    scale = float(expected.abs().max())
    assert float((logits(plain, images(side)) - expected).abs().max()) <= 1e-5 * scale
    for each in network.modules():
        if isinstance(each, peft.tuners.lora.LoraLayer):
            each.merge()
    for target in network.adapters.targets:
        theirs = network.get_submodule(target).base_layer.weight
        torch.testing.assert_close(plain.get_submodule(target).weight, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "backbone", "heads"),
    [
        ("linear", "timm:test_vit", {"head"}),
        pytest.param("upernet", "timm:test_vit", {"head", "aux_head"}, marks=pytest.mark.nightly),
        pytest.param("unet", "resnet18", {"decoder", "segmentation_head"},
                     marks=pytest.mark.nightly),
    ],
)  # fmt: skip
def test_segmentation(name, backbone, heads):
    torch.manual_seed(0)
    network = moved(segmenter(name, 3, backbone, False, channels=16, lora=2))
    assert set(network.adapters.heads) == heads
    assert network.training
    plain = network_from({"network": built_by(network)})
    load_model(plain, network.state_dict(), "a file")
    expected = logits(network, images(64))
    assert float((logits(plain, images(64)) - expected).abs().max()) <= 1e-5 * expected.abs().max()


def test_a_training(tmp_path):
    """It resumes bit-equal; the base is as it was; peft reads the adapter, which can be merged."""
    run(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    shutil.rmtree(list_checkpoints(tmp_path / "two" / "checkpoints")[-1])
    (tmp_path / "two" / "summary.json").unlink()
    run(tmp_path / "two")
    assert_bit_equal(tmp_path / "one", tmp_path / "two")
    assert rows(tmp_path / "one")[-1]["loss"] < rows(tmp_path / "one")[0]["loss"]
    network = recipe().model
    before = network.state_dict()
    last = list_checkpoints(tmp_path / "one" / "checkpoints")[-1]
    weights, state = load_checkpoint(last)
    changed = {name for name, value in weights.items() if not torch.equal(value, before[name])}
    assert changed == {name for name, each in network.named_parameters() if each.requires_grad}
    # EMA weights, which are the best ones of this run
    averages = state["ema"]["averages"]
    assert all(torch.equal(averages[name], before[name]) for name in before.keys() - changed)
    network.load_state_dict(averages)
    expected = logits(network, images())
    base = fresh(None)
    base.load_state_dict(
        {
            name.replace(".base_layer.", "."): value
            for name, value in before.items()
            if ".lora_" not in name
        }
    )
    theirs = peft.PeftModel.from_pretrained(base, last)
    assert torch.equal(logits(theirs, images()), expected)
    config = json.loads((last / "adapter_config.json").read_bytes())
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    assert (last / "adapter_model.safetensors").stat().st_size < 0.2 * (
        last / "model.safetensors"
    ).stat().st_size
    merged = network_from(read_model_json(last))
    take_weights(merged, last)
    assert not any("lora" in name for name in merged.state_dict())
    difference = (logits(merged, images()) - expected).abs().max()
    assert float(difference) <= 1e-5 * float(expected.abs().max())


def test_the_average_is_of_what_is_trained():
    network = fresh()
    trained = [each for each in network.parameters() if each.requires_grad]
    ema = EMA(network, 0.9, trained)
    assert [tuple(each.shape) for each in ema.averages] == [tuple(each.shape) for each in trained]
    assert ema.state_dict()["averages"].keys() == network.state_dict().keys()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"freeze": ("backbone",)}, "freeze is backbone, and with lora"),
        ({"layer_decay": 0.75}, "layer_decay is 0.75, and with lora"),
    ],
)
def test_what_does_not_hold_is_refused(settings, match):
    with pytest.raises(UserError, match=match):
        OptimizerSettings(lr=0.1, **settings).build(fresh())


def test_faults_of_a_rank_or_a_network(monkeypatch):
    with pytest.raises(UserError, match="lora is 0; it is the rank"):
        fresh(0)
    with pytest.raises(UserError, match="ResNetV2 has no linear layer"):  # weights standardised
        fresh(name="timm:resnetv2_50x1_bit", side=64)
    with pytest.raises(UserError, match="lora is 4, and hf:eomt segments by masks"):
        segmenter("hf:eomt", 3, lora=4)
    monkeypatch.setitem(sys.modules, "peft", None)  # as where it is not installed
    with pytest.raises(MissingPackageError, match=r'pip install "trainkit\[lora\]"'):
        fresh()


def test_the_adapter_file_has_the_head(tmp_path):
    run(tmp_path, epochs=0.5, ema=None)
    last = list_checkpoints(tmp_path / "checkpoints")[-1]
    weights, _ = load_checkpoint(last)
    kept = load_file(last / "adapter_model.safetensors")
    assert torch.equal(kept["base_model.model.head.weight"], weights["head.weight"])
    name = "base_model.model.blocks.0.attn.qkv.lora_A.weight"
    assert torch.equal(kept[name], weights["blocks.0.attn.qkv.lora_A.default.weight"])


SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Block",
}


@pytest.mark.nightly
@pytest.mark.parametrize("environment", [{}, SHARDED], ids=["ddp", "fsdp2"])
def test_two_processes_train_the_same(tmp_path, environment):
    """With adapter files of whole tensors; and micro-batches of one process do."""
    run(tmp_path / "one")
    run(tmp_path / "micro", micro_batch=2)
    torchrun(2, TESTS / "helpers" / "lora_recipes.py", tmp_path / "two", **environment)
    assert_same_training(tmp_path / "one", tmp_path / "micro")
    assert_same_training(tmp_path / "one", tmp_path / "two")
    files = [
        list_checkpoints(tmp_path / each / "checkpoints")[-1] / "adapter_model.safetensors"
        for each in ("one", "two")
    ]
    one, two = (load_file(each) for each in files)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.nightly
def test_activation_checkpointing_and_compile_compute_the_same(tmp_path):
    run(tmp_path / "one")
    run(tmp_path / "checkpointed", activation_checkpointing=True)
    assert_bit_equal(tmp_path / "one", tmp_path / "checkpointed")
    network = moved(fresh())
    expected = logits(network, images())
    compiled = torch.compile(network)
    torch.testing.assert_close(logits(compiled, images()), expected, rtol=1e-4, atol=1e-5)


def test_weights_of_a_run_without_adapters_begin_one_with_them():
    """Under a prefix too; what is fresh stays so."""
    network, plain = fresh(), moved(fresh(None))
    weights = {f"module.{name}": value for name, value in plain.state_dict().items()}
    found = load_model(network, weights, "a file", partial=True)
    assert all(".lora_" in name for name in found.missing) and not found.unmatched
    assert torch.equal(logits(network, images()), logits(plain, images()))
