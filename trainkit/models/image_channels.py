"""Networks for images of other channels than three."""

from typing import Any

import torch
from torch import Tensor, nn

from trainkit.errors import UserError


def adapted(weight: Tensor, channels: int) -> Tensor:
    """A convolution's weights (O, 3, h, w) for images of `channels`, as timm adapts them.

    Of one channel the sum over the three. Of more the three in turn, times 3 / channels, so that
    what comes out keeps its size.
    """
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    times = -(-channels // 3)
    return weight.repeat(1, times, 1, 1)[:, :channels] * (3 / channels)


def take_channels(network: nn.Module, channels: int, pretrained: bool) -> None:
    """Replace the first convolution of a network for three channels by one for `channels`.

    Args:
        network: its first convolution, in the order of its modules, sees the image.
        channels: of the images; 3 changes nothing.
        pretrained: whether its weights are adapted; else they are drawn anew, as widely spread.

    Raises:
        UserError: it does not begin with a convolution of three channels.
    """
    if channels == 3:
        return
    name, first = next(
        ((name, each) for name, each in network.named_modules() if isinstance(each, nn.Conv2d)),
        ("", None),
    )
    if first is None or first.in_channels != 3 or first.groups != 1:
        raise UserError(
            f"channels is {channels}, and {type(network).__name__} does not begin with a"
            " convolution of three channels that could take them: take another network"
        )
    settings: dict[str, Any] = {
        each: getattr(first, each)
        for each in ("out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode")
    }
    conv = nn.Conv2d(channels, bias=first.bias is not None, **settings)
    with torch.no_grad():
        if pretrained:
            conv.weight.copy_(adapted(first.weight, channels))
        else:
            nn.init.normal_(conv.weight, std=float(first.weight.detach().std()))
        if first.bias is not None and conv.bias is not None:
            conv.bias.copy_(first.bias)
    network.set_submodule(name, conv)
