"""Resizes position embeddings of weights that were trained on images of another size.

As the network's own library does it: timm, torchvision or transformers.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import interpolate_embeddings

from trainkit.errors import UserError, first_line, is_shortage
from trainkit.models.hf_fitting import sides_of, sized_config
from trainkit.models.vision_transformers import without_interpolation_warnings

# What timm, torchvision and transformers call those whose shape follows from the images' size.
NAMES = (
    "pos_embed", "pos_embedding", "position_embedding", "position_embeddings", "absolute_pos_embed",
    "relative_position_bias_table", "attention_biases", "rel_pos_h", "rel_pos_w",
)  # fmt: skip


def resized_positions(
    model: nn.Module, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights whose position embeddings have the model's shapes.

    Only those are changed that are of another shape and of the model's width; maps of positions in
    the file are taken for squares.

    Args:
        model: takes the weights; it is not changed.
        weights: tensors by the model's names.

    Returns:
        All weights, and the names of those that were resized.

    Raises:
        UserError: some of them cannot be resized.
    """
    ours = model.state_dict()
    found, names = dict(weights), []
    for name, value in weights.items():
        path, _, last = name.removesuffix(".weight").rpartition(".")
        if name not in ours or last not in NAMES or not _is_resizable(value, ours[name]):
            continue
        try:
            with torch.no_grad(), without_interpolation_warnings():
                resized = _resize(model, path, last)(value.float(), ours[name])
        except Exception as error:  # of three libraries, for shapes that they do not take
            if is_shortage(error):
                raise
            raise UserError(
                f"{name} of the weights has shape {list(value.shape)}, and the model"
                f" {list(ours[name].shape)}: it depends on the images' size and cannot be resized"
                f" ({first_line(error)}). Give the size that the weights were trained at"
            ) from error
        found[name] = resized.reshape(ours[name].shape).to(value.dtype)
        names.append(name)
    return found, names


def _is_resizable(value: Tensor, ours: Tensor) -> bool:
    """Whether they differ in positions alone, and not in width."""
    shapes = value.shape, ours.shape
    if value.ndim != ours.ndim or shapes[0] == shapes[1] or not value.is_floating_point():
        return False
    # (1, N, C), (1, H, W, C) and (N, heads) end with the width; tables (heads, N) or (heads, H, W)
    # begin with it
    return shapes[0][-1] == shapes[1][-1] or shapes[0][0] == shapes[1][0] != 1


def _resize(model: nn.Module, path: str, last: str) -> Callable[[Tensor, Tensor], Tensor]:
    """What makes a tensor of the file one of the model's shape, for the parameter `path`.`last`."""
    owner: Any = model.get_submodule(path)
    if hasattr(owner, "interpolate_pos_encoding"):
        return _Transformers(owner, last, _image_size(model, path))
    outer: Any = model.get_submodule(path.rpartition(".")[0])
    if isinstance(outer, VisionTransformer):
        return _Torchvision(outer)
    if last in ("pos_embed", "absolute_pos_embed") and hasattr(owner, "patch_embed"):
        return _Timm(owner)
    is_of_timm = any(kind.__module__.startswith("timm.") for kind in type(owner).__mro__)
    if is_of_timm and last == "relative_position_bias_table":
        return _table_of(owner)
    if is_of_timm and last == "attention_biases":
        return _biases
    raise UserError(f"{type(owner).__name__} has no function for that")


class _Timm:
    """Absolute positions (1, N, C), those of tokens first, or (1, H, W, C)."""

    def __init__(self, owner: Any):
        self.owner = owner

    def __call__(self, value: Tensor, ours: Tensor) -> Tensor:
        from timm.layers import resample_abs_pos_embed, resample_abs_pos_embed_nhwc

        if ours.ndim == 4:
            return resample_abs_pos_embed_nhwc(value, list(ours.shape[1:3]))
        grid = list(self.owner.patch_embed.grid_size)
        tokens = ours.shape[1] - grid[0] * grid[1]  # some have no positions of class tokens
        _require_square(value.shape[1] - tokens)
        return resample_abs_pos_embed(value, new_size=grid, num_prefix_tokens=tokens)


class _Torchvision:
    """Positions (1, N, C), that of the class token first."""

    def __init__(self, owner: VisionTransformer):
        self.owner = owner

    def __call__(self, value: Tensor, ours: Tensor) -> Tensor:
        name = "encoder.pos_embedding"
        size, patch = self.owner.image_size, self.owner.patch_size
        return interpolate_embeddings(size, patch, {name: value})[name]


class _Transformers:
    """Positions (1, N, C), or (N, C) of an nn.Embedding, resized by the module's own method."""

    def __init__(self, owner: Any, last: str, size: tuple[int, int]):
        self.owner, self.last, self.size = owner, last, size

    def __call__(self, value: Tensor, ours: Tensor) -> Tensor:
        held = getattr(self.owner, self.last)
        is_layer = isinstance(held, nn.Embedding)
        theirs: Any = nn.Embedding.from_pretrained(value) if is_layer else nn.Parameter(value)
        setattr(self.owner, self.last, theirs)
        try:
            tokens = torch.zeros(1, *ours.shape[-2:])
            return self.owner.interpolate_pos_encoding(tokens, *self.size)
        finally:
            setattr(self.owner, self.last, held)


def _image_size(model: nn.Module, path: str) -> tuple[int, int]:
    """The size in the configuration of the module at `path`, or of the nearest around it."""
    parts = path.split(".")
    for number in range(len(parts), -1, -1):
        module = model.get_submodule(".".join(parts[:number]))
        sized = sized_config(getattr(module, "config", None))
        size = None if sized is None else sides_of(sized.image_size)
        if size is not None:
            return size
    raise UserError("its configuration has no image_size")


def _table_of(owner: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """For biases by relative position (N, heads), or (heads, H, W)."""
    from timm.layers import resize_rel_pos_bias_table

    return lambda value, ours: resize_rel_pos_bias_table(
        value, new_window_size=owner.window_size, new_bias_shape=tuple(ours.shape)
    )


def _biases(value: Tensor, ours: Tensor) -> Tensor:
    """LeViT's biases by distance (heads, N)."""
    from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_levit

    for each in (value, ours):
        _require_square(each.shape[1])
    return resize_rel_pos_bias_table_levit(value.T, tuple(ours.T.shape)).T


def _require_square(number: int) -> None:
    if math.isqrt(max(number, 0)) ** 2 != number:
        raise UserError(f"{number} positions are no square")
