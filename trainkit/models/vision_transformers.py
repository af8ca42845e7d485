"""timm's vision transformers as backbones: maps of one size, that of their patches, by block."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from trainkit.errors import UserError
from trainkit.models.base import Backbone
from trainkit.models.timm_models import timm_network, timm_with

# timm's modules whose networks have maps of one size after each block, and interpolate their
# position embeddings to each image where they are asked to (dynamic_img_size), or as they are.
DYNAMIC = ("deit", "eva", "vision_transformer", "vision_transformer_hybrid")
ANY_SIZE = ("vision_transformer_sam", "xcit")
# Those that are built for one size: relative positions, or embeddings that stay as they are.
ONE_SIZE = ("beit", "cait", "vision_transformer_relpos")
MAPS = 4  # of an evenly spaced pyramid


def is_vision_transformer(name: str) -> bool:
    """Whether "timm:NAME" is a vision transformer without a pyramid of its own.

    Raises:
        UserError: timm or the network is missing, or it does not take images of any size.
    """
    if not name.startswith("timm:"):
        return False
    timm, short = timm_with(name)
    if timm.models.is_model_in_modules(short, ONE_SIZE):
        raise UserError(
            f"backbone {name} is built for images of one size in timm, and a segmentation network"
            " gets others: take one whose position embeddings are interpolated, such as"
            " timm:vit_small_patch14_reg4_dinov2, timm:vit_small_patch16_dinov3 or"
            " timm:eva02_small_patch14_224"
        )
    return bool(timm.models.is_model_in_modules(short, (*DYNAMIC, *ANY_SIZE)))


class ViTMaps(Backbone):
    """The maps after some blocks of a timm vision transformer, all of one size and width.

    Args:
        net: with `forward_intermediates`; its head is taken from it, and blocks after the last one
            that is asked for.
        out_indices: blocks, counted from 0, in ascending order.
        norm: whether the network's last norm is applied to each of them; else it is taken away.

    Attributes:
        patch_size: side of a patch in pixels, by which those of images must be divisible.
        size_divisor: the same, as `trainkit.models.outputs.size_divisor` looks for it.
        channels: of the maps.
    """

    def __init__(self, net: Any, out_indices: Sequence[int], norm: bool):
        super().__init__()
        net.prune_intermediate_layers(list(out_indices), prune_norm=not norm)
        self.net = net
        self.out_indices = list(out_indices)
        self.norm = norm
        self.patch_size = self.size_divisor = int(net.feature_info[0]["reduction"])
        self.channels = (net.num_features,) * len(self.out_indices)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) -> maps c1, c2 and so on, (N, C, H / patch, W / patch) each."""
        maps = self.net.forward_intermediates(
            x, indices=self.out_indices, norm=self.norm, intermediates_only=True
        )
        return OrderedDict((f"c{number}", each) for number, each in enumerate(maps, 1))


def vision_transformer(name: str, pretrained: bool, last_alone: bool) -> ViTMaps:
    """Build a vision transformer of timm as a backbone for images of any size.

    Args:
        name: "timm:" and its name, see `is_vision_transformer`.
        pretrained: start from timm's default weights.
        last_alone: the map after the last block, normalised, in place of those after four evenly
            spaced blocks, which the last is one of.

    Raises:
        UserError: the weights cannot be had, or it has fewer than four blocks.
    """
    timm, short = timm_with(name)
    asked: dict[str, Any] = (
        {"dynamic_img_size": True} if timm.models.is_model_in_modules(short, DYNAMIC) else {}
    )
    net = timm_network(name, pretrained, **asked)
    depth = len(net.blocks)
    if depth < MAPS:
        raise UserError(f"backbone {name} has {depth} blocks; it takes {MAPS} at least")
    evenly = [(number + 1) * depth // MAPS - 1 for number in range(MAPS)]
    return ViTMaps(net, [depth - 1] if last_alone else evenly, norm=last_alone)
