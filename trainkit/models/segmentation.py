"""Networks for label maps by name: what the recipes choose among."""

from typing import Literal

from torch import nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.segmentation import FCN, DeepLabV3
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

from trainkit.errors import UserError
from trainkit.models.backbones import backbone as named_backbone
from trainkit.models.encnet import EncNet
from trainkit.models.pretrained import load_pretrained
from trainkit.models.pspnet import PSPNet
from trainkit.models.small import small_fcn, small_lraspp
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
    """The network `name` on a backbone by name (see `trainkit.models.backbones`), at stride 8, UPerNet's at 32.

    aux: an auxiliary FCN head on the last map but one. se, lateral: of EncNet, see there. channels: width of the heads
    of EncNet, PSPNet and UPerNet; those of torchvision's FCN and DeepLabV3 follow from the backbone.
    """
    body = named_backbone(backbone, pretrained, 32 if name == "upernet" else 8)
    if name == "encnet":
        return EncNet(body, num_classes, channels, aux=aux, se=se, lateral=lateral)
    if name in ("pspnet", "upernet"):
        return {"pspnet": PSPNet, "upernet": UPerNet}[name](body, num_classes, channels, aux)
    build, head = {"fcn": (FCN, FCNHead), "deeplabv3": (DeepLabV3, DeepLabHead)}[name]
    return build(
        body,
        head(body.channels[-1], num_classes),
        FCNHead(body.channels[-2], num_classes) if aux else None,
    )


def encoding_weight(model: Segmenter, asked: float | None) -> float:
    """Factor of the semantic-encoding loss: as asked, else 0.2 of EncNet as published; the others have no such head.

    Raises UserError where it is asked of one of them.
    """
    if asked and model != "encnet":
        raise UserError(
            f"se_weight is {asked}, and {model} has no semantic-encoding head: leave it out, or take encnet"
        )
    return (0.2 if model == "encnet" else 0.0) if asked is None else asked


def torchvision_segmenter(
    name: str, num_classes: int, pretrained: bool = True, aux: bool = True
) -> nn.Module:
    """One of torchvision's networks for label maps by its own name, such as "fcn_resnet50", its heads at random.

    name: also "small_fcn" or "small_lraspp", for two CPU cores, of which nothing is pretrained. pretrained: start the
    backbone from ImageNet weights. aux: an auxiliary head; LR-ASPP has none.
    """
    if name.startswith("small"):
        return small_fcn(num_classes, aux) if name == "small_fcn" else small_lraspp(num_classes)
    heads = {} if name.startswith("lraspp") else {"aux_loss": aux}
    network = get_model(name, weights=None, weights_backbone=None, num_classes=num_classes, **heads)
    if pretrained:
        weights = get_model_weights(name.partition("_")[2]).IMAGENET1K_V1  # of the backbone
        load_pretrained(network.backbone, weights, skip=("fc.", "classifier."))
    return network
