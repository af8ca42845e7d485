"""Colours of segmentation masks, and masks as PNG files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from trainkit.errors import UserError

SHOWN_COLORS = 5  # of those that no table has
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class MaskColors:
    """The colours of colour-coded masks: one for each class, in the order of ids, and ignored ones.

    Raises:
        UserError: a colour occurs twice, is not three numbers from 0 to 255, or names are missing.
    """

    names: tuple[str, ...]
    colors: tuple[Colour, ...]
    ignored: tuple[Colour, ...] = ()

    def __post_init__(self) -> None:
        if len(self.names) != len(self.colors):
            raise UserError(
                f"MaskColors: {len(self.colors)} colours for {len(self.names)} names; give one for"
                " each"
            )
        seen: dict[Colour, str] = {}
        for name, color in zip(
            (*self.names, *["ignore"] * len(self.ignored)), (*self.colors, *self.ignored)
        ):
            if len(color) != 3 or not all(0 <= value <= 255 for value in color):
                raise UserError(
                    f"the colour of {name} is {color}; it is three numbers from 0 to 255"
                )
            if color in seen:
                raise UserError(
                    f"{seen[color]} and {name} have one colour, {color}: give each its own"
                )
            seen[color] = name

    @property
    def palette(self) -> np.ndarray:
        """The colours of the classes: uint8 (K, 3)."""
        return np.array(self.colors, dtype=np.uint8)


def color_code(color: ArrayLike) -> Any:
    """65536 R + 256 G + B, of a colour or of an image's, integers (..., 3)."""
    red, green, blue = np.moveaxis(np.asarray(color, dtype=np.int32), -1, 0)
    return (red << 16) + (green << 8) + blue


def unknown_colors(codes: np.ndarray) -> str:
    """Say which colours pixels have that `MaskColors` lacks, the most frequent first, and how many.

    `codes` are the `color_code` of each such pixel.
    """
    colors, counts = np.unique(codes, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:SHOWN_COLORS]
    shown = [
        f"{code >> 16} {code >> 8 & 255} {code & 255} on {count} pixels"
        for code, count in zip(colors[order].tolist(), counts[order].tolist())
    ]
    more = f" and {len(colors) - len(shown)} more colours" if len(colors) > len(shown) else ""
    return (
        f"holds {len(colors)} colours that mask_colors has not, on {len(codes)} of its pixels:"
        f" {', '.join(shown)}{more}; add lines `R G B name` of their classes to the table, or with"
        " the name `ignore`"
    )


def colour_map(num_colours: int) -> np.ndarray:
    """Pascal VOC's colours: uint8 (num_colours, 3).

    The bits of an id, three by three, are the highest of R, G, B.
    """
    colours, ids = np.zeros((num_colours, 3), dtype=np.uint8), np.arange(num_colours)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(
                np.uint8
            )
    return colours


def save_coloured(path: Path, labels: np.ndarray, palette: Sequence[Colour] | np.ndarray) -> None:
    """Write class ids, uint8 (H, W), as a PNG of mode P, shown in the palette's colours."""
    image = Image.fromarray(labels)
    image.putpalette(np.asarray(palette, dtype=np.uint8).tobytes())
    image.save(path)


def save_grey(path: Path, labels: np.ndarray) -> None:
    """Write labels, uint8 or uint16 (H, W), as a grey PNG of 8 or 16 bits."""
    Image.fromarray(labels).save(path)


def save_overlay(
    path: Path, image: np.ndarray, labels: np.ndarray, palette: Sequence[Colour] | np.ndarray
) -> None:
    """Write an image, uint8 (H, W, 3), half covered by the colours of its labels, as a JPEG.

    Args:
        path: the file to write.
        image: uint8 (H, W, 3).
        labels: class ids, uint8 (H, W).
        palette: (red, green, blue) of each class, 0 to 255.
    """
    colours = np.asarray(palette, dtype=np.uint8)[labels]
    # The mean of two bytes without leaving them: no copy of a large photo in a wider type.
    mixed = (image >> 1) + (colours >> 1) + (image & colours & 1)
    Image.fromarray(mixed).save(path, quality=90)


def save_titled(path: Path, image: np.ndarray, lines: Sequence[str]) -> None:
    """Write an image, uint8 (H, W, 3), with lines of text in its upper left corner, as a JPEG."""
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    height = max(10, min(picture.size) // 16)  # of a line, in pixels
    font = ImageFont.load_default(height)
    text = "\n".join(lines)
    box = draw.multiline_textbbox((0, 0), text, font=font)
    margin = height // 3
    draw.rectangle((0, 0, box[2] + 2 * margin, box[3] + 2 * margin), fill=(0, 0, 0))
    draw.multiline_text((margin, margin), text, fill=(255, 255, 255), font=font)
    picture.save(path, quality=90)
