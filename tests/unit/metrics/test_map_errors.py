"""Errors of maps against NumPy, over all valid pixels, whatever the order."""

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from trainkit.metrics.dense_regression import MapErrors


def case(seed: int, signed: bool = False):
    random = np.random.default_rng(seed)
    shape = int(random.integers(1, 9)), 7, 5
    targets = random.uniform(-3 if signed else 0.1, 9, shape)
    found = targets * random.uniform(0.5, 2.2, shape)
    targets[random.random(shape) < 0.3] = np.nan
    return torch.tensor(found, dtype=torch.float32), torch.tensor(targets, dtype=torch.float32)


def computed(found, targets, batch=2):
    metric = MapErrors()
    for first in range(0, len(found), batch):
        part = slice(first, first + batch)
        metric.add_batch(predictions=found[part], references=targets[part])
    return metric.compute()


@pytest.mark.parametrize("seed", range(40))
def test_as_numpy(seed):
    predictions, references = case(seed, signed=seed % 2 == 1)
    results = computed(predictions, references)
    known = references.isfinite().numpy()
    found, wanted = predictions.double().numpy()[known], references.double().numpy()[known]
    assert results["rmse"] == pytest.approx(root_mean_squared_error(wanted, found))
    assert results["mae"] == pytest.approx(mean_absolute_error(wanted, found))
    positive = wanted > 0
    found, wanted = found[positive], wanted[positive]
    assert results["abs_rel"] == pytest.approx(np.mean(np.abs(found - wanted) / wanted))
    ratio = np.maximum(found / wanted, wanted / found)
    for power in (1, 2, 3):
        assert results[f"delta{power}"] == pytest.approx(np.mean(ratio < 1.25**power))


def test_order_and_processes_change_nothing():
    predictions, references = case(3)
    whole = computed(predictions, references)
    order = torch.randperm(len(predictions), generator=torch.Generator().manual_seed(1))
    parts = []
    for chosen in (order[:2], order[2:], order[:0]):
        metric = MapErrors()
        if len(chosen):
            metric.add_batch(predictions=predictions[chosen], references=references[chosen])
        parts.append(metric.parts())
    metric.take_up(parts)
    low, high = metric.details()["rmse_95"]
    assert low < whole["rmse"] < high and metric.compute() == whole
    assert set(metric.compute().values()) == {None}


def test_values_that_are_not_positive():
    """A prediction of 0 or below is within no factor; targets of 0 have no ratio."""
    found = torch.tensor([[[0.0, -1.0, 2.0, 7.0]]])
    wanted = torch.tensor([[[1.0, 1.0, 2.0, 0.0]]])
    results = computed(found, wanted)
    assert results["delta1"] == results["delta3"] == pytest.approx(1 / 3)
    assert results["abs_rel"] == pytest.approx(1.0) and results["mae"] == pytest.approx(2.5)
