"""Adapters (LoRA) in checkpoints: merged into plain weights, and as peft's own two files."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from trainkit.models.lora import SCALE, Adapters

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
ADAPTER_FILES = (ADAPTER, ADAPTER_CONFIG)
BASE = ".base_layer."
MATRIX = re.compile(r"(?P<layer>.+)\.lora_(?P<which>[AB])\.default\.weight")
AVERAGES = "state.ema.averages."  # before the names of EMA weights among a checkpoint's tensors
PEFT = "base_model.model."  # before all names in peft's file


@dataclass(frozen=True)
class AdapterFiles:
    """What peft's two files hold, with which its `PeftModel.from_pretrained` adapts a network."""

    tensors: dict[str, Tensor]
    config: Mapping[str, Any]

    @classmethod
    def of(
        cls, adapters: Adapters, model: Mapping[str, Tensor], state: Mapping[str, Tensor]
    ) -> "AdapterFiles":
        """Of a checkpoint's tensors, which they share; EMA weights where it has them.

        Args:
            adapters: of the network.
            model: its state dict.
            state: the other tensors of a checkpoint, by their names in it.
        """
        averages = {
            name.removeprefix(AVERAGES): value
            for name, value in state.items()
            if name.startswith(AVERAGES)
        }
        heads = tuple(f"{name}." for name in adapters.heads)
        tensors = {
            PEFT + name.replace(".default.weight", ".weight"): value
            for name, value in (averages or model).items()
            if MATRIX.fullmatch(name) or name.startswith(heads)
        }
        return cls(tensors, adapters.config)


def fitted(
    ours: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], str | None]:
    """Weights for a model that has adapters where they have none, or none where they have some.

    Args:
        ours: the model's state dict.
        weights: tensors by name, from a file.

    Returns:
        The weights, merged, or with the names that layers have beside adapters; and what was done,
        None where nothing was.
    """
    theirs = any(MATRIX.fullmatch(name) for name in weights)
    has_adapters = any(MATRIX.fullmatch(name) for name in ours)
    if theirs and not has_adapters:
        return merge(weights), "its adapters (LoRA) were merged into its weights"
    if has_adapters and not theirs:
        beside = {name.replace(BASE, "."): name for name in ours if BASE in name}
        return {_beside(name, beside): value for name, value in weights.items()}, None
    return dict(weights), None


def merge(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """W + `SCALE` B A for each layer with an adapter, by the layer's own name; all else as it is.

    A is (r, in) or (r, in, kh, kw), B is (out, r) or (out, r, 1, 1).
    """
    matrices: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        if found := MATRIX.fullmatch(name):
            matrices.setdefault(found["layer"], {})[found["which"]] = value
    merged = {}
    for name, value in weights.items():
        if MATRIX.fullmatch(name):
            continue
        layer, base, which = name.rpartition(BASE)
        if base and which == "weight" and layer in matrices:
            pair = matrices[layer]
            product = pair["B"].flatten(1).float() @ pair["A"].flatten(1).float()
            value = (value.float() + SCALE * product.view_as(value)).to(value.dtype)
        merged[f"{layer}.{which}" if base else name] = value
    return merged


def _beside(name: str, beside: Mapping[str, str]) -> str:
    """A weight's name in a network with adapters, also after a prefix such as "module."."""
    for start in (0, *(place.end() for place in re.finditer(r"\.", name))):
        if name[start:] in beside:
            return name[:start] + beside[name[start:]]
    return name
