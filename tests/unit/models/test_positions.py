"""Position embeddings of weights for images of another size: as timm and transformers read them."""

import json
from dataclasses import replace

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
    assert found.resized == ("encoder.pos_embedding (file [1, 17, 16], model [1, 65, 16])",)
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
    said = f"resized to the model's images, 1 position embeddings: {positions} (file [1, 37, 64],"
    assert [said in line for line in lines] == [False, True]
    assert " ".join(capsys.readouterr().out.split()).count(said) == 1
    starts = (tmp_path / "run" / "starts.jsonl").read_text().splitlines()
    assert [json.loads(each).get("initial_weights") for each in starts] == [lines]
