"""Boundary loss: distances against scipy and by hand, the loss in float64."""

import numpy as np
import pytest
import torch

from helpers.loss_inputs import LABELS, MAPS, log_softmax
from trainkit.losses.boundary import Boundary, signed_distances, squared_distances
from trainkit.losses.pixelwise import CrossEntropy
from trainkit.losses.region import Dice
from trainkit.tasks.segmentation import Segmentation, named_losses

ndimage = pytest.importorskip("scipy.ndimage")


def test_worked_example():
    """A bar of class 1 with an ignored pixel beside it, which has no part in anything."""
    target = torch.tensor([[0, 0, 1, 1, 1, 255], [0, 0, 1, 1, 1, 0]], dtype=torch.uint8)
    beside = 1 - 2**0.5  # the nearest of another class lies below the ignored pixel
    expected = [[2, 1, 0, -1, beside, 0], [2, 1, 0, -1, 0, 1]]
    found = signed_distances(target, torch.tensor([1, 0]), 255)
    torch.testing.assert_close(found[0], torch.tensor(expected))
    assert found[1][1].tolist() == [-1, 0, 1, 2, 1, 0]
    logits = torch.zeros(1, 2, 2, 6)  # half of each class
    total = 0.5 * found.sum().item()
    assert Boundary()(logits, target[None], 255).item() == pytest.approx(total)
    assert Boundary().count(target[None], 255, 2).item() == 11


@pytest.mark.parametrize("share", [0.002, 0.05, 0.5, 0.98])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (37, 1), (33, 64), (90, 51)])
def test_squared_distances_are_scipys(size, share):
    there = torch.rand(3, *size, generator=torch.Generator().manual_seed(4)) < share
    there[:, -1, -1] = True
    for one, found in zip(there, squared_distances(there)):
        wanted = ndimage.distance_transform_edt(~one.numpy())
        assert torch.equal(found, torch.from_numpy((wanted**2).round()).float())


def of_authors(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """The distance maps of the paper's code, of masks without ignored pixels."""
    maps = np.zeros((num_classes, *labels.shape))
    for label in range(num_classes):
        inside = labels == label
        if inside.any():
            out = ndimage.distance_transform_edt(~inside) * ~inside
            maps[label] = out - (ndimage.distance_transform_edt(inside) - 1) * inside
    return maps


def test_it_is_the_authors_loss():
    """Theirs is the mean over images, classes and pixels; gradients in float64."""
    labels = torch.randint(4, (2, 24, 20), generator=torch.Generator().manual_seed(5)).clamp(max=2)
    labels[1, 4:17, 3:12] = 3
    labels[0][labels[0] == 3] = 1  # which the first image lacks
    labels[0, 5:15, 5:15] = 2
    maps = torch.from_numpy(np.stack([of_authors(each, 4) for each in labels.numpy()]))
    logits = torch.randn(2, 4, 24, 20, generator=torch.Generator().manual_seed(6))
    exact = logits.double().requires_grad_()
    theirs = (exact.softmax(1) * maps).mean()
    ours = logits.requires_grad_()
    loss = Boundary()(ours, labels, 255) / (Boundary().count(labels, 255, 4) * 4)
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, ours)
    (wanted,) = torch.autograd.grad(theirs, exact)
    torch.testing.assert_close(gradient, wanted.float(), rtol=1e-4, atol=1e-9)


def test_ignored_pixels_are_left_out():
    """By definition, pixel for pixel: distances to valid pixels alone."""
    p = np.exp(log_softmax(MAPS.numpy()))
    total = 0.0
    for image, labels in enumerate(LABELS.numpy()):
        places = [(y, x) for y, x in np.ndindex(labels.shape) if labels[y, x] != 255]
        for label in {int(labels[place]) for place in places}:
            for place in places:
                here = labels[place] == label
                others = [q for q in places if (labels[q] == label) != here]
                if others:
                    nearest = min(float(np.hypot(*np.subtract(place, q))) for q in others)
                    total += p[image, label][place] * (1 - nearest if here else nearest)
    task = Segmentation(5, loss=Boundary(0.5))
    assert task.losses(MAPS, LABELS).item() == pytest.approx(0.5 * total, rel=1e-5)
    assert task.counts(LABELS).item() == (LABELS != 255).sum()


def test_what_has_no_outline_costs_nothing():
    logits = torch.randn(2, 3, 6, 7, requires_grad=True)
    for mask in (torch.full((2, 6, 7), 1), torch.full((2, 6, 7), 255)):
        loss = Boundary()(logits, mask, 255)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.item() == 0 and not gradient.any()


def test_by_name_and_with_a_factor_that_rises():
    """As docs/recipes.md has it."""
    assert named_losses(["dice", "boundary"]) == [Dice(), Boundary()]

    class Rising(Segmentation):
        def at_step(self, model, step, total_steps):
            factor = 0.01 + 0.99 * step / total_steps
            object.__setattr__(self, "loss", [CrossEntropy(), Boundary(factor)])

    task = Rising(5, loss=[CrossEntropy(), Boundary()])
    one = Boundary()(MAPS, LABELS, 255).item()
    for step, factor in ((0, 0.01), (50, 0.505), (100, 1.0)):
        task.at_step(torch.nn.Identity(), step, 100)
        assert task.losses(MAPS, LABELS)[1].item() == pytest.approx(factor * one, rel=1e-5)
