"""A number for each pixel: one curve for micro-batches and processes; windows; resume."""

import pytest
import torch

from helpers.interruptions import checkpoint_of, kill_all, resume, start, wait_for
from helpers.logs import assert_bit_equal, rows, weights
from helpers.processes import TOYS, torchrun
from helpers.toy_recipes import Depths, run

NAMES = ("depths", "depths-windows")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Each training in this process, and the networks."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, {name: run(name, folder / name) for name in (*NAMES, "depths-3")}


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    torchrun(2, TOYS, folder, "depths-windows")
    return folder


def assert_one_curve(one, other):
    for name in ("loss", "loss_silog", "loss_l1"):
        expected = [row[name] for row in rows(one)]
        assert [row[name] for row in rows(other)] == pytest.approx(expected, rel=1e-4)
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(other)[name], value, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(rows(one, "evaluate"), rows(other, "evaluate"), strict=True):
        assert mine.keys() == theirs.keys() and theirs["num_images"] == 13
        for name in ("rmse", "mae", "abs_rel", "val_loss"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-4), name
        for name in ("delta1", "delta2", "delta3"):  # a pixel may be at the border
            assert theirs[name] == pytest.approx(mine[name], abs=0.005), name


def test_micro_batches_and_processes_change_nothing(alone, together):
    folder, _ = alone
    assert_one_curve(folder / "depths", folder / "depths-3")
    assert_one_curve(folder / "depths-windows", together / "depths-windows")


def test_an_evaluation_by_hand(alone):
    """Windows of 8 with a step of 4 over 12 x 12 pixels, flipped too: the mean of the values."""
    folder, networks = alone
    net, data = networks["depths-windows"].eval(), Depths(13, augment=False)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in
                 ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))  # fmt: skip
    squares, number = 0.0, 0
    for image, target in (data[index] for index in range(13)):
        image = (image / 255 - mean) / std
        total, seen = torch.zeros(12, 12), torch.zeros(12, 12)
        for top in (0, 4):
            for left in (0, 4):
                window = image[None, :, top : top + 8, left : left + 8]
                with torch.no_grad():
                    one = net(window).exp()[0, 0]
                    other = net(window.flip(-1)).exp()[0, 0].flip(-1)
                total[top : top + 8, left : left + 8] += one + other
                seen[top : top + 8, left : left + 8] += 2
        known = (target >= 0.1) & (target <= 9)
        error = ((total / seen).clamp(0.1, 9) - target)[known]
        squares, number = squares + float((error.double() ** 2).sum()), number + int(known.sum())
    expected = (squares / number) ** 0.5
    found = rows(folder / "depths-windows", "evaluate")[-1]["rmse"]
    assert found == pytest.approx(expected, rel=1e-5)


def test_it_learns(alone):
    found = [row["rmse"] for row in rows(alone[0] / "depths", "evaluate")]
    assert found[-1] < found[0]


def test_resumed_bit_equal(tmp_path):
    process = start(tmp_path, "depths")
    wait_for(tmp_path / "depths", checkpoint_of(4), process)
    kill_all(process)
    assert "resuming from step-" in resume(tmp_path, "depths")
    resume(tmp_path / "unstopped", "depths")
    assert_bit_equal(tmp_path / "unstopped" / "depths", tmp_path / "depths")
