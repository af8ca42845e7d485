"""UPerNet, its semantic segmentation part, also on a plain vision transformer.

Source:
    Xiao et al., 2018, Unified Perceptual Parsing for Scene Understanding. On a vision transformer:
    Bao et al., 2022, BEiT; He et al., 2022, MAE.
"""

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from trainkit.models.base import Backbone
from trainkit.models.encoder_decoder import DenseModel, resize
from trainkit.models.pspnet import PyramidPooling
from trainkit.models.vision_transformers import ViTMaps


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


class MultiLevel(nn.Module):
    """Four maps of one size and width -> 4, 2, 1 and 1/2 times as large, as BEiT and MAE make them.

    By two transposed convolutions with batch norm and GELU between them, by one, as it is, and by
    the largest of 2x2. An odd side keeps its last row or column.

    Args:
        channels: of each map.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.levels = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(channels, channels, 2, 2),
                    nn.BatchNorm2d(channels),
                    nn.GELU(),
                    nn.ConvTranspose2d(channels, channels, 2, 2),
                ),
                nn.ConvTranspose2d(channels, channels, 2, 2),
                nn.Identity(),
                nn.MaxPool2d(2, 2, ceil_mode=True),
            ]
        )

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return maps of the same names, c1 to c4, of other sizes."""
        return {
            name: level(maps[name]) for name, level in zip(("c1", "c2", "c3", "c4"), self.levels)
        }


class ViTUPerHead(UPerHead):
    """`UPerHead` on four maps of one size, of which `MultiLevel` makes a pyramid.

    Args:
        in_channels: channels of c1 to c4, all alike.
        num_classes: how many classes there are.
        channels: width of the head.
    """

    def __init__(self, in_channels: tuple[int, ...], num_classes: int, channels: int):
        super().__init__(in_channels, num_classes, channels)
        self.pyramid = MultiLevel(in_channels[0])

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return logits "out" (N, num_classes, h, w) at four times the size of the maps."""
        return super().forward(self.pyramid(maps))


class UPerNet(DenseModel):
    """A feature pyramid on all maps of `backbone`.

    Args:
        backbone: images -> maps c1 to c4, with their `channels`.
        num_classes: how many classes there are.
        channels: width of the head.
        aux: whether there are logits "aux" from c3.
    """

    def __init__(self, backbone: Backbone, num_classes: int, channels: int = 512, aux: bool = True):
        head = ViTUPerHead if isinstance(backbone, ViTMaps) else UPerHead
        super().__init__(backbone, head(backbone.channels, num_classes, channels), num_classes, aux)
