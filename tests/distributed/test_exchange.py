"""What processes tell each other in a step: counts and the wish to stop in one all-reduce, beside
the gradients."""

import json

import pytest
import torch
from timm.layers import BatchNormAct2d, EvoNorm2dB0
from torch import nn

from helpers.processes import FSDP, TESTS, torchrun
from trainkit.distributed.buffers import train_without_buffers
from trainkit.storage.checkpoint import list_checkpoints

SCRIPT = TESTS / "helpers" / "collectives.py"
COUNTS = ["all_reduce", [[2]]]  # valid targets of the one loss, and who is to stop
TRIED = 2  # steps that are first tried without the other processes, who then agree on memory


def collectives(folder, name: str, *words: str, **env: str) -> tuple[list[list], str]:
    """Of each step, the same in both processes, without the last; and what they printed."""
    printed = torchrun(2, SCRIPT, folder, name, *words, **env).stdout
    one, other = (
        json.loads((folder / f"collectives-{rank}.json").read_text()) for rank in range(2)
    )
    assert one == other
    return one, printed


def test_a_step_sends_counts_and_gradients(tmp_path):
    """In one bucket, in whatever micro-batches."""
    steps, _ = collectives(tmp_path, "recognition-3")
    assert len(steps) == 10  # and at the end of the last one a save and an evaluation
    for counts, gradients in steps[TRIED:-1]:
        assert counts == COUNTS
        name, ((number,),) = gradients
        assert name == "all_reduce" and number > 100
    assert steps[0][:2] == [COUNTS, ["all_reduce", [[]]]]  # tried alone, and agreed on


def test_a_signal_to_one_process_stops_both(tmp_path):
    """After the step that began with it: they agree on which signal there, and send no more."""
    steps, printed = collectives(tmp_path, "recognition", "5")
    assert [len(step) for step in steps[TRIED:]] == [2, 2, 2]
    assert printed.count("exit code 143") == 2
    assert list_checkpoints(tmp_path / "checkpoints")[-1].name == "step-000000006"


class Moving(nn.BatchNorm2d):
    """One that might train with its statistics, as batch renormalisation does."""


def test_buffers_that_training_reads():
    """Statistics of torch's and timm's layers are not read; what else there is may be."""
    known = nn.Sequential(
        nn.BatchNorm2d(2), nn.SyncBatchNorm(2), BatchNormAct2d(2), nn.Conv2d(2, 2, 1)
    )
    assert train_without_buffers([known, nn.GroupNorm(1, 2)])
    for other in (Moving(2), EvoNorm2dB0(2)):
        assert not train_without_buffers([nn.Sequential(known, other)])
    queue = nn.Linear(2, 2)
    queue.register_buffer("queue", torch.zeros(2))
    assert not train_without_buffers([known, queue])


@pytest.mark.nightly
def test_statistics_of_batch_norm_are_not_sent(tmp_path):
    steps, _ = collectives(tmp_path, "batch-norm")
    assert all(step[0] == COUNTS and len(step) == 2 for step in steps[TRIED:-1])


@pytest.mark.nightly
def test_sharded_parameters_send_the_norm_too(tmp_path):
    """Three units of ten parameters, gathered before each pass; gloo scatters by an all-reduce."""
    steps, _ = collectives(tmp_path, "blocks", **FSDP)
    for counts, *of_units, norm in steps[TRIED:-1]:
        assert counts == COUNTS and norm == ["all_reduce", [[10]]]
        names = [name for name, _ in of_units]
        assert names.count("all_gather") == 6 and len(names) == 9
