"""Backbones by name: networks without their classifier, whose feature maps a head takes.

A backbone has `channels`, those of its last four stages, and returns the maps under the names of
`trainkit.models.small.named_maps`: c1 to c4, and what torchvision's own segmentation models ask
for.
"""

from contextlib import suppress
from typing import Any

import torchvision.models
from torch import Tensor
from torchvision.models.resnet import ResNet

from trainkit.errors import UserError
from trainkit.models.base import Backbone
from trainkit.models.pretrained import load_pretrained
from trainkit.models.small import SmallResNet, named_maps
from trainkit.models.timm_models import nearest, timm_network, timm_with
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
    name: str, pretrained: bool = True, stride: int = 8, last_alone: bool = False
) -> Backbone:
    """Build a module from images (N, 3, H, W) to the maps after its last four stages.

    Of a vision transformer of timm, such as "timm:vit_base_patch14_reg4_dinov2", these are the maps
    after some of its blocks, all at the stride of its patches; its position embeddings are
    interpolated to the images.

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

    Raises:
        UserError: there is no such network, it cannot dilate, it takes images of one size alone, or
            its weights cannot be downloaded.
    """
    if stride not in DILATED:
        raise UserError(f"backbone: stride is {stride}; it must be 8, 16 or 32")
    if is_vision_transformer(name):
        return vision_transformer(name, pretrained, last_alone)
    if name.startswith("timm:"):
        return _timm(name, pretrained, stride)
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


class TimmMaps(Backbone):
    """The last four maps of a timm network built with features_only, always (N, C, H, W).

    size_divisor: what the sides of its images must be divisible by.
    """

    def __init__(self, net: Any, size_divisor: int = 1):
        super().__init__()
        self.net = net
        self.size_divisor = size_divisor
        self.channels = tuple(net.feature_info.channels()[-4:])
        self.channels_last = str(getattr(net, "output_fmt", "")).endswith("NHWC")  # Swin's maps

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) -> the maps, see `named_maps`."""
        maps = self.net(x)[-4:]
        return named_maps(
            [each.permute(0, 3, 1, 2) for each in maps] if self.channels_last else maps
        )


def _timm(name: str, pretrained: bool, stride: int) -> TimmMaps:
    # many networks do not even know the word
    dilated = {} if stride == 32 else {"output_stride": stride}
    try:
        net, divisor = _of_any_size(name, pretrained, features_only=True, **dilated)
    except (TypeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"backbone {name} does not dilate to stride {stride} in timm ({error}); take another,"
            " or a network at stride 32 such as upernet"
        ) from error
    strides = net.feature_info.reduction()
    if len(strides) < 4 or strides[-1] != stride:
        raise UserError(
            f"backbone {name} has maps of strides {strides}; wanted are four, the last of stride"
            f" {stride}"
        )
    return TimmMaps(net, divisor)


def _of_any_size(name: str, pretrained: bool, **settings: Any) -> tuple[Any, int]:
    """A network for images of any size, where it is built for one (Swin), and its size divisor.

    One that timm builds for a single size says so when it gets another.
    """
    timm, short = timm_with(name)
    known = timm.models.get_pretrained_cfg(short)
    if known is not None and known.fixed_input_size:
        with suppress(TypeError):
            net = timm_network(name, pretrained, dynamic_img_size=True, **settings)
            return net, net.feature_info.reduction()[0]  # a patch
    return timm_network(name, pretrained, **settings), 1
