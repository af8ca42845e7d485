"""UPerNet, its semantic segmentation part.

Source:
    Xiao et al., 2018, Unified Perceptual Parsing for Scene Understanding.
"""

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from trainkit.models.base import Backbone
from trainkit.models.encoder_decoder import DenseModel, resize
from trainkit.models.pspnet import PyramidPooling


class UPerHead(nn.Module):
    """Pyramid pooling of c4, handed down and added to c3, c2 and c1: maps -> {"out": logits}.

    Args:
        in_channels: channels of c1 to c4.
        num_classes: how many classes there are.
        channels: width of the head.
    """

    def __init__(self, in_channels: tuple[int, ...], num_classes: int, channels: int):
        super().__init__()
        *finer, last = in_channels
        self.pool = PyramidPooling(last, channels)
        self.bottleneck = Conv2dNormActivation(self.pool.out_channels, channels, 3)
        self.lateral = nn.ModuleList(Conv2dNormActivation(each, channels, 1) for each in finer)
        self.smooth = nn.ModuleList(Conv2dNormActivation(channels, channels, 3) for _ in finer)
        self.fuse = Conv2dNormActivation(len(in_channels) * channels, channels, 3)
        self.classify = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(channels, num_classes, 1))

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return logits "out" (N, num_classes, h, w) at the size of c1."""
        x = self.bottleneck(self.pool(maps["c4"]))
        levels = [x]
        for name, lateral, smooth in zip(("c3", "c2", "c1"), self.lateral[::-1], self.smooth[::-1]):
            x = lateral(maps[name]) + resize(x, maps[name].shape[-2:])
            levels.append(smooth(x))
        levels = [resize(each, maps["c1"].shape[-2:]) for each in reversed(levels)]  # c1 to c4
        return {"out": self.classify(self.fuse(torch.cat(levels, 1)))}


class UPerNet(DenseModel):
    """A feature pyramid on all maps of `backbone`.

    Args:
        backbone: images -> maps c1 to c4, with their `channels`.
        num_classes: how many classes there are.
        channels: width of the head.
        aux: whether there are logits "aux" from c3.
    """

    def __init__(self, backbone: Backbone, num_classes: int, channels: int = 512, aux: bool = True):
        super().__init__(
            backbone, UPerHead(backbone.channels, num_classes, channels), num_classes, aux
        )
