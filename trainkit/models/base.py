"""What backbones and the networks around them share."""

from torch import nn


class Backbone(nn.Module):
    """Images (N, 3, H, W) -> the maps after its last four stages, by name (c1 to c4).

    channels: of these maps, first to last.
    """

    channels: tuple[int, ...]
