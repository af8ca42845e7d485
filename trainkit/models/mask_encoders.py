"""Encoders of EoMT from timm's DINOv2 and DINOv3: their sizes, and their weights by name."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainkit.errors import UserError
from trainkit.models.timm_models import timm_network

# Of timm's names -> of EoMT's in transformers; what a block has is under "layers.N."
OUTSIDE = {
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
IN_BLOCKS = {
    "norm1": "norm1", "norm2": "norm2", "attn.proj": "attention.out_proj",
    "ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1",
    "gamma_1": "layer_scale1.lambda1", "gamma_2": "layer_scale2.lambda1",
    "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
}  # fmt: skip
# Those of DINOv3 that differ.
OUTSIDE_DINOV3 = {**OUTSIDE, "patch_embed.proj": "embeddings.patch_embeddings"}
IN_BLOCKS_DINOV3 = {
    **IN_BLOCKS, "attn.proj": "attention.o_proj", "mlp.fc1": "mlp.up_proj",
    "mlp.fc2": "mlp.down_proj", "mlp.fc1_x": "mlp.up_proj", "mlp.fc1_g": "mlp.gate_proj",
}  # fmt: skip
BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


def timm_encoder(kind: str, name: str, pretrained: bool, image_size: int, patch_size: int) -> Any:
    """Build timm's vision transformer "timm:NAME" for images and patches of one size.

    Published weights of patches and positions are resampled to these, as timm does.

    Args:
        kind: of transformers, "eomt" for DINOv2, "eomt_dinov3" for DINOv3.
        name: with the prefix "timm:".
        pretrained: start from timm's weights.
        image_size: side of the images.
        patch_size: side of the patches.

    Raises:
        UserError: timm, the network or its weights are missing, or it is of another family.
    """
    family = "dinov3" if kind == "eomt_dinov3" else "dinov2"
    if not re.search(rf"^timm:vit_\w+_{family}", name):
        raise UserError(
            f"hf:{kind} takes {family.upper().replace('V', 'v')} of timm as its backbone, such as"
            f" timm:vit_large_patch{16 if kind == 'eomt_dinov3' else '14_reg4'}_{family}, and"
            f" backbone is {name}"
        )
    settings: dict[str, Any] = {"patch_size": patch_size}
    if kind == "eomt":  # the other has no positions of patches
        settings["img_size"] = image_size
    return timm_network(name, pretrained, num_classes=0, **settings)


def encoder_settings(kind: str, encoder: Any) -> dict[str, Any]:
    """Arguments of the configuration of EoMT that describe timm's encoder."""
    block = encoder.blocks[0]
    width, names = encoder.embed_dim, {name for name, _ in block.named_parameters()}
    hidden = block.mlp.fc2.in_features
    settings = {
        "hidden_size": width,
        "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": block.attn.num_heads,
        "num_register_tokens": encoder.num_prefix_tokens - 1,
        "layer_norm_eps": block.norm1.eps,
    }
    if kind == "eomt":
        gated = block.mlp.fc1.out_features == 2 * hidden
        # of gated ones transformers takes two thirds, in multiples of 8
        ratio = round(hidden * 1.5 / width) if gated else hidden // width
        return {**settings, "use_swiglu_ffn": gated, "mlp_ratio": ratio}
    gated = "mlp.fc1_g.weight" in names
    # transformers has one activation, for the new heads too
    activation = {"hidden_act": "silu"} if gated else {}
    return {**settings, "intermediate_size": hidden, "use_gated_mlp": gated, **activation}


@torch.no_grad()
def load_encoder(network: nn.Module, found: dict[str, Tensor]) -> None:
    """Load the weights of an encoder into EoMT; all but queries and heads come from it.

    Args:
        network: takes them.
        found: by EoMT's names, see `mapped`.

    Raises:
        UserError: there is a weight on either side that the other one has no place for.
    """
    state = network.state_dict()
    ours = {name for name in state if name.startswith(("embeddings.", "layers.", "layernorm."))}
    # DINOv3 of timm may have no biases of queries and values, or zeros
    absent = [each for each in ours - found.keys() if each.endswith(("q_proj.bias", "v_proj.bias"))]
    found = {**found, **{name: torch.zeros_like(state[name]) for name in absent}}
    wrong = [name for name in found.keys() & ours if found[name].shape != state[name].shape]
    if ours != found.keys() or wrong:
        raise UserError(
            f"the backbone does not fit {type(network).__name__}:"
            f" {', '.join(sorted([*(ours ^ found.keys()), *wrong])[:4])}"
        )
    network.load_state_dict({**state, **found})


def mapped(kind: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename timm's weights of an encoder as EoMT has them.

    Args:
        kind: of transformers, "eomt" or "eomt_dinov3".
        weights: a state dict of timm's vision transformer.
    """
    is_dinov3 = kind == "eomt_dinov3"
    outside = OUTSIDE_DINOV3 if is_dinov3 else OUTSIDE
    inside = IN_BLOCKS_DINOV3 if is_dinov3 else IN_BLOCKS
    first, second = (weights.get(f"blocks.0.mlp.{each}.weight") for each in ("fc1", "fc2"))
    # a gate and what it lets through
    packed = first is not None and second is not None and len(first) == 2 * second.shape[1]
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        match = BLOCK.fullmatch(name)
        if match is not None:
            found |= _of_block(f"layers.{match[1]}", match[2], value, inside, packed)
        elif name not in ("cls_token", "reg_token", "pos_embed"):
            part, _, last = name.rpartition(".")
            found[f"{outside.get(part, part)}.{last}"] = value
    return found | _embeddings(weights)


def _embeddings(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    token = weights["cls_token"]
    found = {"embeddings.register_tokens": weights.get("reg_token", token[:, :0])}
    positions = weights.get("pos_embed")
    if positions is not None:
        if "reg_token" not in weights:  # the first is of the class token, where EoMT has none
            token, positions = token + positions[:, :1], positions[:, 1:]
        found["embeddings.position_embeddings.weight"] = positions[0]
    return {**found, "embeddings.cls_token": token}


def _of_block(
    layer: str, name: str, value: Tensor, inside: Mapping[str, str], packed: bool
) -> dict[str, Tensor]:
    part, _, last = name.rpartition(".")
    if part == "attn.qkv":
        parts = zip(("q_proj", "k_proj", "v_proj"), value.chunk(3))
        return {f"{layer}.attention.{each}.{last}": chunk for each, chunk in parts}
    if packed and part == "mlp.fc1":
        parts = zip(("gate_proj", "up_proj"), value.chunk(2))
        return {f"{layer}.mlp.{each}.{last}": chunk for each, chunk in parts}
    if packed and part == "mlp.fc2":
        return {f"{layer}.mlp.down_proj.{last}": value}
    if last in ("q_bias", "k_bias", "v_bias"):
        return {f"{layer}.attention.{last[0]}_proj.bias": value}
    if name in inside:
        return {f"{layer}.{inside[name]}": value}
    return {f"{layer}.{inside.get(part, part)}.{last}": value}
