"""Parameter groups, on torchvision's own models."""

import re

import pytest
import torch
from torch import nn
from torchvision.models import convnext_tiny, resnet18, vit_b_16
from torchvision.models.segmentation import fcn_resnet50

from trainkit.optim import depths, param_groups


def test_no_norm_or_bias_decays():
    model = resnet18()
    groups = param_groups(model, 0.1, 1e-4, decay_vectors=False)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    norms = (nn.BatchNorm2d,)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            free = isinstance(module, norms) or name == "bias"
            assert decay[id(parameter)] == (0.0 if free else 1e-4)
    assert decay[id(model.layer2[0].downsample[1].weight)] == 0.0


def test_the_head_learns_faster():
    model = fcn_resnet50(weights=None, weights_backbone=None, num_classes=5, aux_loss=True)
    backbone, head = param_groups(model, 0.01, 1e-4, head=10.0)
    assert (backbone["lr"], head["lr"]) == (0.01, 0.1)
    assert {id(p) for p in backbone["params"]} == {id(p) for p in model.backbone.parameters()}
    expected = {id(p) for m in (model.classifier, model.aux_classifier) for p in m.parameters()}
    assert {id(p) for p in head["params"]} == expected
    torch.optim.SGD([backbone, head], lr=1.0)


def test_frozen_parameters_are_left_out():
    model = fcn_resnet50(weights=None, weights_backbone=None, num_classes=5)
    model.backbone.requires_grad_(False)
    (head,) = param_groups(model, 0.01, 1e-4, head=10.0)
    assert head["lr"] == 0.1
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="every parameter of FCN is frozen"):
        param_groups(model, 0.01, 1e-4)


def test_a_head_needs_a_backbone():
    with pytest.raises(ValueError, match="head is 10.0, but ResNet has no attribute `backbone`"):
        param_groups(resnet18(), 0.01, 1e-4, head=10.0)


def layer_lrs(model, **settings) -> dict[str, float]:
    """Learning rate by the parameter's name."""
    groups = param_groups(model, 1.0, 0.05, decay_vectors=False, **settings)
    lrs = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(lrs) == len(list(model.parameters()))
    return {name: lrs[id(parameter)] for name, parameter in model.named_parameters()}


def test_layer_decay_of_a_vit_is_beits():
    """Embeddings are layer 0, block i is layer i + 1, the last norm and the head have the whole learning rate."""
    with torch.device("meta"):
        model = vit_b_16()
    for name, lr in layer_lrs(model, layer_decay=0.65).items():
        block = re.match(r"encoder\.layers\.encoder_layer_(\d+)\.", name)
        embeds = name in ("class_token", "encoder.pos_embedding", "conv_proj.weight", "conv_proj.bias")
        layer = int(block[1]) + 1 if block else 0 if embeds else 13
        assert lr == pytest.approx(0.65 ** (13 - layer)), name


def test_layer_decay_of_a_convnext():
    with torch.device("meta"):
        model = convnext_tiny()
    lrs = layer_lrs(model, layer_decay=0.8)
    firsts = ["features.0.0", "features.1.0", "features.1.2", "features.2.0", "features.2.1", "features.3.0"]
    layers = [0, 1, 3, 4, 4, 5]  # a downsampling's norm belongs to its convolution
    for first, layer in zip(firsts, layers):
        found = {lr for name, lr in lrs.items() if name.startswith(f"{first}.")}
        assert sorted(found) == pytest.approx([0.8 ** (22 - layer)]), first
    assert lrs["classifier.0.weight"] == lrs["classifier.2.bias"] == 1.0  # 18 blocks, 3 downsamplings, stem, head


def test_layer_decay_beside_a_head():
    with torch.device("meta"):
        model = fcn_resnet50(weights=None, weights_backbone=None, num_classes=5, aux_loss=True)
    number = depths(model)
    assert number["backbone.conv1.weight"] == 0 and number["backbone.layer4.2.conv3.weight"] == 16
    assert {number[name] for name in number if "classifier" in name} == {17}
    lrs = layer_lrs(model, layer_decay=0.9, head=10.0)
    assert lrs["backbone.layer1.0.conv1.weight"] == pytest.approx(0.9**16)
    assert lrs["classifier.0.weight"] == lrs["aux_classifier.0.weight"] == 10.0


def test_layer_decay_of_1_is_none():
    model = resnet18()
    assert [len(g["params"]) for g in param_groups(model, 0.1, 1e-4, layer_decay=1.0)] == [62]
    with pytest.raises(ValueError, match="layer_decay is 1.1; it must be above 0 and at most 1"):
        param_groups(model, 0.1, 1e-4, layer_decay=1.1)
    with pytest.raises(ValueError, match="layer_decay is 0.5, but Linear is a single layer"):
        param_groups(nn.Linear(2, 2), 0.1, 1e-4, layer_decay=0.5)
