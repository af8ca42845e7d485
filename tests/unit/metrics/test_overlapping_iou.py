"""IoU and Dice of overlapping classes against torchmetrics, and pixels that are not known."""

import pytest
import torch

from trainkit.errors import UserError
from trainkit.metrics.boundary import BoundaryIoU
from trainkit.metrics.overlapping import OverlappingBoundaryIoU, OverlappingIoU
from trainkit.tasks.multilabel_segmentation import MultiLabelSegmentation

GENERATOR = torch.Generator().manual_seed(0)
FOUND = torch.randint(2, (5, 3, 7, 6), generator=GENERATOR).to(torch.uint8)
TRUTH = torch.randint(2, (5, 3, 7, 6), generator=GENERATOR).to(torch.int8)
TRUTH[torch.rand(5, 3, 7, 6, generator=GENERATOR) < 0.3] = -1


def computed(found, truth, names=None):
    metric = OverlappingIoU(found.shape[1], names)
    for part in (slice(0, 2), slice(2, None)):
        metric.add_batch(predictions=found[part], references=truth[part])
    details = metric.details()
    return metric.compute(), details


def test_as_torchmetrics():
    library = pytest.importorskip("torchmetrics.classification")
    results, details = computed(FOUND, TRUTH)
    options = {"num_labels": 3, "average": "none", "ignore_index": -1}
    for name, kind in (("IoU", "MultilabelJaccardIndex"), ("Dice", "MultilabelF1Score")):
        theirs = getattr(library, kind)(**options)(FOUND.int(), TRUTH.int())
        assert results[name] == pytest.approx(theirs.tolist(), rel=1e-6)
        assert results[f"m{name}"] == pytest.approx(theirs.mean().item(), rel=1e-6)
    known = TRUTH >= 0
    assert details["pixels"] == (TRUTH > 0).sum((0, 2, 3)).tolist()
    assert details["predicted_pixels"] == ((FOUND > 0) & known).sum((0, 2, 3)).tolist()


def test_classes_that_occur_nowhere():
    truth, found = TRUTH.clone(), FOUND.clone()
    truth[:, 1], found[:, 1] = -1, 1  # found where nothing is known
    results, _ = computed(found, truth, ["a", "b", "c"])
    assert results["IoU"]["b"] is None and results["Dice"]["b"] is None
    assert results["num_classes"] == 2
    known = [value for value in results["IoU"].values() if value is not None]
    assert results["mIoU"] == pytest.approx(sum(known) / 2)


def test_images_add_up():
    """The statistic of the images' sums is the result, as an interval takes them."""
    metric = OverlappingIoU(3)
    results, _ = computed(FOUND, TRUTH)
    for name in ("mIoU", "mDice"):
        each = metric.per_image(name)
        each.add_batch(predictions=FOUND, references=TRUTH)
        found = each.statistic(each.rows().sum(0, keepdim=True).double())
        assert found.item() == pytest.approx(results[name])
    assert metric.per_image("other").statistic is None
    metric.add_batch(predictions=FOUND, references=TRUTH)
    assert metric.class_counts().tolist() == (TRUTH > 0).sum((0, 2, 3)).tolist()


def squares(seed):
    """Masks (4, 2, 30, 40) of two rectangles each, some pixels unknown."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(4, 2, 30, 40, dtype=torch.int8)
    for mask in masks.flatten(0, 1):
        top, left = torch.randint(12, (2,), generator=generator).tolist()
        mask[top : top + 14, left : left + 20] = 1
    masks[torch.rand(masks.shape, generator=generator) < 0.02] = -1
    return masks


def test_boundary_iou_is_that_of_each_mask_alone():
    """As of two classes, one of which is the rest."""
    truth, found = squares(0), squares(1).clamp(min=0)
    (_, metric) = MultiLabelSegmentation(["a", "b"], extra_metrics=["boundary_iou"]).metrics()
    assert isinstance(metric, OverlappingBoundaryIoU)
    for part in (slice(0, 1), slice(1, None)):
        metric.add_batch(predictions=found[part], references=truth[part])
    results = metric.compute()
    expected = {}
    for number, name in enumerate("ab"):
        alone = BoundaryIoU(2)
        labels = truth[:, number].long()
        labels[labels < 0] = 255
        alone.add_batch(predictions=found[:, number].long(), references=labels)
        expected[name] = alone.compute()["BoundaryIoU"][1]
    assert results["BoundaryIoU"] == pytest.approx(expected) and 0.05 < expected["a"] < 0.9
    assert results["mBoundaryIoU"] == pytest.approx(sum(expected.values()) / 2)


def test_other_shapes_are_refused():
    with pytest.raises(UserError, match=r"both must be \(N, 3, H, W\), a mask for each class"):
        OverlappingIoU(3).add_batch(predictions=FOUND[:, 0], references=TRUTH[:, 0])
    with pytest.raises(UserError, match=r"OverlappingBoundaryIoU: .* both must be \(N, 2, H, W\)"):
        OverlappingBoundaryIoU(2).add_batch(predictions=FOUND, references=TRUTH)
