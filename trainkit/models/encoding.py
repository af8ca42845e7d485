"""The encoding layer of Deep-TEN (Zhang et al., 2017) and EncNet (Zhang et al., 2018).

A map is a set of features x_i without order. Each is assigned softly to K learned codewords d_k,
with learned smoothing factors s_k, and each codeword collects what its features lack of it:

    a_ik = softmax over k of -s_k |x_i - d_k|^2        e_k = sum over i of a_ik (x_i - d_k)
"""

import torch
from torch import Tensor, nn


def encode(features: Tensor, codewords: Tensor, smoothing: Tensor) -> Tensor:
    """Encode features by codewords: residuals, which grow with the number of features P.

    Squares and sums are multiplied out, so that the largest tensors are (N, P, K) and (N, P, D),
    and never (N, P, K, D). In float32 or more, whatever autocast says: distances are differences of
    large numbers.

    Args:
        features: (N, P, D).
        codewords: (K, D).
        smoothing: (K,).

    Returns:
        (N, K, D).
    """
    with torch.autocast(features.device.type, enabled=False):
        dtype = torch.promote_types(features.dtype, torch.float32)
        features, codewords, smoothing = (
            each.to(dtype) for each in (features, codewords, smoothing)
        )
        products = features @ codewords.T  # (N, P, K)
        # (N, P, K)
        distances = (
            features.square().sum(2, keepdim=True) - 2 * products + codewords.square().sum(1)
        )
        assigned = torch.softmax(-smoothing * distances, 2)  # (N, P, K)
        # (N, K, D)
        return assigned.transpose(1, 2) @ features - assigned.sum(1).unsqueeze(2) * codewords


class Encoding(nn.Module):
    """`encode` with learned codewords (num_codewords, channels) and smoothing (num_codewords,).

    Args:
        channels: of the map.
        num_codewords: K.
    """

    def __init__(self, channels: int, num_codewords: int = 32):
        super().__init__()
        self.codewords = nn.Parameter(torch.empty(num_codewords, channels))
        self.smoothing = nn.Parameter(torch.empty(num_codewords))
        bound = (num_codewords * channels) ** -0.5
        nn.init.uniform_(self.codewords, -bound, bound)
        nn.init.uniform_(self.smoothing, 0.0, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Encode a map (N, C, H, W): residuals (N, K, C), float32 or more."""
        return encode(x.flatten(2).transpose(1, 2), self.codewords, self.smoothing)

    def extra_repr(self) -> str:
        """Describe the layer for print(model)."""
        num_codewords, channels = self.codewords.shape
        return f"channels={channels}, num_codewords={num_codewords}"
