"""Mask2Former and EoMT against transformers' own; masked attention and its draws."""

import math
import re

import pytest
import torch
import transformers

from helpers.mask_recipes import CLASSES, QUERIES, SIDE, built, config
from trainkit.data.seeding import fold
from trainkit.errors import UserError
from trainkit.models.mask_networks import (
    MASK_NETWORKS,
    class_scores,
    mask_probabilities,
)
from trainkit.optim import param_groups
from trainkit.tasks.mask_classification import MaskClassification

EOMTS = ("eomt", "eomt_dinov3")
TASK = MaskClassification(CLASSES, num_queries=QUERIES)


def network(kind: str, **changes):
    torch.manual_seed(0)
    return built(config(kind, **changes))


def library(kind: str, ours, **changes):
    """Transformers' network with the same weights."""
    theirs = getattr(transformers, MASK_NETWORKS[kind])(config(kind, **changes))
    theirs.load_state_dict(ours.state_dict())
    return theirs


def images(number: int = 2, side: int = SIDE) -> torch.Tensor:
    return torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", MASK_NETWORKS)
@torch.no_grad()
def test_predictions_are_those_of_transformers(kind):
    """Of Mask2Former for images of 384 pixels, the one size to which transformers resizes masks."""
    side = 384 if kind == "mask2former" else SIDE
    ours, seen = network(kind).eval(), images(side=side)
    outputs = ours(seen)
    found = library(kind, ours).eval()(seen)
    expected = class_scores(found.class_queries_logits, found.masks_queries_logits, (side, side))
    torch.testing.assert_close(TASK.scores(outputs, seen), expected, rtol=1e-6, atol=1e-7)
    of_eomt = transformers.EomtImageProcessor(size={"shortest_edge": side, "longest_edge": side})
    processor = transformers.Mask2FormerImageProcessor() if kind == "mask2former" else of_eomt
    masks = processor.post_process_semantic_segmentation(found, [(side, side)] * 2)
    predicted = TASK.predict(outputs, torch.zeros(2, side, side))
    assert torch.equal(predicted, torch.stack(masks))
    probabilities = outputs["out"].softmax(1)
    torch.testing.assert_close(probabilities, expected / expected.sum(1, keepdim=True))


@pytest.mark.parametrize("kind", MASK_NETWORKS)
def test_a_training_step_of_one_image_is_that_of_transformers(kind):
    """Loss and gradients, with masked attention everywhere, under one state of the generator."""
    ours = network(kind).train()
    theirs = library(kind, ours).train()
    target = torch.randint(CLASSES, (1, SIDE, SIDE), generator=torch.Generator().manual_seed(3))
    ids = target[:, : SIDE // 2].unique()[:4]
    target[~torch.isin(target, ids)] = 255
    masks = (target == ids[:, None, None]).float()
    torch.manual_seed(4)
    expected = theirs(images(1), mask_labels=[masks], class_labels=[ids]).loss
    expected.backward()
    task = MaskClassification.for_network(ours, _Data())
    torch.manual_seed(4)
    found = (task.losses(ours(images(1)), target) / task.counts(target)).sum()
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters()):
        assert (mine.grad is None) == (not mine.requires_grad), name
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)


class _Data:
    classes, palette, raw_ids = CLASSES, None, None


@pytest.mark.parametrize("kind", EOMTS)
@torch.no_grad()
def test_masking_of_one_image_is_that_of_transformers(kind):
    """Some of its queries attend everywhere; under one state of the generator."""
    ours = network(kind).train()
    ours.anneal(60, 100)
    theirs = library(kind, ours).train()
    assert 0 < float(theirs.attn_mask_probs[1]) < 1
    ours.draw_masking(9, [5])
    torch.manual_seed(fold(9, 5))
    if kind == "eomt_dinov3":  # draws for its embeddings first
        ours.rope_embeddings.seed = None
        theirs.rope_embeddings.eval()
        ours.rope_embeddings.eval()
    expected = theirs(images(1)).class_queries_logits
    torch.testing.assert_close(ours(images(1))["layers"][-1][0], expected)


@pytest.mark.parametrize("kind", EOMTS)
@torch.no_grad()
def test_masking_is_drawn_image_by_image(kind):
    """By the step and the place in the batch, whatever else is in the pass."""
    ours = network(kind).train()
    ours.anneal(60, 100)

    def found(seed: int, positions: range, part: slice) -> torch.Tensor:
        ours.draw_masking(seed, positions)
        return ours(images()[part])["layers"][-1][1]

    state = torch.get_rng_state()
    both = found(9, range(4, 6), slice(0, 2))
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(found(9, range(4, 5), slice(0, 1)), both[:1])
    torch.testing.assert_close(found(9, range(5, 6), slice(1, 2)), both[1:])
    others = [found(9, range(6, 8), slice(0, 2)), found(8, range(4, 6), slice(0, 2))]
    assert all(not torch.allclose(other, both, rtol=1e-4) for other in others)


@pytest.mark.parametrize("kind", EOMTS)
@torch.no_grad()
def test_an_evaluation_masks_all_images_alike(kind):
    """While attention is masked at times: a function of weights, step and image."""
    ours = network(kind).eval()
    ours.anneal(60, 100)
    once = ours(images())["out"]
    torch.manual_seed(77)
    torch.testing.assert_close(ours(images()[1:])["out"], once[1:])
    ours.anneal(100, 100)
    assert (ours(images())["out"] - once).abs().max() > 1e-4


def test_masking_fades_block_by_block():
    """As EoMT's steps for ADE20K: 31 epochs of 1262 batches, four blocks."""
    total = 31 * 1262
    starts, ends = (6520, 13040, 19560, 26080), (13040, 19560, 26080, 32600)
    assert mask_probabilities(4, 0, total) == (1, 1, 1, 1)
    assert mask_probabilities(4, total, total) == (0, 0, 0, 0)
    for block, (start, end) in enumerate(zip(starts, ends)):
        assert mask_probabilities(4, start, total)[block] == 1
        assert mask_probabilities(4, start + 5, total)[block] < 1
        assert mask_probabilities(4, end - 5, total)[block] > 0
        assert mask_probabilities(4, end + 5, total)[block] == 0
        middle = mask_probabilities(4, (start + end) // 2, total)[block]
        assert math.isclose(middle, 0.5**0.9, rel_tol=1e-3)


@pytest.mark.parametrize("kind", EOMTS)
def test_eomt_takes_images_of_one_size(kind):
    ours = network(kind)
    assert ours.image_size == (SIDE, SIDE)
    with pytest.raises(UserError, match=re.escape(f"takes images of {SIDE} x {SIDE} pixels alone")):
        ours(images(side=2 * SIDE))


@torch.no_grad()
def test_mask2former_takes_any_size():
    outputs = network("mask2former").eval()(images(1)[..., :50, :61])
    assert outputs["out"].shape == (1, CLASSES, 50, 61)


@pytest.mark.parametrize("kind", EOMTS)
def test_layers_of_eomt_have_rates_as_published(kind):
    """Embeddings as the first block; norm, queries and heads as the last."""
    ours = network(kind)
    rates = {
        id(parameter): group["lr"]
        for group in param_groups(ours, 1.0, 0.05, layer_decay=0.5)
        for parameter in group["params"]
    }
    for name, parameter in ours.named_parameters():
        part, _, rest = name.partition(".")
        exponent = 3 - int(rest.split(".")[0]) if part == "layers" else 3 * (part == "embeddings")
        assert rates[id(parameter)] == 0.5**exponent, name


def test_loaded_weights_bring_their_probabilities():
    """Those of a finished training mask nothing."""
    trained, other = network("eomt"), network("eomt").eval()
    trained.anneal(10, 10)
    other.load_state_dict(trained.state_dict())
    with torch.no_grad():
        assert torch.equal(other(images())["out"], trained.eval()(images())["out"])


def test_a_task_for_another_network_is_refused():
    task = MaskClassification(CLASSES, num_queries=QUERIES + 1)
    with pytest.raises(UserError, match="5 queries of 7 classes, and the task 6 of 7"):
        task.losses(network("eomt").train()(images()), torch.zeros(2, SIDE, SIDE).long())
    with pytest.raises(UserError, match="returns Tensor: take the task Segmentation"):
        task.losses(torch.zeros(2, CLASSES, 4, 4), torch.zeros(2, 4, 4).long())
    with pytest.raises(UserError, match="losses of its own: leave out loss"):
        MaskClassification(CLASSES, aux_weight=0.4)
