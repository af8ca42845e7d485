"""What only a GPU can show, on one of them.

Precision, compiling, memory, bitwise resume, and no waiting in a step.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from helpers.device_images import held
from helpers.interruptions import checkpoint_of, kill_all, wait_for
from helpers.logs import assert_bit_equal, rows
from helpers.network_recipes import residual
from helpers.processes import TESTS, TOYS
from helpers.toy_recipes import run
from trainkit import Options, Recipe, train
from trainkit.data.seeding import seed_host
from trainkit.engine.setup import Setup
from trainkit.engine.training import Training
from trainkit.losses.functional import cross_entropy_sum
from trainkit.metrics.segmentation import MeanIoU
from trainkit.storage.run_folder import RunFolder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "TOY_DETERMINISTIC": "1"}
WAYS = {
    "fp32": {},
    "bf16": {"ACCELERATE_MIXED_PRECISION": "bf16"},
    "fp16": {"ACCELERATE_MIXED_PRECISION": "fp16"},
    "compiled": {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"},
}


def toys(folder: Path, *names: str, **env: str) -> subprocess.CompletedProcess:
    """Train them in a process of its own: precision is a process's affair."""
    done = subprocess.run(
        [sys.executable, str(TOYS), str(folder), *names],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def on_the_cpu(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cpu")
    toys(folder, "recognition-3", "segmentation-3", CUDA_VISIBLE_DEVICES="")
    return folder


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["recognition-3", "segmentation-3"])
def test_it_is_the_training_of_the_cpu(tmp_path, on_the_cpu, way, name):
    toys(tmp_path, name, **WAYS[way])
    losses = [row["loss"] for row in rows(on_the_cpu / name)]
    tolerance = 1e-4 if way in ("fp32", "compiled") else 1e-2
    assert [row["loss"] for row in rows(tmp_path / name)] == pytest.approx(losses, rel=tolerance)
    assert all(row["num_images"] == 13 for row in rows(tmp_path / name, "evaluate"))


def test_channels_last(tmp_path):
    for last in (False, True):
        seed_host(5)
        train(
            residual(),
            Options(out=tmp_path / str(last), seed=5, workers=0, log_every=1, channels_last=last),
        )
    losses = [[row["loss"] for row in rows(tmp_path / str(last))] for last in (False, True)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_killed_and_gone_on_with(tmp_path, precision):
    """Bit-equal with deterministic kernels, fp16's scale included."""
    env = {**DETERMINISTIC, "ACCELERATE_MIXED_PRECISION": precision}
    toys(tmp_path / "whole", "all", **env)
    process = subprocess.Popen(
        [sys.executable, str(TOYS), str(tmp_path / "killed"), "all"],
        env={**os.environ, **env, "TOY_SLEEP": "0.05"}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wait_for(tmp_path / "killed" / "all", checkpoint_of(4), process)
    kill_all(process)
    assert not (tmp_path / "killed" / "all" / "summary.json").exists()
    assert "resuming from step-" in toys(tmp_path / "killed", "all", **env).stdout
    assert_bit_equal(tmp_path / "whole" / "all", tmp_path / "killed" / "all")


def test_fp16_counts_the_steps_it_skips(tmp_path):
    """Where the scaled gradient overflows.

    Such steps do not move the schedule, and the log counts them.
    """
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys; sys.path.insert(0, {str(TESTS)!r})
from pathlib import Path
from helpers.toy_recipes import CLASSES, recognition
from trainkit import Options, train
from trainkit.tasks.recognition import Recognition

class Loud(Recognition):
    def losses(self, outputs, targets):
        return 1000 * super().losses(outputs, targets)

options = Options(out=Path(sys.argv[1]), seed=5, workers=0, log_every=1)
train(recognition(task=Loud(CLASSES)), options)
""")
    env = {**os.environ, "ACCELERATE_MIXED_PRECISION": "fp16"}
    subprocess.run([sys.executable, str(script), str(tmp_path / "run")], env=env, check=True)
    found = rows(tmp_path / "run")
    assert found[-1]["skipped_steps"] > 0 and found[-1]["step"] == 10
    run("recognition", tmp_path / "plain")
    assert [row["lr"] for row in found] == [row["lr"] for row in rows(tmp_path / "plain")]


def started(recipe: Recipe, folder: Path, **options):
    """What makes a step of a training, and its first batch on the host."""
    (folder / "checkpoints").mkdir(parents=True)
    asked = Options(out=folder, workers=0, **options)
    training = Training(Setup(recipe, asked).silent(asked), RunFolder(folder))
    training.stepper.task_module.train()
    rows = [recipe.train_data[index] for index in range(recipe.batch_size)]
    images, targets = torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])
    return training.stepper, images.pin_memory(), targets.pin_memory()


@pytest.mark.parametrize("skip", [False, True])
def test_no_step_waits_for_the_gpu(tmp_path, skip):
    recipe = residual()
    recipe.optimizer.param_groups[0]["fused"] = recipe.optimizer.defaults["fused"] = True
    stepper, images, targets = started(recipe, tmp_path, on_nonfinite="skip" if skip else "stop")
    stepper(0, images, targets)
    try:
        torch.cuda.set_sync_debug_mode("error")
        for step in (1, 2, 3):
            stepper(step, images, targets)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_micro_batches_are_halved_on_oom(tmp_path):
    """A real limit of the allocator; bit for bit the run with smaller passes from the start."""
    total = torch.cuda.get_device_properties(0).total_memory
    gib = (torch.cuda.memory_reserved() + 3.5 * 2**30) / total
    try:
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib))
        run("hungry-gpu", tmp_path / "limited")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    run("hungry-gpu-2", tmp_path / "small")
    losses = [[row["loss"] for row in rows(tmp_path / name)] for name in ("limited", "small")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def peak_mib(work) -> float:
    """The most that `work` allocates."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def test_segmentation_masks_take_no_second_copy():
    """4 images of 150 classes at 512 x 512 in bfloat16: 300 MiB of logits."""
    logits = torch.randn(4, 150, 512, 512, device="cuda").bfloat16().requires_grad_()
    targets = torch.randint(150, (4, 512, 512), device="cuda")

    def ours():
        logits.grad = None
        cross_entropy_sum(logits, targets, 255).backward()

    def torchs():
        logits.grad = None
        F.cross_entropy(logits.float(), targets, ignore_index=255, reduction="sum").backward()

    mine, theirs = peak_mib(ours), peak_mib(torchs)
    print(f"peak beside the logits: {mine:.0f} MiB, F.cross_entropy {theirs:.0f} MiB")
    assert mine < 1000 < theirs


def test_images_held_on_the_device_are_those_of_the_cpu():
    """Augmentation included, bit for bit, and no waiting to read them."""
    data = held()
    expected = data.read(5, 3, [4, 9, 2])
    data.to(torch.device("cuda"))
    try:
        torch.cuda.set_sync_debug_mode("error")
        found = data.read(5, 3, [4, 9, 2])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found[0].is_cuda and all(
        torch.equal(each.cpu(), other) for each, other in zip(found, expected)
    )


def test_counting_is_that_of_the_cpu():
    predictions = torch.randint(150, (2, 512, 512))
    targets = torch.randint(150, (2, 512, 512)).to(torch.uint8)
    targets[:, :50] = 255
    results = []
    for device in ("cpu", "cuda"):
        metric = MeanIoU(150, 255)
        metric.add_batch(predictions=predictions.to(device), references=targets.to(device))
        results.append(metric.compute())
    assert results[0] == results[1]
