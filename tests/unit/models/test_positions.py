"""Position embeddings of weights for images of another size: as timm and transformers read them."""

import json
from dataclasses import replace
from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForImageClassification

from helpers.vit_recipes import recipe
from trainkit import Options, train
from trainkit.data.seeding import seed_host
from trainkit.errors import UserError
from trainkit.models.positions import resized_positions
from trainkit.storage.weights import load_model, start_from

SMALL = {"depth": 2, "embed_dim": 24, "num_heads": 3, "num_classes": 4}
NARROW = {"depths": (1, 1, 1, 1), "embed_dim": 12, "num_heads": (1, 2, 2, 2), "num_classes": 4}
CASCADED = {"embed_dim": (16, 16, 16), "depth": (1, 1, 1), "num_heads": (2, 2, 2), "num_classes": 4}
# Without a class token's position, with it, with relative positions alone, in windows, by distance.
OF_TIMM = {
    "deit3_small_patch16_224": SMALL,
    "vit_small_patch16_224": SMALL,
    "vit_small_patch14_reg4_dinov2": SMALL,
    "eva02_tiny_patch14_224": SMALL,
    "beit_base_patch16_224": SMALL,
    "vit_relpos_small_patch16_224": {**SMALL, "rel_pos_type": "bias"},
    "swin_tiny_patch4_window7_224": NARROW,
    "efficientvit_m0": CASCADED,
}


def of_timm(name: str, side: int) -> nn.Module:
    settings = {"window_size": side // 32} if name.startswith("swin") else {}
    network = timm.create_model(name, img_size=side, **OF_TIMM[name], **settings)
    for parameter in network.parameters():  # biases and tables begin at 0
        nn.init.normal_(parameter, std=0.5)
    return network.eval()


@pytest.mark.filterwarnings("ignore:.*(searchsorted|non-tuple sequence)")
@pytest.mark.parametrize("name", OF_TIMM)
def test_timms_networks_take_them_as_timm_loads_them(name):
    seed_host(0)
    sides = (112, 224)  # divisible by patches of 14 and 16, and by the windows
    source, ours, theirs = of_timm(name, sides[0]), of_timm(name, sides[1]), of_timm(name, sides[1])
    found = load_model(ours, source.state_dict(), "a file", resize=True)
    assert found.exact and found.resized
    module = __import__(type(source).__module__, fromlist=["checkpoint_filter_fn"])
    theirs.load_state_dict(module.checkpoint_filter_fn(dict(source.state_dict()), theirs))
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key
    images = torch.randn(2, 3, sides[1], sides[1])
    assert torch.equal(ours(images), theirs(images))


def vision_transformer(side: int) -> nn.Module:
    return torchvision.models.VisionTransformer(side, 8, 1, 2, 16, 16, num_classes=3)


def test_torchvisions_are_interpolated_as_its_references_do():
    source, ours = vision_transformer(32), vision_transformer(64)
    nn.init.normal_(source.encoder.pos_embedding)
    found = load_model(ours, source.state_dict(), "a file", resize=True)
    assert found.exact
    shapes = "file [1, 17, 16], model [1, 65, 16], the file taken for 4 x 4"
    assert found.resized == (f"encoder.pos_embedding ({shapes})",)
    positions = source.encoder.pos_embedding.detach()
    maps = positions[:, 1:].reshape(1, 4, 4, 16).permute(0, 3, 1, 2)
    maps = F.interpolate(maps, (8, 8), mode="bicubic", align_corners=True)
    maps = torch.cat([positions[:, :1], maps.flatten(2).transpose(1, 2)], 1)
    torch.testing.assert_close(ours.encoder.pos_embedding.detach(), maps, rtol=0, atol=0)


HF = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def of_transformers(kind: str, side: int) -> nn.Module:
    settings = {**HF, "image_size": side, "patch_size": 8, "num_labels": 3}
    if kind == "siglip":
        settings = {"num_labels": 3, "vision_config": {**HF, "image_size": side, "patch_size": 8}}
    config = AutoConfig.for_model(kind, **settings)
    config.architectures = []
    network = AutoModelForImageClassification.from_config(config)
    for name, parameter in network.named_parameters():
        if "position" in name:
            nn.init.normal_(parameter)
    return network.eval()


@pytest.mark.parametrize("kind", ["vit", "deit", "dinov2", "siglip"])
@pytest.mark.parametrize("sides", [(32, 64), (64, 32)])
def test_transformers_networks_give_what_their_interpolation_gives(kind, sides):
    """The network of the one size, asked to interpolate, against that of the other size."""
    seed_host(0)
    source, ours = of_transformers(kind, sides[0]), of_transformers(kind, sides[1])
    found = load_model(ours, source.state_dict(), "a file", resize=True)
    assert found.exact and len(found.resized) == 1
    assert f", the file taken for {sides[0] // 8} x {sides[0] // 8})" in found.resized[0]
    images = torch.randn(2, 3, sides[1], sides[1])
    asked = {} if kind == "dinov2" else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        torch.testing.assert_close(ours(images).logits, source(images, **asked).logits)


def test_what_cannot_be_resized_is_refused():
    source, ours = of_timm("vit_small_patch16_224", 112), of_timm("vit_small_patch16_224", 224)
    weights = {**source.state_dict(), "pos_embed": torch.zeros(1, 1 + 6 * 8, 24)}
    with pytest.raises(UserError, match=r"shape \[1, 49, 24\].*48 positions are no square"):
        resized_positions(ours, weights)
    # of another width it is another network: left to the list of what does not fit
    other = {"pos_embed": torch.zeros(1, 50, 12)}
    assert resized_positions(of_timm("vit_small_patch16_224", 224), other)[1] == []


def pvt(side: int) -> nn.Module:
    sizes = {"hidden_sizes": [8, 8], "depths": [1, 1], "num_attention_heads": [1, 1]}
    stages = {"patch_sizes": [4, 2], "strides": [4, 2], "sequence_reduction_ratios": [2, 1]}
    config = AutoConfig.for_model(
        "pvt", image_size=side, num_encoder_blocks=2, mlp_ratios=[1, 1], **sizes, **stages
    )
    return AutoModelForImageClassification.from_config(config)


def test_a_function_of_another_meaning_is_refused_by_the_tensors_name():
    """PVT's takes positions of patches, and gives those it has."""
    with pytest.raises(UserError, match=r"position_embeddings of the weights.*gives \[1, 256, 8\]"):
        resized_positions(pvt(128), pvt(64).state_dict())


class Mine(nn.Module):
    """A network of a recipe, tokens last, with what timm's have."""

    def __init__(self, grid: tuple[int, int]):
        super().__init__()
        self.patch_embed = nn.Identity()
        self.patch_embed.grid_size = grid
        self.pos_embed = nn.Parameter(torch.zeros(1, grid[0] * grid[1] + 1, 4))


def test_a_network_that_is_none_of_timms_is_not_taken_for_one():
    with pytest.raises(UserError, match=r"pos_embed .*\(Mine has no function for that\)"):
        resized_positions(Mine((4, 4)), Mine((2, 2)).state_dict())


def test_the_assumed_grid_is_reported():
    """A file does not say that its 64 positions are of 4 x 16."""
    settings = {**SMALL, "class_token": False, "global_pool": "avg"}
    build = partial(timm.create_model, "vit_small_patch16_224", **settings)
    wide, square = build(img_size=(64, 256)), build(img_size=(96, 96))
    found = load_model(square, wide.state_dict(), "a file", resize=True)
    shapes = "file [1, 64, 24], model [1, 36, 24], the file taken for 8 x 8"
    assert found.resized == (f"pos_embed ({shapes})",)
    tables = load_model(of_timm("beit_base_patch16_224", 64), of_timm("beit_base_patch16_224", 32)
        .state_dict(), "a file", resize=True).resized  # fmt: skip
    assert all(each.endswith("[52, 3], the file taken for 3 x 3)") for each in tables) and tables


@pytest.mark.parametrize(
    ("source", "ours"),
    [
        ("deit_small_distilled_patch16_224", {}),
        ("vit_small_patch16_224", {"class_token": False, "global_pool": "avg"}),
    ],
)
def test_positions_of_other_tokens_stay_and_are_listed(source, ours):
    """Images of one size: no size would help, and the rest fits."""
    network = timm.create_model("vit_small_patch16_224", **{**SMALL, **ours})
    before = network.pos_embed.detach().clone()
    weights = timm.create_model(source, **SMALL).state_dict()
    found = load_model(network, weights, "a file", partial=True, resize=True)
    assert [each.split()[0] for each in found.shape_mismatches] == ["pos_embed"]
    assert found.resized == () and torch.equal(network.pos_embed, before)


def test_transformers_positions_of_other_tokens_stay():
    before = of_transformers("deit", 32).state_dict()["deit.embeddings.position_embeddings"]
    name = "vit.embeddings.position_embeddings"
    weights, lines = resized_positions(of_transformers("vit", 32), {name: before})
    assert lines == [] and weights[name] is before


def test_nothing_changes_where_sizes_agree():
    network = of_timm("deit3_small_patch16_224", 112)
    weights, names = resized_positions(network, network.state_dict())
    assert names == []
    for name, value in network.state_dict().items():
        assert weights[name].data_ptr() == value.data_ptr(), name


def test_a_run_says_it_once_and_records_it(tmp_path, capsys):
    begun = replace(recipe("linear"), epochs=0.5)
    weights = {name: value.clone() for name, value in begun.model.state_dict().items()}
    positions = "backbone.net.pos_embed"
    weights[positions] = torch.randn(1, 1 + 6 * 6, weights[positions].shape[-1])
    torch.save(weights, tmp_path / "w.pth")
    lines = start_from(recipe("linear").model, tmp_path / "w.pth")
    train(begun, Options(out=tmp_path / "run", workers=0, init_from=tmp_path / "w.pth"))
    said = (
        f"resized to the model's images, 1 position embeddings: {positions} (file [1, 37, 64],"
        " model [1, 101, 64], the file taken for 6 x 6)"
    )
    assert [said in line for line in lines] == [False, True]
    assert " ".join(capsys.readouterr().out.split()).count(said) == 1
    starts = (tmp_path / "run" / "starts.jsonl").read_text().splitlines()
    assert [json.loads(each).get("initial_weights") for each in starts] == [lines]
