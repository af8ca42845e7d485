"""Losses of overlapping classes against formulas in float64 and other libraries."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from trainkit.errors import UserError
from trainkit.losses.boundary import Boundary
from trainkit.losses.distillation import binary_distillation_sum, num_known
from trainkit.losses.multilabel import AsymmetricLoss, BCEWithLogits, SigmoidFocal
from trainkit.losses.pixelwise import CrossEntropy
from trainkit.losses.region import Dice, Lovasz, Tversky
from trainkit.tasks.multilabel_segmentation import MultiLabelSegmentation, named_losses

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 2 * torch.randn(3, 4, 6, 5, generator=GENERATOR)
MASKS = torch.randint(2, (3, 4, 6, 5), generator=GENERATOR).to(torch.int8)
MASKS[torch.rand(3, 4, 6, 5, generator=GENERATOR) < 0.2] = -1
MASKS[0, 1] = 0  # of no pixel
MASKS[1, 2] = -1  # of which nothing is known
MASKS[2] = -1


def pairs():
    """Probabilities and labels of the valid pairs of each image and class, in float64."""
    p = 1 / (1 + np.exp(-LOGITS.numpy().astype(np.float64)))
    for image in range(3):
        for label in range(4):
            known = MASKS[image, label].numpy() >= 0
            yield p[image, label][known], MASKS[image, label].numpy()[known]


def test_binary_cross_entropy():
    weight = [1.0, 2.0, 0.5, 3.0]
    loss = count = 0.0
    for place, (p, y) in enumerate(pairs()):
        w = weight[place % 4]
        loss -= (w * y * np.log(p) + (1 - y) * np.log(1 - p)).sum()
        count += len(y)
    task = MultiLabelSegmentation(4, BCEWithLogits(weight))
    assert task.losses(LOGITS, MASKS).item() == pytest.approx(loss, rel=1e-5)
    assert task.counts(MASKS).item() == count
    known = MASKS >= 0
    theirs = F.binary_cross_entropy_with_logits(LOGITS[known].double(), MASKS[known].double())
    plain = MultiLabelSegmentation(4, BCEWithLogits())
    mean = plain.losses(LOGITS, MASKS) / plain.counts(MASKS)
    assert mean.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_dice():
    """Of each image and class that has a pixel; a class without one has no part."""
    loss, count = 0.0, 0
    for p, y in pairs():
        if (y == 1).any():
            loss += 1 - (2 * (p * y).sum() + 1) / ((p**2).sum() + y.sum() + 1)
            count += 1
    task = MultiLabelSegmentation(4, Dice())
    assert 0 < count < 9 and task.counts(MASKS).item() == count
    assert task.losses(LOGITS, MASKS).item() == pytest.approx(loss, rel=1e-5)


def test_tversky_is_smps():
    library = pytest.importorskip("segmentation_models_pytorch.losses")
    theirs = library.TverskyLoss("multilabel", smooth=1.0, alpha=0.3, beta=0.7)
    known = MASKS.clamp(min=0)
    for image in range(2):
        part = slice(image, image + 1)
        ours = Tversky()(LOGITS[part], known[part], -1)
        assert ours.item() == pytest.approx(4 * theirs(LOGITS[part], known[part]).item(), rel=1e-5)


@pytest.mark.parametrize("loss", [SigmoidFocal(), AsymmetricLoss()])
def test_a_pixel_is_as_an_image_of_any_number_of_classes(loss):
    rows = LOGITS.permute(0, 2, 3, 1).reshape(-1, 4), MASKS.permute(0, 2, 3, 1).reshape(-1, 4)
    torch.testing.assert_close(loss(LOGITS, MASKS, -1), loss(*rows, -1))
    assert loss.count(MASKS, -1, 4) == loss.count(rows[1], -1, 4) == (MASKS >= 0).sum()


def test_boundary_is_that_of_each_mask_alone():
    """By scipy's distances to known pixels that are, and are not, of the class."""
    distances = pytest.importorskip("scipy.ndimage").distance_transform_edt
    total = 0.0
    for p, mask in zip(LOGITS.sigmoid().flatten(0, 1).double().numpy(), MASKS.flatten(0, 1)):
        inside, outside = (mask > 0).numpy(), (mask == 0).numpy()
        if inside.any() and outside.any():
            total += (p * distances(~inside))[outside].sum()
            total += (p * (1 - distances(~outside)))[inside].sum()
    task = MultiLabelSegmentation(4, [BCEWithLogits(), Boundary(0.5)])
    assert task.losses(LOGITS, MASKS)[1].item() == pytest.approx(0.5 * total, rel=1e-5)
    assert task.counts(MASKS).tolist() == [(MASKS >= 0).sum()] * 2


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_distillation_is_torchs_divergence_of_two_outcomes(temperature):
    """Of (yes, no) each, in float64; unknown pairs count nowhere, NaN of theirs too."""
    teacher = torch.randn(LOGITS.shape, generator=torch.Generator().manual_seed(3))

    def logs(logits):
        logits = logits.double() / temperature
        return torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)])

    each = F.kl_div(logs(LOGITS), logs(teacher), reduction="none", log_target=True).sum(0)
    wanted = temperature**2 * each[MASKS >= 0].sum()
    teacher[MASKS < 0] = torch.nan
    found = binary_distillation_sum(LOGITS, teacher, MASKS, temperature)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert num_known(MASKS).item() == (MASKS >= 0).sum()
    task = MultiLabelSegmentation(4)
    assert task.distillation_loss({"out": LOGITS}, teacher, MASKS, temperature) == found
    assert task.distillation_count(MASKS) == num_known(MASKS)
    student = LOGITS.clone().requires_grad_()
    binary_distillation_sum(student, LOGITS, MASKS, temperature).backward()
    assert not student.grad.any()  # of a student that is its teacher


@pytest.mark.parametrize("loss", [BCEWithLogits(), Dice(), Tversky(), Boundary()])
def test_gradients_and_parts(loss):
    """Gradients by differences in float64's place, none of unknown pixels; parts add up."""
    logits = LOGITS.clone().requires_grad_()
    total = loss(logits, MASKS, -1)
    (gradient,) = torch.autograd.grad(total, logits)
    assert not gradient[MASKS < 0].any()
    step = 1e-2 * torch.randn(LOGITS.shape, generator=torch.Generator().manual_seed(2))
    change = loss(LOGITS + step, MASKS, -1) - loss(LOGITS - step, MASKS, -1)
    assert change.item() == pytest.approx(2 * (gradient * step).sum().item(), rel=1e-2, abs=1e-4)
    parts = [loss(LOGITS[part], MASKS[part], -1) for part in (slice(0, 1), slice(1, 3))]
    torch.testing.assert_close(sum(parts), total.detach())


def test_evaluations_have_the_loss_of_each_image():
    task = MultiLabelSegmentation(4, named_losses(["bce", "dice"]), threshold=0.7)
    found, sums = task.evaluated({"out": LOGITS}, MASKS)
    assert torch.equal(found, (LOGITS.sigmoid() > 0.7).to(torch.uint8))
    totals = torch.stack([sums[name].sum() for name in task.terms])
    torch.testing.assert_close(totals, task.losses(LOGITS, MASKS))
    scores = task.scores(LOGITS, LOGITS)
    assert torch.equal(task.from_scores(scores), found)
    for name, each in task.score_losses(scores, MASKS).items():
        torch.testing.assert_close(each, sums[name], rtol=1e-4, atol=1e-4)


def test_named():
    assert named_losses(("bce", "tversky", "focal", "asl", "boundary"), [1.0, 2.0]) == [
        BCEWithLogits([1.0, 2.0]), Tversky(), SigmoidFocal(), AsymmetricLoss(), Boundary(),
    ]  # fmt: skip
    assert MultiLabelSegmentation(1).terms == ("bce", "dice")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: MultiLabelSegmentation(0), "no classes"),
        (lambda: MultiLabelSegmentation(2, threshold=1), "threshold is 1; it must be between"),
        (lambda: MultiLabelSegmentation(2, CrossEntropy()), "loss cross_entropy is of one class"),
        (lambda: MultiLabelSegmentation(2, Lovasz()), "loss lovasz is of one class per pixel"),
        (lambda: MultiLabelSegmentation(2, BCEWithLogits([1.0])), "1 numbers of pos_weight for 2"),
        (lambda: MultiLabelSegmentation(2, palette=[(0, 0, 0)]), "palette has 1 entries for 2"),
        (lambda: named_losses(["dice"], [1.0]), "pos_weight is of bce, and the loss is dice"),
        (lambda: BCEWithLogits()(LOGITS, MASKS[:, :2], -1), "of several classes for each image or"),
        (lambda: MultiLabelSegmentation(3).losses(LOGITS, MASKS), "the network has 4 outputs"),
    ],
)
def test_user_errors(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_check():
    task = MultiLabelSegmentation(2)
    assert task.check(torch.zeros(2, 3, 4, dtype=torch.int8)) is None
    assert task.check(np.array([[[1]], [[-1]]])) is None
    assert "target is torch.int64 of shape (3, 4); it is whole" in task.check(
        torch.zeros(3, 4, dtype=torch.int64)
    )
    stored = torch.zeros(2, 3, 4, dtype=torch.uint8)
    stored[1, 0] = 255
    assert task.check(stored).startswith("target holds 255 on 4 pixels: a mask has 1, 0, and -1")
