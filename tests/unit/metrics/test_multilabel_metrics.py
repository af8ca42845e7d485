"""Mean average precision, F1 and thresholds against scikit-learn and torchmetrics, with ties."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelF1Score

from trainkit.metrics.multilabel import MultiLabelAveragePrecision, MultiLabelF1
from trainkit.metrics.ranking import average_precisions, best_thresholds, mean_interval, ranking


def case(seed: int):
    """Coarse logits, so that many are equal; unknown pairs; in some classes no positive."""
    random = np.random.default_rng(seed)
    images, classes = int(random.integers(2, 60)), int(random.integers(2, 7))
    logits = np.round(random.normal(size=(images, classes)) * 2) / 2
    targets = random.integers(-1, 2, (images, classes))
    targets[:, random.random(classes) < 0.2] = 0
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(targets, dtype=torch.int8)


def computed(metric, logits, targets, batch: int = 7):
    for first in range(0, len(logits), batch):
        part = slice(first, first + batch)
        metric.add_batch(predictions=logits[part], references=targets[part])
    return metric.compute()


def f1_of(truth, called) -> float:
    return 2 * (truth & called).sum() / (truth.sum() + called.sum())


@pytest.mark.parametrize("tens", range(20))
def test_as_scikit_learn(tens):
    for seed in range(10 * tens, 10 * tens + 10):
        assert_as_scikit_learn(*case(seed))


def assert_as_scikit_learn(logits, targets):
    classes = logits.shape[1]
    found = computed(MultiLabelAveragePrecision(classes), logits, targets)
    f1 = computed(MultiLabelF1(classes), logits, targets)
    expected, scores, all_truth, all_called = [], [], [], []
    for label in range(classes):
        known = (targets[:, label] >= 0).numpy()
        truth, score = targets[known, label].numpy(), logits[known, label].numpy()
        positives = bool(truth.sum())
        expected.append(average_precision_score(truth, score) if positives else None)
        called = score > 0
        if truth.any() or called.any():
            scores.append(f1_of(truth > 0, called))
        all_truth.append(truth)
        all_called.append(called)
        limit, probability = found["thresholds"][label], 1 / (1 + np.exp(-score.astype(float)))
        if positives:
            levels = [-1.0, *np.unique(probability)]
            best = max(f1_of(truth > 0, probability > each) for each in levels)
            assert f1_of(truth > 0, probability > limit) == pytest.approx(best)
            assert np.abs(probability - limit).min() > 1e-6  # halfway between two of them
        else:
            assert limit is None
    assert found["AP"] == [None if each is None else pytest.approx(each) for each in expected]
    known = [each for each in expected if each is not None]
    assert found["num_classes"] == len(known)
    assert found["mAP"] == (pytest.approx(np.mean(known)) if known else None)
    truth, called = np.concatenate(all_truth), np.concatenate(all_called)
    if truth.any() or called.any():
        assert f1["micro_f1"] == pytest.approx(f1_score(truth, called, zero_division=0))
        assert f1["macro_f1"] == pytest.approx(np.mean(scores))
    else:
        assert f1 == {"micro_f1": None, "macro_f1": None}


@pytest.mark.filterwarnings("ignore:No positive samples")  # of torchmetrics
@pytest.mark.parametrize("seed", range(0, 200, 20))
def test_as_torchmetrics(seed):
    logits, targets = case(seed)
    classes = logits.shape[1]
    options = {"num_labels": classes, "average": "none", "ignore_index": -1}
    theirs = MultilabelAveragePrecision(**options)(logits.sigmoid(), targets.long())
    found = computed(MultiLabelAveragePrecision(classes), logits, targets)["AP"]
    for mine, other in zip(found, theirs.tolist()):
        assert mine is None or mine == pytest.approx(other, abs=1e-6)
    micro = MultilabelF1Score(classes, average="micro", ignore_index=-1)(
        logits.sigmoid(), targets.long()
    )
    f1 = computed(MultiLabelF1(classes), logits, targets)["micro_f1"]
    assert f1 is None or f1 == pytest.approx(float(micro), abs=1e-6)


def test_order_and_processes_change_nothing():
    logits, targets = case(11)
    names = [f"class {n}" for n in range(logits.shape[1])]
    whole = computed(MultiLabelAveragePrecision(names), logits, targets)
    shuffled = torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))
    parts = []
    for chosen in (shuffled[: len(shuffled) // 3], shuffled[len(shuffled) // 3 :], shuffled[:0]):
        metric = MultiLabelAveragePrecision(names)
        if len(chosen):
            metric.add_batch(predictions=logits[chosen], references=targets[chosen])
        parts.append(metric.parts())
    metric = MultiLabelAveragePrecision(names)
    metric.take_up(parts)
    interval = metric.details()["mAP_95"]
    assert metric.compute() == whole and whole["AP"].keys() == set(names)
    assert metric.compute()["mAP"] is None  # all was forgotten
    assert interval == mean_interval(logits.numpy(), targets.numpy())


def test_nan_is_no_score():
    logits, targets = torch.randn(20, 2), torch.ones(20, 2, dtype=torch.int8)
    targets[::2] = 0
    logits[3, 1] = float("nan")
    found = computed(MultiLabelAveragePrecision(2), logits, targets)
    assert np.isnan(found["mAP"]) and np.isnan(found["AP"][1]) and found["thresholds"][1] is None
    assert mean_interval(logits.numpy(), targets.numpy()) is None
    targets[3, 1] = -1  # counts nowhere
    assert np.isfinite(computed(MultiLabelAveragePrecision(2), logits, targets)["mAP"])


def test_resamples_are_counted_as_if_drawn():
    for seed in range(30):
        logits, targets = (each.numpy() for each in case(seed))
        times = np.random.default_rng(seed).multinomial(
            len(logits), np.full(len(logits), 1 / len(logits)), size=4
        )
        for label in range(logits.shape[1]):
            ranked = ranking(logits[:, label], targets[:, label])
            found = ranked.average_precisions(times.astype(np.int32))
            for drawn, value in zip(times, found):
                images = np.repeat(np.arange(len(logits)), drawn)
                (expected,) = average_precisions(
                    logits[images, label, None], targets[images, label, None]
                )
                assert np.isnan(value) if expected is None else value == pytest.approx(expected)


def test_interval_of_resamples():
    logits, targets = (each.numpy() for each in case(5))
    random = np.random.default_rng(0)
    means = []
    for _ in range(1000):
        images = random.integers(0, len(logits), len(logits))
        known = [v for v in average_precisions(logits[images], targets[images]) if v is not None]
        means.append(np.mean(known))
    low, high = mean_interval(logits, targets)
    assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.02)
    assert mean_interval(logits[:0], targets[:0]) is None
    assert mean_interval(logits, np.zeros_like(targets)) is None


def test_a_threshold_that_float32_can_hold():
    """Of two neighbouring floats the upper one is called, and the lower one is not."""
    low = np.float32(0.3)
    high = np.nextafter(low, np.float32(1))
    probabilities = np.array([[low], [high]], dtype=np.float32)
    (limit,), (f1,) = best_thresholds(probabilities, np.array([[0], [1]]))
    assert f1 == 1 and float(low) < limit < float(high)


def test_shapes_are_checked():
    metric = MultiLabelF1(3)
    with pytest.raises(ValueError, match=r"MultiLabelF1: predictions are \(2, 3\) and references"):
        metric.add_batch(predictions=torch.zeros(2, 3), references=torch.zeros(2))
