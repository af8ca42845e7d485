"""Precise BN: batch norm's statistics estimated again, against torch's update_bn."""

import json

import torch
from torch.optim.swa_utils import update_bn

from helpers.logs import rows, weights, without_intervals
from helpers.network_recipes import residual, trained
from helpers.processes import TESTS, torchrun
from helpers.toy_recipes import Images, growing, recognition, with_batch_norm
from trainkit.data.datasets.repeated import Repeated
from trainkit.data.sampler import Locality, TrainOrder
from trainkit.data.seeding import Seeded
from trainkit.data.to_device import ToDevice
from trainkit.distributed.accelerator import start_accelerator
from trainkit.engine.evaluation import evaluate
from trainkit.engine.evaluator import Evaluator
from trainkit.engine.precise_bn import PreciseBatchNorm
from trainkit.engine.task_module import TaskModule
from trainkit.storage.checkpoint import list_checkpoints


def test_precise_statistics_are_those_of_update_bn():
    """torch's own, over the same images in the same batches; those of training come back."""
    recipe = with_batch_norm()
    accelerator, seed = start_accelerator(), 5
    with torch.no_grad():
        recipe.model.backbone[1].running_mean.fill_(3.0)
    to_device = ToDevice(accelerator.device, recipe.mean, recipe.std)
    task_module = TaskModule(recipe.model, recipe.task).eval()
    # one pass of 16
    evaluator = Evaluator(recipe, task_module, accelerator, to_device, seed, 0, None, precise_bn=20)
    precise = PreciseBatchNorm(evaluator)
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
    """Files sorted by class, read in groups of 16: 16 neighbours would be of one or two.

    And copies are not listed.
    """
    data = Images(27 * 16)
    data.locality = Locality(lengths=(16,) * 27, num_interleaved=8)
    accelerator = start_accelerator()

    def precise_bn(recipe, num_images):
        return PreciseBatchNorm(
            Evaluator(recipe, None, accelerator, None, 5, 0, None, precise_bn=num_images)
        )

    precise = precise_bn(recognition(train_data=data, batch_size=16), 128)
    passes = precise._passes()
    assert [len(indices) for indices in passes] == [16] * 8 and len(set(sum(passes, []))) == 128
    assert min(len({index // 16 for index in indices}) for indices in passes) >= 6
    assert set(sum(passes, [])) == set(
        TrainOrder(432, 16, 5, locality=data.locality).epoch(0)[:128].tolist()
    )
    repeated = recognition(train_data=Repeated(Images(32), 3), batch_size=12)
    listed = sum(precise_bn(repeated, 16)._passes(), [])
    assert listed == TrainOrder(96, 12, 5, repeats=3).epoch(0)[:16].tolist()
    short = precise_bn(growing(), 16)
    assert short._epoch == 2 and precise_bn(growing(epochs=1.5), 16)._epoch == 1


def test_precise_statistics_leave_the_training_alone(tmp_path):
    """Weights and what batch norm counted are bit-equal, the metrics are not.

    `evaluate` finds the same ones.
    """
    plain, precise = trained(tmp_path / "plain"), trained(tmp_path / "precise", precise_bn=16)
    assert all(torch.equal(value, weights(precise)[name]) for name, value in weights(plain).items())
    assert [r["loss"] for r in rows(plain)] == [r["loss"] for r in rows(precise)]
    row = rows(precise, "evaluate")[-1]
    assert row["ema_top1"] != rows(plain, "evaluate")[-1]["ema_top1"]
    checkpoint = list_checkpoints(precise / "checkpoints")[-1]
    found = without_intervals(evaluate(residual(), checkpoint, workers=0, seed=5, precise_bn=16))
    assert found == {name: row[name] for name in found}
    assert row["precise_bn"] == 16 and row["protocol"].endswith(
        ", precise BN of 16 training images"
    )
    assert not any("precise" in json.dumps(each) for each in rows(plain))


def test_precise_statistics_of_several_processes(tmp_path):
    """Three passes on two processes, with DDP and sharded: those of one process."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys; sys.path.insert(0, {str(TESTS)!r})
import torch
from helpers.network_recipes import residual
from helpers.toy_recipes import Images
from trainkit.engine.evaluator import Evaluator
from trainkit.engine.precise_bn import PreciseBatchNorm
from trainkit.data.seeding import seed_host
from trainkit.distributed.accelerator import start_accelerator
from trainkit.engine.task_module import TaskModule
from trainkit.data.to_device import ToDevice
from trainkit.distributed.fsdp import prepare
accelerator = start_accelerator()
seed_host(1)
recipe = residual(train_data=Images(50))
task_module = prepare(accelerator, TaskModule(recipe.model, recipe.task))
to_device = ToDevice(accelerator.device, recipe.mean, recipe.std)
evaluator = Evaluator(recipe, task_module, accelerator, to_device, 5, 0, None, precise_bn=50)
with PreciseBatchNorm(evaluator).estimated():
    buffers = [buffer for buffer in recipe.model.buffers() if buffer.is_floating_point()]
    buffers = torch.cat([buffer.flatten().double() for buffer in buffers])
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
