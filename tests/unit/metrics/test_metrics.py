"""Metrics against brute force, one image and class at a time, and against the official ADE20K
arithmetic."""

import json

import evaluate
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.evaluate_metric import Errors
from helpers.toy_recipes import CLASSES, recognition
from trainkit import Options, train
from trainkit.data.datasets.ade20k import ADE20K
from trainkit.metrics.base import each_metric
from trainkit.metrics.recognition import CalibrationError, MacroAverages, TopK
from trainkit.metrics.segmentation import MeanIoU
from trainkit.tasks.recognition import Recognition


def maps(seed: int, num_classes: int, occurring: int):
    """Predictions and references with ignored pixels, in which classes from `occurring` on are
    absent."""
    random = np.random.default_rng(seed)
    references = random.integers(0, occurring, (3, 6, 7))
    references[random.random(references.shape) < 0.3] = 255
    return random.integers(0, occurring, (3, 6, 7)), references


def brute_force(predictions, references, num_classes):
    valid = references != 255
    ious = []
    for c in range(num_classes):
        union = (((predictions == c) | (references == c)) & valid).sum()
        ious.append(
            ((predictions == c) & (references == c) & valid).sum() / union if union else None
        )
    return ious, ((predictions == references) & valid).sum() / valid.sum()


@given(st.integers(0, 10**6), st.integers(2, 9))
def test_mean_iou_is_brute_force(seed, occurring):
    predictions, references = maps(seed, 9, occurring)
    if (references == 255).all():
        return
    metric = MeanIoU(9)
    for prediction, reference in zip(predictions, references):  # streaming, one by one
        metric.add(prediction=prediction, reference=torch.from_numpy(reference).to(torch.uint8))
    result = metric.compute()
    ious, accuracy = brute_force(predictions, references, 9)
    known = [iou for iou in ious if iou is not None]
    assert result["IoU"] == pytest.approx(ious)
    assert result["mIoU"] == pytest.approx(np.mean(known)) and result["num_classes"] == len(known)
    assert result["pixAcc"] == pytest.approx(accuracy)
    shares = {
        c: (references == c).sum() / (references != 255).sum()
        for c in range(9)
        if (references == c).any()
    }
    found = [
        ((predictions == c) & (references == c)).sum() / (references == c).sum() for c in shares
    ]
    assert result["mAcc"] == pytest.approx(np.mean(found))
    assert result["fwIoU"] == pytest.approx(sum(share * ious[c] for c, share in shares.items()))
    zero = MeanIoU(9, absent="zero").compute(predictions=predictions, references=references)
    assert zero["mIoU"] == pytest.approx(sum(known) / 9) and zero["num_classes"] == 9


def test_names_and_reset():
    metric = MeanIoU(3, class_names=["a", "b", "c"])
    predictions, references = torch.tensor([[0, 0, 1, 2]]), torch.tensor([[0, 1, 1, 255]])
    expected = {"a": 0.5, "b": 0.5, "c": None}
    assert metric.compute(predictions=predictions, references=references)["IoU"] == expected
    nothing = dict.fromkeys(("mIoU", "pixAcc", "mAcc", "fwIoU"))
    assert metric.compute() == {**nothing, "num_classes": 0, "IoU": dict.fromkeys("abc")}


def test_stray_labels_are_an_error():
    metric = MeanIoU(3)
    metric.add_batch(predictions=torch.tensor([0, 3, -1]), references=torch.tensor([7, 0, 255]))
    with pytest.raises(ValueError, match=r"1 references and 1 predictions are outside 0..2"):
        metric.compute()


def test_top_k():
    random = np.random.default_rng(0)
    scores, references = random.random((50, 10)), random.integers(0, 10, 50)
    references[::7] = -1
    order, valid = np.argsort(-scores, 1), references >= 0
    hits = {k: (order[:, :k] == references[:, None]).any(1)[valid].mean() for k in (1, 5)}
    expected = {"top1": pytest.approx(hits[1]), "top5": pytest.approx(hits[5])}
    metric = TopK()
    for part in np.array_split(np.arange(50), 4):
        metric.add_batch(predictions=scores[part], references=references[part])
    assert metric.compute() == expected
    assert TopK().compute(predictions=order[:, :5].copy(), references=references) == expected
    assert TopK((1,)).compute(predictions=order[:, 0].copy(), references=references) == {
        "top1": expected["top1"]
    }
    assert TopK().compute() == {"top1": None, "top5": None}


def calibration_by_hand(probabilities, references, bins):
    """Guo et al., 2017, equations 2 and 3, one bin after the other."""
    confidence, called = probabilities.max(1), probabilities.argmax(1)
    error = 0
    for m in range(bins):
        inside = (confidence > m / bins) & (confidence <= (m + 1) / bins)
        if inside.any():
            accuracy = (called[inside] == references[inside]).mean()
            error += inside.sum() / len(references) * abs(accuracy - confidence[inside].mean())
    return error


@pytest.mark.parametrize("num_classes, seed", [(3, 0), (4, 1), (12, 2), (12, 3)])
def test_macro_averages_are_those_of_torchmetrics(num_classes, seed):
    """Some classes occur in neither, or are never predicted; ignored images count nowhere."""
    library = pytest.importorskip("torchmetrics.functional.classification")

    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(60, num_classes, generator=generator)
    logits[:, -1] -= 100  # never predicted
    targets = torch.randint(-1, num_classes - seed % 2, (60,), generator=generator)
    metric = MacroAverages(num_classes, ranked=min(5, num_classes))
    for part in range(0, 60, 7):
        metric.add_batch(predictions=logits[part : part + 7], references=targets[part : part + 7])
    found = metric.compute()
    valid = targets >= 0
    for name, reference in (
        ("macro_precision", library.multiclass_precision),
        ("macro_recall", library.multiclass_recall),
        ("macro_f1", library.multiclass_f1_score),
    ):
        expected = reference(logits[valid].argmax(1), targets[valid], num_classes, "macro")
        assert found[name] == pytest.approx(float(expected), rel=1e-6), name
    nothing = metric.compute(predictions=logits[:2], references=torch.tensor([-1, -1]))
    assert set(nothing.values()) == {None}


def test_calibration_error():
    """One image that does not count, batches of unlike sizes, and the same counts in whatever parts
    and order."""
    random = np.random.default_rng(1)
    logits, references = 3 * random.standard_normal((500, 4)), random.integers(0, 4, 500)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for bins in (15, 4):
        whole = CalibrationError(bins)
        whole.add_batch(predictions=logits, references=references)
        parts = [CalibrationError(bins), CalibrationError(bins)]  # as of two processes
        for place in random.permutation(500):
            parts[int(place % 3 == 0)].add(prediction=logits[place], reference=references[place])
        parts[0].add(prediction=logits[0], reference=-1)
        assert torch.equal(whole.counts, parts[0].counts + parts[1].counts)
        found = whole.compute()["calibration_error"]
        assert found == pytest.approx(
            calibration_by_hand(probabilities, references, bins), abs=1e-7
        )
    assert CalibrationError().compute() == {"calibration_error": None}
    sure = CalibrationError().compute(
        predictions=[[0.0, -np.inf], [0.0, -np.inf]], references=[0, 1]
    )
    assert sure == {"calibration_error": 0.5}


def test_combines_with_metrics_of_evaluate(tmp_path):
    combined = evaluate.combine([TopK((1,)), Errors(cache_dir=str(tmp_path))])
    combined.add_batch(predictions=[1, 2, 3], references=[1, 2, 4])
    combined.add_batch(predictions=[1], references=[1])
    assert combined.compute() == {"top1": 0.75, "errors": 1, "labels": 4}
    assert [type(metric) for metric in each_metric(combined)] == [TopK, Errors]
    assert each_metric(combined.evaluation_modules[0]) == [combined.evaluation_modules[0]]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: MeanIoU(3, absent="nan"), "absent is 'nan'"),
        (lambda: MeanIoU(3, class_names=["a"]), "1 class_names for 3 classes"),
        (
            lambda: MeanIoU(3).add_batch(predictions=[[1]], references=[1]),
            "size of the untouched mask",
        ),
        (lambda: TopK((0,)), "whole numbers from 1"),
        (lambda: CalibrationError(0), "bins is 0; it must be at least 1"),
    ],
)
def test_user_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def official_ade20k(predictions, references):
    """The official evaluation's arithmetic: histograms of 1-based labels, mean of all classes."""
    areas = np.zeros((3, 150))
    right = labelled = 0
    for prediction, reference in zip(predictions, references):  # file ids: 0 unlabelled, 1..150
        seen = (prediction + 1) * (reference > 0)
        hit = seen * (seen == reference)
        for row, values in enumerate((hit, seen, reference)):
            areas[row] += np.histogram(values, bins=150, range=(1, 150))[0]
        right += ((reference > 0) & (prediction + 1 == reference)).sum()
        labelled += (reference > 0).sum()
    iou = areas[0] / (areas[1] + areas[2] - areas[0] + 1e-10)
    return iou.mean(), right / (labelled + 1e-10)


def test_official_evaluation_of_real_ade20k_images(real_data):
    data = ADE20K(real_data / "ADEChallengeData2016", "validation")
    random = np.random.default_rng(0)
    metric, predictions, references = MeanIoU(150, absent="zero"), [], []
    for index in range(3):
        target = data[index][1].numpy()
        wrong = random.random(target.shape) < 0.3
        prediction = np.where(
            wrong | (target == 255), random.integers(0, 150, target.shape), target
        )
        metric.add(prediction=prediction, reference=target)
        predictions.append(prediction)
        references.append(np.where(target == 255, 0, target.astype(np.int64) + 1))
    result = metric.compute()
    expected = official_ade20k(predictions, references)
    assert (result["mIoU"], result["pixAcc"]) == pytest.approx(expected, abs=1e-9)
    assert 0.6 < result["pixAcc"] < 0.8


def test_results_of_other_kinds_go_into_the_log(tmp_path):
    """Numbers of NumPy and torch, arrays, and what is no number."""

    class Odd:
        counts = torch.zeros(1, dtype=torch.int64)

        def add_batch(self, **_):
            pass

        def compute(self):
            f1 = np.array([0.5, np.nan], np.float32)
            return {
                "mean": np.float32(0.25),
                "f1": f1,
                "worst": torch.tensor(2),
                "rate": float("inf"),
                "by": {"a": f1},
            }

    train(
        recognition(task=Recognition(CLASSES, extra_metrics=[Odd()])),
        Options(out=tmp_path, workers=0),
    )
    final = json.loads((tmp_path / "summary.json").read_text())["final"]
    assert [final[name] for name in ("mean", "f1", "worst", "rate", "by")] == [
        0.25, [0.5, None], 2, None, {"a": [0.5, None]}
    ]  # fmt: skip
