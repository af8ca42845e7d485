"""Losses that a recipe may choose, against formulas written out in float64, and cut into passes."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from helpers.logs import rows
from helpers.loss_inputs import LABELS, LOGITS, MAPS, log_softmax
from helpers.toy_recipes import CLASSES, recognition, segmentation
from trainkit import Options, train
from trainkit.errors import UserError
from trainkit.losses.boundary import Boundary
from trainkit.losses.functional import cross_entropies
from trainkit.losses.pixelwise import OHEM, BinaryCrossEntropy, CrossEntropy, Focal
from trainkit.losses.region import Dice, Lovasz, Tversky
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.segmentation import Segmentation

IDS = torch.tensor([0, 4, -1, 2, 2, 1])
SOFT = torch.rand(6, 5, generator=torch.Generator().manual_seed(1))
SOFT /= SOFT.sum(1, keepdim=True)
WEIGHT = [0.5, 1, 2, 3, 0.1]
OF_MAPS = [
    CrossEntropy(),
    CrossEntropy(WEIGHT),
    Focal(),
    Focal(0.5, WEIGHT),
    OHEM(0.3),
    Dice(),
    Tversky(),
    Lovasz(),
    Boundary(),
]


def pixels(image: int) -> list[tuple[np.ndarray, int]]:
    """(log-probabilities (5,), class) of each valid pixel, in float64."""
    logs = np.moveaxis(log_softmax(MAPS.numpy())[image], 0, -1).reshape(-1, 5)
    return [
        (row, label) for row, label in zip(logs, LABELS[image].flatten().tolist()) if label != 255
    ]


def focal(image: int) -> tuple[float, float]:
    losses = [-WEIGHT[c] * (1 - math.exp(logs[c])) ** 1.5 * logs[c] for logs, c in pixels(image)]
    return sum(losses), len(losses)


def ohem(image: int) -> tuple[float, float]:
    losses = sorted((-logs[c] for logs, c in pixels(image)), reverse=True)
    kept = math.ceil(len(losses) * 0.3)
    return sum(losses[:kept]), kept


def dice(image: int) -> tuple[float, float]:
    total, present = 0.0, {c for _, c in pixels(image)}
    for c in present:
        p = np.array([math.exp(logs[c]) for logs, _ in pixels(image)])
        g = np.array([float(label == c) for _, label in pixels(image)])
        total += 1 - (2 * (p * g).sum() + 1) / ((p**2).sum() + (g**2).sum() + 1)
    return total, len(present)


def tversky(image: int) -> tuple[float, float]:
    """With a price of 0.2 for false positives and of 0.9 for false negatives, and 0.5 as smooth."""
    present, total = {c for _, c in pixels(image)}, 0.0
    for c in present:
        pairs = [(math.exp(logs[c]), label == c) for logs, label in pixels(image)]
        hits = sum(p for p, here in pairs if here)
        wrong = sum(p for p, here in pairs if not here)
        missed = sum(1 - p for p, here in pairs if here)
        total += 1 - (hits + 0.5) / (hits + 0.2 * wrong + 0.9 * missed + 0.5)
    return total, len(present)


def lovasz(image: int) -> tuple[float, float]:
    """The extension from its definition: errors in falling order, times each one's 1 - IoU."""
    present, losses = {c for _, c in pixels(image)}, []
    for c in present:
        errors = [
            (abs((label == c) - math.exp(logs[c])), label == c) for logs, label in pixels(image)
        ]
        errors.sort(key=lambda pair: pair[0], reverse=True)
        members, before, loss = sum(of_class for _, of_class in errors), 0.0, 0.0
        for wrong in range(1, len(errors) + 1):
            added = sum(not of_class for _, of_class in errors[:wrong])
            jaccard_loss = wrong / (members + added)
            loss += errors[wrong - 1][0] * (jaccard_loss - before)
            before = jaccard_loss
        losses.append(loss)
    return sum(losses) / max(1, len(losses)), float(bool(present))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
@pytest.mark.parametrize(
    "criterion, reference",
    [
        (Focal(1.5, WEIGHT), focal),
        (OHEM(0.3), ohem),
        (Dice(), dice),
        (Tversky(0.2, 0.9, smooth=0.5), tversky),
        (Lovasz(), lovasz),
    ],
)
def test_segmentation_masks(criterion, reference, dtype):
    task = Segmentation(5, loss=criterion)
    sums, counts = zip(*(reference(image) for image in range(3)))
    assert counts[2] == 0 and sums[2] == 0
    labels = LABELS.to(dtype)
    assert task.losses(MAPS, labels).tolist() == pytest.approx([sum(sums)], rel=1e-5)
    assert task.counts(labels).tolist() == [sum(counts)]
    assert task.losses(MAPS.bfloat16(), labels).dtype == task.counts(labels).dtype == torch.float32


@pytest.mark.parametrize("alpha, beta", [(0.3, 0.7), (0.9, 0.0)])
def test_tversky_is_smps(alpha, beta):
    """Its mean over all classes of an image, of which those that are absent have no part.

    With equal prices of a half it is the Dice loss of probabilities that are not squared.
    """
    library = pytest.importorskip("segmentation_models_pytorch.losses")
    theirs = library.TverskyLoss("multiclass", smooth=1.0, alpha=alpha, beta=beta, ignore_index=255)
    for image in range(2):
        ours = Tversky(alpha, beta)(MAPS[image : image + 1], LABELS[image : image + 1], 255)
        found = theirs(MAPS[image : image + 1], LABELS[image : image + 1].long())
        assert ours.item() == pytest.approx(5 * found.item(), rel=1e-5)


@pytest.mark.parametrize("criterion", OF_MAPS, ids=lambda criterion: criterion.name)
def test_micro_batches_change_nothing(criterion):
    """Sum, count and gradient of a batch are those of its images one at a time."""
    whole = MAPS.clone().requires_grad_()
    total = criterion(whole, LABELS, 255)
    total.backward()
    single = MAPS.clone().requires_grad_()
    parts = [criterion(single[i : i + 1], LABELS[i : i + 1], 255) for i in range(3)]
    sum(parts).backward()
    assert total.item() == pytest.approx(sum(parts).item(), rel=1e-6) and total.item() > 0
    torch.testing.assert_close(whole.grad, single.grad, rtol=1e-6, atol=1e-7)
    counts = [criterion.count(LABELS[i : i + 1], 255, 5).item() for i in range(3)]
    assert criterion.count(LABELS, 255, 5).item() == pytest.approx(sum(counts), rel=1e-6)
    assert counts[2] == 0 and whole.grad[2].count_nonzero() == 0
    assert whole.grad[(LABELS == 255)[:, None].expand_as(MAPS)].count_nonzero() == 0


@pytest.mark.parametrize("criterion", OF_MAPS, ids=lambda criterion: criterion.name)
def test_gradients_point_down(criterion):
    """Against differences of the loss itself along a random direction."""
    direction = torch.randn(MAPS.shape, generator=torch.Generator().manual_seed(2))
    maps = MAPS.clone().requires_grad_()
    criterion(maps, LABELS, 255).backward()
    ends = [criterion(MAPS + sign * 1e-2 * direction, LABELS, 255).item() for sign in (1, -1)]
    assert (maps.grad * direction).sum().item() == pytest.approx(
        (ends[0] - ends[1]) / 2e-2, rel=1e-2, abs=2e-3
    )


@pytest.mark.parametrize("weight, gamma", [(None, 2.0), (WEIGHT, 1.5), (WEIGHT, 0.0)])
def test_focal_of_images(weight, gamma):
    logs = log_softmax(LOGITS.numpy())
    alpha = np.ones(5) if weight is None else np.array(weight)
    each = -alpha * (1 - np.exp(logs)) ** gamma * logs  # (6, 5)
    hard = sum(each[n, c] for n, c in enumerate(IDS.tolist()) if c >= 0)
    task = Recognition(5, loss=Focal(gamma, weight))
    assert task.losses(LOGITS, IDS).item() == pytest.approx(hard, rel=1e-5)
    assert task.counts(IDS).item() == 5
    assert task.losses(LOGITS, SOFT).item() == pytest.approx(
        (SOFT.double().numpy() * each).sum(), rel=1e-5
    )
    one_hot = F.one_hot(IDS.clamp(min=0), 5).float()
    assert task.losses(LOGITS, one_hot).item() == pytest.approx(hard + each[2, 0], rel=1e-5)


def test_a_certain_prediction_has_a_gradient():
    for gamma in (0.5, 1.0, 2.0):
        logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
        Focal(gamma)(logits, torch.tensor([0, 0]), -1).backward()
        assert logits.grad.isfinite().all() and logits.grad[1].tolist() == [-1.0, 1.0]


def test_class_weights_of_maps():
    """Sum over count is torch's weighted mean, and so is its gradient."""
    task, weight = Segmentation(5, loss=CrossEntropy(WEIGHT)), torch.tensor(WEIGHT).double()
    maps, exact = MAPS.clone().requires_grad_(), MAPS.double().requires_grad_()
    mean = (task.losses(maps, LABELS) / task.counts(LABELS)).sum()
    expected = F.cross_entropy(exact, LABELS, weight, ignore_index=255)
    mean.backward(), expected.backward()
    assert mean.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(maps.grad.double(), exact.grad, rtol=1e-5, atol=1e-7)
    smooth = CrossEntropy(WEIGHT, label_smoothing=0.1)
    expected = F.cross_entropy(
        exact, LABELS, weight, ignore_index=255, label_smoothing=0.1, reduction="sum"
    )
    assert smooth(MAPS, LABELS, 255).item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(
        cross_entropies(MAPS, LABELS, 255).double(),
        F.cross_entropy(exact, LABELS, ignore_index=255, reduction="none"),
        rtol=1e-5, atol=1e-6,
    )  # fmt: skip


@pytest.mark.parametrize(
    "smoothing, threshold", [(0.0, None), (0.1, None), (0.0, 0.2), (0.1, 0.25)]
)
def test_binary_cross_entropy(smoothing, threshold):
    def reference(targets):  # (N, 5)
        y = (1 - smoothing) * targets.double().numpy() + smoothing / 5
        y = y if threshold is None else (y > threshold).astype(float)
        p = 1 / (1 + np.exp(-LOGITS.double().numpy()[: len(y)]))
        return -(y * np.log(p) + (1 - y) * np.log(1 - p)).sum(1)  # (N,)

    task = Recognition(5, loss=BinaryCrossEntropy(threshold, smoothing))
    assert task.losses(LOGITS, SOFT).item() == pytest.approx(reference(SOFT).sum(), rel=1e-5)
    assert task.counts(SOFT).item() == 30
    hard = reference(F.one_hot(IDS.clamp(min=0), 5))
    assert task.losses(LOGITS, IDS).item() == pytest.approx(hard.sum() - hard[2], rel=1e-5)
    assert task.counts(IDS).item() == 25 and task.terms == ("binary_cross_entropy",)


def test_several_losses_and_the_auxiliary_one():
    task = Segmentation(5, aux_weight=0.4, se_weight=0.2, loss=[OHEM(0.3), Dice(factor=0.5)])
    assert task.terms == ("ohem", "dice", "aux", "se")
    ohems, dices = (list(zip(*(of(image) for image in range(3)))) for of in (ohem, dice))
    kept, pairs = sum(ohems[1]), sum(dices[1])
    assert task.counts(LABELS).tolist() == [kept, pairs, kept, 15]
    sums = task.losses({"out": MAPS, "aux": MAPS, "se": LOGITS[:3]}, LABELS).tolist()
    assert sums[:3] == pytest.approx(
        [sum(ohems[0]), 0.5 * sum(dices[0]), 0.4 * sum(ohems[0])], rel=1e-5
    )


def test_regions_keep_no_float32_copy_of_all_logits():
    """What autograd holds of a batch is its logits, as they came, and its labels."""
    for criterion in (Dice(), Tversky(), Lovasz()):
        kept = {}

        def pack(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        maps = torch.randn(4, 50, 16, 16).bfloat16().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            criterion(maps, torch.zeros(4, 16, 16, dtype=torch.uint8), 255)
        assert sum(kept.values()) <= maps.nbytes + 4 * 16 * 16 + 256


def losses_of_run(folder, recipe, **options):
    train(recipe, Options(out=folder, workers=0, log_every=1, **options))
    return [row["loss"] for row in rows(folder)]


@pytest.mark.parametrize(
    "recipe, task",
    [
        (
            segmentation,
            Segmentation(
                CLASSES,
                loss=[
                    CrossEntropy(range(CLASSES)),
                    Focal(),
                    OHEM(),
                    Dice(),
                    Tversky(),
                    Lovasz(),
                    Boundary(),
                ],
            ),
        ),
        (
            recognition,
            Recognition(CLASSES, loss=[BinaryCrossEntropy(), Focal(weight=range(CLASSES))]),
        ),
    ],
)
def test_training_with_all_of_them(tmp_path, recipe, task):
    """The same curve for batches of 8 and for passes of 3."""
    curves = []
    for micro_batch in (None, 3):
        torch.manual_seed(0)
        folder = tmp_path / str(micro_batch)
        curves.append(losses_of_run(folder, recipe(task=task, epochs=1), micro_batch=micro_batch))
    assert curves[0] == pytest.approx(curves[1], rel=1e-4) and len(curves[0]) == 4


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: Segmentation(5, loss=CrossEntropy([1, 2])),
            "CrossEntropy: 2 weights, .* for 5 classes",
        ),
        (lambda: Segmentation(2, loss=Focal(weight=[1, -2])), "the least of them -2"),
        (lambda: Segmentation(5, loss=[Dice(), Dice(smooth=0)]), "of different names"),
        (lambda: Segmentation(5, loss=[]), "give one loss"),
        (
            lambda: Segmentation(5, loss=torch.nn.CrossEntropyLoss()),
            r"loss is CrossEntropyLoss\(\); give one of",
        ),
        (lambda: Segmentation(5, loss=Dice(factor=0)), "Dice: factor is 0"),
        (
            lambda: Recognition(5, loss=Dice()).losses(LOGITS, IDS),
            r"Dice is a segmentation loss.*\(6, 5\)",
        ),
        (
            lambda: Segmentation(5, loss=BinaryCrossEntropy()).losses(MAPS, LABELS),
            "BinaryCrossEntropy is a loss of im",
        ),
        (lambda: Recognition(5, label_smoothing=0.1, loss=Focal()), "give it to the loss instead"),
        (lambda: Focal(gamma=-1), "gamma is -1"),
        (lambda: OHEM(keep=0), "keep is 0"),
        (lambda: Dice(smooth=-1), "smooth is -1"),
        (lambda: Tversky(beta=math.nan), "Tversky: beta is nan; it must be at least 0"),
        (lambda: CrossEntropy(label_smoothing=1), "label_smoothing is 1"),
        (lambda: BinaryCrossEntropy(threshold=1), "threshold is 1"),
    ],
)
def test_user_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_losses_that_change_with_the_step_are_seen_and_checked():
    task = Segmentation(5, loss=[CrossEntropy(), Dice()])
    masks = LABELS[:, :1, :1]  # as the task's targets are
    assert task.terms == ("cross_entropy", "dice")
    object.__setattr__(task, "loss", [CrossEntropy(), Dice(), Focal()])
    assert task.terms == ("cross_entropy", "dice", "focal")
    assert len(task.counts(masks)) == 3
    object.__setattr__(task, "loss", [Dice(), Dice()])
    for _ in range(2):
        with pytest.raises(UserError, match="several of different names"):
            task.counts(masks)
    hard, smooth = Recognition(5), Recognition(5, label_smoothing=0.3)
    logits, ids = torch.randn(6, 5), IDS
    assert hard.losses(logits, ids) != smooth.losses(logits, ids)
    object.__setattr__(hard, "label_smoothing", 0.3)
    assert torch.equal(hard.losses(logits, ids), smooth.losses(logits, ids))


@pytest.mark.parametrize("factor", [1, 1.0, 0.25])
def test_a_factor_scales_loss_and_gradient(factor):
    logits = torch.randn(6, 5, requires_grad=True)
    (loss,) = Recognition(5, loss=CrossEntropy(factor=factor)).losses(logits, IDS)
    loss.backward()
    expected = logits.detach().clone().requires_grad_()
    summed = F.cross_entropy(expected, IDS, ignore_index=-1, reduction="sum")
    (factor * summed).backward()
    assert loss == factor * summed and torch.equal(logits.grad, expected.grad)


@pytest.mark.parametrize("loss", [None, CrossEntropy(), CrossEntropy([1.0] * 5), Focal()])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_images_with_a_class_are_counted_alike(loss, dtype):
    """Of plain cross-entropy in fewer operations; every negative id is of no class."""
    task = Recognition(5, loss=loss)
    for ids in ([3, -1, 0, -7, 4], [-1, -2], [2], []):
        counts = task.counts(torch.tensor(ids, dtype=dtype))
        assert counts.dtype == torch.float32
        assert counts.tolist() == [sum(each >= 0 for each in ids)]
    if loss is None or isinstance(loss, CrossEntropy):
        assert task.counts(SOFT).tolist() == pytest.approx([6])
