"""The losses of mask classification against transformers' own, and their counts by hand."""

import pytest
import torch

from helpers.mask_recipes import config
from trainkit.losses.mask_classification import MaskLoss
from trainkit.tasks.mask_classification import MaskClassification

CLASSES, QUERIES, POINTS = 5, 7, 60
IGNORE = 255
WEIGHTS = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}


def loss(**changes) -> MaskLoss:
    return MaskLoss(
        **{"num_classes": CLASSES, "num_queries": QUERIES, "num_points": POINTS, **changes}
    )


def targets() -> torch.Tensor:
    """Of an image with all classes, one with two and ignored pixels, and one with none."""
    masks = torch.randint(CLASSES, (3, 20, 24), generator=torch.Generator().manual_seed(1))
    masks[1] = masks[1] % 2 * 3
    masks[1, :8] = IGNORE
    masks[2] = IGNORE
    return masks.to(torch.uint8)


def layers(number: int, images: int = 3, queries: int = QUERIES) -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (
            torch.randn(images, queries, CLASSES + 1, generator=generator, requires_grad=True),
            torch.randn(images, queries, 5, 6, generator=generator, requires_grad=True),
        )
        for _ in range(number)
    ]


def library_losses(kind: str, outputs: list, target: torch.Tensor, seed: int) -> torch.Tensor:
    """Transformers' losses of one image, weighted and added up over layers: (3,)."""
    from transformers.models.eomt.modeling_eomt import EomtLoss
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

    settings = config("eomt", CLASSES, num_queries=QUERIES, train_num_points=POINTS)
    ids = target[target != IGNORE].unique().long()
    masks = (target == ids[:, None, None]).float()
    torch.manual_seed(seed)
    (classes, logits), *others = outputs
    if kind == "mask2former":  # all layers in one call
        auxiliary = [
            {"class_queries_logits": each, "masks_queries_logits": of_masks}
            for each, of_masks in others
        ]
        found = [Mask2FormerLoss(settings, WEIGHTS)(logits, classes, [masks], [ids], auxiliary)]
    else:
        criterion = EomtLoss(settings, WEIGHTS)
        found = [criterion(of_masks, each, [masks], [ids]) for each, of_masks in outputs]
    return torch.stack(
        [
            weight * sum(value for each in found for key, value in each.items() if name in key)
            for name, weight in WEIGHTS.items()
        ]
    )


@pytest.mark.parametrize("kind", ["mask2former", "eomt"])
@pytest.mark.parametrize("seeds", [None, [11]])
def test_one_image_has_the_loss_and_gradient_of_transformers(kind, seeds):
    """Under one state of the generator; with a seed of the image that of the caller is kept."""
    target, outputs = targets()[1:2], layers(3, images=1)
    expected = library_losses(kind, outputs, target[0], 11)
    expected.sum().backward()
    gradients = [each.grad.clone() for layer in outputs for each in layer]
    for layer in outputs:
        for each in layer:
            each.grad = None
    torch.manual_seed(11 if seeds is None else 12)
    before = torch.get_rng_state()
    found = loss().sums(outputs, target, IGNORE, seeds) / loss().counts(target, IGNORE)
    assert torch.equal(torch.get_rng_state(), before) == (seeds is not None)
    found.sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    for gradient, each in zip(gradients, (each for layer in outputs for each in layer)):
        torch.testing.assert_close(each.grad, gradient, rtol=1e-5, atol=1e-8)


def test_a_batch_is_the_sum_over_its_images():
    """Of transformers' means, each times its count; the image without a mask has classes alone."""
    target, outputs, seeds = targets(), layers(2), [3, 4, 5]
    expected = torch.zeros(3)
    for image, seed in enumerate(seeds[:2]):
        of_image = [tuple(each[image : image + 1] for each in layer) for layer in outputs]
        means = library_losses("eomt", of_image, target[image], seed)
        expected = expected + means * loss().counts(target[image : image + 1], IGNORE)
    nothing = sum(-classes[2].log_softmax(-1)[:, -1].sum() for classes, _ in outputs)
    expected = expected + torch.stack([2.0 * 0.1 * nothing, nothing * 0, nothing * 0])
    found = loss().sums(outputs, target, IGNORE, seeds)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-6)
    parts = [
        loss().sums(
            [tuple(each[part] for each in layer) for layer in outputs],
            target[part],
            IGNORE,
            seeds[part],
        )
        for part in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(sum(parts), found, rtol=2e-6, atol=1e-6)


def test_counts_are_of_the_targets_alone():
    """Masks of 5, 2 and 0 classes among 7 queries, then among 3."""
    assert loss().counts(targets(), IGNORE).tolist() == pytest.approx([7 + 0.1 * 14, 7, 7])
    few = loss(num_queries=3)
    assert few.counts(targets(), IGNORE).tolist() == pytest.approx([5 + 0.1 * 4, 5, 5])
    assert loss().counts(targets()[2:], IGNORE).tolist() == pytest.approx([0.7, 0, 0])


def test_the_weights_of_the_cross_entropy_add_up_to_its_count():
    """Logits that say nothing cost the logarithm of the number of classes for each weight.

    So it is with more masks than queries, of which as many are matched as there are queries.
    """
    for queries in (QUERIES, 3):
        of = loss(num_queries=queries, class_weight=1.0)
        flat = [
            (torch.zeros(3, queries, CLASSES + 1), logits) for _, logits in layers(1, 3, queries)
        ]
        found = of.sums(flat, targets(), IGNORE, None) / of.counts(targets(), IGNORE)
        assert found[0].item() == pytest.approx(torch.tensor(6.0).log().item(), rel=1e-6)


def test_an_image_without_masks_leaves_no_output_without_a_gradient():
    """Else processes would wait for one another."""
    outputs = layers(2, images=1)
    loss().sums(outputs, targets()[2:], IGNORE, [0]).sum().backward()
    assert all(each.grad is not None for layer in outputs for each in layer)
    assert all(layer[1].grad.abs().max() == 0 for layer in outputs)


def test_points_depend_on_the_step_and_the_place_in_the_batch():
    """As the loop gives them: not on what else is in the pass."""
    task = MaskClassification(CLASSES, num_queries=QUERIES, num_points=POINTS)
    outputs, target = layers(1), targets()

    def sums(seed: int, positions: range, images: slice) -> torch.Tensor:
        task.at_images(torch.nn.Identity(), seed, positions)
        part = [tuple(each[images].detach() for each in layer) for layer in outputs]
        return task.losses({"layers": part}, target[images])

    second = sums(9, range(5, 6), slice(1, 2))
    assert torch.equal(second, sums(9, range(5, 6), slice(1, 2)))
    assert not torch.equal(second, sums(9, range(6, 7), slice(1, 2)))
    assert not torch.equal(second, sums(8, range(5, 6), slice(1, 2)))
    both = sums(9, range(4, 6), slice(0, 2))
    torch.testing.assert_close(both, sums(9, range(4, 5), slice(0, 1)) + second)
