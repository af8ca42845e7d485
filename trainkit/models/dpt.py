"""DPT's head on a plain vision transformer: maps of four blocks, reassembled and fused.

Source:
    Ranftl et al., 2021, Vision Transformers for Dense Prediction; the widths of the four maps
    follow the transformer's as in Oquab et al., 2023, DINOv2.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainkit.errors import UserError
from trainkit.models.encoder_decoder import DenseModel
from trainkit.models.vision_transformers import ViTMaps

WIDTH = 256  # of the fused maps
FACTORS = (4, 2, 1, 0.5)  # sizes of the four maps, in those of the transformer's


class Reassemble(nn.Module):
    """A transformer's map and its class token -> a map of another width and size.

    Args:
        in_channels: of the map and of the token.
        channels: of the result.
        factor: of its sides: 4 or 2 by a transposed convolution, 1, or 0.5 by a convolution.
        has_token: whether there is a class token, which is joined to each place and projected.
    """

    def __init__(self, in_channels: int, channels: int, factor: float, has_token: bool):
        super().__init__()
        self.readout: nn.Module | None = None
        if has_token:
            self.readout = nn.Sequential(nn.Linear(2 * in_channels, in_channels), nn.GELU())
        self.project = nn.Conv2d(in_channels, channels, 1)
        self.resize: nn.Module = nn.Identity()
        if factor > 1:
            side = int(factor)
            self.resize = nn.ConvTranspose2d(channels, channels, side, side)
        elif factor < 1:
            self.resize = nn.Conv2d(channels, channels, 3, int(1 / factor), padding=1)

    def forward(self, x: Tensor, token: Tensor | None) -> Tensor:
        """Map (N, C, h, w) and token (N, C) -> map (N, channels, factor * h, factor * w)."""
        if self.readout is not None and token is not None:
            places = x.permute(0, 2, 3, 1)  # (N, h, w, C)
            joined = torch.cat([places, token[:, None, None].expand_as(places)], -1)
            x = self.readout(joined).permute(0, 3, 1, 2)
        return self.resize(self.project(x))


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm, each after a ReLU, added to their input.

    Args:
        channels: of the maps.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, h, w) -> maps of the same shape."""
        out = self.norm1(self.conv1(F.relu(x)))
        return x + self.norm2(self.conv2(F.relu(out)))


class Fusion(nn.Module):
    """A coarser fused map and the next map of the transformer -> a map of twice its sides.

    Args:
        channels: of the maps.
        is_first: whether there is no coarser map yet.
    """

    def __init__(self, channels: int, is_first: bool):
        super().__init__()
        self.skip = None if is_first else Residual(channels)
        self.refine = Residual(channels)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, coarser: Tensor | None) -> Tensor:
        """Maps (N, C, h, w), both of one size -> (N, C, 2 * h, 2 * w)."""
        if self.skip is not None and coarser is not None:
            x = coarser + self.skip(x)
        return self.project(_doubled(self.refine(x)))


class DPTHead(nn.Module):
    """Four maps of one size -> {"out": logits} at 16 times their sides.

    Args:
        in_channels: of each map, all alike.
        num_classes: how many classes there are.
        has_token: whether class tokens come with the maps, as t1 to t4.
        channels: of the fused maps.
    """

    def __init__(self, in_channels: int, num_classes: int, has_token: bool, channels: int = WIDTH):
        super().__init__()
        widths = [in_channels // 2**number for number in (3, 2, 1, 0)]
        self.reassemble = nn.ModuleList(
            Reassemble(in_channels, width, factor, has_token)
            for width, factor in zip(widths, FACTORS)
        )
        self.lateral = nn.ModuleList(
            nn.Conv2d(width, channels, 3, padding=1, bias=False) for width in widths
        )
        self.fuse = nn.ModuleList(Fusion(channels, is_first=number == 0) for number in range(4))
        self.classify = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv2d(channels, num_classes, 1),
        )

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return logits "out" of c1 to c4 (N, C, h, w) and t1 to t4 (N, C), h and w even."""
        levels = [
            lateral(reassemble(maps[f"c{number}"], maps.get(f"t{number}")))
            for number, (reassemble, lateral) in enumerate(zip(self.reassemble, self.lateral), 1)
        ]
        fused = None
        for level, fuse in zip(reversed(levels), self.fuse):
            fused = fuse(level, fused)
        return {"out": _doubled(self.classify(fused))}


class DPT(DenseModel):
    """DPT's head with the class token read out, where there is one, without an auxiliary head.

    Sides of images are padded to an even number of patches, as one map is of half as many.

    Args:
        backbone: images -> maps c1 to c4 of one size, and the class tokens if it has them.
        num_classes: how many classes there are.

    Raises:
        UserError: the backbone takes images of one size, which is no even number of patches.
    """

    def __init__(self, backbone: ViTMaps, num_classes: int):
        even = 2 * backbone.patch_size
        if backbone.image_size is not None and any(side % even for side in backbone.image_size):
            shape = " x ".join(map(str, backbone.image_size))
            raise UserError(
                f"dpt takes an even number of patches of {backbone.patch_size} pixels, and the"
                f" backbone images of {shape}: give --crop a multiple of {even}"
            )
        backbone.with_tokens = backbone.has_class_token
        head = DPTHead(backbone.channels[0], num_classes, backbone.has_class_token)
        super().__init__(backbone, head, num_classes, aux=False)
        self.patch_size = self.size_divisor = even


def _doubled(x: Tensor) -> Tensor:
    """Bilinear, with corners kept in place, as DPT was trained."""
    height, width = x.shape[-2:]
    return F.interpolate(x, (2 * height, 2 * width), mode="bilinear", align_corners=True)
