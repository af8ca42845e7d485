"""What `trainkit evaluate` says of classes, and the interval, whatever result decides."""

import json
from collections import Counter

import pytest
import torch

from helpers.toy_recipes import recognition, segmentation
from trainkit import evaluate
from trainkit.metrics.recognition import TopK
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.segmentation import Segmentation

CLASSES = 7  # of the toys


def test_of_very_many_classes_the_pairs_that_occur():
    """8,000 classes and 20,000 images: the matrix would be 192 MB of JSON."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(-1, 8000, (20_000,), generator=generator)
    called = torch.where(torch.rand(20_000, generator=generator) < 0.5, truth.clamp(0), 7)
    metric = TopK((1,), 8000).per_image("top1")
    metric.add_batch(predictions=called, references=truth)
    found = metric.details(metric.rows())
    expected = Counter(zip(truth[truth >= 0].tolist(), called[truth >= 0].tolist()))
    pairs = zip(*(found["confusion"][name] for name in ("truth", "predicted", "count")))
    assert {(row, column): count for row, column, count in pairs} == expected
    of_class = Counter(truth.tolist())
    assert found["accuracy"] == [
        pytest.approx(expected[label, label] / of_class[label]) if of_class[label] else None
        for label in range(8000)
    ]
    assert len(json.dumps(found)) < 1_000_000


class ByBalance(Recognition):
    """Decides by a metric that is not the first."""

    headline = "macro_recall"


class ByAccuracy(Segmentation):
    """Decides by another result of the first."""

    headline = "mAcc"


@pytest.mark.parametrize(
    "recipe, name, has_interval",
    [
        (recognition(task=ByBalance(CLASSES)), "macro_recall", False),
        (segmentation(task=ByAccuracy(CLASSES)), "mAcc", True),
    ],
)
def test_a_headline_that_is_not_the_first_metrics_own(recipe, name, has_interval, tmp_path):
    """It has no interval where it does not follow from sums over images; details are there."""
    torch.save(recipe.model.state_dict(), tmp_path / "w.pth")
    results = evaluate(recipe, tmp_path / "w.pth", workers=0)
    assert 0 <= results[name] <= 1 and len(results["confusion"]) == CLASSES
    assert (f"{name}_95" in results) == has_interval
    if has_interval:
        low, high = results[f"{name}_95"]
        assert low <= results[name] <= high
