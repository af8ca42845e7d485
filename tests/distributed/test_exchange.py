"""What processes tell each other in a step: counts and the wish to stop in one all-reduce, beside
the gradients."""

import json

import pytest

from helpers.processes import FSDP, TESTS, torchrun
from trainkit.storage.checkpoint import list_checkpoints

SCRIPT = TESTS / "helpers" / "collectives.py"
COUNTS = ["allreduce_", [[2]]]  # valid targets of the one loss, and who is to stop
TRIED = 2  # steps that are first tried without the other processes, who then agree on memory


def collectives(folder, name: str, *words: str, code: int = 0, **env: str) -> list[list]:
    """Of each step, the same in both processes."""
    torchrun(2, SCRIPT, folder, name, *words, code=code, **env)
    one, other = (
        json.loads((folder / f"collectives-{rank}.json").read_text()) for rank in range(2)
    )
    assert one == other
    return one


def test_a_step_sends_counts_and_gradients(tmp_path):
    """In a bucket of all 7 x 8 + 7 + 8 x 3 x 9 + ... weights, in whatever micro-batches."""
    steps = collectives(tmp_path, "recognition-3")
    assert len(steps) == 10
    for step in steps[TRIED:]:
        counts, gradients = step
        assert counts == COUNTS
        name, ((number,),) = gradients
        assert name == "allreduce_" and number > 100
    assert steps[0][0] == COUNTS and len(steps[0]) == 3


def test_a_signal_to_one_process_stops_both(tmp_path):
    """After the step that began with it: they agree on which signal there, and send no more."""
    steps = collectives(tmp_path, "recognition", "5", code=143)
    assert [len(step) for step in steps[TRIED:]] == [2, 2, 2]
    assert list_checkpoints(tmp_path / "checkpoints")[-1].name == "step-000000006"


@pytest.mark.nightly
@pytest.mark.parametrize(
    "name, env, expected",
    [
        ("batch-norm", {}, {"allreduce_": 2, "broadcast_": 1}),  # buffers of process 0
        ("blocks", FSDP, {"allreduce_": 2}),  # counts and the norm, besides weights and gradients
    ],
)
def test_what_else_a_step_sends(tmp_path, name, env, expected):
    for step in collectives(tmp_path, name, **env)[TRIED:]:
        assert step[0] == COUNTS
        sent = [name for name, _ in step]
        assert {name: sent.count(name) for name in expected} == expected
        rest = {name for name in sent if name not in expected}
        sharded = {"_allgather_base_", "_reduce_scatter_base_"}
        assert rest == (sharded if env else set())
