"""Errors of maps against NumPy, over all valid pixels, whatever the order."""

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from trainkit.errors import UserError
from trainkit.metrics.dense_regression import MapErrors, region_of
from trainkit.tasks.dense_regression import DenseRegression


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
    assert results["sq_rel"] == pytest.approx(np.mean((found - wanted) ** 2 / wanted))
    logs = np.log(found) - np.log(wanted)
    assert results["rmse_log"] == pytest.approx(np.sqrt(np.mean(logs**2)))
    assert results["log10"] == pytest.approx(np.mean(np.abs(np.log10(found) - np.log10(wanted))))
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
    """A prediction of 0 or below is within no factor and has no logarithm, as no target of 0."""
    found = torch.tensor([[[0.0, -1.0, 2.0, 7.0]]])
    wanted = torch.tensor([[[1.0, 1.0, 2.0, 0.0]]])
    results = computed(found, wanted)
    assert results["delta1"] == results["delta3"] == pytest.approx(1 / 3)
    assert results["abs_rel"] == pytest.approx(1.0) and results["mae"] == pytest.approx(2.5)
    assert results["sq_rel"] == pytest.approx(5 / 3)
    assert results["log10"] is results["rmse_log"] is None
    metric = MapErrors("log10")
    metric.add_batch(predictions=found, references=wanted)
    assert metric.details() == {}
    assert computed(found[..., 2:], wanted[..., 2:])["log10"] == 0.0


@pytest.mark.parametrize("headline", ["rmse_log", "log10"])
def test_a_prediction_of_nan_has_no_logarithm(headline):
    """It is none of an error of 0, alone or among others."""
    wanted = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
    for found in (torch.full_like(wanted, torch.nan), wanted.where(wanted != 4, torch.nan)):
        metric = MapErrors(headline)
        metric.add_batch(predictions=found, references=wanted)
        assert metric.details() == {}
        results = metric.compute()
        assert results[headline] is None and np.isnan(results["rmse"])
    # where nothing is known of the pixel, it does not matter
    assert computed(found, wanted.where(wanted != 4, torch.nan))[headline] == 0.0


def results_of(task, predictions, references):
    first, *others = task.metrics()
    for metric in (first, *others):
        metric.add_batch(predictions=task.from_scores(predictions[:, None]), references=references)
    return {
        name: float(value) for each in (first, *others) for name, value in each.compute().items()
    }


def nyu(seed=0):
    """Depth in metres from 0.5 to 12, some unknown, and predictions within a factor of 2."""
    random = np.random.default_rng(seed)
    wanted = random.uniform(0.5, 12, (3, 480, 640)).astype(np.float32)
    found = (wanted * random.uniform(0.5, 2, wanted.shape)).astype(np.float32)
    wanted[random.random(wanted.shape) < 0.2] = np.nan
    return found, wanted


def test_eigens_protocol_by_hand():
    """Rows 45:471 and columns 41:601, up to 10 m, predictions within the limits."""
    found, wanted = nyu()
    task = DenseRegression(
        limits=(0.001, 10.0),
        eval_region="nyu_eigen",
        extra_metrics=["torchmetrics:MeanAbsoluteError"],
    )
    results = results_of(task, torch.from_numpy(found), torch.from_numpy(wanted))
    region = np.zeros(wanted.shape, dtype=bool)
    region[:, 45:471, 41:601] = True
    known = region & (wanted > 0.001) & (wanted < 10)
    p, t = np.clip(found, 0.001, 10)[known].astype(float), wanted[known].astype(float)
    assert results["rmse"] == pytest.approx(np.sqrt(np.mean((p - t) ** 2)), rel=1e-6)
    assert results["abs_rel"] == pytest.approx(np.mean(np.abs(p - t) / t), rel=1e-6)
    assert results["log10"] == pytest.approx(np.mean(np.abs(np.log10(p / t))), rel=1e-6)
    assert results["delta1"] == pytest.approx(np.mean(np.maximum(p / t, t / p) < 1.25), abs=1e-6)
    (other,) = (value for name, value in results.items() if "MeanAbsoluteError" in name)
    assert other == pytest.approx(np.mean(np.abs(p - t)), rel=1e-6) == results["mae"]


def test_median_scaling_by_hand():
    found, wanted = nyu(1)
    found *= np.array([0.01, 3.0, 1.0], dtype=np.float32)[:, None, None]  # of a scale of its own
    task = DenseRegression(limits=(0.001, 10.0), eval_region="nyu_eigen", median_scaling=True)
    results = results_of(task, torch.from_numpy(found), torch.from_numpy(wanted))
    errors = []
    for p, t in zip(found.astype(float), wanted.astype(float)):
        p, t = p[45:471, 41:601], t[45:471, 41:601]
        known = (t >= np.float32(0.001)) & (t <= 10)
        p = np.clip(p[known] * np.median(t[known]) / np.median(p[known]), 0.001, 10)
        errors.append(np.abs(p - t[known]) / t[known])
    assert results["abs_rel"] == pytest.approx(np.concatenate(errors).mean(), rel=1e-6)


def test_regions_of_kitti():
    """As the field's code cuts them, of a map of 375 x 1242."""
    assert region_of("kitti_garg", 375, 1242) == (slice(153, 371), slice(44, 1197))
    assert region_of("kitti_eigen", 375, 1242) == (slice(124, 342), slice(44, 1197))
    with pytest.raises(UserError, match="of maps of 640x480 pixels, and one is 20x10"):
        region_of("nyu_eigen", 10, 20)
    with pytest.raises(UserError, match="eval_region is 'nyu'; it is one of nyu_eigen"):
        DenseRegression(eval_region="nyu")
