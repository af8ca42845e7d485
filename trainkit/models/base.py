"""What backbones and the networks around them share."""

from torch import nn


class Backbone(nn.Module):
    """Images (N, 3, H, W) -> the maps after its last four stages, by name (c1 to c4).

    Of a vision transformer: after some of its blocks, all of one size.

    channels: of these maps, first to last.
    patch_size: pixels, by which the sides of images must be divisible; 1: any sides.
    image_size: height and width of the images, where it takes no others.
    """

    channels: tuple[int, ...]
    patch_size: int = 1
    image_size: tuple[int, int] | None = None
