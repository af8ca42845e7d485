"""Mixup and cutmix.

Images and targets mixed alike, by hand, and the same however a batch is parted.
"""

import numpy as np
import pytest
import torch

from helpers.logs import rows
from helpers.toy_recipes import CLASSES, Images, recognition, segmentation
from trainkit import Options, train
from trainkit.data.mixup import (
    Cutmix,
    CutmixMasks,
    Either,
    Mixup,
    MixupMasks,
    heavier_masks,
    masks_by_turns,
    mixed_masks,
)
from trainkit.losses.pixelwise import BinaryCrossEntropy, CrossEntropy, Focal
from trainkit.losses.region import Dice
from trainkit.tasks.mask_classification import MaskClassification
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.segmentation import Segmentation

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


MASKS = torch.randint(4, (7, 8, 10), generator=torch.Generator().manual_seed(2))
MASKS[0, :2], MASKS[3, 4:], MASKS[5] = 255, 255, 255
LOGITS = torch.randn(7, 4, 8, 10, generator=torch.Generator().manual_seed(3))


def test_mixup_of_masks_by_hand():
    """Cross-entropy of soft masks in float64, each mask's ignored pixels left out by themselves."""
    images, targets = MixupMasks(0.4)(IMAGES, MASKS.to(torch.uint8), seed=11)
    assert torch.equal(images, Mixup(0.4, 4)(IMAGES, TARGETS, seed=11)[0])
    w = np.random.default_rng(11).beta(0.4, 0.4)
    logs = LOGITS.numpy().astype(np.float64)
    logs -= np.log(np.exp(logs).sum(1, keepdims=True))
    loss = count = 0.0
    for i, j in enumerate(PARTNERS):
        soft = np.zeros((4, 8, 10))  # of which an ignored mask has no share
        for share, mask in ((w, MASKS[i].numpy()), (1 - w, MASKS[j].numpy())):
            soft += share * (np.arange(4)[:, None, None] == mask)
        loss -= (soft * logs[i]).sum()
        count += soft.sum()
    task = Segmentation(4)
    assert task.losses(LOGITS, targets).item() == pytest.approx(loss, rel=1e-5)
    assert task.counts(targets).item() == pytest.approx(count, rel=1e-6)
    assert task.distillation_count(targets).item() == pytest.approx(count, rel=1e-6)
    teacher = LOGITS.flip(0)
    assert task.distillation_loss(LOGITS, teacher, targets, 2.0).item() == pytest.approx(
        w * task.distillation_loss(LOGITS, teacher, MASKS, 2.0).item()
        + (1 - w) * task.distillation_loss(LOGITS, teacher, MASKS[PARTNERS], 2.0).item(),
        rel=1e-5,
    )
    heavier = MASKS if w >= 0.5 else MASKS[PARTNERS]
    assert torch.equal(heavier_masks(targets).long(), heavier)


def test_losses_of_mixed_masks_are_the_mixed_losses():
    """Of all terms, and their gradients; parts of a batch add up to it."""
    task = Segmentation(4, loss=[Focal(), Dice()], aux_weight=0.4, se_weight=0.2)
    w = np.random.default_rng(5).beta(0.4, 0.4)
    targets = MixupMasks(0.4)(IMAGES, MASKS, 5)[1]
    logits = LOGITS.clone().requires_grad_()
    outputs = {"out": logits, "aux": logits[..., ::2, ::2], "se": logits.mean((2, 3))}
    terms = task.losses(outputs, targets)
    expected = w * task.losses(outputs, MASKS) + (1 - w) * task.losses(outputs, MASKS[PARTNERS])
    torch.testing.assert_close(terms, expected)
    (ours,) = torch.autograd.grad(terms.sum(), logits, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(ours, theirs)
    counts = w * task.counts(MASKS) + (1 - w) * task.counts(MASKS[PARTNERS])
    torch.testing.assert_close(task.counts(targets), counts)
    parts = [{name: each[a:b] for name, each in outputs.items()} for a, b in ((0, 3), (3, 7))]
    summed = task.losses(parts[0], targets[:3]) + task.losses(parts[1], targets[3:])
    torch.testing.assert_close(summed, terms)
    torch.testing.assert_close(task.counts(targets[:3]) + task.counts(targets[3:]), counts)
    assert task.counts(targets[:0]).tolist() == [0, 0, 0, 0]


def test_masks_stay_as_they_are_without_mixup():
    (masks, weight), *others = mixed_masks(MASKS)
    assert masks is MASKS and weight is None and not others
    assert masks_by_turns(None, None) is None
    assert masks_by_turns(0.4, None) == MixupMasks(0.4)
    assert masks_by_turns(None, 1.0) == CutmixMasks(1.0)
    assert masks_by_turns(0.4, 1.0) == Either((MixupMasks(0.4), CutmixMasks(1.0)))


@pytest.mark.parametrize("kind", [CutmixMasks, MixupMasks])
def test_training_with_mixed_masks(tmp_path, kind):
    """One curve for batches of 8 and micro-batches of 3, in pairs; another without mixing."""
    curves = []
    for name, mix, micro_batch in (("8", 1.0, None), ("3", 1.0, 3), ("plain", None, None)):
        torch.manual_seed(0)
        changes = {"mix": kind(mix), "epochs": 0.8} if mix else {"epochs": 0.8}
        changes["task"] = Segmentation(CLASSES, loss=[CrossEntropy(), Dice()])
        options = Options(out=tmp_path / name, workers=0, log_every=1, micro_batch=micro_batch)
        train(segmentation(**changes), options)
        curves.append([row["loss"] for row in rows(tmp_path / name)])
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)
    assert curves[0] != pytest.approx(curves[2], rel=1e-3)


@pytest.mark.parametrize(
    "mix, read",
    [
        (Mixup(0.4, 4), TARGETS),
        (Cutmix(1.0, 4), TARGETS),
        (Either((Mixup(0.4, 4), Cutmix(1.0, 4))), TARGETS),
        (MixupMasks(0.4), MASKS),
    ],
)
def test_parts_are_mixed_as_the_whole(mix, read):
    """Shares of processes and passes are cut between pairs, and the weight is the batch's."""
    images, targets = mix(IMAGES, read, 5)
    parts = [mix(IMAGES[a:b], read[a:b], 5) for a, b in ((0, 2), (2, 6), (6, 7))]
    assert torch.equal(images, torch.cat([part[0] for part in parts]))
    assert torch.equal(targets, torch.cat([part[1] for part in parts]))
    assert torch.equal(mix(IMAGES, read, 5)[0], images) and not torch.equal(
        mix(IMAGES, read, 6)[0], images
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
        (lambda: MixupMasks(-1), "MixupMasks: alpha is -1"),
        (lambda: MixupMasks()(IMAGES, TARGETS, 0), r"it mixes images with masks of class ids"),
        (
            lambda: MaskClassification(4).counts(MixupMasks()(IMAGES, MASKS, 0)[1]),
            "mixup of masks has no matched ones",
        ),
    ],
)
def test_user_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
