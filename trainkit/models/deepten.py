"""Deep-TEN: an image as a set of features without order.

Source:
    Zhang et al., 2017, Deep TEN: Texture Encoding Network.
"""

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation

from trainkit.models.base import Backbone
from trainkit.models.encoding import Encoding


class DeepTEN(nn.Module):
    """The last map of `backbone`: reduced, encoded, normalised to length 1, classified.

    For images of any size.

    Args:
        backbone: images -> maps with c4, and their `channels`.
        num_classes: how many classes there are.
        channels: of the features that are encoded.
        num_codewords: of the encoding.
    """

    def __init__(
        self, backbone: Backbone, num_classes: int, channels: int = 128, num_codewords: int = 32
    ):
        super().__init__()
        self.backbone = backbone
        self.narrow = Conv2dNormActivation(backbone.channels[-1], channels, 1)
        self.encoding = Encoding(channels, num_codewords)
        self.classify = nn.Linear(num_codewords * channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> logits (N, num_classes)."""
        residuals = self.encoding(self.narrow(self.backbone(images)["c4"]))  # (N, K, C)
        return self.classify(F.normalize(residuals.flatten(1)))
