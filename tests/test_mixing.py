"""Mixup and cutmix: images and targets mixed alike, by hand, and the same however a batch is parted."""

import numpy as np
import pytest
import torch

from trainkit.mixing import Cutmix, Either, Mixup
from trainkit.recognition import Recognition

IMAGES = torch.rand(7, 3, 8, 10, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 3, 1, 1, 2, 0, 3])
PARTNERS = [1, 0, 3, 2, 5, 4, 6]


def one_hot(target: int) -> torch.Tensor:
    return torch.eye(4)[target]


def test_mixup_by_hand():
    images, targets = Mixup(0.4, 4)(IMAGES, TARGETS, seed=11)
    weight = np.random.default_rng(11).beta(0.4, 0.4)
    for i, j in enumerate(PARTNERS):
        expected = one_hot(TARGETS[i]) * weight + one_hot(TARGETS[j]) * (1 - weight)
        torch.testing.assert_close(images[i], (IMAGES[i] * weight + IMAGES[j] * (1 - weight)).float())
        torch.testing.assert_close(targets[i], expected.float())


def test_cutmix_weighs_targets_by_area():
    shares = []
    for seed in range(40):
        images, targets = Cutmix(1.0, 4)(IMAGES, TARGETS, seed)
        for i, j in enumerate(PARTNERS):
            own = (images[i] == IMAGES[i]).all(0)
            assert torch.equal(images[i][:, ~own], IMAGES[j][:, ~own])
            share = own.float().mean() if i != j else torch.tensor(1.0)
            expected = one_hot(TARGETS[i]) * share + one_hot(TARGETS[j]) * (1 - share)
            torch.testing.assert_close(targets[i], expected)
        shares.append(targets[0].max().item())
    assert len(set(shares)) > 10, "the box changes from batch to batch"


@pytest.mark.parametrize("mix", [Mixup(0.4, 4), Cutmix(1.0, 4), Either((Mixup(0.4, 4), Cutmix(1.0, 4)))])
def test_parts_are_mixed_as_the_whole(mix):
    """Shares of processes and passes are cut between pairs, and the weight is the batch's."""
    images, targets = mix(IMAGES, TARGETS, 5)
    parts = [mix(IMAGES[a:b], TARGETS[a:b], 5) for a, b in ((0, 2), (2, 6), (6, 7))]
    assert torch.equal(images, torch.cat([part[0] for part in parts]))
    assert torch.equal(targets, torch.cat([part[1] for part in parts]))
    assert torch.equal(mix(IMAGES, TARGETS, 5)[0], images) and not torch.equal(mix(IMAGES, TARGETS, 6)[0], images)


def test_loss_of_mixed_targets_is_the_mixed_loss():
    task, logits = Recognition(4), torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
    weight = np.random.default_rng(11).beta(0.4, 0.4)
    _, targets = Mixup(0.4, 4)(IMAGES, TARGETS, seed=11)
    expected = weight * task.losses(logits, TARGETS) + (1 - weight) * task.losses(logits, TARGETS[PARTNERS])
    torch.testing.assert_close(task.losses(logits, targets), expected.float())
    assert task.counts(targets).tolist() == [7.0]


def test_either_takes_both():
    either = Either((Mixup(0.4, 4), Cutmix(1.0, 4)))
    kinds = {
        torch.equal(either(IMAGES, TARGETS, seed)[0], Mixup(0.4, 4)(IMAGES, TARGETS, seed)[0]) for seed in range(20)
    }
    assert kinds == {True, False}


@pytest.mark.parametrize("make, message", [(lambda: Mixup(0, 4), "alpha is 0"), (lambda: Cutmix(1, 1), "at least 2")])
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
