"""Networks for label maps by name: what the recipes choose among."""

from typing import Literal

from torch import nn
from torchvision.models.segmentation import FCN, DeepLabV3
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

from trainkit.models.backbone import backbone as named_backbone
from trainkit.models.encnet import EncNet
from trainkit.models.pspnet import PSPNet
from trainkit.models.upernet import UPerNet

Segmenter = Literal["fcn", "deeplabv3", "encnet", "pspnet", "upernet"]


def segmenter(
    name: Segmenter,
    num_classes: int,
    backbone: str = "resnet50",
    pretrained: bool = True,
    aux: bool = True,
    se: bool = True,
    lateral: bool = False,
    channels: int = 512,
) -> nn.Module:
    """The network `name` on a backbone by name (see `trainkit.models.backbone`), at stride 8, UPerNet's at 32.

    aux: an auxiliary FCN head on the last map but one. se, lateral: of EncNet, see there. channels: width of the heads
    of EncNet, PSPNet and UPerNet; those of torchvision's FCN and DeepLabV3 follow from the backbone.
    """
    body = named_backbone(backbone, pretrained, 32 if name == "upernet" else 8)
    if name == "encnet":
        return EncNet(body, num_classes, channels, aux=aux, se=se, lateral=lateral)
    if name in ("pspnet", "upernet"):
        return {"pspnet": PSPNet, "upernet": UPerNet}[name](body, num_classes, channels, aux)
    build, head = {"fcn": (FCN, FCNHead), "deeplabv3": (DeepLabV3, DeepLabHead)}[name]
    return build(body, head(body.channels[-1], num_classes), FCNHead(body.channels[-2], num_classes) if aux else None)
