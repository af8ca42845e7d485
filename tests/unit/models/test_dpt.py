"""DPT's head on a vision transformer of timm, against that of transformers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import DPTConfig
from transformers.models.dinov2.modeling_dinov2 import Dinov2Backbone
from transformers.models.dpt.modeling_dpt import DPTNeck, DPTSemanticSegmentationHead

from trainkit.data.seeding import seed_host
from trainkit.errors import UserError
from trainkit.models.dpt import DPT
from trainkit.models.segmentation import segmenter
from trainkit.models.vision_transformers import ViTMaps
from trainkit.optim import depths
from trainkit.tasks.segmentation import Segmentation

timm = pytest.importorskip("timm")
WIDTH, DEPTH, CLASSES, PATCH = 24, 4, 5, 14


class Theirs(nn.Module):
    """transformers' DPT for segmentation on its DINOv2, whose own class takes no such backbone."""

    def __init__(self):
        super().__init__()
        body = {
            "model_type": "dinov2", "hidden_size": WIDTH, "num_hidden_layers": DEPTH,
            "num_attention_heads": 3, "image_size": 4 * PATCH, "patch_size": PATCH,
            "out_indices": [1, 2, 3, 4], "apply_layernorm": False, "reshape_hidden_states": False,
        }  # fmt: skip
        config = DPTConfig(
            backbone_config=body, is_hybrid=False, readout_type="project", num_labels=CLASSES,
            neck_hidden_sizes=[3, 6, 12, 24], fusion_hidden_size=256, neck_ignore_stages=[],
            use_batch_norm_in_fusion_residual=True, reassemble_factors=[4, 2, 1, 0.5],
        )  # fmt: skip
        self.backbone = Dinov2Backbone(config.backbone_config)
        self.neck, self.head = DPTNeck(config), DPTSemanticSegmentationHead(config)

    def forward(self, images):
        grid = [side // PATCH for side in images.shape[-2:]]
        return self.fused(self.backbone(images).feature_maps, grid, images.shape[-2:])

    def fused(self, states, grid, size):
        logits = self.head(self.neck(list(states), *grid))
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def ours(name: str = "vit_small_patch14_dinov2") -> DPT:
    net = timm.create_model(
        name, img_size=4 * PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=3, dynamic_img_size=True
    )
    return DPT(ViTMaps(net, range(DEPTH), norm=False), CLASSES)


def drawn(network: nn.Module) -> nn.Module:
    """With statistics and scales that are no ones and zeros."""
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            nn.init.uniform_(value, 0.5, 1.5) if "var" in name else nn.init.normal_(value, std=0.2)
    return network.eval()


IN_HEAD = {
    "neck.reassemble_stage.readout_projects.{}.0": "reassemble.{}.readout.0",
    "neck.reassemble_stage.layers.{}.projection": "reassemble.{}.project",
    "neck.reassemble_stage.layers.{}.resize": "reassemble.{}.resize",
    "neck.convs.{}": "lateral.{}",
    "neck.fusion_stage.layers.{}.projection": "fuse.{}.project",
    **{
        f"neck.fusion_stage.layers.{{}}.residual_layer{part}.{kind}{number}": (
            f"fuse.{{}}.{('skip', 'refine')[part - 1]}.{mine}{number}"
        )
        for part in (1, 2)
        for number in (1, 2)
        for kind, mine in (("convolution", "conv"), ("batch_norm", "norm"))
    },
}
IN_BODY = {
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    **{
        f"blocks.{number}.{mine}": f"encoder.layer.{number}.{theirs}"
        for number in range(DEPTH)
        for mine, theirs in {
            "norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
            "attn.proj": "attention.o_proj",
        }.items()
    },
}  # fmt: skip


def copy_head(theirs: nn.Module, head: nn.Module) -> None:
    """By name; the deepest fusion has no finer map to add, and transformers' unit is not used."""
    modules = {
        there.format(number): here.format(number)
        for there, here in IN_HEAD.items()
        for number in range(4)
    }
    modules |= {f"head.head.{number}": f"classify.{number}" for number in (0, 1, 4)}
    state, taken = head.state_dict(), set()
    for name, value in theirs.state_dict().items():
        module, _, last = name.rpartition(".")
        mine = f"{modules.get(module)}.{last}"
        if module in modules and mine in state:
            state[mine].copy_(value)
            taken.add(mine)
        else:
            assert name.startswith("backbone.") or "layers.0.residual_layer1" in name, name
    assert taken == state.keys()


def copy_body(net: nn.Module, body: nn.Module) -> None:
    mine, state = net.state_dict(), body.state_dict()
    pairs = {
        f"{there}.{last}": mine[f"{here}.{last}"]
        for here, there in IN_BODY.items()
        for last in ("weight", "bias")
    }
    for number in range(DEPTH):
        block, layer = f"blocks.{number}", f"encoder.layer.{number}"
        for last in ("weight", "bias"):
            parts = mine[f"{block}.attn.qkv.{last}"].chunk(3)
            for kind, part in zip("qkv", parts, strict=True):
                pairs[f"{layer}.attention.{kind}_proj.{last}"] = part
        for which in (1, 2):
            pairs[f"{layer}.layer_scale{which}.lambda1"] = mine[f"{block}.ls{which}.gamma"]
    pairs["embeddings.cls_token"] = mine["cls_token"]
    pairs["embeddings.position_embeddings"] = mine["pos_embed"]
    left = state.keys() - pairs.keys()
    assert left <= {"embeddings.mask_token", "layernorm.weight", "layernorm.bias"}, left
    body.load_state_dict({**state, **pairs})


def test_it_is_transformers_dpt_on_dinov2():
    seed_host(0)
    network, theirs = drawn(ours()), drawn(Theirs())
    copy_head(theirs, network.head)
    copy_body(network.backbone.net, theirs.backbone)
    images = torch.randn(2, 3, 4 * PATCH, 4 * PATCH)
    with torch.no_grad():
        found, expected = network(images)["out"], theirs(images)
    assert found.shape == (2, CLASSES, 56, 56) and expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_its_loss_and_gradients_are_those_of_transformers():
    """In float64, but for the losses, which are float32."""
    seed_host(0)
    network, theirs = drawn(ours()).double(), drawn(Theirs()).double()
    copy_head(theirs, network.head)
    copy_body(network.backbone.net, theirs.backbone)
    images = torch.randn(2, 3, 4 * PATCH, 4 * PATCH, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(CLASSES, (2, 56, 56))
    targets[:, :9] = 255
    task = Segmentation(CLASSES, aux_weight=0.0)
    ours_loss = (task.losses(network(images), targets) / task.counts(targets)).sum()
    loss = F.cross_entropy(theirs(images), targets, ignore_index=255)
    torch.testing.assert_close(ours_loss.double(), loss, rtol=1e-6, atol=1e-6)
    (found,) = torch.autograd.grad(ours_loss, images, retain_graph=True)
    (expected,) = torch.autograd.grad(loss, images, retain_graph=True)
    largest = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * largest)
    last = network.head.classify[-1].weight
    other = next(
        each for each in theirs.parameters() if each.shape == last.shape and torch.equal(each, last)
    )
    (found,) = torch.autograd.grad(ours_loss, last)
    (expected,) = torch.autograd.grad(loss, other)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
def test_of_other_sizes_it_takes_class_token_and_patches_of_each_block(name):
    """Of images that are no square and are padded, register tokens left out."""
    seed_host(0)
    network, theirs = drawn(ours(name)), drawn(Theirs())
    copy_head(theirs, network.head)
    tokens = []
    for block in network.backbone.net.blocks:
        block.register_forward_hook(lambda module, inputs, output: tokens.append(output))
    images = torch.randn(2, 3, 3 * PATCH + 5, 5 * PATCH)
    filled = F.pad(images, (0, PATCH, 0, PATCH - 5))
    with torch.no_grad():
        found = network(images)["out"]
        states = [torch.cat([each[:, :1], each[:, -24:]], 1) for each in tokens]
        expected = theirs.fused(states, (4, 6), filled.shape[-2:])
    torch.testing.assert_close(
        found, expected[..., : images.shape[-2], : images.shape[-1]], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", ["test_vit", "samvit_base_patch16"])
def test_every_parameter_receives_a_gradient(name):
    """With a class token, and without one, where nothing is read out."""
    if name == "test_vit":
        network = segmenter("dpt", 3, "timm:test_vit", pretrained=False)
    else:
        net = timm.create_model(
            name, embed_dim=WIDTH, depth=DEPTH, num_heads=3, global_attn_indexes=(3,)
        )
        network = DPT(ViTMaps(net, range(DEPTH), norm=False), 3)
    assert (network.head.reassemble[0].readout is None) == (name != "test_vit")
    outputs = network(torch.randn(2, 3, 64, 96))
    assert outputs.keys() == {"out"} and outputs["out"].shape == (2, 3, 64, 96)
    outputs["out"].square().sum().backward()
    assert not [each for each, weight in network.named_parameters() if weight.grad is None]
    layer_of = depths(network)
    head = {layer for each, layer in layer_of.items() if each.startswith("head.")}
    assert head == {max(layer_of.values())}


def test_the_blocks_that_it_takes():
    network = segmenter("dpt", 3, "timm:test_vit", False, out_indices=(0, 1, 2, -1))
    assert network.backbone.out_indices == [0, 1, 2, 5]
    with pytest.raises(UserError, match="dpt takes the maps of four blocks"):
        segmenter("dpt", 3, "timm:test_vit", False, out_indices=(0, 1))


@pytest.mark.nightly
def test_a_backbone_of_one_size_has_an_even_number_of_patches():
    name = "timm:beit_base_patch16_224"
    network = segmenter("dpt", 3, name, pretrained=False, image_size=64)
    assert network.image_size == (64, 64)
    assert network(torch.randn(2, 3, 64, 64))["out"].shape == (2, 3, 64, 64)
    with pytest.raises(UserError, match="images of 48 x 48: give --crop a multiple of 32"):
        segmenter("dpt", 3, name, pretrained=False, image_size=48)
