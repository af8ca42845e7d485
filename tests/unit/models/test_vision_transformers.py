"""Dense heads on timm's vision transformers: features, sizes, layers, and what is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trainkit.commands.export import _written
from trainkit.commands.export_formats import Logits
from trainkit.errors import UserError
from trainkit.models.outputs import size_divisor
from trainkit.models.rebuild import network_from
from trainkit.models.segmentation import segmenter
from trainkit.optim import depths
from trainkit.settings.rebuildable import built_by

timm = pytest.importorskip("timm")

NAMES = [
    "vit_tiny_patch16_224", "vit_small_patch32_224", "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", "deit_tiny_patch16_224",
    "deit3_small_patch16_224", "deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224",
    "vit_pe_spatial_tiny_patch16_512", "vit_wee_patch16_reg1_gap_256", "flexivit_small",
    "samvit_base_patch16_224", "xcit_nano_12_p16_224", "vit_tiny_r_s16_p8_224",
]  # fmt: skip


def fresh(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    asked = {} if name.startswith(("samvit", "xcit")) else {"dynamic_img_size": True}
    return timm.create_model(name, pretrained=False, **asked).eval()


QUICK = ("vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "xcit_nano_12_p16_224")


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.nightly) for name in NAMES],
)
def test_maps_are_those_of_timm(name):
    """Normalised after the last block for linear, as they are after four blocks for UPerNet."""
    reference = fresh(name)
    patch = reference.feature_info[0]["reduction"]
    images = torch.randn(2, 3, 3 * patch, 4 * patch)
    depth = len(reference.blocks)
    four = [depth // 4 - 1, depth // 2 - 1, 3 * depth // 4 - 1, depth - 1]
    for model, blocks, norm in (("linear", [depth - 1], True), ("upernet", four, False)):
        body = segmenter(model, 3, f"timm:{name}", pretrained=False, channels=16).backbone.eval()
        body.net.load_state_dict(reference.state_dict(), strict=False)
        with torch.no_grad():
            expected = reference.forward_intermediates(
                images, indices=blocks, norm=norm, intermediates_only=True
            )
            found = list(body(images).values())
        assert [tuple(each.shape[-2:]) for each in found] == [(3, 4)] * len(blocks)
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("model", ["linear", "upernet", "dpt"])
def test_sides_that_patches_do_not_divide(model):
    """Padded at the bottom and on the right with the mean colour, and cut again.

    DPT takes an even number of patches.
    """
    torch.manual_seed(0)
    network = segmenter(model, 3, "timm:vit_tiny_patch16_224", pretrained=False, channels=16).eval()
    images = torch.randn(1, 3, 77, 112)
    assert size_divisor(network) == (32 if model == "dpt" else 16)
    padding = (0, 16, 0, 19) if model == "dpt" else (0, 0, 0, 3)
    with torch.no_grad():
        found = network(images)["out"]
        whole = network(F.pad(images, padding))["out"]
    assert found.shape == (1, 3, 77, 112) and torch.equal(found, whole[..., :77, :112])


def test_the_linear_head_by_hand():
    torch.manual_seed(0)
    network = segmenter("linear", 5, "timm:vit_tiny_patch16_224", pretrained=False).eval()
    images = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        found = network(images)["out"]
        tokens = network.backbone.net.forward_features(images)[:, 1:]  # without the class token
        maps = tokens.transpose(1, 2).unflatten(2, (4, 3)) / (1 + 1e-5) ** 0.5  # batch norm, fresh
        weight, bias = network.head.classify.weight[:, :, 0, 0], network.head.classify.bias
        logits = torch.einsum("kc,nchw->nkhw", weight, maps) + bias[:, None, None]
        expected = F.interpolate(logits, (64, 48), mode="bilinear", align_corners=False)
    assert torch.allclose(found, expected, atol=1e-6)


def test_the_pyramid_of_upernet():
    torch.manual_seed(0)
    network = segmenter("upernet", 3, "timm:vit_tiny_patch16_224", pretrained=False, channels=16)
    maps = {f"c{number}": torch.randn(2, 192, 5, 6) for number in (1, 2, 3, 4)}
    found = network.head.pyramid(maps)
    sizes = [tuple(each.shape[-2:]) for each in found.values()]
    assert sizes == [(20, 24), (10, 12), (5, 6), (3, 3)]
    assert torch.equal(found["c3"], maps["c3"])
    assert torch.equal(found["c4"], F.max_pool2d(maps["c4"], 2, ceil_mode=True))
    outputs = network(torch.randn(2, 3, 80, 96))
    assert {name: tuple(each.shape) for name, each in outputs.items()} == {
        "out": (2, 3, 80, 96), "aux": (2, 3, 80, 96)
    }  # fmt: skip
    sum(each.sum() for each in outputs.values()).backward()
    assert not [name for name, each in network.named_parameters() if each.grad is None]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_layers_are_those_of_timm(name):
    """Embeddings first, then a layer a block, the head last: for layer_decay."""
    reference = fresh(name)
    groups = timm.models.group_parameters(reference, reference.group_matcher(coarse=False))
    layer_of = {each: layer for layer, names in groups.items() for each in names}
    network = segmenter("linear", 3, f"timm:{name}", pretrained=False)
    found = depths(network)
    body = {each.removeprefix("backbone.net."): layer for each, layer in found.items()}
    pairs = {(layer_of[each], body[each]) for each in layer_of if each.startswith("blocks.")}
    assert len(pairs) == len(reference.blocks)
    assert sorted(pairs) == sorted(pairs, key=lambda pair: pair[1])
    embeddings = {body[each] for each in ("patch_embed.proj.weight", "pos_embed")}
    assert embeddings == {min(found.values())}
    assert body["head.classify.weight"] == max(found.values())


@pytest.mark.parametrize("model", ["linear", "upernet", "dpt"])
def test_it_is_rebuilt(model):
    torch.manual_seed(0)
    network = segmenter(model, 3, "timm:vit_tiny_patch16_224", pretrained=False, channels=16).eval()
    again = network_from({"network": built_by(network)}).eval()
    again.load_state_dict(network.state_dict())
    images = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        assert torch.equal(again(images)["out"], network(images)["out"])


def test_bands_and_other_backbones():
    network = segmenter(
        "linear", 3, "timm:vit_tiny_patch16_224", pretrained=False, image_channels=4
    )
    assert network(torch.randn(2, 4, 32, 48))["out"].shape == (2, 3, 32, 48)
    network = segmenter("linear", 3, "small", pretrained=False)
    assert network(torch.randn(2, 3, 33, 48))["out"].shape == (2, 3, 33, 48)


@pytest.mark.parametrize(
    ("model", "backbone", "match"),
    [
        ("fcn", "timm:vit_tiny_patch16_224", "fcn takes maps of several sizes"),
        ("lraspp", "timm:vit_tiny_patch16_224", "lraspp takes maps of several sizes"),
        ("encnet", "timm:beit_base_patch16_224", "encnet takes maps of several sizes"),
        ("dpt", "timm:convnext_atto", "dpt takes maps of one size, .* --model upernet"),
    ],
)
def test_what_does_not_fit_is_refused(model, backbone, match):
    with pytest.raises(UserError, match=match):
        segmenter(model, 3, backbone, pretrained=False)


@pytest.mark.nightly
def test_an_onnx_file_is_of_the_sides_that_it_is_right_for(tmp_path):
    """The exporter writes the interpolation of position embeddings for the example's sides."""
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    network = segmenter("linear", 3, "timm:vit_tiny_patch16_224", pretrained=False).eval()
    images = [torch.randn(1, 3, 96, 128) for _ in range(2)]
    about = {"model": "Linear", "input": {}}
    model = Logits(network).eval()
    difference, tried = _written(model, model, images, tmp_path / "m.onnx", "onnx", about, 1e-3)
    assert (difference <= 1e-3, tried) == (True, 2)
    assert about["input"]["shape"] == ["batch", 3, 96, 128]
