"""The region of a random resized crop: drawn and resized as torchvision does, in less time."""

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

TRIES = 10


def draw_region(
    height: int, width: int, scale: Sequence[float], log_ratio: Tensor, ratio: Sequence[float]
) -> dict[str, int]:
    """Draw a region, from torch's generator, by the numbers of v2.RandomResizedCrop.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        scale: least and largest share of the image's area.
        log_ratio: logarithms of `ratio`, float32.
        ratio: least and largest ratio of width to height.

    Returns:
        top, left, height and width, in pixels.
    """
    drawn, ratios = torch.empty(1), log_ratio.tolist()
    for _ in range(TRIES):
        area = height * width * drawn.uniform_(scale[0], scale[1]).item()
        aspect = drawn.uniform_(*ratios).exp_().item()
        across, down = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < across <= width and 0 < down <= height:
            top = int(torch.randint(height - down + 1, (1,)))
            left = int(torch.randint(width - across + 1, (1,)))
            return {"top": top, "left": left, "height": down, "width": across}
    across, down = width, height
    if width / height < min(ratio):
        down = round(width / min(ratio))
    elif width / height > max(ratio):
        across = round(height * max(ratio))
    top, left = (height - down) // 2, (width - across) // 2
    return {"top": top, "left": left, "height": down, "width": across}


def resized(image: Tensor, size: Sequence[int], interpolation: InterpolationMode) -> Tensor:
    """Resize an image with antialiasing, as v2.functional.resize.

    Args:
        image: (C, H, W), the channels of a pixel side by side in memory, without gaps.
        size: height and width of the result.
        interpolation: torchvision's mode.

    Returns:
        (C, *size).
    """
    channels, height, width = image.shape
    usual = channels == 3 and image.dtype == torch.uint8
    if not (usual and interpolation == InterpolationMode.BILINEAR and _resizes_bytes()):
        return functional.resize(image, list(size), interpolation, antialias=True)
    if (height, width) == tuple(size):
        return image
    # one of a batch, of which torch sees how it lies in memory
    steps = channels * height * width, 1, channels * width, channels
    batch = image.as_strided((1, channels, height, width), steps)
    return interpolate(batch, list(size), mode="bilinear", antialias=True)[0]


@cache
def _resizes_bytes() -> bool:
    """Whether torchvision resizes bytes as they are on this processor, not as floats."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
