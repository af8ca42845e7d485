"""Logits and labels for losses, and log-softmax in float64."""

import numpy as np
import torch

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 3 * torch.randn(6, 5, generator=GENERATOR)
MAPS = 3 * torch.randn(3, 5, 4, 6, generator=GENERATOR)
LABELS = torch.randint(5, (3, 4, 6), generator=GENERATOR)
LABELS[torch.rand(3, 4, 6, generator=GENERATOR) < 0.4] = 255
LABELS[2] = 255  # one image without a valid pixel


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over axis 1, in float64."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
