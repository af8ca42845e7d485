"""Encoders of EoMT from transformers' DINOv2 and DINOv3: their sizes, and their weights by name."""

import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trainkit.errors import UserError, first_line
from trainkit.models.hf_config import found
from trainkit.models.hf_weights import quiet
from trainkit.models.pretrained import START_AT_RANDOM, offline, offline_where_unreachable

# Type of EoMT -> types of encoders
FAMILIES = {"eomt": ("dinov2", "dinov2_with_registers"), "eomt_dinov3": ("dinov3_vit",)}
SAME = {
    "eomt": ("hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio", "patch_size",
             "layer_norm_eps", "hidden_act", "use_swiglu_ffn"),
    "eomt_dinov3": ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                    "patch_size", "layer_norm_eps", "hidden_act", "use_gated_mlp",
                    "query_bias", "key_bias", "value_bias", "proj_bias",
                    "mlp_bias"),
}  # fmt: skip
LAYER = re.compile(r"(?:encoder|model)\.layer\.(\d+)\.(.+)")


def hf_encoder(kind: str, name: str, pretrained: bool) -> Any:
    """Build transformers' encoder "hf:NAME", a folder, a name on the Hub, or a type.

    Args:
        kind: of transformers, "eomt" for DINOv2, "eomt_dinov3" for DINOv3.
        name: with the prefix "hf:".
        pretrained: start from the weights of the name.

    Raises:
        UserError: the network or its weights are missing, or it is of another family.
    """
    source = found(name, (), FAMILIES[kind])
    if source.config.model_type not in FAMILIES[kind]:
        raise UserError(
            f"hf:{kind} takes {' or '.join(FAMILIES[kind])} of transformers as its backbone, and"
            f" {name} is of type {source.config.model_type}"
        )
    auto = import_module("transformers").AutoModel
    if not pretrained:
        with offline(), quiet():
            return auto.from_config(source.config, dtype=torch.float32)
    if source.files is None:
        raise UserError(
            f"pretrained is on, and {name} is a type of network without published weights: give a"
            " name on the Hub (hf:owner/name), a folder, or --no-pretrained"
        )
    try:
        with offline_where_unreachable(), quiet():
            return auto.from_pretrained(source.files, config=source.config, dtype=torch.float32)
    except OSError as error:
        raise UserError(
            f"cannot get the weights of {name} ({first_line(error)}). Fill the Hugging Face cache"
            f" where there is a network, or {START_AT_RANDOM}"
        ) from error


def hf_settings(kind: str, encoder: Any) -> dict[str, Any]:
    """Arguments of the configuration of EoMT that describe transformers' encoder."""
    config = encoder.config
    settings = {name: getattr(config, name) for name in SAME[kind]}
    if kind == "eomt_dinov3":
        rope = {"rope_type": "default", "rope_theta": config.rope_theta}
        settings["rope_parameters"] = rope
    return {**settings, "num_register_tokens": getattr(config, "num_register_tokens", 0)}


def hf_mapped(kind: str, weights: Mapping[str, Tensor], num_patches: int) -> dict[str, Tensor]:
    """Rename transformers' weights of an encoder as EoMT has them.

    Args:
        kind: of transformers, "eomt" or "eomt_dinov3".
        weights: a state dict of the encoder.
        num_patches: of EoMT's images, to which positions are interpolated as transformers does.
    """
    found_weights: dict[str, Tensor] = {}
    for name, value in weights.items():
        match = LAYER.fullmatch(name)
        if match is not None:
            found_weights |= _of_layer(kind, f"layers.{match[1]}", match[2], value)
        elif name.startswith("norm."):
            found_weights[f"layer{name}"] = value
        elif not name.endswith(("mask_token", "position_embeddings")):
            found_weights[name] = value
    token = weights["embeddings.cls_token"]
    positions = weights.get("embeddings.position_embeddings")
    if positions is not None:  # the first is of the class token, where EoMT has none
        token = token + positions[:, :1]
        # as each of the two types does it
        smooth = "embeddings.register_tokens" in weights
        patches = _interpolated(positions[0, 1:], num_patches, antialias=smooth)
        found_weights["embeddings.position_embeddings.weight"] = patches
    registers = weights.get("embeddings.register_tokens", token[:, :0])
    return {
        **found_weights,
        "embeddings.cls_token": token,
        "embeddings.register_tokens": registers,
    }


def _of_layer(kind: str, layer: str, name: str, value: Tensor) -> dict[str, Tensor]:
    part, _, last = name.rpartition(".")
    if part == "mlp.weights_in":  # a gate and what it lets through
        halves = zip(("gate_proj", "up_proj"), value.chunk(2))
        return {f"{layer}.mlp.{each}.{last}": half for each, half in halves}
    if part == "mlp.weights_out":
        return {f"{layer}.mlp.down_proj.{last}": value}
    if kind == "eomt" and part == "attention.o_proj":
        return {f"{layer}.attention.out_proj.{last}": value}
    return {f"{layer}.{name}": value}


def _interpolated(positions: Tensor, number: int, antialias: bool) -> Tensor:
    """Positions (patches, width) of a square grid, for one of another number of patches."""
    if len(positions) == number:
        return positions
    before, after = round(len(positions) ** 0.5), round(number**0.5)
    grid = positions.reshape(1, before, before, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(
        grid, (after, after), mode="bicubic", align_corners=False, antialias=antialias
    )
    return resized.flatten(2)[0].T
