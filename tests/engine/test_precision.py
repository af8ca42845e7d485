"""bfloat16, compiled, channels last.

Alone and in two processes, in passes, against the plain float32 training.
"""

import json
import re
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.logs import rows
from helpers.network_recipes import with_layers
from helpers.processes import TESTS, TOYS, forked_script, torchrun
from helpers.processes import run as run_command
from helpers.toy_recipes import recognition, run, segmentation
from trainkit import Options, evaluate, train
from trainkit.engine import evaluation, loop
from trainkit.options import EvaluateOptions
from trainkit.storage.checkpoint import list_checkpoints

NAMES = ("recognition-3", "segmentation-3")
WAYS = {
    "bf16": {"ACCELERATE_MIXED_PRECISION": "bf16"},
    "compiled": {"ACCELERATE_DYNAMO_BACKEND": "AOT_EAGER"},  # inductor needs a C++ compiler
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    for name in NAMES:
        run(name, folder / name)
    return folder


CASES: list[Any] = [(processes, way) for processes in (1, 2) for way in WAYS]
for number in (1, 2):  # compiling takes long
    place = CASES.index((number, "compiled"))
    CASES[place] = pytest.param(number, "compiled", marks=pytest.mark.nightly)


@pytest.mark.parametrize("processes, way", CASES)
def test_it_is_the_same_training(tmp_path, plain, way, processes):
    """Losses and evaluations within what the precision leaves; weights under their own names."""
    if processes == 1:
        forked_script(TOYS, tmp_path, *NAMES, **WAYS[way])
    else:
        torchrun(processes, TOYS, tmp_path, *NAMES, **WAYS[way])
    for name in NAMES:
        tolerance = 1e-5 if way == "compiled" else 5e-3
        losses = [row["loss"] for row in rows(plain / name)]
        assert [row["loss"] for row in rows(tmp_path / name)] == pytest.approx(
            losses, rel=tolerance
        )
        if way == "bf16":
            assert [row["loss"] for row in rows(tmp_path / name)] != pytest.approx(
                losses, rel=1e-6
            ), "it is bfloat16"
        mine, theirs = (
            load_file(list_checkpoints(folder / name / "checkpoints")[-1] / "model.safetensors")
            for folder in (plain, tmp_path)
        )
        assert {key: value.dtype for key, value in mine.items()} == {
            key: value.dtype for key, value in theirs.items()
        }
        assert all(row["num_images"] == 13 for row in rows(tmp_path / name, "evaluate"))
        assert (
            json.loads((tmp_path / name / "summary.json").read_text())["num_processes"] == processes
        )


@pytest.mark.parametrize("build", [recognition, segmentation])
def test_channels_last(tmp_path, build):
    """The model and its images have them last, and the training is the same."""
    torch.manual_seed(1)
    recipe = build()
    formats = []
    recipe.model.register_forward_pre_hook(
        lambda module, inputs: formats.append(
            inputs[0].is_contiguous(memory_format=torch.channels_last)
        )
    )
    train(recipe, Options(out=tmp_path / "last", workers=0, log_every=1, channels_last=True))
    assert all(formats) and recipe.model.backbone[0].weight.is_contiguous(
        memory_format=torch.channels_last
    )
    torch.manual_seed(1)
    train(build(), Options(out=tmp_path / "first", workers=0, log_every=1))
    losses = [[row["loss"] for row in rows(tmp_path / each)] for each in ("first", "last")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_tf32_is_a_setting(tmp_path):
    """It is off unless asked for, in matrix products and in convolutions, whatever torch's defaults
    are."""
    for allowed in (True, False):
        loop.train(  # not trainkit.train, which leaves the process as it was
            recognition(epochs=0.5), Options(out=tmp_path / str(allowed), workers=0, tf32=allowed)
        )
        assert torch.backends.cudnn.allow_tf32 is allowed
        assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")


def test_float8(tmp_path):
    """By torchao, on any device.

    The same training within its rounding, and checkpoints that fit float32 again.
    """
    pytest.importorskip("torchao", reason="fp8 takes the extra [fp8]")
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys; sys.path.insert(0, {str(TESTS)!r})
from pathlib import Path
from helpers.network_recipes import with_layers
from trainkit import Options, train
recipe = with_layers()
train(recipe, Options(out=Path(sys.argv[1]), workers=0, log_every=1))
print(recipe.model)
""")
    printed = {}
    for precision in ("no", "fp8"):
        words = (sys.executable, "-W", "ignore", str(script), str(tmp_path / precision))
        printed[precision] = run_command(*words, ACCELERATE_MIXED_PRECISION=precision).stdout
    assert printed["fp8"].count("Float8Linear") == 2 and "Float8" not in printed["no"]
    losses = [[row["loss"] for row in rows(tmp_path / precision)] for precision in ("no", "fp8")]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2) and losses[0] != losses[1]
    path = list_checkpoints(tmp_path / "fp8" / "checkpoints")[-1]
    found, row = (
        evaluate(with_layers(), path, workers=0),
        rows(tmp_path / "fp8", "evaluate")[-1],
    )
    assert abs(found["ema_top1"] - row["ema_top1"]) < 0.2, (
        "the same weights and averages, in float32"
    )


@pytest.mark.parametrize(
    "precision, message",
    [
        ("fp16", "fp16 takes a GPU"),
        pytest.param(
            "fp8",
            "accelerate cannot start: .*fp8",
            marks=pytest.mark.skipif(
                find_spec("torchao") is not None, reason="torchao does fp8 here"
            ),
        ),
        ("bf17", "mixed_precision is bf17; it can be"),
    ],
)
def test_a_precision_that_cannot_be_is_refused(tmp_path, precision, message):
    """accelerate alone would train in float32 and call it fp16."""
    script = tmp_path / "script.py"
    script.write_text(
        "import trainkit.distributed.accelerator as l\ntry: l.start_accelerator()\nexcept"
        " ValueError as e: print(e)"
    )
    assert re.search(message, forked_script(script, ACCELERATE_MIXED_PRECISION=precision))


def test_sync_batch_norm_takes_gpus(tmp_path):
    # alone: nothing to do
    train(recognition(sync_batch_norm=True, epochs=0.5), Options(out=tmp_path, workers=0))
    script = f"""
import sys; sys.path.insert(0, {str(TESTS)!r})
from pathlib import Path
from helpers.toy_recipes import recognition
from trainkit import Options, train
try: train(recognition(sync_batch_norm=True), Options(out=Path({str(tmp_path / "two")!r})))
except ValueError as error: print(error)
"""
    (tmp_path / "script.py").write_text(script)
    assert (
        "2 processes train on the CPU: torch's SyncBatchNorm is for GPUs"
        in torchrun(2, tmp_path / "script.py").stdout
    )


def test_an_evaluation_has_the_flags_of_a_training(tmp_path):
    """Memory format and TF32 as asked for; on the CPU neither changes what is right."""
    train(recognition(), Options(out=tmp_path, workers=0))
    recipe = recognition()
    plain = evaluate(recognition(), tmp_path, workers=0)
    asked = EvaluateOptions(tf32=True, channels_last=True)
    flagged = evaluation.evaluate(  # not trainkit.evaluate, which leaves the process as it was
        recipe, tmp_path, workers=0, tf32=asked.tf32, channels_last=asked.channels_last
    )
    assert plain["top1"] == flagged["top1"] and torch.get_float32_matmul_precision() == "high"
    weight = recipe.model.backbone[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    evaluation.evaluate(recognition(), tmp_path, workers=0)
    assert torch.get_float32_matmul_precision() == "highest"
