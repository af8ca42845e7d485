"""Memory that runs out: real limits, real allocators.

The batch stays and the passes become smaller.
"""

import json
import signal
import sys
from pathlib import Path

import pytest
import torch

from helpers.logs import rows, weights
from helpers.processes import TOYS, forked_script, run, torchrun
from helpers.toy_recipes import segmentation
from trainkit import Options, evaluate, train
from trainkit.inference import Inference
from trainkit.storage.checkpoint import list_checkpoints, step_of

ALONE = (sys.executable, str(TOYS))


@pytest.fixture(scope="module")
def small_micro_batches(tmp_path_factory):
    """The training with as much memory as it likes, in passes of 4 from the start."""
    folder = tmp_path_factory.mktemp("small-passes")
    forked_script(TOYS, folder, "hungry-4")
    return folder


def assert_equal(one: Path, other: Path) -> None:
    mine, theirs = weights(one), weights(other)
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    assert [row["loss"] for row in rows(one)] == [row["loss"] for row in rows(other)]


def test_oom_halves_the_micro_batch_and_is_remembered(tmp_path, small_micro_batches):
    """Bit for bit the run in those passes from the start.

    Batch norm has not counted the step that failed.
    """
    printed = run(
        *ALONE, str(tmp_path), "hungry", TOY_MEMORY_GIB="6", TOY_READS="60", code=-signal.SIGKILL
    ).stdout
    assert (
        "out of memory in step 1 with 8 images in a micro-batch: from here on 4, in batches of 8 as"
        " before" in printed
    )
    assert json.loads((tmp_path / "hungry" / "memory.json").read_text()) == {
        "micro_batch": 4,
        "asked": None,
    }
    printed = forked_script(TOYS, tmp_path, "hungry")
    assert (
        "micro-batches of 4 images, as the run was out of memory (OOM) before" in printed
        and "out of memory in" not in printed
    )
    assert_equal(tmp_path / "hungry", small_micro_batches / "hungry-4")


@pytest.mark.nightly
def test_not_even_one_image(tmp_path):
    done = run(*ALONE, str(tmp_path), "hungry", TOY_MEMORY_GIB="0.9", code=1)
    message = done.stderr.splitlines()[-1]
    assert message.startswith(
        "MemoryError: out of memory in step 1 with a micro-batch of 2, the minimum"
    ), done.stderr
    assert "smaller images, a smaller model" in message


def test_processes_agree_on_the_micro_batch(tmp_path):
    """One of two has little memory: both take smaller passes, and nobody waits for ever."""
    printed = torchrun(
        2, TOYS, tmp_path, "hungry", TOY_MEMORY_GIB="3.7", TOY_MEMORY_RANK="1"
    ).stdout
    assert "out of memory in step 1 with 4 images in a micro-batch: from here on 2" in printed
    assert json.loads((tmp_path / "hungry" / "memory.json").read_text()) == {
        "micro_batch": 2,
        "asked": None,
    }
    torchrun(2, TOYS, tmp_path / "free", "hungry-2")
    assert_equal(tmp_path / "hungry", tmp_path / "free" / "hungry-2")


def test_evaluations_say_what_to_do(tmp_path):
    """Windows of more than a process can address; steps that no checkpoint has are saved."""
    huge, options = (
        Inference(window=10_000_000),
        Options(out=tmp_path / "run", workers=0, checkpoint_every=3),
    )
    message = (
        r"out of memory in the evaluation: .*can't allocate memory.*Set a smaller eval_batch_size"
        r" in the recipe, or"
    )
    with pytest.raises(MemoryError, match=message):
        train(segmentation(inference=huge), options)
    last = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    assert step_of(last) == 4, "where the evaluation was, one after the last that was due"
    with pytest.raises(MemoryError, match=message):
        evaluate(segmentation(inference=huge), last, workers=0)
    assert train(segmentation(), options)["final"]["num_images"] == 13
