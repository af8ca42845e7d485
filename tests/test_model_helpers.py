"""What is asked of the model beside its training: computed twice, statistics anew, weights without a part."""

import json
from pathlib import Path

import pytest
import torch
from conftest import torchrun
from test_loop import assert_same_training, rows, weights, without_intervals
from test_survive import assert_bit_equal
from torch import nn
from torch.optim.swa_utils import update_bn
from torchvision.models import convnext_tiny, efficientnet_b0, resnet50, vit_b_16
from torchvision.models.segmentation import fcn_resnet50
from toys import CLASSES, Images, growing, recognition, run, with_batch_norm

from trainkit import Options, Recipe, train
from trainkit.cli import main
from trainkit.data.datasets.repeated import Repeated
from trainkit.data.sampler import Locality, TrainOrder
from trainkit.data.seeding import Seeded, seed_host
from trainkit.data.to_device import ToDevice
from trainkit.distributed.accelerator import start_accelerator
from trainkit.engine.activation_checkpointing import blocks, checkpoint_activations
from trainkit.engine.loop import evaluate
from trainkit.engine.precise_bn import PreciseBatchNorm
from trainkit.engine.task_module import Objective
from trainkit.models.small import Block
from trainkit.optim import param_groups
from trainkit.storage.checkpoint import list_checkpoints

TOYS = Path(__file__).parent / "toys.py"


class Noisy(Block):
    """A residual block with dropout."""

    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.3, self.training)


def residual(**changes) -> Recipe:
    """Blocks with batch norm, in which random numbers are drawn."""
    model = nn.Sequential(
        Noisy(3, 8), Noisy(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)
    )
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = 0.01  # statistics that are far behind
    optimizer = torch.optim.SGD(param_groups(model, 0.1, 1e-3), lr=0.1, momentum=0.9)
    return recognition(model=model, optimizer=optimizer, epochs=1.5, ema=0.9, **changes)


def trained(folder: Path, **options) -> Path:
    seed_host(5)
    train(residual(), Options(out=folder, seed=5, workers=0, log_every=1, micro_batch=3, **options))
    return folder


def test_activation_checkpointing_changes_no_bit(tmp_path):
    """Losses, batch norm's statistics and random numbers: as if nothing were computed twice."""
    assert_bit_equal(
        trained(tmp_path / "kept"), trained(tmp_path / "again", activation_checkpointing=True)
    )


def test_activation_checkpointing_keeps_less():
    def kept(model: nn.Module) -> int:
        storages = {}

        def pack(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.zeros(4, 3, 32, 32))
        return sum(storages.values())

    model = residual().model
    before = kept(model)
    assert checkpoint_activations(model) == 2
    assert kept(model) < 0.3 * before


def test_blocks_of_known_models():
    """Bottlenecks, encoder blocks and the like; where there are none, it is said."""
    for build, number in (
        (resnet50, 16),
        (vit_b_16, 12),
        (convnext_tiny, 18),
        (efficientnet_b0, 16),
    ):
        with torch.device("meta"):
            model = build()
        assert len(list(blocks(model))) == number
    with torch.device("meta"):
        assert len(list(blocks(fcn_resnet50(weights_backbone=None)))) == 16
    with pytest.raises(ValueError, match="Net has no blocks: .*--micro-batch"):
        checkpoint_activations(recognition().model)


def test_precise_statistics_are_those_of_update_bn():
    """torch's own, over the same images in the same passes; the ones counted in training come back."""
    recipe = with_batch_norm()
    accelerator, seed = start_accelerator(), 5
    with torch.no_grad():
        recipe.model.backbone[1].running_mean.fill_(3.0)
    to_device = ToDevice(accelerator.device, recipe.mean, recipe.std)
    objective = Objective(recipe.model, recipe.task).eval()
    # one pass of 16
    precise = PreciseBatchNorm(recipe, objective, accelerator, to_device, seed, 0, 20)
    images = Seeded(recipe.train_data, seed)
    order = TrainOrder(27, 8, seed).epoch(0).tolist()[:16]
    rows = [images[0, index] for index in order]
    batch, _ = to_device(torch.stack([image for image, _ in rows]), torch.zeros(1))
    reference = with_batch_norm().model
    reference.load_state_dict(recipe.model.state_dict())
    update_bn([batch], reference)
    with precise.estimated():
        for name, value in reference.state_dict().items():
            assert torch.equal(recipe.model.state_dict()[name], value)
        assert not recipe.model.training
    norm = recipe.model.backbone[1]
    assert norm.running_mean.eq(3).all() and norm.num_batches_tracked == 0 and norm.momentum == 0.1


def test_images_of_precise_statistics():
    """Files sorted by class, read in groups of 16: 16 neighbours would be of one or two; and copies are not listed."""
    data = Images(27 * 16)
    data.locality = Locality(lengths=(16,) * 27, lanes=8)
    common = (None, start_accelerator(), None, 5, 0)
    precise = PreciseBatchNorm(recognition(train_data=data, batch_size=16), *common, 128)
    passes = precise._passes()
    assert [len(indices) for indices in passes] == [16] * 8 and len(set(sum(passes, []))) == 128
    assert min(len({index // 16 for index in indices}) for indices in passes) >= 6
    assert set(sum(passes, [])) == set(
        TrainOrder(432, 16, 5, locality=data.locality).epoch(0)[:128].tolist()
    )
    repeated = recognition(train_data=Repeated(Images(32), 3), batch_size=12)
    listed = sum(PreciseBatchNorm(repeated, *common, 16)._passes(), [])
    assert listed == TrainOrder(96, 12, 5, repeats=3).epoch(0)[:16].tolist()
    short = PreciseBatchNorm(growing(), *common, 16)
    assert short._epoch == 2 and PreciseBatchNorm(growing(epochs=1.5), *common, 16)._epoch == 1


def test_precise_statistics_leave_the_training_alone(tmp_path):
    """Weights and what batch norm counted are bit-equal, the figures are not; `evaluate` finds the same ones."""
    plain, precise = trained(tmp_path / "plain"), trained(tmp_path / "precise", precise_bn=16)
    assert all(torch.equal(value, weights(precise)[name]) for name, value in weights(plain).items())
    assert [r["loss"] for r in rows(plain)] == [r["loss"] for r in rows(precise)]
    row = rows(precise, "evaluate")[-1]
    assert row["ema_top1"] != rows(plain, "evaluate")[-1]["ema_top1"]
    checkpoint = list_checkpoints(precise / "checkpoints")[-1]
    found = without_intervals(
        evaluate(residual(), checkpoint, Options(workers=0, seed=5, precise_bn=16))
    )
    assert found == {name: row[name] for name in found}
    assert row["precise_bn"] == 16 and row["protocol"].endswith(
        ", precise BN of 16 training images"
    )
    assert not any("precise" in json.dumps(each) for each in rows(plain))


WITH_PRECISE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_model_helpers import residual
from toys import Images

def recipe(there: bool = True):
    def images():
        if not there:
            raise FileNotFoundError("no folder train")
        return Images(27)
    return residual(train_data=images)
"""


def test_evaluate_repeats_precise_statistics(tmp_path, monkeypatch, capsys):
    """As the run had them, its seed included, unless told otherwise; what does not have them says so."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(WITH_PRECISE)
    settings = ["--workers", "0", "--seed", "5", "--precise-bn", "16", "--evaluate-every", "2"]
    assert main(["mine.py", *settings, "--out", "run"]) == 0
    final = json.loads(Path("run/summary.json").read_text())["final"]
    words = ["evaluate", "mine.py", "--workers", "0", "--checkpoint"]

    def results(*more: str) -> dict:
        assert main([*words, *more]) == 0
        return json.loads(Path("run/results.json").read_text())

    checkpoint = list_checkpoints(Path("run/checkpoints"))[-1]
    by_seed = [
        evaluate(residual(), checkpoint, Options(workers=0, seed=seed, precise_bn=16))
        for seed in (5, 0)
    ]
    assert by_seed[0]["calibration_error"] != by_seed[1]["calibration_error"]
    for path in ("run", str(checkpoint)):
        again = results(path)
        assert again["calibration_error"] == by_seed[0]["calibration_error"]
        assert {name: again[name] for name in final} == final and again["precise_bn"] == 16
    capsys.readouterr()
    counted = results("run", "--precise-bn", "0")
    told = "batch norm has the statistics that training counted; the run's own evaluations had --precise-bn 16"
    assert told in " ".join(capsys.readouterr().out.split())
    assert "precise_bn" not in counted and "precise" not in counted["protocol"]
    assert counted["ema_top1"] != final["ema_top1"]
    assert results("run", "--precise-bn", "0", "--no-there") == {
        **counted,
        "settings": {"there": False},
    }
    assert main([*words, "run", "--no-there"]) == 2
    assert "no folder train. Batch norm's statistics are" in " ".join(
        capsys.readouterr().err.split()
    )
    assert main(["export", "mine.py", "--checkpoint", "run", "--out", "w.safetensors"]) == 0
    assert told in " ".join(capsys.readouterr().out.split())
    # Evaluations of before it stood in the log have it among the options.
    log = Path("run/log.jsonl")
    lines = [
        {k: v for k, v in json.loads(line).items() if k != "precise_bn"}
        for line in log.read_text().splitlines()
    ]
    log.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert results("run")["precise_bn"] == 16


def test_precise_statistics_of_several_processes(tmp_path):
    """Three passes on two processes, with DDP and sharded: those of one process."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys; sys.path.insert(0, {str(TOYS.parent)!r})
import torch
from test_model_helpers import residual
from toys import Images
from trainkit.engine.precise_bn import PreciseBatchNorm
from trainkit.data.seeding import seed_host
from trainkit.distributed.accelerator import start_accelerator
from trainkit.engine.task_module import Objective
from trainkit.data.to_device import ToDevice
from trainkit.distributed.fsdp import prepare
accelerator = start_accelerator()
seed_host(1)
recipe = residual(train_data=Images(50))
objective = prepare(accelerator, Objective(recipe.model, recipe.task))
to_device = ToDevice(accelerator.device, recipe.mean, recipe.std)
with PreciseBatchNorm(recipe, objective, accelerator, to_device, 5, 0, 50).estimated():
    buffers = torch.cat([buffer.flatten().double() for buffer in recipe.model.buffers() if buffer.is_floating_point()])
torch.save(buffers, sys.argv[1] + str(accelerator.process_index))
""")
    torchrun(1, script, tmp_path / "one-")
    torchrun(2, script, tmp_path / "ddp-")
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    torchrun(2, script, tmp_path / "fsdp-", **fsdp)
    one = torch.load(tmp_path / "one-0")
    assert one.std() > 0
    for name in ("ddp-0", "ddp-1", "fsdp-0", "fsdp-1"):
        torch.testing.assert_close(torch.load(tmp_path / name), one, rtol=1e-5, atol=1e-6)


def test_helpers_in_two_processes(tmp_path):
    """Activation checkpointing, channels last and a static graph in passes of 3: the run of one process without."""
    torchrun(2, TOYS, tmp_path, "blocks-helped")
    run("blocks", tmp_path / "blocks")
    assert_same_training(tmp_path / "blocks", tmp_path / "blocks-helped")


def test_weights_without_a_part_in_the_loss(tmp_path):
    """DDP would wait for them; a static graph need not, and trains as one process does."""
    printed = torchrun(2, TOYS, tmp_path / "two", "spare", code=1).stdout
    assert "2 weights have no part in the loss of step 1 (spare.weight, spare.bias)" in printed
    assert "--static-graph allows it" in printed
    torchrun(2, TOYS, tmp_path / "two", "spare-static")
    run("spare", tmp_path / "one")
    assert_same_training(tmp_path / "one", tmp_path / "two" / "spare-static")
