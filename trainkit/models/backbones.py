"""Backbones by name: networks without their classifier, whose feature maps a head takes.

A backbone has `channels`, those of its last four stages, and returns the maps under the names of
`trainkit.models.small.named_maps`: c1 to c4, and what torchvision's own segmentation models ask
for.
"""

from collections.abc import Sequence
from typing import Any

import torchvision.models
from torch import Tensor
from torchvision.models.resnet import ResNet

from trainkit.errors import UserError
from trainkit.models.base import Backbone
from trainkit.models.pretrained import load_pretrained
from trainkit.models.small import SmallResNet, named_maps
from trainkit.models.timm_backbones import timm_pyramid
from trainkit.models.timm_models import nearest
from trainkit.models.vision_transformers import is_vision_transformer, vision_transformer

RESNETS = ("resnet*", "resnext*", "wide_resnet*")  # torchvision's names

# Which of a ResNet's last three stages dilate instead of halving the map, by the stride of the last
# map.
DILATED = {8: (False, True, True), 16: (False, False, True), 32: (False, False, False)}

# The same for SmallResNet: the strides and the dilations of its four stages.
SMALL = {
    8: ((2, 2, 1, 1), (1, 1, 2, 4)),
    16: ((2, 2, 2, 1), (1, 1, 1, 2)),
    32: ((2, 2, 2, 2), (1, 1, 1, 1)),
}


def backbone(
    name: str,
    pretrained: bool = True,
    stride: int = 8,
    last_alone: bool = False,
    out_indices: Sequence[int] | None = None,
    image_size: int | None = None,
    stochastic_depth: float | None = None,
) -> Backbone:
    """Build a module from images (N, 3, H, W) to the maps after its last four stages.

    Of a vision transformer of timm, such as "timm:vit_base_patch14_reg4_dinov2", these are the maps
    after some of its blocks, all at the stride of its patches; its position embeddings are
    interpolated to the images.

    One of timm's that takes images of one size alone (BEiT, CaiT, MaxViT) is built for image_size,
    and has an attribute of this name.

    The images' mean and std stay the recipe's: some of timm's weights want others than ImageNet's.

    Args:
        name: "small" (`SmallResNet`, for two CPU cores), one of torchvision's ResNets such as
            "resnet50" or "resnext101_32x8d", or "timm:" and a name of timm's, such as
            "timm:resnest50d".
        pretrained: start from published ImageNet weights (torchvision's IMAGENET1K_V1, timm's
            default), downloaded once; small has none, and starts from random ones.
        stride: image pixels per step of the last map, 8, 16 or 32; below 32 the last stages dilate.
            A vision transformer has that of its patches.
        last_alone: of a vision transformer: the map after its last block, normalised, in place of
            four evenly spaced ones.
        out_indices: of a vision transformer: the blocks in their place, counted from 0 or, below
            0, from the end.
        image_size: side of the images of one that takes one size alone; None: the published one.
        stochastic_depth: of timm's: rate at which the last block is left out (drop path), the
            others in proportion; None: as timm has it.

    Raises:
        UserError: there is no such network, it cannot dilate, it does not take such images, its
            weights cannot be downloaded, or it lacks what is asked for.
    """
    if stride not in DILATED:
        raise UserError(f"backbone: stride is {stride}; it must be 8, 16 or 32")
    asked = _timm_settings(name, stochastic_depth)
    if is_vision_transformer(name):
        return vision_transformer(name, pretrained, last_alone, out_indices, image_size, asked)
    if out_indices is not None:
        raise UserError(
            f"out_indices is {' '.join(map(str, out_indices))}, and backbone {name} is no plain"
            " vision transformer of timm, of whose blocks some could be chosen: leave it out"
        )
    if name.startswith("timm:"):
        return timm_pyramid(name, pretrained, stride, image_size, asked)
    if name == "small":
        strides, dilations = SMALL[stride]
        return SmallResNet(strides=strides, dilations=dilations)
    known = torchvision.models.list_models(module=torchvision.models, include=RESNETS)
    if name not in known:
        near = nearest(name, ["small", *known])
        there = f"{near} There" if near else "; there"
        raise UserError(f"no backbone {name!r}{there} are small, {', '.join(known)}, timm:NAME")
    try:
        net = torchvision.models.get_model(
            name, weights=None, replace_stride_with_dilation=DILATED[stride]
        )
    except NotImplementedError as error:
        raise UserError(
            f"backbone {name} is made of basic blocks, which do not dilate in torchvision: its"
            f" stride is 32, not {stride}. Take resnet50 or timm:{name}, or a network at stride 32"
            " such as upernet"
        ) from error
    if pretrained:
        load_pretrained(
            net, torchvision.models.get_model_weights(name).IMAGENET1K_V1, skip=("fc.",)
        )
    return ResNetMaps(net)


def _timm_settings(name: str, stochastic_depth: float | None) -> dict[str, Any]:
    """Further arguments of timm's networks."""
    if stochastic_depth is None:
        return {}
    if not 0 <= stochastic_depth < 1:
        raise UserError(
            f"stochastic_depth is {stochastic_depth}; it must be in [0, 1), or None for the"
            " network as published"
        )
    if not name.startswith("timm:"):
        raise UserError(
            f"stochastic_depth is {stochastic_depth}, and backbone {name} has none: leave it out,"
            " or take one of timm's, such as timm:convnext_tiny"
        )
    return {"drop_path_rate": stochastic_depth}


class ResNetMaps(Backbone):
    """A torchvision ResNet without pooling and classifier.

    Its parts keep their names, so published weights fit.
    """

    def __init__(self, net: ResNet):
        super().__init__()
        for name, part in net.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, part)
        bottleneck = net.fc.in_features // 512  # 4 of a Bottleneck, 1 of a BasicBlock
        self.channels = tuple(bottleneck * width for width in (64, 128, 256, 512))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) -> the map after each of layer1 to layer4, see `named_maps`."""
        maps = []
        for name, part in self.named_children():
            x = part(x)
            if name.startswith("layer"):
                maps.append(x)
        return named_maps(maps)
