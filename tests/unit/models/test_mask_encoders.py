"""EoMT on encoders of timm: the same outputs, whatever their family."""

import pytest
import timm
import torch
from transformers import AutoConfig, AutoModel

from helpers.mask_recipes import built
from trainkit.errors import UserError
from trainkit.models.mask_encoders import encoder_settings, load_encoder, mapped, timm_encoder
from trainkit.models.segmentation import segmenter

SIDE = 48
ENCODERS = {
    "vit_small_patch14_reg4_dinov2": "eomt",
    "vit_small_patch14_dinov2": "eomt",  # a position of the class token, and no registers
    "vit_giant_patch14_reg4_dinov2": "eomt",  # gated, both halves in one matrix
    "vit_small_patch16_dinov3": "eomt_dinov3",  # no biases of queries and values
    "vit_small_patch16_dinov3_qkvb": "eomt_dinov3",
    "vit_small_plus_patch16_dinov3": "eomt_dinov3",  # gated
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(*each, marks=[pytest.mark.nightly] if "giant" in each[0] else [])
        for each in ENCODERS.items()
    ],
)
@torch.no_grad()
def test_an_encoder_gives_the_same_in_eomt(name, kind):
    """All tokens after the last norm, of random weights that are nowhere 0 or 1."""
    torch.manual_seed(0)
    if kind == "eomt":
        encoder = timm.create_model(name, num_classes=0, img_size=SIDE, patch_size=16, depth=2)
    else:
        encoder = timm.create_model(name, num_classes=0, patch_size=16, depth=2)
    for weight in encoder.parameters():
        weight.add_(0.05 * torch.randn_like(weight))
    sizes = {"image_size": SIDE, "patch_size": 16, "num_blocks": 1, "num_queries": 3}
    settings = {**sizes, **encoder_settings(kind, encoder)}
    network = built(AutoConfig.for_model(kind, num_labels=2, **settings)).eval()
    load_encoder(network, mapped(kind, encoder.state_dict()))
    images = torch.randn(2, 3, SIDE, SIDE)
    tokens = network.embeddings(images)
    positions = {}
    if kind == "eomt_dinov3":
        positions = {"position_embeddings": network.rope_embeddings(images)}
    for layer in network.layers:
        tokens = layer(tokens, attention_mask=None, **positions)
    expected = encoder.eval().forward_features(images)
    torch.testing.assert_close(network.layernorm(tokens), expected, rtol=1e-4, atol=1e-5)


def test_a_weight_without_a_place_is_refused():
    encoder = timm.create_model(
        "vit_small_patch14_dinov2", num_classes=0, img_size=SIDE, patch_size=16, depth=1
    )
    settings = encoder_settings("eomt", encoder) | {"num_hidden_layers": 2}
    network = built(
        AutoConfig.for_model(
            "eomt", num_labels=2, image_size=SIDE, num_blocks=1, num_queries=3, **settings
        )
    )
    with pytest.raises(UserError, match="the backbone does not fit Eomt.*: layers.1"):
        load_encoder(network, mapped("eomt", encoder.state_dict()))


HF = {
    "dinov2": "eomt",
    "dinov2_with_registers": "eomt",
    "dinov2, gated": "eomt",
    "dinov3_vit": "eomt_dinov3",
    "dinov3_vit, gated": "eomt_dinov3",
}


@pytest.mark.parametrize(("name", "kind"), HF.items())
@torch.no_grad()
def test_an_encoder_of_transformers_gives_the_same_in_eomt(name, kind, tmp_path):
    """From a folder; of images of another size than it was trained on, positions interpolated."""
    torch.manual_seed(0)
    family, _, gated = name.partition(", ")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
    more = {"intermediate_size": 48, "num_register_tokens": 2} if family == "dinov3_vit" else {}
    if gated:
        more |= {"use_swiglu_ffn": True} if kind == "eomt" else {"use_gated_mlp": True}
    settings = AutoConfig.for_model(family, image_size=32, **sizes, **more)
    encoder = AutoModel.from_config(settings).eval()
    for weight in encoder.parameters():
        weight.add_(0.05 * torch.randn_like(weight))
    encoder.save_pretrained(tmp_path)
    arguments = [f"image_size={SIDE}", "num_queries=3", "num_blocks=1"]
    network = segmenter(f"hf:{kind}", 2, f"hf:{tmp_path}", model_args=arguments).eval()
    images = torch.randn(2, 3, SIDE, SIDE)
    tokens = network.embeddings(images)
    positions = {}
    if kind == "eomt_dinov3":
        positions = {"position_embeddings": network.rope_embeddings(images)}
    for layer in network.layers:
        tokens = layer(tokens, attention_mask=None, **positions)
    expected = encoder(images).last_hidden_state
    torch.testing.assert_close(network.layernorm(tokens), expected, rtol=1e-4, atol=1e-5)


def test_an_encoder_of_another_type_is_refused():
    with pytest.raises(UserError, match="takes dinov2 or dinov2_with_registers.* of type vit"):
        segmenter("hf:eomt", 2, "hf:vit", False)
    with pytest.raises(UserError, match="image_size is 640, and hf:eomt has patches of 14"):
        segmenter("hf:eomt", 2, "hf:dinov2", False)


def test_another_family_is_refused():
    with pytest.raises(UserError, match="hf:eomt takes DINOv2 of timm.*backbone is timm:resnet18"):
        timm_encoder("eomt", "timm:resnet18", False, SIDE, 16)
    with pytest.raises(UserError, match="hf:eomt_dinov3 takes DINOv3 of timm"):
        timm_encoder("eomt_dinov3", "timm:vit_small_patch14_dinov2", False, SIDE, 16)


def test_the_backbone_says_the_sizes():
    """By its name, without its weights; what is recorded builds it again without timm."""
    arguments = [f"image_size={SIDE}", "num_queries=3"]
    network = segmenter(
        "hf:eomt", 4, "timm:vit_small_patch14_reg4_dinov2", False, model_args=arguments
    )
    config = network.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (
        384,
        12,
        6,
    )
    assert (config.num_register_tokens, network.image_size) == (4, (SIDE, SIDE))
    recorded = network.built_by["arguments"]["config"]
    again = segmenter("hf:eomt", 4, "timm:gone", False, model_args=arguments, config=recorded)
    shapes = [
        {name: value.shape for name, value in each.state_dict().items()}
        for each in (network, again)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("name", "backbone", "arguments", "message"),
    [
        ("hf:eomt", "resnet50", [], "is a type of network without published weights"),
        ("hf:eomts", "resnet50", [], "did you mean hf:eomt"),
        ("hf:eomt", "timm:vit_small_patch14_dinov2", ["image_size=50"], "give a multiple of that"),
        ("hf:eomt", "timm:vit_small_patch14_dinov2", ["image_size=48", "hidden_size=64"],
         "model_args has hidden_size, which the backbone"),
        ("hf:mask2former", "timm:resnet18", [], "has an encoder of its own"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused(name, backbone, arguments, message):
    with pytest.raises(UserError, match=message):
        segmenter(
            name,
            3,
            backbone,
            name in ("hf:eomts", "hf:eomt") and not arguments,
            model_args=arguments,
        )


def test_a_folder_keeps_its_head_or_gets_another(tmp_path, capsys):
    torch.manual_seed(0)
    from helpers.mask_recipes import TINY

    first = segmenter("hf:eomt", 5, pretrained=False, model_args=TINY["eomt"].split())
    first.anneal(9, 9)
    first.save_pretrained(tmp_path)
    kept = segmenter(f"hf:{tmp_path}", 5)
    assert all(
        torch.equal(value, kept.state_dict()[name]) for name, value in first.state_dict().items()
    )
    images = torch.randn(1, 3, *first.image_size)
    with torch.no_grad():
        assert torch.equal(kept.eval()(images)["out"], first.eval()(images)["out"])
    other = segmenter(f"hf:{tmp_path}", 3)
    assert other.class_predictor.weight.shape[0] == 4 and other.criterion.empty_weight.shape == (4,)
    assert torch.equal(other.query.weight, first.query.weight)
    assert "random at first, for 3 classes" in capsys.readouterr().out
