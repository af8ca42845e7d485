"""Losses of a number for each pixel against formulas; what is not known counts nowhere."""

import pytest
import torch
from torch.nn import functional as F

from trainkit.errors import UserError
from trainkit.losses.dense_regression import L1, Huber, ScaleInvariantLog
from trainkit.tasks.dense_regression import DenseRegression


def batch(seed: int):
    generator = torch.Generator().manual_seed(seed)
    values = (torch.rand(4, 5, 6, generator=generator) * 8 + 0.5).requires_grad_()
    targets = torch.rand(4, 5, 6, generator=generator) * 8 + 0.5
    targets[torch.rand(4, 5, 6, generator=generator) < 0.3] = torch.nan
    targets[0, 0, 0] = torch.inf
    targets[3] = torch.nan  # an image of which nothing is known
    return values, targets


def eigen(values, targets, focus):
    """The paper's formula, image by image."""
    total = 0.0
    for value, target in zip(values, targets):
        valid = target.isfinite()
        if valid.any():
            d = value[valid].log() - target[valid].log()
            total = total + (d**2).mean() - focus * d.mean() ** 2
    return total


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("criterion, formula, of_images", [
    (L1(), lambda v, t: (v - t)[t.isfinite()].abs().sum(), False),
    (Huber(0.7), lambda v, t: F.huber_loss(v[t.isfinite()], t[t.isfinite()], reduction="sum",
                                           delta=0.7), False),
    (ScaleInvariantLog(), lambda v, t: eigen(v, t, 0.5), True),
    (ScaleInvariantLog(0.85), lambda v, t: eigen(v, t, 0.85), True),
])  # fmt: skip
def test_formulas(criterion, formula, of_images, seed):
    values, targets = batch(seed)
    found, expected = criterion(values, targets, 0), formula(values, targets)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, values)
    (wanted,) = torch.autograd.grad(expected, values)
    torch.testing.assert_close(gradient, wanted)
    valid = targets.isfinite()
    assert criterion.count(targets, 0, 1) == (3 if of_images else valid.sum())
    parts = [criterion(values[n : n + 1], targets[n : n + 1], 0) for n in range(4)]
    torch.testing.assert_close(torch.stack(parts), criterion.of_images(values, targets))


def test_a_common_factor_costs_nothing_at_full_focus():
    _, targets = batch(1)
    known = torch.where(targets.isfinite(), targets, 1.0)
    assert ScaleInvariantLog(1.0)(3 * known, targets, 0) == pytest.approx(0, abs=1e-5)
    assert ScaleInvariantLog(0.0)(3 * known, targets, 0) > 1


def test_logarithms_and_limits():
    """The network's map is the logarithm; targets beyond the limits count nowhere."""
    task = DenseRegression(L1(), "log", limits=(1.0, 4.0))
    outputs = torch.zeros(1, 1, 2, 2, requires_grad=True)  # all values are 1
    targets = torch.tensor([[[2.0, 5.0], [0.5, torch.nan]]])
    assert task.counts(targets).tolist() == [1.0]
    assert task.losses(outputs, targets).tolist() == [1.0]
    task.losses(outputs, targets).sum().backward()
    assert outputs.grad.flatten().tolist() == [-1.0, 0.0, 0.0, 0.0]
    assert task.predict(outputs - 9, targets).tolist() == [[[1.0, 1.0], [1.0, 1.0]]]


@pytest.mark.parametrize("make, message", [
    (lambda: Huber(0), "Huber: delta is 0"),
    (lambda: ScaleInvariantLog(2), "variance_focus is 2"),
    (lambda: DenseRegression(ScaleInvariantLog()), "the loss is silog.*give output log"),
    (lambda: DenseRegression(limits=(2, 1)), r"limits are \(2, 1\)"),
    (lambda: DenseRegression(scale=0), "scale is 0; it must be above 0"),
    (lambda: DenseRegression(output="exp"), "output is 'exp'"),
])  # fmt: skip
def test_what_is_out_of_range(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("target, fault", [
    (torch.zeros(3, 4), None), (torch.full((3, 4), torch.nan), None),
    (torch.zeros(3, 4, dtype=torch.int64), "target is torch.int64 of shape"),
    (torch.zeros(1, 3, 4), "it is floats"), (3.5, "target is 3.5"),
])  # fmt: skip
def test_targets(target, fault):
    found = DenseRegression().check(target)
    assert found is None if fault is None else fault in found
