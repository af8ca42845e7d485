"""Intervals where every image has the same score: Wilson's for accuracies, else the reason."""

from math import sqrt

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from helpers.run_folders import add_recognition, run_folder
from helpers.toy_recipes import CLASSES, Net, recognition
from trainkit import evaluate
from trainkit.metrics.bootstrap import interval
from trainkit.metrics.multilabel import MultiLabelAveragePrecision
from trainkit.metrics.recognition import TopK
from trainkit.metrics.resampling import NO_INTERVAL, SAME, bounds_or_reason, wilson
from trainkit.metrics.segmentation import MeanIoU
from trainkit.report.evaluation_data import read_evaluation
from trainkit.report.statistics import headline_interval


@pytest.mark.parametrize("hits, number", [(10, 10), (0, 10), (1, 1), (7, 10), (999, 1000), (0, 3)])
def test_wilsons_interval(hits, number):
    """A bound lies 1.96 of its own standard deviations from what is seen."""
    low, high = wilson(hits, number)
    reference = binomtest(hits, number).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=1e-12)
    for bound in (low, high):
        if 0 < bound < 1:
            deviation = sqrt(bound * (1 - bound) / number)
            assert abs(hits / number - bound) == pytest.approx(1.959964 * deviation, rel=1e-6)
    assert 0 <= low <= hits / number <= high <= 1


def test_of_ten_right_images_of_ten():
    assert wilson(10, 10) == (pytest.approx(10 / (10 + 1.959964**2), rel=1e-6), 1.0)


def test_a_bootstrap_that_says_something_stays():
    rows = TopK(classes=3).per_image("top1")
    rows.add_batch(predictions=torch.tensor([[0], [1], [1]]), references=torch.tensor([0, 1, 2]))
    bounds = interval(rows.rows(), rows.statistic)
    assert rows.is_share and bounds[0] < bounds[1]
    assert bounds_or_reason("top1_95", bounds, (2, 3)) == {"top1_95": bounds}
    assert bounds_or_reason("x_95", None) == {"x_95": None}
    assert bounds_or_reason("mIoU_95", (1.0, 1.0)) == {NO_INTERVAL: SAME}
    assert not MeanIoU(3).per_image("mIoU").is_share


class Blind(Net):
    """Calls every image the first class, whatever it trains."""

    def forward(self, images):
        return super().forward(images) * 0 + torch.eye(CLASSES)[0]


@pytest.mark.parametrize("label, share", [(0, (13, 13)), (3, (0, 13)), (-1, None)])
def test_an_evaluation_gives_it(label, share, tmp_path):
    recipe = recognition(model=Blind(dense=False))
    recipe.val_data.targets[:] = label
    torch.save(recipe.model.state_dict(), tmp_path / "w.pth")
    results = evaluate(recipe, tmp_path / "w.pth", workers=0)
    assert NO_INTERVAL not in results
    if share is None:
        assert "top1_95" not in results
    else:
        assert results["top1_95"] == pytest.approx(wilson(*share))


def test_metrics_that_are_no_share_of_images_say_why_they_have_none():
    metric = MultiLabelAveragePrecision(["a", "b"])
    targets = torch.tensor([[1, 0], [0, 1]] * 4)
    metric.add_batch(predictions=8.0 * targets - 4, references=targets)
    assert metric.details() == {NO_INTERVAL: SAME, "positives": {"a": 4, "b": 4}}


def test_the_report_has_the_same(tmp_path):
    run = run_folder(tmp_path / "run")
    arrays = add_recognition(run)
    right = {**arrays, "predicted": arrays["target"].copy()}
    np.savez(run / "evaluations/step-000000100.npz", **right)
    found = headline_interval(read_evaluation(run / "evaluations/step-000000100.json"), "top1")
    assert found == pytest.approx(wilson(len(arrays["target"]), len(arrays["target"])))
