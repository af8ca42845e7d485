"""Mixup and cutmix.

Images and targets mixed alike, by hand, and the same however a batch is parted.
"""

import numpy as np
import pytest
import torch

from helpers.logs import rows
from helpers.toy_recipes import CLASSES, Images, recognition, segmentation
from trainkit import Options, train
from trainkit.data.mixup import Cutmix, CutmixMasks, Either, Mixup
from trainkit.losses.pixelwise import BinaryCrossEntropy, Focal
from trainkit.tasks.recognition import Recognition

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
        torch.testing.assert_close(
            images[i], (IMAGES[i] * weight + IMAGES[j] * (1 - weight)).float()
        )
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


def test_masks_are_mixed_with_their_images_and_labels_stay():
    """The box is that of Cutmix under the same seed; void moves with it."""
    masks = torch.randint(4, (7, 8, 10), generator=torch.Generator().manual_seed(2))
    masks[:, :2] = 255
    boxes = set()
    for seed in range(20):
        images, labels = CutmixMasks(1.0)(IMAGES, masks.to(torch.uint8), seed)
        assert torch.equal(images, Cutmix(1.0, 4)(IMAGES, TARGETS, seed)[0])
        assert labels.dtype == torch.uint8
        for i, j in enumerate(PARTNERS):
            own = (images[i] == IMAGES[i]).all(0)
            assert torch.equal(labels[i].long(), torch.where(own, masks[i], masks[j]))
        boxes.add(int(own.sum()) if i != j else int((images[0] == IMAGES[0]).sum()))
    assert len(boxes) > 8


def test_training_with_mixed_masks(tmp_path):
    """One curve for batches of 8 and micro-batches of 3, in pairs; another without mixing."""
    curves = []
    for name, mix, micro_batch in (("8", 1.0, None), ("3", 1.0, 3), ("plain", None, None)):
        torch.manual_seed(0)
        changes = {"mix": CutmixMasks(mix), "epochs": 0.8} if mix else {"epochs": 0.8}
        options = Options(out=tmp_path / name, workers=0, log_every=1, micro_batch=micro_batch)
        train(segmentation(**changes), options)
        curves.append([row["loss"] for row in rows(tmp_path / name)])
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)
    assert curves[0] != pytest.approx(curves[2], rel=1e-3)


@pytest.mark.parametrize(
    "mix", [Mixup(0.4, 4), Cutmix(1.0, 4), Either((Mixup(0.4, 4), Cutmix(1.0, 4)))]
)
def test_parts_are_mixed_as_the_whole(mix):
    """Shares of processes and passes are cut between pairs, and the weight is the batch's."""
    images, targets = mix(IMAGES, TARGETS, 5)
    parts = [mix(IMAGES[a:b], TARGETS[a:b], 5) for a, b in ((0, 2), (2, 6), (6, 7))]
    assert torch.equal(images, torch.cat([part[0] for part in parts]))
    assert torch.equal(targets, torch.cat([part[1] for part in parts]))
    assert torch.equal(mix(IMAGES, TARGETS, 5)[0], images) and not torch.equal(
        mix(IMAGES, TARGETS, 6)[0], images
    )


def test_loss_of_mixed_targets_is_the_mixed_loss():
    task, logits = Recognition(4), torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
    weight = np.random.default_rng(11).beta(0.4, 0.4)
    _, targets = Mixup(0.4, 4)(IMAGES, TARGETS, seed=11)
    expected = weight * task.losses(logits, TARGETS) + (1 - weight) * task.losses(
        logits, TARGETS[PARTNERS]
    )
    torch.testing.assert_close(task.losses(logits, targets), expected.float())
    assert task.counts(targets).tolist() == [7.0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ignored_images_among_the_mixed(smoothing):
    """An image without a class adds nothing, by itself or in a mixture, and the count is that of
    the others."""
    targets, logits = torch.tensor([0, -1, 1, 1, -2, -1, 3]), torch.randn(7, 4, dtype=torch.float64)
    logs = logits.numpy() - np.log(np.exp(logits.numpy()).sum(1, keepdims=True))
    weight = np.random.default_rng(11).beta(0.4, 0.4)
    expected = 0.0
    for i, j in enumerate(PARTNERS):
        for share, label in ((weight, int(targets[i])), (1 - weight, int(targets[j]))):
            own = -(1 - smoothing) * logs[i, label] - smoothing * logs[i].mean()
            expected += share * own if label >= 0 else 0.0
    task, (_, mixed) = Recognition(4, smoothing), Mixup(0.4, 4)(IMAGES, targets, seed=11)
    assert task.losses(logits, mixed).item() == pytest.approx(expected, rel=1e-5)
    assert task.counts(mixed).item() == pytest.approx(4) and task.counts(targets).item() == 4
    assert task.losses(torch.zeros(7, 4), mixed).item() / task.counts(
        mixed
    ).item() == pytest.approx(np.log(4))
    _, nothing = Cutmix(1.0, 4)(IMAGES, torch.full((7,), -1), seed=3)
    assert task.losses(logits, nothing).item() == task.counts(nothing).item() == 0


@pytest.mark.parametrize(
    "loss", [Focal(1.5), BinaryCrossEntropy(), BinaryCrossEntropy(label_smoothing=0.1)]
)
def test_other_losses_of_ignored_images(loss):
    """The mixture of the losses of ids, of which a negative one adds nothing."""
    targets, logits = torch.tensor([0, -1, 1, 1, -1, -1, 3]), torch.randn(7, 4)
    weight = np.random.default_rng(11).beta(0.4, 0.4)
    task, (_, mixed) = Recognition(4, loss=loss), Mixup(0.4, 4)(IMAGES, targets, seed=11)
    if isinstance(loss, Focal):
        assert task.counts(mixed).item() == pytest.approx(4)
    else:
        assert task.counts(mixed).item() == pytest.approx(16)
    expected = weight * task.losses(logits, targets) + (1 - weight) * task.losses(
        logits, targets[PARTNERS]
    )
    torch.testing.assert_close(task.losses(logits, mixed), expected.float(), rtol=1e-5, atol=1e-6)


def test_both_images_of_a_mixture_are_wholly_there_by_a_threshold():
    """And where one is ignored, the other is, with its share."""
    logits, loss = torch.randn(2, 4), BinaryCrossEntropy(threshold=0.2)
    weight = np.random.default_rng(11).beta(0.4, 0.4)
    _, mixed = Mixup(0.4, 4)(IMAGES[:2], torch.tensor([2, -1]), seed=11)
    each = [loss(logits[i : i + 1], torch.tensor([2]), -1).item() for i in range(2)]
    assert loss(logits, mixed, -1).item() == pytest.approx(
        weight * each[0] + (1 - weight) * each[1], rel=1e-5
    )


def test_training_with_unlabelled_images_and_mixup(tmp_path):
    data = Images(27)
    data.targets[::3] = -1
    recipe = recognition(train_data=data, mix=Mixup(0.4, CLASSES), task=Recognition(CLASSES, 0.1))
    torch.nn.init.zeros_(recipe.model.head.weight), torch.nn.init.zeros_(recipe.model.head.bias)
    train(recipe, Options(out=tmp_path, workers=0, log_every=1))
    assert rows(tmp_path)[0]["loss"] == pytest.approx(np.log(CLASSES), rel=1e-5), (
        "of a network that knows nothing"
    )


def test_either_takes_both():
    either = Either((Mixup(0.4, 4), Cutmix(1.0, 4)))
    kinds = {
        torch.equal(either(IMAGES, TARGETS, seed)[0], Mixup(0.4, 4)(IMAGES, TARGETS, seed)[0])
        for seed in range(20)
    }
    assert kinds == {True, False}


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Mixup(0, 4), "alpha is 0"),
        (lambda: Cutmix(1, 1), "at least 2"),
        (lambda: CutmixMasks(0), "CutmixMasks: alpha is 0"),
        (lambda: CutmixMasks()(IMAGES, TARGETS, 0), "it mixes masks of the images' size"),
    ],
)
def test_user_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
