"""EncNet: an encoding of the whole image weighs channels and predicts which classes occur.

Where the paper and the authors' code (PyTorch-Encoding) differ, this follows the code, which gave
the published results: a 1x1 convolution before the encoding, and the mean over codewords, not the
sum. With the sum the sigmoid of the factors begins saturated.

Source:
    Zhang et al., 2018, Context Encoding for Semantic Segmentation.
"""

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from trainkit.models.base import Backbone
from trainkit.models.encoder_decoder import DenseModel, resize
from trainkit.models.encoding import Encoding


class ContextEncoding(nn.Module):
    """Weighs the channels of a map by an encoding of all of it.

    Args:
        channels: of the map.
        num_codewords: of the encoding.
    """

    def __init__(self, channels: int, num_codewords: int = 32):
        super().__init__()
        self.project = Conv2dNormActivation(channels, channels, 1)
        self.encoding = Encoding(channels, num_codewords)
        self.norm = nn.BatchNorm1d(num_codewords)
        self.attention = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return x + x * gamma (N, C, H, W), and the code (N, C) that gamma comes from.

        There is one gamma in (0, 1) per image and channel.
        """
        code = self.norm(self.encoding(self.project(x))).relu().mean(1)  # (N, C)
        gamma = torch.sigmoid(self.attention(code))
        return x * (1 + gamma[:, :, None, None]), code


class EncHead(nn.Module):
    """EncNet's head: c4, with lateral c2 and c3 beside it, -> {"out": logits, "se": logits}.

    Args:
        in_channels: channels of c1 to c4.
        num_classes: how many classes there are.
        channels: width of the head.
        num_codewords: of the encoding.
        se: whether there are logits "se" (N, num_classes) of which classes occur.
        lateral: whether c2 and c3 are used beside c4.
    """

    def __init__(
        self,
        in_channels: tuple[int, ...],
        num_classes: int,
        channels: int,
        num_codewords: int,
        se: bool,
        lateral: bool,
    ):
        super().__init__()
        _, c2, c3, c4 = in_channels
        self.squeeze = Conv2dNormActivation(c4, channels, 3)
        self.lateral = (
            nn.ModuleList(Conv2dNormActivation(each, channels, 1) for each in (c2, c3))
            if lateral
            else None
        )
        self.fuse = Conv2dNormActivation(3 * channels, channels, 3) if lateral else None
        self.context = ContextEncoding(channels, num_codewords)
        self.presence = nn.Linear(channels, num_classes) if se else None
        self.classify = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(channels, num_classes, 1))

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return logits "out" at the size of c4, or of c2 with lateral connections.

        At stride 8 these sizes are one.
        """
        x = self.squeeze(maps["c4"])
        if self.lateral is not None and self.fuse is not None:
            beside = [connect(maps[name]) for connect, name in zip(self.lateral, ("c2", "c3"))]
            x = self.fuse(
                torch.cat([resize(each, maps["c2"].shape[-2:]) for each in (x, *beside)], 1)
            )
        x, code = self.context(x)
        outputs = {"out": self.classify(x)}
        if self.presence is not None:
            outputs["se"] = self.presence(code)
        return outputs


class EncNet(DenseModel):
    """Context encoding on the last map of `backbone`.

    Args:
        backbone: images -> maps c1 to c4, with their `channels`.
        num_classes: how many classes there are.
        channels: width of the head.
        num_codewords: of the encoding.
        aux: whether there are logits "aux" from c3.
        se: whether there are logits "se" (N, num_classes) of which classes occur.
        lateral: c2 and c3 beside c4, as published for Pascal-Context.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        channels: int = 512,
        num_codewords: int = 32,
        aux: bool = True,
        se: bool = True,
        lateral: bool = False,
    ):
        head = EncHead(backbone.channels, num_classes, channels, num_codewords, se, lateral)
        super().__init__(backbone, head, num_classes, aux)
