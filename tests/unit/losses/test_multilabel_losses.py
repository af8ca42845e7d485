"""Losses of several classes per image: against formulas, torchvision's, and the authors' code."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from trainkit.losses.multilabel import AsymmetricLoss, BCEWithLogits, SigmoidFocal

IGNORE = -1


def batch(seed: int, images: int = 9, classes: int = 6):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, generator=generator) * 4
    targets = torch.randint(-1, 2, (images, classes), generator=generator, dtype=torch.int8)
    return logits.requires_grad_(), targets


def authors_asl(x, y, gamma_neg, gamma_pos, clip):
    """As the authors' AsymmetricLoss computes it, pair by pair."""
    positive = torch.sigmoid(x)
    negative = 1 - positive
    if clip > 0:
        negative = (negative + clip).clamp(max=1)
    loss = y * positive.clamp(min=1e-8).log() + (1 - y) * negative.clamp(min=1e-8).log()
    likelihood = positive * y + negative * (1 - y)
    gamma = gamma_pos * y + gamma_neg * (1 - y)
    return -loss * (1 - likelihood) ** gamma


def assert_same(criterion, reference, seed):
    """The sum over valid pairs, its gradient, the count, and images one by one."""
    logits, targets = batch(seed)
    valid = targets >= 0
    expected = torch.where(valid, reference(logits, targets.clamp(min=0).float()), 0.0).sum()
    (wanted,) = torch.autograd.grad(expected, logits)
    found = criterion(logits, targets, IGNORE)
    (gradient,) = torch.autograd.grad(found, logits)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)
    assert (gradient[~valid] == 0).all()
    assert criterion.count(targets, IGNORE, 6) == valid.sum()
    parts = [criterion(logits[n : n + 1], targets[n : n + 1], IGNORE) for n in range(len(logits))]
    torch.testing.assert_close(torch.stack(parts), criterion.of_images(logits, targets))


@pytest.mark.parametrize("seed", range(5))
def test_binary_cross_entropy(seed):
    weight = [0.5, 1.0, 2.0, 3.0, 1.5, 4.0]

    def formula(x, y):
        p = torch.sigmoid(x.double())
        loss = -torch.tensor(weight).double() * y * p.log() - (1 - y) * (1 - p).log()
        return loss.float()

    assert_same(BCEWithLogits(weight), formula, seed)
    smooth = BCEWithLogits(label_smoothing=0.2)
    assert_same(
        smooth,
        lambda x, y: F.binary_cross_entropy_with_logits(x, 0.8 * y + 0.1, reduction="none"),
        seed,
    )


@pytest.mark.parametrize("gamma, alpha", [(2.0, 0.25), (0.0, 0.25), (1.5, None), (3.0, 0.9)])
def test_focal_is_torchvisions(gamma, alpha):
    theirs = -1 if alpha is None else alpha
    for seed in range(3):
        assert_same(
            SigmoidFocal(gamma, alpha),
            lambda x, y: sigmoid_focal_loss(x, y, alpha=theirs, gamma=gamma),
            seed,
        )


@pytest.mark.parametrize(
    "gamma_neg, gamma_pos, clip", [(4, 0, 0.05), (4, 1, 0.05), (2, 2, 0.0), (0, 0, 0.2), (4, 1, 0)]
)
def test_asymmetric_is_the_authors(gamma_neg, gamma_pos, clip):
    for seed in range(3):
        assert_same(
            AsymmetricLoss(gamma_neg, gamma_pos, clip),
            lambda x, y: authors_asl(x, y, gamma_neg, gamma_pos, clip),
            seed,
        )


def test_without_focus_all_are_binary_cross_entropy():
    logits, targets = batch(7)
    plain = BCEWithLogits()(logits, targets, IGNORE)
    for criterion in (AsymmetricLoss(0, 0, 0), SigmoidFocal(0, None)):
        torch.testing.assert_close(criterion(logits, targets, IGNORE), plain)


@pytest.mark.parametrize(
    "criterion",
    [
        BCEWithLogits(),
        SigmoidFocal(0.5),
        SigmoidFocal(),
        AsymmetricLoss(),
        AsymmetricLoss(0.5, 0.5),
    ],
)
def test_extreme_logits_have_finite_gradients(criterion):
    logits = torch.tensor([[1e4, -1e4, 90.0, -90.0, 0.0]], requires_grad=True)
    for value in (0, 1, -1):
        targets = torch.full((1, 5), value, dtype=torch.int8)
        loss = criterion(logits, targets, IGNORE)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite() and gradient.isfinite().all()
    nothing = torch.full((2, 5), -1, dtype=torch.int8)
    assert criterion(torch.zeros(2, 5), nothing, IGNORE) == 0
    assert criterion.count(nothing, IGNORE, 5) == 0


def test_mixtures_are_mixtures_of_losses():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    ones, zeros = torch.ones(4, 3), torch.zeros(4, 3)
    for criterion in (BCEWithLogits(), SigmoidFocal(), AsymmetricLoss(4, 1, 0.05)):
        mixed = criterion(logits, 0.3 * ones, IGNORE)
        parts = 0.3 * criterion(logits, ones, IGNORE) + 0.7 * criterion(logits, zeros, IGNORE)
        torch.testing.assert_close(mixed, parts)


@pytest.mark.parametrize("make, message", [
    (lambda: BCEWithLogits(label_smoothing=1.0), "label_smoothing is 1.0"),
    (lambda: BCEWithLogits([1.0, 0.0]), r"pos_weight is \[1.0, 0.0\]: each must be above 0"),
    (lambda: SigmoidFocal(gamma=-1), "SigmoidFocal: gamma is -1"),
    (lambda: SigmoidFocal(alpha=2), "SigmoidFocal: alpha is 2"),
    (lambda: AsymmetricLoss(gamma_pos=-1), "AsymmetricLoss: gamma_pos is -1"),
    (lambda: AsymmetricLoss(clip=1), "AsymmetricLoss: clip is 1"),
    (lambda: BCEWithLogits()(torch.zeros(2, 3), torch.zeros(2), -1), r"targets are \(2,\)"),
])  # fmt: skip
def test_what_is_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
