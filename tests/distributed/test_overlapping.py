"""Overlapping classes, mixed masks: one curve in micro-batches and processes; resumed bit-equal."""

import pytest
import torch

from helpers.cases import at_night, collected
from helpers.interruptions import checkpoint_of, kill_all, resume, start, wait_for
from helpers.logs import assert_bit_equal, rows, weights
from helpers.processes import TOYS, torchrun
from helpers.toy_recipes import run

NAMES = ("segmentation-mixup", "overlapping")


@pytest.fixture(scope="module")
def together(request, tmp_path_factory):
    """Each training on two processes."""
    folder = tmp_path_factory.mktemp("together")
    torchrun(2, TOYS, folder, *collected(request))
    return folder


def assert_one_curve(one, other):
    for kind in ("train", "evaluate"):
        for mine, theirs in zip(rows(one, kind), rows(other, kind), strict=True):
            for name, value in mine.items():
                if isinstance(value, float) and not name.endswith(("_s", "_gib", "_per_s")):
                    assert theirs[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(other)[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", at_night(*NAMES, day=("overlapping",)))
def test_micro_batches_and_processes_change_nothing(tmp_path, together, name):
    run(name, tmp_path / "one")
    run(f"{name}-2", tmp_path / "parts")
    assert_one_curve(tmp_path / "one", tmp_path / "parts")
    assert_one_curve(tmp_path / "one", together / name)


@pytest.mark.parametrize("name", at_night(*NAMES, day=("overlapping",)))
def test_resumed_bit_equal(tmp_path, name):
    process = start(tmp_path, name)
    wait_for(tmp_path / name, checkpoint_of(4), process)
    kill_all(process)
    assert not (tmp_path / name / "summary.json").exists()
    assert "resuming from step-" in resume(tmp_path, name)
    resume(tmp_path / "unstopped", name)
    assert_bit_equal(tmp_path / "unstopped" / name, tmp_path / name)
