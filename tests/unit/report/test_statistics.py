"""Numbers of a report against those of an evaluation, torchmetrics and hand."""

import json

import numpy as np
import pytest
import torch
import torchmetrics

from helpers.run_folders import add_recognition, add_segmentation, run_folder, write_json
from trainkit.metrics.bootstrap import interval
from trainkit.metrics.recognition import TopK
from trainkit.metrics.segmentation import MeanIoU
from trainkit.report.evaluation_data import read_evaluation
from trainkit.report.statistics import (
    ImagesDiffer,
    headline_interval,
    paired_difference,
    reliability,
)
from trainkit.storage.checked_json import Fault


def evaluation(run, name="step-000000100"):
    return read_evaluation(run / "evaluations" / f"{name}.json")


def test_the_interval_of_accuracy_is_that_of_an_evaluation(tmp_path):
    run = run_folder(tmp_path / "run")
    arrays = add_recognition(run)
    rows = TopK(classes=3).per_image("top1")
    rows.add_batch(
        predictions=torch.from_numpy(arrays["predicted"])[:, None],
        references=torch.from_numpy(arrays["target"]),
    )
    expected = interval(rows.rows(), rows.statistic)
    assert headline_interval(evaluation(run), "top1") == pytest.approx(expected, abs=1e-12)
    assert headline_interval(evaluation(run), "some_metric") is None


def test_the_interval_of_the_mean_iou_is_that_of_an_evaluation(tmp_path):
    run = run_folder(tmp_path / "run")
    arrays = add_segmentation(run)
    names = ("intersection", "true_pixels", "predicted_pixels")
    rows = torch.from_numpy(np.concatenate([arrays[name] for name in names], 1)).long()
    for metric in ("mIoU", "pixAcc"):
        statistic = MeanIoU(3).per_image(metric).statistic
        expected = interval(rows, statistic)
        assert headline_interval(evaluation(run), metric) == pytest.approx(expected, abs=1e-12)


def test_a_class_that_occurs_nowhere_counts_as_in_the_run(tmp_path):
    """The first images have none of the third class; no image has any of a fourth one."""
    run = run_folder(tmp_path / "run")
    arrays = add_segmentation(run)
    names = ("intersection", "true_pixels", "predicted_pixels")
    for name in names:
        arrays[name][:10, 2] = 0
        arrays[name] = np.pad(arrays[name], ((0, 0), (0, 1)))
    arrays["confusion"] = np.zeros((4, 4), dtype=np.int64)
    np.savez(run / "evaluations/step-000000100.npz", **arrays)
    rows = torch.from_numpy(np.concatenate([arrays[name] for name in names], 1)).long()
    file = run / "evaluations/step-000000100.json"
    about = {**json.loads(file.read_text()), "classes": ["a", "b", "c", "d"], "palette": None}
    found = []
    for absent in ("skip", "zero"):
        write_json(file, {**about, "absent": absent})
        statistic = MeanIoU(4, absent=absent).per_image("mIoU").statistic
        found.append(headline_interval(evaluation(run), "mIoU"))
        assert found[-1] == pytest.approx(interval(rows, statistic), abs=1e-12)
    assert found[0][0] > found[1][1]


def test_the_calibration_error_is_that_of_torchmetrics(tmp_path):
    """Two classes: the probability of the predicted one says all."""
    run = run_folder(tmp_path / "run", classes=["no", "yes"])
    arrays = add_recognition(run, classes=2, images=500)
    probability = torch.from_numpy(arrays["probability"])
    predicted = torch.from_numpy(arrays["predicted"])
    scores = torch.stack([1 - probability, 1 - probability], 1)
    scores[torch.arange(500), predicted] = probability
    metric = torchmetrics.classification.MulticlassCalibrationError(2, n_bins=15, norm="l1")
    expected = metric(scores, torch.from_numpy(arrays["target"])).item()
    bins, error = reliability(evaluation(run))
    assert error == pytest.approx(expected, abs=1e-6)
    assert sum(each.num_images for each in bins) == 500 and len(bins) == 8  # from 1/2 on


def test_a_paired_difference_by_hand(tmp_path):
    """The second run is right on six images of 60 where the first is wrong."""
    one, other = run_folder(tmp_path / "a"), run_folder(tmp_path / "b")
    arrays = add_recognition(one)
    add_recognition(other)
    wrong = np.flatnonzero(arrays["predicted"] != arrays["target"])[:6]
    assert len(wrong) == 6
    better = dict(arrays)
    better["predicted"] = arrays["predicted"].copy()
    better["predicted"][wrong] = arrays["target"][wrong]
    np.savez(other / "evaluations/step-000000100.npz", **better)
    found = paired_difference(evaluation(one), evaluation(other), "top1")
    assert found.value == pytest.approx(0.1)
    # the number of those six that are drawn is binomial: 6 of 60 in each of 60 draws
    deviation = (60 * 0.1 * 0.9) ** 0.5 / 60
    assert found.low == pytest.approx(0.1 - 1.96 * deviation, abs=0.02)
    assert found.high == pytest.approx(0.1 + 1.96 * deviation, abs=0.02)
    assert not found.within_noise
    same = paired_difference(evaluation(one), evaluation(one), "top1")
    assert same == (0, 0, 0) and same.within_noise


def test_a_damaged_evaluation_is_refused(tmp_path):
    """Wherever a byte of it is another: read as it was, or refused."""
    run = run_folder(tmp_path / "run")
    arrays = add_recognition(run)
    file = run / "evaluations/step-000000100.npz"
    np.savez_compressed(file, **arrays)
    whole = file.read_bytes()
    draw = np.random.default_rng(0)
    refused = 0
    for place in draw.integers(0, len(whole), 400):
        changed = bytearray(whole)
        changed[place] ^= draw.integers(1, 256)
        file.write_bytes(changed)
        try:
            evaluation(run)
        except Fault as error:
            assert "step-000000100.npz cannot be read (" in str(error)
            refused += 1
    assert refused > 300


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: {**arrays, "names": arrays["names"][::-1]}, "the names of the images"),
        (lambda arrays: {**arrays, "target": arrays["target"][::-1]}, "the true classes differ"),
    ],
)
def test_other_images_are_refused(tmp_path, change, message):
    one, other = run_folder(tmp_path / "a"), run_folder(tmp_path / "b")
    arrays = add_recognition(one)
    add_recognition(other)
    np.savez(other / "evaluations/step-000000100.npz", **change(arrays))
    with pytest.raises(ImagesDiffer, match=message):
        paired_difference(evaluation(one), evaluation(other), "top1")


def test_another_number_of_images_is_refused(tmp_path):
    one, other = run_folder(tmp_path / "a"), run_folder(tmp_path / "b")
    add_recognition(one)
    add_recognition(other, images=59)
    with pytest.raises(ImagesDiffer, match="60 images against 59"):
        paired_difference(evaluation(one), evaluation(other), "top1")
