"""Labels in the files of a dataset, and the train ids that stand for them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

IGNORED = 255  # the train id that counts nowhere
UNKNOWN = 254  # in a table of labels: a label that the dataset does not have


def label_table(
    labels: Sequence[int] | np.ndarray, ignored: Sequence[int] = (), size: int = 256
) -> np.ndarray:
    """Table of label in the files -> train id: its place in `labels`, IGNORED, or UNKNOWN.

    Args:
        labels: in the order of train ids.
        ignored: further labels.
        size: of the table.

    Returns:
        uint8 (size,).
    """
    table = np.full(size, UNKNOWN, dtype=np.uint8)
    table[list(labels)] = np.arange(len(labels))
    table[list(ignored)] = IGNORED
    return table


def look_up(labels: Tensor, table: np.ndarray) -> Tensor:
    """Look train ids, uint8, up in a `label_table`; labels beyond the table are UNKNOWN."""
    stored = labels.numpy()
    if stored.dtype == np.uint8 or (
        stored.min(initial=0) >= 0 and stored.max(initial=0) < len(table)
    ):
        return torch.from_numpy(table[stored])
    inside = (stored >= 0) & (stored < len(table))
    return torch.from_numpy(np.where(inside, table[np.where(inside, stored, 0)], np.uint8(UNKNOWN)))
