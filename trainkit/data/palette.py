"""Colours of segmentation masks, and masks as PNG files."""

import colorsys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from trainkit.errors import UserError

SHOWN_COLORS = 5  # of those that no table has
Colour = tuple[int, int, int]
BRIGHT = 4096  # colours chosen to differ visibly
DARKEST = 48  # the largest part of a colour that is taken for black, at most
# For classes without colours of their own: blue, orange, green, ... of like lightness.
FIRST_COLOURS: tuple[Colour, ...] = (
    (66, 133, 244), (245, 130, 48), (60, 180, 75), (230, 50, 75), (145, 80, 210), (0, 190, 200),
    (240, 200, 20), (240, 70, 190), (150, 100, 50), (150, 200, 40), (120, 130, 150),
    (250, 160, 160), (0, 120, 110), (190, 150, 255), (130, 20, 50), (255, 225, 150),
)  # fmt: skip


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


def class_colours(num_classes: int, palette: Sequence[Colour] | None = None) -> np.ndarray:
    """The colour of each class in pictures, overlays and reports: uint8 (num_classes, 3).

    They are the dataset's own where it has some. Those that look like no colour, black
    and nearly black ones, of which a mask in an overlay would look like nothing found, and those
    that two classes share, are replaced.

    Args:
        num_classes: how many classes there are.
        palette: (red, green, blue) of each class, 0 to 255; None: colours chosen here.
    """
    taken: dict[Colour, None] = {}  # in the order of ids
    spare = iter(_distinct())
    own = [tuple(map(int, colour)) for colour in palette] if palette is not None else []
    known = {colour for colour in own if max(colour) >= DARKEST}
    for place in range(num_classes):
        colour = own[place] if place < len(own) else (0, 0, 0)
        if max(colour) < DARKEST or colour in taken:
            colour = next(each for each in spare if each not in known and each not in taken)
        taken[colour[0], colour[1], colour[2]] = None
    return np.array(list(taken), dtype=np.uint8).reshape(-1, 3)


def _distinct() -> Iterator[Colour]:
    """Bright colours that differ from their neighbours, the first ones chosen by eye.

    After some thousand, when the eye tells none apart, all that are not nearly black.
    """
    yield from FIRST_COLOURS
    for number in range(len(FIRST_COLOURS), BRIGHT):
        hue = number * 0.618034 % 1  # the golden ratio: any few in a row are far apart
        light, strong = (0.95, 0.75, 0.6)[number % 3], (0.75, 0.5, 0.9)[number // 3 % 3]
        red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, strong, light))
        yield red, green, blue
    for number in range(1 << 24):
        code = number * 7_919_351 % (1 << 24)  # odd, so that each code comes once
        if max(code >> 16, code >> 8 & 255, code & 255) >= DARKEST:
            yield code >> 16, code >> 8 & 255, code & 255


def save_coloured(path: Path, labels: np.ndarray, palette: Sequence[Colour] | np.ndarray) -> None:
    """Write class ids, uint8 (H, W), as a PNG of mode P, shown in the palette's colours."""
    image = Image.fromarray(labels)
    image.putpalette(np.asarray(palette, dtype=np.uint8).tobytes())
    image.save(path)


# dark blue to yellow, by way of green: colours of viridis, and between them straight lines
_ANCHORS = ("440154", "482878", "3e4a89", "31688e", "26828e", "1f9e89", "35b779", "6ece58",
            "b5de2b", "fde725")  # fmt: skip


def _ramp() -> np.ndarray:
    anchors = np.array([[int(each[at : at + 2], 16) for at in (0, 2, 4)] for each in _ANCHORS])
    places = np.linspace(0, len(anchors) - 1, 256)
    columns = [np.interp(places, range(len(anchors)), column) for column in anchors.T]
    return np.stack(columns, 1).round().astype(np.uint8)


RAMP = _ramp()  # uint8 (256, 3)


def levels(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Places of values in `RAMP`: int64 of their shape, 0 for `low`, 255 for `high`; -1 for NaN."""
    known = np.isfinite(values)
    share = (np.where(known, values, low) - low) / max(high - low, 1e-12)
    return np.where(known, np.rint(255 * share.clip(0, 1)), -1).astype(np.int64)


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
