"""Resizes position embeddings of weights that were trained on images of another size.

As the network's own library does it: timm, torchvision or transformers.
"""

import math
from collections.abc import Mapping
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
MOST_TOKENS = 8  # beside the patches: class tokens, that of distillation, registers


def resized_positions(
    model: nn.Module, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights whose position embeddings have the model's shapes.

    Only those are changed that are of another shape and of the model's width. Where a file does not
    say what its rows of positions were, they are taken for a square, as the libraries do; as many
    as the model has are taken for what the model's are. Those of as many patches, but of more or
    fewer tokens beside them, stay as they are.

    Args:
        model: takes the weights; it is not changed.
        weights: tensors by the model's names.

    Returns:
        All weights, and the names of those that were resized, each with the two shapes and with
        what the file's positions were taken for.

    Raises:
        UserError: some of them cannot be resized.
    """
    ours = model.state_dict()
    found, lines = dict(weights), []
    for name, value in weights.items():
        path, _, last = name.removesuffix(".weight").rpartition(".")
        if name not in ours or last not in NAMES or not _is_resizable(value, ours[name]):
            continue
        try:
            with torch.no_grad(), without_interpolation_warnings():
                resize = _resize(model, path, last)
                taken_for = resize.taken_for(value, ours[name])
                resized = resize(value.float(), ours[name])
            if resized.numel() != ours[name].numel():  # such as of PVT's function, for maps
                raise UserError(f"its function for that gives {list(resized.shape)}")
        except _OtherTokens:
            continue
        except Exception as error:  # of three libraries, for shapes that they do not take
            if is_shortage(error):
                raise
            raise UserError(
                f"{name} of the weights has shape {list(value.shape)}, and the model"
                f" {list(ours[name].shape)}: it depends on the images' size and cannot be resized"
                f" ({first_line(error)}). Give the size that the weights were trained at"
            ) from error
        found[name] = resized.reshape(ours[name].shape).to(value.dtype)
        shapes = f"file {list(value.shape)}, model {list(ours[name].shape)}"
        lines.append(f"{name} ({shapes}{taken_for and f', the file taken for {taken_for}'})")
    return found, lines


def _is_resizable(value: Tensor, ours: Tensor) -> bool:
    """Whether they differ in positions alone, and not in width."""
    shapes = value.shape, ours.shape
    if value.ndim != ours.ndim or shapes[0] == shapes[1] or not value.is_floating_point():
        return False
    # (1, N, C), (1, H, W, C) and (N, heads) end with the width; tables (heads, N) or (heads, H, W)
    # begin with it
    return shapes[0][-1] == shapes[1][-1] or shapes[0][0] == shapes[1][0] != 1


class _OtherTokens(Exception):
    """The shapes differ in tokens beside the patches, and not in the images' size."""


class _Resizing:
    """Makes a tensor of the file one of the model's shape."""

    def __call__(self, value: Tensor, ours: Tensor) -> Tensor:
        raise NotImplementedError

    def taken_for(self, value: Tensor, ours: Tensor) -> str:
        """The sides that the file's rows of positions are taken for, "" where the shape says them.

        Raises:
            UserError: they are no square.
        """
        raise NotImplementedError


def _resize(model: nn.Module, path: str, last: str) -> _Resizing:
    """What resizes the parameter `path`.`last`."""
    owner: Any = model.get_submodule(path)
    if hasattr(owner, "interpolate_pos_encoding"):
        return _Transformers(owner, last, _image_size(model, path))
    outer: Any = model.get_submodule(path.rpartition(".")[0])
    if isinstance(outer, VisionTransformer):
        return _Torchvision(outer)
    if any(kind.__module__.startswith("timm.") for kind in type(owner).__mro__):
        if last in ("pos_embed", "absolute_pos_embed") and hasattr(owner, "patch_embed"):
            return _Timm(owner)
        if last == "relative_position_bias_table":
            return _Table(owner)
        if last == "attention_biases":
            return _Biases()
    raise UserError(f"{type(owner).__name__} has no function for that")


class _Timm(_Resizing):
    """Absolute positions (1, N, C), those of tokens first, or (1, H, W, C)."""

    def __init__(self, owner: Any):
        self.owner = owner

    def __call__(self, value: Tensor, ours: Tensor) -> Tensor:
        from timm.layers import resample_abs_pos_embed, resample_abs_pos_embed_nhwc

        if ours.ndim == 4:
            return resample_abs_pos_embed_nhwc(value, list(ours.shape[1:3]))
        grid = list(self.owner.patch_embed.grid_size)
        return resample_abs_pos_embed(value, new_size=grid, num_prefix_tokens=self._tokens(ours))

    def taken_for(self, value: Tensor, ours: Tensor) -> str:
        """See `_Resizing.taken_for`."""
        if ours.ndim == 4:
            return ""
        tokens = self._tokens(ours)
        others = self._tokens(value)
        if 0 <= others <= MOST_TOKENS and not _is_square(value.shape[1] - tokens):
            raise _OtherTokens
        return _square(value.shape[1] - tokens)

    def _tokens(self, positions: Tensor) -> int:
        """How many of (1, N, C) are of tokens; some networks have none for class tokens."""
        return positions.shape[1] - math.prod(self.owner.patch_embed.grid_size)


class _Torchvision(_Resizing):
    """Positions (1, N, C), that of the class token first."""

    def __init__(self, owner: VisionTransformer):
        self.owner = owner

    def __call__(self, value: Tensor, ours: Tensor) -> Tensor:
        name = "encoder.pos_embedding"
        size, patch = self.owner.image_size, self.owner.patch_size
        return interpolate_embeddings(size, patch, {name: value})[name]

    def taken_for(self, value: Tensor, ours: Tensor) -> str:
        """See `_Resizing.taken_for`."""
        return _square(value.shape[1] - 1)


class _Transformers(_Resizing):
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

    def taken_for(self, value: Tensor, ours: Tensor) -> str:
        """At most two tokens come beside the patches, so that there is one square at most."""
        sides = [math.isqrt(each.shape[-2]) for each in (value, ours)]
        tokens = [each.shape[-2] - side**2 for each, side in zip((value, ours), sides)]
        if max(tokens) <= 2 and sides[0] == sides[1]:
            raise _OtherTokens
        return f"{sides[0]} x {sides[0]}" if tokens[0] <= 2 else "a square"


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


class _Table(_Resizing):
    """Biases by relative position (N, heads), those of tokens last, or (heads, H, W)."""

    def __init__(self, owner: Any):
        self.owner = owner

    def __call__(self, value: Tensor, ours: Tensor) -> Tensor:
        from timm.layers import resize_rel_pos_bias_table

        return resize_rel_pos_bias_table(
            value, new_window_size=self.owner.window_size, new_bias_shape=tuple(ours.shape)
        )

    def taken_for(self, value: Tensor, ours: Tensor) -> str:
        """See `_Resizing.taken_for`."""
        if ours.ndim == 3:
            return ""
        tokens = len(ours) - math.prod(2 * side - 1 for side in self.owner.window_size)
        return _square(len(value) - tokens)


class _Biases(_Resizing):
    """LeViT's biases by distance (heads, N)."""

    def __call__(self, value: Tensor, ours: Tensor) -> Tensor:
        from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_levit

        _square(ours.shape[1])
        return resize_rel_pos_bias_table_levit(value.T, tuple(ours.T.shape)).T

    def taken_for(self, value: Tensor, ours: Tensor) -> str:
        """See `_Resizing.taken_for`."""
        return _square(value.shape[1])


def _is_square(number: int) -> bool:
    return number >= 0 and math.isqrt(number) ** 2 == number


def _square(number: int) -> str:
    """The sides of the square of `number` positions. Raises UserError where it is none."""
    if not _is_square(number):
        raise UserError(f"{number} positions are no square")
    side = math.isqrt(number)
    return f"{side} x {side}"
