"""Colours of label maps, and label maps as PNG files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

Colour = tuple[int, int, int]


def colour_map(num_classes: int) -> list[Colour]:
    """Pascal VOC's colours of the ids from 0, up to 256 unlike ones, 0 being black.

    The bits of an id go to red, green and blue in turn, the lowest to the highest bit of each (VOC development kit).
    """
    ids = np.arange(num_classes)
    colours = np.zeros((num_classes, 3), dtype=np.uint8)
    for level in range(8):
        for channel in range(3):
            colours[:, channel] |= ((ids >> (3 * level + channel) & 1) << (7 - level)).astype(np.uint8)
    return [(int(red), int(green), int(blue)) for red, green, blue in colours]


def save_coloured(path: Path, labels: np.ndarray, palette: Sequence[Colour]) -> None:
    """Write class ids, uint8 (H, W), as a PNG of mode P: the ids as they are, shown in the palette's colours."""
    image = Image.fromarray(labels)
    image.putpalette([part for colour in palette for part in colour])
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
