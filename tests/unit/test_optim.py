"""Parameter groups, on torchvision's own models."""

import re
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torchvision.models import convnext_tiny, get_model, resnet18, vit_b_16
from torchvision.models.segmentation import fcn_resnet50

from trainkit.models.backbones import backbone
from trainkit.models.recognition import fine_tuned
from trainkit.optim import depths, no_decay, param_groups


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
    backbone, head = param_groups(model, 0.01, 1e-4, head_lr_mult=10.0)
    assert (backbone["lr"], head["lr"]) == (0.01, 0.1)
    assert {id(p) for p in backbone["params"]} == {id(p) for p in model.backbone.parameters()}
    expected = {id(p) for m in (model.classifier, model.aux_classifier) for p in m.parameters()}
    assert {id(p) for p in head["params"]} == expected
    torch.optim.SGD([backbone, head], lr=1.0)


def test_frozen_parameters_are_left_out():
    model = fcn_resnet50(weights=None, weights_backbone=None, num_classes=5)
    model.backbone.requires_grad_(False)
    (head,) = param_groups(model, 0.01, 1e-4, head_lr_mult=10.0)
    assert head["lr"] == 0.1
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="every parameter of FCN is frozen"):
        param_groups(model, 0.01, 1e-4)


def test_a_head_needs_a_backbone():
    with pytest.raises(
        ValueError,
        match="head_lr_mult is 10.0, and ResNet does not say which part is its head: give it",
    ):
        param_groups(resnet18(), 0.01, 1e-4, head_lr_mult=10.0)


def layer_lrs(model, **settings) -> dict[str, float]:
    """Learning rate by the parameter's name."""
    groups = param_groups(model, 1.0, 0.05, decay_vectors=False, **settings)
    lrs = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(lrs) == len(list(model.parameters()))
    return {name: lrs[id(parameter)] for name, parameter in model.named_parameters()}


def test_layer_decay_of_a_vit_is_beits():
    """Embeddings are layer 0, block i is layer i + 1, the last norm and the head have the whole
    learning rate."""
    with torch.device("meta"):
        model = vit_b_16()
    for name, lr in layer_lrs(model, layer_decay=0.65).items():
        block = re.match(r"encoder\.layers\.encoder_layer_(\d+)\.", name)
        embeds = name in (
            "class_token",
            "encoder.pos_embedding",
            "conv_proj.weight",
            "conv_proj.bias",
        )
        layer = int(block[1]) + 1 if block else 0 if embeds else 13
        assert lr == pytest.approx(0.65 ** (13 - layer)), name


def test_layer_decay_of_a_convnext():
    with torch.device("meta"):
        model = convnext_tiny()
    lrs = layer_lrs(model, layer_decay=0.8)
    firsts = [
        "features.0.0",
        "features.0.1",
        "features.1.0",
        "features.1.2",
        "features.2.0",
        "features.2.1",
    ]
    layers = [0, 0, 1, 3, 4, 4]  # a downsampling and its norm belong to the block after it
    for first, layer in zip([*firsts, "features.3.0"], [*layers, 4]):
        found = {lr for name, lr in lrs.items() if name.startswith(f"{first}.")}
        assert sorted(found) == pytest.approx([0.8 ** (19 - layer)]), first
    # after the stem and 18 blocks
    assert lrs["classifier.0.weight"] == lrs["classifier.2.bias"] == 1.0


def test_layer_decay_beside_a_head():
    with torch.device("meta"):
        model = fcn_resnet50(weights=None, weights_backbone=None, num_classes=5, aux_loss=True)
    number = depths(model)
    assert number["backbone.conv1.weight"] == 0 and number["backbone.layer4.2.conv3.weight"] == 16
    assert {number[name] for name in number if "classifier" in name} == {17}
    lrs = layer_lrs(model, layer_decay=0.9, head_lr_mult=10.0)
    assert lrs["backbone.layer1.0.conv1.weight"] == pytest.approx(0.9**16)
    assert lrs["classifier.0.weight"] == lrs["aux_classifier.0.weight"] == 10.0


TIMMS = [  # layers as timm counts them
    ("convnext_tiny", 20), ("swin_tiny_patch4_window7_224", 14), ("regnety_008", 16),
    ("vit_tiny_patch16_224", 14), ("beit_base_patch16_224", 14), ("eva02_tiny_patch14_224", 14),
    ("mobilenetv3_large_100", 18), ("efficientnet_b0", 18), ("swinv2_tiny_window8_256", 14),
    ("hiera_tiny_224", 14), ("maxvit_tiny_tf_224", 6), ("deit3_small_patch16_224", 14),
    ("levit_128", 14), ("densenet121", 60), ("resnet50", 18), ("cait_xxs24_224", 26),
    ("resnetv2_50", 18), ("xcit_nano_12_p16_224", 16), ("coatnet_0_rw_224", 6),
]  # fmt: skip


@pytest.mark.parametrize("name, layers", TIMMS)
def test_layer_decay_of_timms_is_timms(name, layers):
    """Rate and weight decay of every parameter, against timm.optim's own groups."""
    pytest.importorskip("timm")
    from timm.optim._param_groups import param_groups_layer_decay

    with torch.device("meta"):
        model = fine_tuned(f"timm:{name}", 10, pretrained=False)
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    theirs = param_groups_layer_decay(model, 0.05, exempt, layer_decay=0.75)
    expected = {
        id(p): (group["lr_scale"], group["weight_decay"])
        for group in theirs
        for p in group["params"]
    }
    ours = param_groups(model, 1.0, 0.05, decay_vectors=False, layer_decay=0.75)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in ours for p in group["params"]}
    assert found.keys() == expected.keys() and len(found) == len(list(model.parameters()))
    for parameter, name in ((p, n) for n, p in model.named_parameters()):
        assert found[id(parameter)] == pytest.approx(expected[id(parameter)]), name
    assert max(depths(model).values()) + 1 == layers
    head = {
        n for n in depths(model) if n.startswith(tuple(f"{part}." for part in model.head_names))
    }
    tenfold = {
        id(p): g["lr"]
        for g in param_groups(model, 1.0, 0.0, head_lr_mult=10.0)
        for p in g["params"]
    }
    assert head and {n for n, p in model.named_parameters() if tenfold[id(p)] == 10.0} == head


def weights_by_layer(model) -> list[int]:
    found = depths(model)
    return [
        sum(p.numel() for name, p in model.named_parameters() if found[name] == layer)
        for layer in range(max(found.values()) + 1)
    ]


@pytest.mark.parametrize(
    "name, timms",
    [("resnet50", "resnet50"), ("regnet_y_400mf", "regnety_004"),
        ("convnext_tiny", "convnext_tiny"),
     ("efficientnet_b0", "efficientnet_b0"), ("efficientnet_v2_s", "tf_efficientnetv2_s"),
     ("mobilenet_v2", "mobilenetv2_100"), ("swin_t", "swin_tiny_patch4_window7_224"),
     ("vit_b_16", "vit_base_patch16_224")],
)  # fmt: skip
def test_layers_of_torchvisions_are_those_of_timms(name, timms):
    """The same network from both: as many layers, with as many weights each."""
    timm = pytest.importorskip("timm")
    with nullcontext() if name.startswith("regnet") else torch.device("meta"):
        ours, theirs = weights_by_layer(get_model(name)), weights_by_layer(timm.create_model(timms))
    # timm counts the last norm to the last block, BEiT and this one to the head
    if name in ("swin_t", "vit_b_16"):
        norm = 2 * 768
        theirs[-2:] = [theirs[-2] - norm, theirs[-1] + norm]
    assert ours == theirs


@pytest.mark.parametrize(
    "name, layers",
    # by hand: stem, blocks and head, and of what the first, second and last but one layer begin
    # with
    [
        ("maxvit_t",
            {0: "stem.", 1: "blocks.0.layers.0.", 2: "blocks.0.layers.1.", 11: "blocks.3.layers.1.",
                      12: "classifier.5."}),
        ("densenet121",
            {0: "features.conv0.", 6: "features.denseblock1.denselayer6.",
                7: "features.transition1.",
                         58: "features.denseblock4.denselayer16.", 59: "features.norm5."}),
        ("swin_v2_t",
            {0: "features.0.", 1: "features.1.0.", 3: "features.2.", 11: "features.6.",
                13: "norm."}),
        ("googlenet", {0: "conv1.", 1: "inception3a.", 9: "inception5b.", 10: "fc."}),
        ("mobilenet_v3_large",
            {0: "features.0.", 1: "features.1.", 15: "features.15.", 16: "classifier.3."}),
        ("shufflenet_v2_x1_0", {0: "conv1.", 1: "stage2.0.", 16: "stage4.3.", 17: "conv5.1."}),
        ("vgg11", {0: "features.0.", 1: "features.3.", 8: "classifier.0.", 10: "classifier.6."}),
    ],
)  # fmt: skip
def test_layers_of_torchvisions_by_hand(name, layers):
    with torch.device("meta"):
        model = fine_tuned(name, 10, pretrained=False)
    number = depths(model)
    assert max(number.values()) == max(layers)
    for layer, first in layers.items():
        inside = [each for each, found in number.items() if found == layer]
        assert inside[0].startswith(first), (layer, inside[0])
    assert {number[each] for each in number if each.startswith(model.head_names[0])} == {
        max(layers)
    }


@pytest.mark.parametrize(
    "name, names",
    [("vit_b_16", {"class_token", "encoder.pos_embedding"}), ("resnet18", set()),
     ("swin_t", {f"features.{stage}.{block}.attn.relative_position_bias_table"
                 for stage,
                 blocks in ((1, 2), (3, 2), (5, 6), (7, 2)) for block in range(blocks)})],
)  # fmt: skip
def test_embeddings_never_decay(name, names):
    with torch.device("meta"):
        model = get_model(name)
    assert no_decay(model) == names
    free = [
        p
        for group in param_groups(model, 0.1, 0.05)
        if not group["weight_decay"]
        for p in group["params"]
    ]
    assert {id(p) for p in free} == {id(p) for n, p in model.named_parameters() if n in names}


@pytest.mark.parametrize(
    "name, layers, last",
    [("timm:swin_tiny_patch4_window7_224", 14, r"layers_3\.blocks\.1\."),
        ("timm:regnety_008", 16, r"s4\.b2\."),
     ("timm:convnext_tiny", 20, r"stages_3\.blocks\.2\."), ("timm:resnet50", 18, r"layer4\.2\."),
     ("timm:hiera_tiny_224", 14, r"blocks\.11\."), ("timm:efficientnet_b0", 18, r"blocks\.6\.0\.")],
)  # fmt: skip
def test_timms_networks_as_backbones_keep_their_layers(name, layers, last):
    """Those that hand out maps say it in a part of a part.

    A head beside them is a layer of its own.
    """
    pytest.importorskip("timm")
    model = nn.Module()
    with torch.device("meta"):
        model.backbone = backbone(name, pretrained=False, stride=32)
        model.head = nn.Conv2d(8, 3, 1)
    number = depths(model)
    assert number["head.weight"] == max(number.values()) == layers - 1
    assert number[next(iter(number))] == 0
    assert {number[n] for n in number if re.search(last, n)} == {layers - 2}


def test_layer_decay_of_1_is_none():
    model = resnet18()
    assert [len(g["params"]) for g in param_groups(model, 0.1, 1e-4, layer_decay=1.0)] == [62]
    with pytest.raises(ValueError, match="layer_decay is 1.1; it must be above 0 and at most 1"):
        param_groups(model, 0.1, 1e-4, layer_decay=1.1)
    with pytest.raises(ValueError, match="layer_decay is 0.5, but Linear is a single layer"):
        param_groups(nn.Linear(2, 2), 0.1, 1e-4, layer_decay=0.5)
