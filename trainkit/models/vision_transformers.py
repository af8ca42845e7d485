"""timm's vision transformers as backbones: maps of one size, that of their patches, by block."""

import inspect
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from trainkit.errors import UserError
from trainkit.models.base import Backbone
from trainkit.models.timm_models import timm_network, timm_with

# timm's modules whose networks have maps of one size after each block, and interpolate their
# position embeddings to each image where they are asked to (dynamic_img_size), or as they are.
DYNAMIC = ("deit", "eva", "vision_transformer", "vision_transformer_hybrid")
ANY_SIZE = ("deepseek_vit", "vision_transformer_sam", "xcit")
# Those that take the images alone that they are built for: relative positions, or embeddings that
# stay as they are.
ONE_SIZE = ("beit", "cait", "vision_transformer_relpos")
MAPS = 4  # of an evenly spaced pyramid


def is_vision_transformer(name: str) -> bool:
    """Whether "timm:NAME" is a vision transformer without a pyramid of its own.

    Raises:
        UserError: timm or the network is missing.
    """
    if not name.startswith("timm:"):
        return False
    timm, short = timm_with(name)
    return bool(timm.models.is_model_in_modules(short, (*DYNAMIC, *ANY_SIZE, *ONE_SIZE)))


class ViTMaps(Backbone):
    """The maps after some blocks of a timm vision transformer, all of one size and width.

    Args:
        net: with `forward_intermediates`; its head is taken from it, and blocks after the last one
            that is asked for.
        out_indices: blocks, counted from 0, in ascending order.
        norm: whether the network's last norm is applied to each of them; else it is taken away.
        image_size: height and width of the images, where it takes no others.

    Attributes:
        patch_size: side of a patch in pixels, by which those of images must be divisible.
        size_divisor: the same, as `trainkit.models.outputs.size_divisor` looks for it.
        channels: of the maps.
        has_class_token: whether the network has one and gives it after each block.
        with_tokens: whether `forward` returns it as well.
    """

    def __init__(
        self,
        net: Any,
        out_indices: Sequence[int],
        norm: bool,
        image_size: tuple[int, int] | None = None,
    ):
        super().__init__()
        net.prune_intermediate_layers(list(out_indices), prune_norm=not norm)
        self.net = net
        self.out_indices = list(out_indices)
        self.norm = norm
        self.patch_size = self.size_divisor = int(net.feature_info[0]["reduction"])
        self.image_size = image_size
        self.channels = (net.num_features,) * len(self.out_indices)
        known = inspect.signature(net.forward_intermediates).parameters
        gives_tokens = "return_prefix_tokens" in known
        self.has_class_token = gives_tokens and getattr(net, "cls_token", None) is not None
        self.with_tokens = False

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) -> maps c1, c2 and so on, (N, C, H / patch, W / patch) each.

        With class tokens t1, t2 and so on (N, C) after them, where `with_tokens`.
        """
        more = {"return_prefix_tokens": True} if self.with_tokens else {}
        found = self.net.forward_intermediates(
            x, indices=self.out_indices, norm=self.norm, intermediates_only=True, **more
        )
        maps = [each[0] for each in found] if self.with_tokens else found
        named = OrderedDict((f"c{number}", each) for number, each in enumerate(maps, 1))
        if self.with_tokens:  # the class token is the first of those before the patches
            named.update((f"t{number}", each[1][:, 0]) for number, each in enumerate(found, 1))
        return named


def vision_transformer(
    name: str,
    pretrained: bool,
    last_alone: bool,
    out_indices: Sequence[int] | None = None,
    image_size: int | None = None,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> ViTMaps:
    """Build a vision transformer of timm as a backbone for images of any size, or of one.

    Args:
        name: "timm:" and its name, see `is_vision_transformer`.
        pretrained: start from timm's default weights.
        last_alone: the map after the last block in place of those after four evenly spaced blocks,
            which the last is one of; and the maps are normalised.
        out_indices: the blocks in their place, in ascending order, counted from 0 or, below 0,
            from the end.
        image_size: side of the images of one that takes no others; None: the published one.
        settings: further arguments of `timm.create_model`.

    Raises:
        UserError: the weights cannot be had, it has fewer than four blocks, there are no such
            blocks, or patches do not divide image_size.
    """
    timm, short = timm_with(name)
    dynamic = timm.models.is_model_in_modules(short, DYNAMIC)
    asked: dict[str, Any] = {"dynamic_img_size": True} if dynamic else {}
    try:
        net = timm_network(name, pretrained, **asked, **settings)
    except TypeError as error:
        raise UserError(
            f"{name} does not take {' and '.join(settings)} in timm ({error})"
        ) from error
    depth = len(getattr(net, "blocks", ()))
    if depth == 0 and timm.is_model(f"{short}_enc"):
        raise UserError(
            f"backbone {name} is a classifier around an encoder in timm: take {name}_enc"
        )
    if depth < MAPS:
        raise UserError(f"backbone {name} has {depth} blocks; it takes {MAPS} at least")
    blocks = [(number + 1) * depth // MAPS - 1 for number in range(MAPS)]
    if out_indices is not None:
        blocks = _blocks(name, out_indices, depth)
    elif last_alone:
        blocks = [depth - 1]
    only = None
    if timm.models.is_model_in_modules(short, ONE_SIZE):
        only = _set_size(name, net, image_size)
    return ViTMaps(net, blocks, norm=last_alone, image_size=only)


@contextmanager
def without_interpolation_warnings() -> Iterator[None]:
    """Context manager: torch does not warn of how timm interpolates relative positions."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(searchsorted|non-tuple sequence)")
        yield


def _blocks(name: str, out_indices: Sequence[int], depth: int) -> list[int]:
    """The blocks, all counted from 0."""
    found = [each + depth if each < 0 else each for each in out_indices]
    inside = all(0 <= each < depth for each in found)
    if not found or not inside or found != sorted(set(found)):
        raise UserError(
            f"out_indices is {' '.join(map(str, out_indices)) or 'empty'}, and backbone {name} has"
            f" {depth} blocks: give some of 0 to {depth - 1} in ascending order, or -{MAPS} to -1"
            " for the last ones"
        )
    return found


def _set_size(name: str, net: Any, image_size: int | None) -> tuple[int, int]:
    """Fit a network to images of one size, interpolating its positions; that size."""
    embed = net.patch_embed
    height, width = embed.img_size
    if image_size is None or (height, width) == (image_size, image_size):
        return height, width
    size = (image_size, image_size)
    if any(image_size % side for side in embed.patch_size):
        raise UserError(
            f"backbone {name} takes images of one size, in patches of {embed.patch_size[0]} pixels,"
            f" and crop is {image_size}: give a multiple of that"
        )
    if hasattr(net, "set_input_size"):  # BEiT and relative positions
        with without_interpolation_warnings():
            net.set_input_size(img_size=size)
        return size
    from timm.layers import resample_abs_pos_embed

    embed.set_input_size(img_size=size)
    net.pos_embed = nn.Parameter(
        resample_abs_pos_embed(net.pos_embed, new_size=list(embed.grid_size), num_prefix_tokens=0)
    )
    return size
