"""A linear classifier of each place of a backbone's last map, or of several of one size.

Source:
    Oquab et al., 2023, DINOv2, its evaluation by linear segmentation: of the last map, or of the
    last four concatenated.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainkit.models.base import Backbone
from trainkit.models.encoder_decoder import DenseModel
from trainkit.models.vision_transformers import ViTMaps


class LinearHead(nn.Module):
    """Batch norm and a 1x1 convolution on the last maps: maps -> {"out": logits}.

    Args:
        in_channels: channels of each of the last maps, all of one size, which are concatenated.
        num_classes: how many classes there are.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int):
        super().__init__()
        self.num_maps = len(in_channels)
        self.norm = nn.BatchNorm2d(sum(in_channels))
        self.classify = nn.Conv2d(sum(in_channels), num_classes, 1)
        nn.init.normal_(self.classify.weight, std=0.01)
        nn.init.zeros_(self.classify.bias)  # type: ignore[arg-type]  # it has one

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return logits "out" at the size of the maps."""
        last = list(maps.values())[-self.num_maps :]
        joined = last[0] if self.num_maps == 1 else torch.cat(last, 1)
        return {"out": self.classify(self.norm(joined))}


class Linear(DenseModel):
    """A linear head on the last map of `backbone`, without an auxiliary one.

    On a vision transformer it is on all maps that are asked of it.

    Args:
        backbone: images -> maps, with their `channels`.
        num_classes: how many classes there are.
    """

    def __init__(self, backbone: Backbone, num_classes: int):
        chosen = backbone.channels if isinstance(backbone, ViTMaps) else backbone.channels[-1:]
        head = LinearHead(chosen, num_classes)
        super().__init__(backbone, head, num_classes, aux=False)
