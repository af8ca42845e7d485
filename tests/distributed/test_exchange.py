"""What processes tell each other in a step: counts and the wish to stop in one all-reduce, beside
the gradients."""

import json

import pytest

from helpers.processes import FSDP, TESTS, torchrun
from trainkit.storage.checkpoint import list_checkpoints

SCRIPT = TESTS / "helpers" / "collectives.py"
COUNTS = ["all_reduce", [[2]]]  # valid targets of the one loss, and who is to stop
TRIED = 2  # steps that are first tried without the other processes, who then agree on memory


def collectives(folder, name: str, *words: str, **env: str) -> tuple[list[list], str]:
    """Of each step, the same in both processes, the last with all after it; what they printed."""
    printed = torchrun(2, SCRIPT, folder, name, *words, **env).stdout
    one, other = (
        json.loads((folder / f"collectives-{rank}.json").read_text()) for rank in range(2)
    )
    # threads of gloo begin in any order what does not wait for each other
    assert list(map(sorted, one)) == list(map(sorted, other))
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
    *before, (counts, _, agreed, *saving) = steps[TRIED:]
    assert [len(step) for step in before] == [2, 2, 2]
    assert counts == COUNTS and agreed == ["all_reduce", [[1]]]
    # all losses that are not logged yet, and waiting for the checkpoint
    assert saving == [["all_reduce", [[6, 2]]], ["barrier", []], ["barrier", []]]
    assert printed.count("exit code 143") == 2
    assert list_checkpoints(tmp_path / "checkpoints")[-1].name == "step-000000006"


@pytest.mark.nightly
def test_buffers_are_sent_once(tmp_path):
    """Statistics of 8 channels and their counter, before the forward pass; no warning of DDP's."""
    steps, printed = collectives(tmp_path, "batch-norm")
    for *sent, gradients in steps[TRIED:-1]:
        assert gradients[0] == "all_reduce"
        assert sorted(sent) == [COUNTS, ["broadcast", [[1]]], ["broadcast", [[16]]]]
    assert "Warning" not in printed


@pytest.mark.nightly
def test_sharded_parameters_send_the_norm_too(tmp_path):
    """Three units of ten parameters, gathered before each pass; gloo scatters by an all-reduce."""
    steps, _ = collectives(tmp_path, "blocks", **FSDP)
    for *sent, norm in steps[TRIED:-1]:
        assert sent.count(COUNTS) == 1 and norm == ["all_reduce", [[10]]]
        names = [name for name, _ in sent]
        assert names.count("all_gather") == 6 and len(names) == 10
