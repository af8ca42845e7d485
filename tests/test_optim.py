"""Parameter groups, on torchvision's own models."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.segmentation import fcn_resnet50

from trainkit.optim import param_groups


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
