"""Clipping by value and AGC: the numbers of torch and timm.

tests/distributed/test_fsdp.py has the curves of one and two processes.
"""

import copy

import pytest
import torch
from timm.utils import adaptive_clip_grad
from torch import nn
from torch.nn.utils import clip_grad_value_

from helpers.toy_recipes import recognition, segmentation
from trainkit.engine.clipping import clipper
from trainkit.models.recognition import classifier
from trainkit.optim import last_layer


def with_gradients(name: str, scale: float) -> nn.Module:
    torch.manual_seed(3)
    network = classifier(name, 7)
    # a zero row and a zero vector, whose norms count as 1e-3, and gradients of some rows alone
    with torch.no_grad():
        next(network.parameters())[0] = 0
        list(network.parameters())[1].zero_()
    for number, weight in enumerate(network.parameters()):
        weight.grad = torch.randn_like(weight) * scale * 10.0 ** (number % 4 - 3)
        weight.grad[: len(weight) // 3] = 0
    return network


@pytest.mark.parametrize(
    "name, factor", [("timm:resnet10t", 0.01), ("timm:vit_tiny_patch16_224", 0.3)]
)
def test_agc_is_timms_bit_by_bit_without_its_last_layer(name, factor):
    ours = with_gradients(name, 1.0)
    theirs = copy.deepcopy(ours)
    for weight, other in zip(ours.parameters(), theirs.parameters()):
        other.grad = weight.grad.clone()
    before = [weight.grad.clone() for weight in ours.parameters()]
    # as timm's train.py leaves the classifier out
    adaptive_clip_grad(list(theirs.parameters())[:-2], factor)
    clip = clipper(recognition(model=ours, clip_agc=factor))
    clip(list(ours.parameters()), torch.tensor(torch.nan))  # the norm of all has no part in it
    changed = 0
    for weight, other, was in zip(ours.parameters(), theirs.parameters(), before):
        assert torch.equal(weight.grad, other.grad)
        changed += not torch.equal(weight.grad, was)
    assert 5 < changed <= len(before) - 2


def test_clipping_by_value_is_torchs():
    ours = with_gradients("timm:resnet10t", 1.0)
    theirs = copy.deepcopy(ours)
    for weight, other in zip(ours.parameters(), theirs.parameters()):
        other.grad = weight.grad.clone()
    clip_grad_value_(theirs.parameters(), 0.02)
    clipper(recognition(model=ours, clip_value=0.02))(list(ours.parameters()), torch.ones(()))
    for weight, other in zip(ours.parameters(), theirs.parameters()):
        assert torch.equal(weight.grad, other.grad)


def test_non_finite_gradients_stay_non_finite():
    for changes in ({"clip_agc": 0.1}, {"clip_value": 0.1}):
        network = with_gradients("timm:resnet10t", 1.0)
        first = next(network.parameters())
        first.grad[3] = torch.nan
        clipper(recognition(model=network, **changes))([first], torch.ones(()))
        assert first.grad[3].isnan().all() and first.grad[4:].isfinite().all()


def named(model: nn.Module) -> set[str]:
    exempt = last_layer(model)
    return {name for name, weight in model.named_parameters() if id(weight) in exempt}


def test_the_last_layer_is_the_classifier_or_the_last_two_parameters():
    found = named(classifier("timm:deit_tiny_distilled_patch16_224", 7))
    assert found == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    assert named(classifier("mobilenet_v3_small", 7)) == {
        "classifier.3.weight",
        "classifier.3.bias",
    }
    assert named(segmentation().model) == {"head.weight", "head.bias"}
    decoder = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    )
    decoder.head_names = ("1",)  # a decoder, of which most is clipped
    assert named(decoder) == {"1.1.weight", "1.1.bias"}
