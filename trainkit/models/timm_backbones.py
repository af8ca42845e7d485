"""timm's networks that have a pyramid of their own as backbones, and the images that they take."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainkit.errors import UserError, first_line, is_shortage
from trainkit.models.base import Backbone
from trainkit.models.small import named_maps
from trainkit.models.timm_models import timm_network, timm_with

# What is asked of one that timm builds for a single size: images of any, and windows of the
# published size with their shift in all stages, however small the images that it was built for.
ANY_SIZE: tuple[dict[str, Any], ...] = (
    {"dynamic_img_size": True, "always_partition": True},
    {"dynamic_img_size": True},
    {},
)
# Sides of images that are tried, and what they must be divisible by where these do.
TRIALS = ((1, ((67, 93), (91, 75))), (1, ((131, 157), (155, 139))), (32, ((128, 160), (160, 96))))

OTHERS = "timm:convnext_tiny or timm:swin_tiny_patch4_window7_224"


class TimmMaps(Backbone):
    """The last four maps of a timm network built with features_only, always (N, C, H, W).

    patch_size, size_divisor: what the sides of its images must be divisible by.
    differs_without: what it would be otherwise without an argument of the function that built it,
        by the argument's name: earlier versions had none, see `require_same_build`.
    """

    differs_without: Mapping[str, str] = {}

    def __init__(self, net: Any, size_divisor: int = 1):
        super().__init__()
        self.net = net
        self.patch_size = self.size_divisor = size_divisor
        self.channels = tuple(net.feature_info.channels()[-4:])
        self.channels_last = str(getattr(net, "output_fmt", "")).endswith("NHWC")  # Swin's maps
        self.norms: nn.ModuleList | None = None

    def norm_maps(self) -> None:
        """Give each map a layer norm over its channels, of its own."""
        self.norms = nn.ModuleList(nn.LayerNorm(each) for each in self.channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) -> the maps, see `named_maps`."""
        maps = self.net(x)[-4:]
        if self.norms is not None:
            maps = maps if self.channels_last else [each.permute(0, 2, 3, 1) for each in maps]
            maps = [norm(each) for norm, each in zip(self.norms, maps)]  # (N, H, W, C)
        elif not self.channels_last:
            return named_maps(maps)
        return named_maps([each.permute(0, 3, 1, 2) for each in maps])


def timm_pyramid(
    name: str, pretrained: bool, stride: int, image_size: int | None, settings: Mapping[str, Any]
) -> TimmMaps:
    """Build a network of timm with a pyramid of its own as a backbone.

    Small images are run through it: where it takes no odd sides, it says what they must be
    divisible by, and where it takes one size alone, it is built for that.

    Args:
        name: "timm:" and its name.
        pretrained: start from timm's default weights.
        stride: of the last map.
        image_size: side of the images of one that takes one size alone; None: as timm has it.
        settings: further arguments of `timm.create_model`.

    Raises:
        UserError: the weights cannot be had, it does not dilate, it has no four maps, or takes no
            images of image_size.
    """
    # many networks do not even know the word
    dilated = {} if stride == 32 else {"output_stride": stride}
    given = {**settings, "features_only": True, **dilated}
    try:
        net, least = _of_any_size(name, pretrained, given, image_size is not None)
    except (TypeError, AssertionError, NotImplementedError) as error:
        if "drop_path_rate" in str(error):
            raise UserError(
                f"stochastic_depth is {settings.get('drop_path_rate')}, and backbone {name} has"
                f" none in timm ({error}): leave it out"
            ) from error
        raise UserError(
            f"backbone {name} does not dilate to stride {stride} in timm ({error}); take another,"
            " or a network at stride 32 such as upernet"
        ) from error
    strides = net.feature_info.reduction()
    if len(strides) < 4 or strides[-1] != stride:
        raise UserError(
            f"backbone {name} has maps of strides {strides}; wanted are four, the last of stride"
            f" {stride}: take another, such as {OTHERS}"
        )
    body = TimmMaps(net, least)
    if image_size is not None and any(_is_always_partitioned(each) for each in net.modules()):
        body.differs_without = {"image_size": "windows are shifted in all stages"}
    for divisor, sizes in TRIALS:
        body.patch_size = body.size_divisor = whole = math.lcm(divisor, least)
        filled = [tuple(-(-side // whole) * whole for side in size) for size in sizes]
        if all(_fault(body, size) is None for size in filled):
            return body
    return _of_one_size(name, pretrained, image_size, given)


def _of_any_size(
    name: str, pretrained: bool, settings: dict[str, Any], always_shifted: bool
) -> tuple[Any, int]:
    """A network for images of any size, where it is built for one (Swin), and its size divisor.

    Windows are shifted in all stages where `always_shifted`: networks of earlier versions, whose
    model.json has no image_size, were trained without it.
    """
    timm, short = timm_with(name)
    known = timm.models.get_pretrained_cfg(short)
    if known is None or not known.fixed_input_size:
        return timm_network(name, pretrained, **settings), 1
    for asked in ANY_SIZE[:-1] if always_shifted else ANY_SIZE[1:-1]:
        try:
            net = timm_network(name, pretrained, **asked, **settings)
        except TypeError:  # it does not know one of the words
            continue
        return net, net.feature_info.reduction()[0]  # a patch
    return timm_network(name, pretrained, **settings), 1


def _is_always_partitioned(module: Any) -> bool:
    """Whether it is a block of Swin that shifts its windows however small its map is."""
    return bool(getattr(module, "always_partition", False))


def _of_one_size(
    name: str, pretrained: bool, image_size: int | None, settings: dict[str, Any]
) -> TimmMaps:
    """A network for images of image_size alone, as its attribute of this name says."""
    timm, short = timm_with(name)
    known = timm.models.get_pretrained_cfg(short)
    usual = (224, 224) if known is None else tuple(known.input_size[1:])
    size = usual if image_size is None else (image_size, image_size)
    asked = {} if size == usual else {"img_size": size}
    reason = "it is built for that size"
    try:
        body = TimmMaps(timm_network(name, pretrained, **asked, **settings))
        fault = _fault(body, size)
        reason = reason if fault is None else first_line(fault)
    except TypeError as error:
        fault = error
    except UserError as error:
        if "size mismatch" not in str(error.__cause__):
            raise
        fault = error
        reason = "its published weights are of that size"
    except Exception as error:  # of timm, which divides maps into windows
        if is_shortage(error):
            raise
        fault, reason = error, first_line(error)
    if fault is not None:
        raise UserError(
            f"backbone {name} takes no images of {size[0]} x {size[1]} in timm ({reason}): give"
            f" --crop {usual[0]} and --eval-window {usual[0]} {2 * usual[0] // 3}, a multiple of 32"
            f" where it takes others, or take another, such as {OTHERS}"
        ) from fault
    body.image_size = size
    return body


@torch.no_grad()
def _fault(body: TimmMaps, size: Sequence[int]) -> Exception | None:
    """What a network raises at an image of these sides; None where it takes it."""
    modes = {module: module.training for module in body.modules()}
    body.eval()
    try:
        maps = body(torch.zeros(1, 3, *size))
        return None if all(0 not in each.shape for each in maps.values()) else ValueError("no map")
    except Exception as error:  # of any network: it is what is to be found out
        if is_shortage(error):
            raise
        return error
    finally:
        for module, training in modes.items():
            module.training = training
