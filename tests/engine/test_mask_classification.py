"""Trainings of mask classification: one curve for any split of a batch, and exact resumes."""

import json

import pytest
import torch

from helpers.logs import assert_bit_equal, assert_same_training
from helpers.mask_recipes import RUNS, run
from helpers.processes import TESTS, torchrun
from trainkit.models.mask_networks import mask_probabilities
from trainkit.storage.checkpoint import list_checkpoints, load

SCRIPT = TESTS / "helpers" / "mask_recipes.py"
KINDS = ("mask2former", "eomt", "eomt_dinov3")
TOGETHER = ("mask2former", "eomt-1")
SPLIT = [name for name, (kind, _) in RUNS.items() if name != kind]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    for name in RUNS:
        run(name, folder / name)
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """In two processes, the last batch of three images on both."""
    folder = tmp_path_factory.mktemp("together")
    torchrun(2, SCRIPT, folder, *TOGETHER)
    return folder


@pytest.mark.parametrize("name", SPLIT)
def test_micro_batches_do_not_change_the_training(alone, name):
    assert_same_training(alone / RUNS[name][0], alone / name)


@pytest.mark.parametrize("name", TOGETHER)
def test_processes_do_not_change_the_training(alone, together, name):
    assert_same_training(alone / name, together / name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resume_is_bit_equal(alone, tmp_path, kind):
    """Killed after step 3 of 6, where EoMT's attention is masked at times."""
    out = tmp_path / kind
    run(kind, out, checkpoint_every=3)
    later = list_checkpoints(out / "checkpoints")[-1]
    for file in sorted(later.rglob("*"), reverse=True):
        file.unlink()
    later.rmdir()
    log = (out / "log.jsonl").read_text().splitlines(keepends=True)
    first = next(place for place, row in enumerate(log) if json.loads(row).get("step", 0) > 3)
    (out / "log.jsonl").write_text("".join(log[:first]))
    (out / "summary.json").unlink()
    run(kind, out, checkpoint_every=3)
    assert_bit_equal(alone / kind, out)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_masking_fades_with_the_step_and_is_never_averaged(alone, kind):
    for checkpoint in list_checkpoints(alone / kind / "checkpoints"):
        model, state = load(checkpoint)
        step = int(checkpoint.name.rpartition("-")[2])
        # written before the evaluation that follows, of which the probabilities are those of `step`
        expected = torch.tensor(mask_probabilities(2, step - 1, 6))
        torch.testing.assert_close(model["attn_mask_probs"], expected)
        torch.testing.assert_close(state["ema"]["averages"]["attn_mask_probs"], expected)
