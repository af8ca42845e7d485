"""Boundary IoU against eroded masks, and Dice against torchmetrics; sums over any batches."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion
from torchmetrics.classification import MulticlassF1Score

from helpers.toy_recipes import CLASSES, segmentation
from trainkit.errors import UserError
from trainkit.metrics.base import declared
from trainkit.metrics.boundary import BoundaryIoU, near_outline
from trainkit.tasks.segmentation import Segmentation

NUM = 4  # class 3 occurs nowhere


def masks(num_images: int, height: int, width: int, void: bool = True):
    """Blobs and their predictions, which are shifted and partly wrong; a part is ignored."""
    generator = torch.Generator().manual_seed(height)
    coarse = torch.randint(3, (num_images, 1, 5, 6), generator=generator).float()
    size = (height, width)
    references = torch.nn.functional.interpolate(coarse, size=size)[:, 0].long()
    predictions = references.roll((2, -1), (1, 2))
    noise = torch.rand(references.shape, generator=generator)
    predictions[noise < 0.02] = 1
    if void:
        references[:, height // 3 : height // 2, width // 4 : width // 2] = 255
        references[noise > 0.99] = 255
    return predictions, references


def boundary(mask: np.ndarray, distance: int) -> np.ndarray:
    """As published: the mask without what is left after erosions with 3x3, with 0 around it."""
    left = binary_erosion(mask, np.ones((3, 3)), iterations=distance, border_value=0)
    return mask & ~left


def by_hand(predictions, references, width: float) -> list[float | None]:
    sums = np.zeros((2, NUM))
    for found, truth in zip(predictions.numpy(), references.numpy()):
        distance = max(1, round(width * math.hypot(*truth.shape)))
        for c in range(NUM):
            valid = truth != 255
            ours = boundary((found == c) & valid, distance)
            theirs = boundary((truth == c) & valid, distance)
            sums[:, c] += (ours & theirs).sum(), (ours | theirs).sum()
    return [both / union if union else None for both, union in sums.T]


@pytest.mark.parametrize("size", [(61, 83), (40, 24)])
@pytest.mark.parametrize("width", [0.001, 0.02, 0.06])
@pytest.mark.parametrize("void", [False, True])
def test_boundary_iou_is_that_of_eroded_masks(size, width, void):
    predictions, references = masks(3, *size, void=void)
    metric = BoundaryIoU(NUM, width=width)
    found = metric.compute(predictions=predictions, references=references.to(torch.uint8))
    expected = by_hand(predictions, references, width)
    assert found["BoundaryIoU"] == pytest.approx(expected) and expected[3] is None
    assert found["mBoundaryIoU"] == pytest.approx(np.mean(expected[:3]))
    assert 0 < found["mBoundaryIoU"] < 1


def test_an_outline_is_seen_along_both_sides_and_at_the_border():
    labels = torch.zeros(1, 9, 9, dtype=torch.int64)
    labels[0, 4, 4] = 2
    near = near_outline(labels, 1)[0]
    expected = torch.ones(9, 9, dtype=torch.bool)
    expected[1:-1, 1:-1] = False
    expected[3:6, 3:6] = True
    assert torch.equal(near, expected)
    assert BoundaryIoU(3).compute(predictions=labels, references=labels)["mBoundaryIoU"] == 1.0


def test_sums_of_batches_and_processes_are_those_of_the_whole():
    predictions, references = masks(5, 48, 56)
    task = Segmentation(NUM, extra_metrics=("dice", "boundary_iou"))

    def counted(parts):
        """Of several processes: the counts are added up."""
        total = task.metrics()
        for part in parts:
            for one, metric in zip(total, task.metrics()):
                metric.add_batch(predictions=predictions[part], references=references[part])
                one.counts = one.counts + metric.counts
        return [metric.compute() for metric in total]

    whole = counted([slice(0, 5)])
    assert whole == counted([slice(0, 2), slice(2, 5)]) == counted([[i] for i in range(5)])


def test_dice_is_torchmetrics_f1():
    predictions, references = masks(3, 48, 56)
    names = ("road", "car", "sky", "none")
    task = Segmentation(names, extra_metrics=("dice", "torchmetrics:F1Score:average=macro"))
    (metric,) = task.metrics()
    found = metric.compute(predictions=predictions, references=references)
    theirs = MulticlassF1Score(NUM, average=None, ignore_index=255)(predictions, references)
    assert list(found["Dice"].values())[:3] == pytest.approx(theirs[:3].tolist())
    assert found["Dice"]["none"] is None and list(found["Dice"]) == list(names)
    assert found["mDice"] == pytest.approx(theirs[:3].mean().item())
    assert found["mDice"] == pytest.approx(float(found["F1Score_macro"]))
    zero = Segmentation(NUM, absent="zero", extra_metrics=("dice",)).metrics()[0]
    found = zero.compute(predictions=predictions, references=references)
    assert found["mDice"] == pytest.approx(theirs[:3].sum().item() / 4)
    assert found["Dice"][3] == 0.0


def test_what_they_declare():
    task = Segmentation(NUM, extra_metrics=("dice", "boundary_iou"))
    assert {"mDice", "Dice", "mBoundaryIoU", "BoundaryIoU", "mIoU"} <= declared(task, "percent")
    assert declared(task, "per_class") >= {"Dice", "BoundaryIoU", "IoU"}
    assert "mDice" in task.metrics()[0].higher_is_better
    plain = declared(Segmentation(NUM), "percent")
    assert "mDice" not in plain, "another task's metrics say nothing of this one's"
    with pytest.raises(UserError, match="width is 0; it is a share of the diagonal"):
        BoundaryIoU(NUM, width=0)
    with pytest.raises(UserError, match="metric dices is unknown: give dice, boundary_iou"):
        Segmentation(NUM, extra_metrics=("dices",)).metrics()


@pytest.mark.nightly
def test_they_stand_in_the_log_and_select_the_best(tmp_path):
    from trainkit import Options, train

    task = Segmentation(CLASSES, extra_metrics=("dice", "boundary_iou"))
    options = Options(out=tmp_path, workers=0, headline="mBoundaryIoU")
    final = train(segmentation(task=task, epochs=1), options)["final"]
    assert 0 < final["mBoundaryIoU"] < 1 and 0 < final["mDice"] < 1
