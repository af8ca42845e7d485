"""PSPNet: pyramid pooling.

Source:
    Zhao et al., 2017, Pyramid Scene Parsing Network.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation

from trainkit.models.base import Backbone
from trainkit.models.encoder_decoder import DenseModel, resize


class PyramidPooling(nn.Module):
    """Means over 1, 2x2, 3x3 and 6x6 parts of a map, each reduced to `channels`, beside the map.

    Args:
        in_channels: of the map.
        channels: of each mean.
        bins: parts along a side.
    """

    def __init__(self, in_channels: int, channels: int, bins: Sequence[int] = (1, 2, 3, 6)):
        super().__init__()
        self.bins = tuple(bins)
        self.narrow = nn.ModuleList(Conv2dNormActivation(in_channels, channels, 1) for _ in bins)
        self.out_channels = in_channels + len(bins) * channels

    def forward(self, x: Tensor) -> Tensor:
        """Pool a map (N, in_channels, H, W): (N, out_channels, H, W)."""
        pooled = [
            narrow(F.adaptive_avg_pool2d(x, parts)) for parts, narrow in zip(self.bins, self.narrow)
        ]
        return torch.cat([x, *(resize(each, x.shape[-2:]) for each in pooled)], 1)


class PSPHead(nn.Module):
    """Pyramid pooling of c4, a 3x3 convolution, logits: maps -> {"out": (N, num_classes, h, w)}.

    Args:
        in_channels: of c4.
        num_classes: how many classes there are.
        channels: width of the head.
    """

    def __init__(self, in_channels: int, num_classes: int, channels: int):
        super().__init__()
        self.pool = PyramidPooling(in_channels, in_channels // 4)
        self.bottleneck = Conv2dNormActivation(self.pool.out_channels, channels, 3)
        self.classify = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(channels, num_classes, 1))

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return logits "out" at the size of c4."""
        return {"out": self.classify(self.bottleneck(self.pool(maps["c4"])))}


class PSPNet(DenseModel):
    """Pyramid pooling on the last map of `backbone`.

    Args:
        backbone: images -> maps c1 to c4, with their `channels`.
        num_classes: how many classes there are.
        channels: width of the head.
        aux: whether there are logits "aux" from c3.
    """

    def __init__(self, backbone: Backbone, num_classes: int, channels: int = 512, aux: bool = True):
        super().__init__(
            backbone, PSPHead(backbone.channels[-1], num_classes, channels), num_classes, aux
        )
