"""IoU and Dice of overlapping classes against torchmetrics, and pixels that are not known."""

import pytest
import torch

from trainkit.errors import UserError
from trainkit.metrics.overlapping import OverlappingIoU

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


def test_other_shapes_are_refused():
    with pytest.raises(UserError, match=r"both must be \(N, 3, H, W\), a mask for each class"):
        OverlappingIoU(3).add_batch(predictions=FOUND[:, 0], references=TRUTH[:, 0])
