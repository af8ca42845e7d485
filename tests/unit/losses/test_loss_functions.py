"""Losses against formulas written out in float64."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from helpers.loss_inputs import GENERATOR, LABELS, LOGITS, MAPS, log_softmax
from trainkit.losses.functional import (
    class_presence,
    cross_entropies,
    cross_entropy_sum,
    num_valid,
    presence_loss_sum,
)
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.segmentation import Segmentation


def by_hand(logits, targets, ignore=-1, smoothing=0.0) -> float:
    """One target at a time."""
    logs = np.moveaxis(log_softmax(logits.numpy()), 1, -1).reshape(-1, logits.shape[1])
    total = 0.0
    for row, target in zip(logs, targets.flatten().tolist()):
        if target != ignore:
            total -= (1 - smoothing) * row[target] + smoothing * row.mean()
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_hard_targets(smoothing):
    targets = torch.tensor([0, 4, -1, 2, 2, 1])
    loss = cross_entropy_sum(LOGITS, targets, label_smoothing=smoothing)
    assert loss.item() == pytest.approx(by_hand(LOGITS, targets, smoothing=smoothing), rel=1e-6)
    assert num_valid(targets).item() == 5


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_targets(smoothing):
    targets = torch.rand(6, 5, generator=GENERATOR)
    targets /= targets.sum(1, keepdim=True)
    smooth = (1 - smoothing) * targets.double().numpy() + smoothing / 5
    expected = -(smooth * log_softmax(LOGITS.numpy())).sum()
    assert cross_entropy_sum(LOGITS, targets, label_smoothing=smoothing).item() == pytest.approx(
        expected, rel=1e-6
    )
    assert num_valid(targets).item() == 6


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_pixels(dtype):
    targets = LABELS.to(dtype)
    assert cross_entropy_sum(MAPS, targets, 255).item() == pytest.approx(
        by_hand(MAPS, targets, 255), rel=1e-6
    )
    assert num_valid(targets, 255).item() == (LABELS != 255).sum()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_gradient_of_pixels(dtype, tolerance):
    """That of torch's own cross-entropy in float64, for logits in either memory format."""
    for layout in (torch.contiguous_format, torch.channels_last):
        maps = MAPS.to(dtype).clone(memory_format=layout).requires_grad_()
        (0.25 * cross_entropy_sum(maps, LABELS, 255)).backward()
        exact = maps.detach().double().requires_grad_()
        (0.25 * F.cross_entropy(exact, LABELS, ignore_index=255, reduction="sum")).backward()
        assert maps.grad.dtype == dtype and maps.grad[2].count_nonzero() == 0
        torch.testing.assert_close(maps.grad.double(), exact.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("layout", ["rows", "channels last", "transposed"])
def test_pixels_of_a_large_image_do_not_depend_on_its_pieces(layout):
    logits = torch.randn(2, 19, 301, 517, generator=GENERATOR)
    if layout == "channels last":
        logits = logits.to(memory_format=torch.channels_last)
    if layout == "transposed":
        logits = logits.mT.contiguous().mT
    targets = torch.randint(19, (2, 301, 517), generator=GENERATOR)
    targets[0, 40:90] = 255
    logits.requires_grad_()
    each = cross_entropies(logits, targets, 255)
    (each * torch.linspace(0, 1, 517)).sum().backward()

    chosen = logits.detach().gather(1, targets.clamp(max=18)[:, None])[:, 0]
    whole = torch.stack([image.logsumexp(0) for image in logits.detach()]) - chosen
    assert torch.equal(each, torch.where(targets == 255, 0, whole))
    other = logits.detach().clone().requires_grad_()
    expected = F.cross_entropy(other, targets, ignore_index=255, reduction="none")
    (expected * torch.linspace(0, 1, 517)).sum().backward()
    assert torch.allclose(each, expected, atol=1e-5)
    assert torch.allclose(logits.grad, other.grad, atol=1e-6)


def test_pixels_keep_no_copy_of_the_logits():
    """Autograd holds the logits themselves, and one number and a few bytes for each pixel."""
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor
        return tensor

    maps = torch.randn(2, 150, 8, 8).bfloat16().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        cross_entropy_sum(maps, torch.zeros(2, 8, 8, dtype=torch.uint8))
    assert maps.data_ptr() in kept
    assert sum(t.nbytes for t in kept.values()) <= maps.nbytes + 2 * 64 * (8 + 4 + 1)


def test_class_weights():
    weight = torch.tensor([0.5, 1, 2, 3, 0.1])
    sums = cross_entropy_sum(MAPS, LABELS, 255, weight=weight)
    mean = torch.nn.functional.cross_entropy(
        MAPS.double(), LABELS, weight.double(), ignore_index=255
    )
    assert (sums / num_valid(LABELS, 255, weight)).item() == pytest.approx(mean.item(), rel=1e-6)


def test_class_presence():
    expected = [[float((LABELS[n] == c).any()) for c in range(5)] for n in range(3)]
    assert class_presence(LABELS, 5, 255).tolist() == expected
    assert expected[2] == [0.0] * 5


def test_presence_loss():
    logits = LOGITS[:3]
    x, y = logits.double().numpy(), class_presence(LABELS, 5, 255).numpy()
    p = 1 / (1 + np.exp(-x))
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).sum()
    assert presence_loss_sum(logits, LABELS.to(torch.uint8), 255).item() == pytest.approx(
        expected, rel=1e-6
    )


def test_losses_are_float32_whatever_comes_in():
    for loss in (
        cross_entropy_sum(LOGITS.bfloat16(), torch.tensor([0, 4, -1, 2, 2, 1])),
        presence_loss_sum(LOGITS[:3].bfloat16(), LABELS, 255),
    ):
        assert loss.dtype == torch.float32


def test_segmentation_adds_up_its_terms():
    task = Segmentation(5, aux_weight=0.4, se_weight=0.2)
    outputs = {"out": MAPS, "aux": MAPS.flip(0), "se": LOGITS[:3]}
    assert task.terms == ("cross_entropy", "aux", "se")
    pixels = float((LABELS != 255).sum())
    assert task.counts(LABELS).tolist() == [pixels, pixels, 15.0]
    expected = [
        by_hand(MAPS, LABELS, 255),
        0.4 * by_hand(MAPS.flip(0), LABELS, 255),
        0.2 * presence_loss_sum(LOGITS[:3], LABELS, 255).item(),
    ]
    assert task.losses(outputs, LABELS).tolist() == pytest.approx(expected, rel=1e-6)
    assert Segmentation(5).losses(MAPS, LABELS).tolist() == pytest.approx(expected[:1], rel=1e-6)
    for unused in ({"aux": None, "se": None}, {"aux": MAPS[:, :3], "se": LOGITS[:3, :2]}):
        assert Segmentation(5).losses({"out": MAPS, **unused}, LABELS).tolist() == pytest.approx(
            expected[:1], rel=1e-6
        )


def test_an_image_without_valid_pixels_is_no_nan():
    loss = cross_entropy_sum(MAPS[2:], LABELS[2:], 255)
    assert loss.item() == 0.0 and num_valid(LABELS[2:], 255).item() == 0.0


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: Segmentation(5, aux_weight=0.4).losses({"out": MAPS}, LABELS),
            "returns .'out'. and no 'aux'",
        ),
        (lambda: Segmentation(5, ignore=3), "ignore is 3, one of the 5 classes"),
        (lambda: Segmentation(1), "at least 2"),
        (lambda: Recognition(["one"]), "at least 2"),
        (lambda: Recognition(5, label_smoothing=1.0), "label_smoothing is 1.0"),
    ],
)
def test_user_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
