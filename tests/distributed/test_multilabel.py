"""Any number of classes per image: one curve for micro-batches and processes; resumed bit-equal."""

import pytest
import torch

from helpers.interruptions import checkpoint_of, kill_all, resume, start, wait_for
from helpers.logs import assert_bit_equal, rows, weights
from helpers.processes import TOYS, torchrun
from helpers.toy_recipes import run

NAMES = ("labels-mixup", "labels-mixup-2")  # the same training, the second in micro-batches


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Each training in this process."""
    folder = tmp_path_factory.mktemp("alone")
    for name in NAMES:
        run(name, folder / name)
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    torchrun(2, TOYS, folder, NAMES[0])
    return folder


def assert_one_curve(one, other):
    for name in ("loss", "loss_asymmetric", "loss_bce"):
        expected = [row[name] for row in rows(one)]
        assert [row[name] for row in rows(other)] == pytest.approx(expected, rel=1e-5)
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(other)[name], value, rtol=1e-4, atol=1e-6)
    for mine, theirs in zip(rows(one, "evaluate"), rows(other, "evaluate"), strict=True):
        assert mine.keys() == theirs.keys() and theirs["num_images"] == 13
        for name, value in mine.items():
            # scores differ by rounding
            if name in ("thresholds", "ema_thresholds"):
                known = [each for each in value if each is not None]
                assert [v for v in theirs[name] if v is not None] == pytest.approx(known, rel=1e-4)
            elif isinstance(value, float):
                assert theirs[name] == pytest.approx(value, rel=1e-5), name
            else:
                assert theirs[name] == value, name


def test_micro_batches_and_processes_change_nothing(alone, together):
    first, second = NAMES
    assert_one_curve(alone / first, alone / second)
    assert_one_curve(alone / first, together / first)


def test_resumed_bit_equal(tmp_path):
    process = start(tmp_path, "labels-mixup")
    wait_for(tmp_path / "labels-mixup", checkpoint_of(4), process)
    kill_all(process)
    assert not (tmp_path / "labels-mixup" / "summary.json").exists()
    assert "resuming from step-" in resume(tmp_path, "labels-mixup")
    resume(tmp_path / "unstopped", "labels-mixup")
    assert_bit_equal(tmp_path / "unstopped" / "labels-mixup", tmp_path / "labels-mixup")
