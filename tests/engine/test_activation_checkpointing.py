"""What is asked of the model beside its training.

Computed twice, statistics anew, weights without a part.
"""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import convnext_tiny, efficientnet_b0, resnet50, vit_b_16
from torchvision.models.segmentation import fcn_resnet50

from helpers.logs import assert_bit_equal, assert_same_training
from helpers.network_recipes import residual, trained
from helpers.processes import TESTS, TOYS, torchrun
from helpers.toy_recipes import recognition, run
from trainkit.cli import main
from trainkit.engine.activation_checkpointing import blocks, checkpoint_activations
from trainkit.engine.evaluation import evaluate
from trainkit.storage.checkpoint import list_checkpoints


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


WITH_PRECISE = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from helpers.network_recipes import residual
from helpers.toy_recipes import Images

def recipe(there: bool = True):
    def images():
        if not there:
            raise FileNotFoundError("no folder train")
        return Images(27)
    return residual(train_data=images)
"""


def test_evaluate_repeats_precise_statistics(tmp_path, monkeypatch, capsys):
    """As the run had them, its seed included, unless told otherwise.

    What does not have them says so.
    """
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(WITH_PRECISE)
    settings = ["--workers", "0", "--seed", "5", "--precise-bn", "16", "--evaluate-every", "2"]
    assert main(["mine.py", *settings, "--out", "run"]) == 0
    final = json.loads(Path("run/summary.json").read_text())["final"]
    words = ["evaluate", "mine.py", "--workers", "0", "--weights"]

    def results(*more: str) -> dict:
        assert main([*words, *more]) == 0
        return json.loads(Path("run/results.json").read_text())

    checkpoint = list_checkpoints(Path("run/checkpoints"))[-1]
    by_seed = [
        evaluate(residual(), checkpoint, workers=0, seed=seed, precise_bn=16) for seed in (5, 0)
    ]
    assert by_seed[0]["calibration_error"] != by_seed[1]["calibration_error"]
    for path in ("run", str(checkpoint)):
        again = results(path)
        assert again["calibration_error"] == by_seed[0]["calibration_error"]
        assert {name: again[name] for name in final} == final and again["precise_bn"] == 16
    capsys.readouterr()
    counted = results("run", "--precise-bn", "0")
    message = (
        "batch norm has the statistics that training counted; the run's own evaluations had"
        " --precise-bn 16"
    )
    assert message in " ".join(capsys.readouterr().out.split())
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
    assert main(["export", "mine.py", "--weights", "run", "--out", "w.safetensors"]) == 0
    assert message in " ".join(capsys.readouterr().out.split())
    # Evaluations of before it stood in the log have it among the options.
    log = Path("run/log.jsonl")
    lines = [
        {k: v for k, v in json.loads(line).items() if k != "precise_bn"}
        for line in log.read_text().splitlines()
    ]
    log.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert results("run")["precise_bn"] == 16


def test_helpers_in_two_processes(tmp_path):
    """Activation checkpointing, channels last and a static graph in passes of 3.

    The run of one process without.
    """
    torchrun(2, TOYS, tmp_path, "blocks-helped")
    run("blocks", tmp_path / "blocks")
    assert_same_training(tmp_path / "blocks", tmp_path / "blocks-helped")
