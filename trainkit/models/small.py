"""A small residual network that two CPU cores train in minutes, for recognition and segmentation.

torchvision's smallest ResNet has 11 million weights, a stem made for 224 pixels, and basic blocks
that do not dilate. This one is built of the same blocks (He et al., 2016) with the widths and
strides given.
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.segmentation import FCN, LRASPP
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.ops import Conv2dNormActivation

from trainkit.errors import UserError
from trainkit.models.base import Backbone
from trainkit.settings.rebuildable import rebuildable


class Block(nn.Module):
    """Two 3x3 convolutions with batch norms and a shortcut, 1x1 where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1, dilation: int = 1):
        super().__init__()
        self.first = Conv2dNormActivation(in_channels, channels, 3, stride, dilation=dilation)
        self.second = Conv2dNormActivation(
            channels, channels, 3, dilation=dilation, activation_layer=None
        )
        same = in_channels == channels and stride == 1
        self.shortcut: nn.Module = (
            nn.Identity()
            if same
            else Conv2dNormActivation(in_channels, channels, 1, stride, activation_layer=None)
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        return self.relu(self.second(self.first(x)) + self.shortcut(x))


class SmallResNet(Backbone):
    """A stem and one block per stage.

    Args:
        widths: channels of the stem and of each stage.
        strides: of each stage.
        dilations: of each stage.
        stem_stride: 2 halves the image first.

    Source:
        He et al., 2016, Deep Residual Learning.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128, 128, 256),
        strides: Sequence[int] = (2, 2, 1, 1),
        dilations: Sequence[int] = (1, 1, 2, 4),
        stem_stride: int = 2,
    ):
        super().__init__()
        if not len(widths) - 1 == len(strides) == len(dilations):
            raise UserError(
                f"widths are {len(widths)}, strides {len(strides)}, dilations {len(dilations)}:"
                " widths need one more"
            )
        self.widths = tuple(widths)
        self.channels = self.widths[1:]
        self.stem = Conv2dNormActivation(3, widths[0], 3, stem_stride)
        self.stages = nn.ModuleList(
            Block(*channels, stride, dilation)
            for channels, stride, dilation in zip(zip(widths, widths[1:]), strides, dilations)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) -> the map after each stage, see `named_maps`."""
        maps = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return named_maps(maps)


def named_maps(maps: Sequence[Tensor]) -> dict[str, Tensor]:
    """Name the stages' maps, first to last, as heads ask for them.

    This package's heads ask for c1, c2 and so on, torchvision's segmentation models for low, aux,
    out and high.
    """
    numbered = {f"c{number}": each for number, each in enumerate(maps, 1)}
    return OrderedDict(numbered, low=maps[0], aux=maps[-2], out=maps[-1], high=maps[-1])


class SmallClassifier(nn.Module):
    """SmallResNet, mean over the map, linear: images (N, 3, H, W) -> logits (N, num_classes)."""

    def __init__(self, num_classes: int, backbone: SmallResNet):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(backbone.widths[-1], num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images -> logits."""
        return self.head(self.backbone(x)["out"])


@rebuildable
def small_fcn(num_classes: int, aux_loss: bool = False) -> FCN:
    """Build torchvision's FCN on SmallResNet at stride 8.

    Args:
        num_classes: how many classes there are.
        aux_loss: whether there are logits "aux" beside "out".
    """
    backbone = SmallResNet()
    aux = FCNHead(backbone.widths[-2], num_classes) if aux_loss else None
    return FCN(backbone, FCNHead(backbone.widths[-1], num_classes), aux)


@rebuildable
def small_lraspp(num_classes: int, widths: Sequence[int] = (32, 64, 128, 128, 256)) -> LRASPP:
    """Build torchvision's Lite R-ASPP on SmallResNet: stride 8, sharpened by the map at stride 4.

    Args:
        num_classes: how many classes there are.
        widths: channels of the stem and of each stage.
    """
    backbone = SmallResNet(widths)
    return LRASPP(
        backbone, low_channels=widths[1], high_channels=widths[-1], num_classes=num_classes
    )
