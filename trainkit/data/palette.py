"""Colours of label maps, and label maps as PNG files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

Colour = tuple[int, int, int]


def colour_map(num_colours: int) -> np.ndarray:
    """Pascal VOC's colours: uint8 (num_colours, 3). The bits of an id, three by three, are the highest of R, G, B."""
    colours, ids = np.zeros((num_colours, 3), dtype=np.uint8), np.arange(num_colours)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def save_coloured(path: Path, labels: np.ndarray, palette: Sequence[Colour] | np.ndarray) -> None:
    """Write class ids, uint8 (H, W), as a PNG of mode P: the ids as they are, shown in the palette's colours."""
    image = Image.fromarray(labels)
    image.putpalette(np.asarray(palette, dtype=np.uint8).tobytes())
    image.save(path)


def save_grey(path: Path, labels: np.ndarray) -> None:
    """Write labels, uint8 or uint16 (H, W), as a grey PNG of 8 or 16 bits."""
    Image.fromarray(labels).save(path)


def save_overlay(path: Path, image: np.ndarray, labels: np.ndarray, palette: Sequence[Colour]) -> None:
    """Write an image, uint8 (H, W, 3), half covered by the colours of its labels, uint8 (H, W), as a JPEG."""
    colours = np.asarray(palette, dtype=np.uint8)[labels]
    # The mean of two bytes without leaving them: no copy of a large photo in a wider type.
    mixed = (image >> 1) + (colours >> 1) + (image & colours & 1)
    Image.fromarray(mixed).save(path, quality=90)
