"""A linear classifier of each place of a backbone's last map.

Source:
    Oquab et al., 2023, DINOv2, its evaluation by linear segmentation.
"""

from torch import Tensor, nn

from trainkit.models.base import Backbone
from trainkit.models.encoder_decoder import DenseModel


class LinearHead(nn.Module):
    """Batch norm and a 1x1 convolution on the last map: maps -> {"out": logits}.

    Args:
        in_channels: channels of the map.
        num_classes: how many classes there are.
    """

    def __init__(self, in_channels: int, num_classes: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.classify = nn.Conv2d(in_channels, num_classes, 1)
        nn.init.normal_(self.classify.weight, std=0.01)
        nn.init.zeros_(self.classify.bias)  # type: ignore[arg-type]  # it has one

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return logits "out" at the size of the map."""
        last = list(maps.values())[-1]
        return {"out": self.classify(self.norm(last))}


class Linear(DenseModel):
    """A linear head on the last map of `backbone`, without an auxiliary one.

    Args:
        backbone: images -> maps, with their `channels`.
        num_classes: how many classes there are.
    """

    def __init__(self, backbone: Backbone, num_classes: int):
        head = LinearHead(backbone.channels[-1], num_classes)
        super().__init__(backbone, head, num_classes, aux=False)
