"""Pictures of images with their classes or masks, drawn by Pillow: sheets of tiles, bars.

A tile is an image with a caption on a light strip below it, so that no text covers what it is of. A
mask is laid over the image in the colours of `trainkit.data.palette.class_colours`; what is ignored
is hatched.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 224  # pixels of an image in a tile, at most
MARGIN, TEXT, TITLE = 8, 14, 19  # pixels
PAPER, INK, MUTED, STRIP = (255, 255, 255), (25, 28, 33), (105, 112, 122), (240, 242, 245)
RIGHT, WRONG = (20, 125, 60), (200, 30, 45)
COVER = 0.55  # share of a class's colour in an overlay
TEXT_WIDTH, MOST_LINES = 21, 3  # characters, lines of a text below a tile
LEGEND = 40  # classes in it, at most
Colour = tuple[int, int, int]
Line = tuple[str, Colour]


@dataclass(frozen=True)
class Tile:
    """Images side by side, with lines of text and their colours below."""

    images: Sequence[Image.Image]
    lines: Sequence[Line]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def fitted(pixels: np.ndarray, side: int = SIDE) -> Image.Image:
    """An image whose longer side is `side`: smaller ones are magnified by whole pixels.

    Args:
        pixels: uint8 (H, W, 3).
        side: pixels.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels))
    longer = max(image.size)
    if longer > side:
        size = _scaled(image.size, side / longer)
        return image.resize(size, Image.Resampling.BOX)
    return image.resize(_scaled(image.size, side // longer), Image.Resampling.NEAREST)


def _scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    width, height = (max(1, round(length * factor)) for length in size)
    return width, height


def wrapped(text: str, colour: Colour) -> list[Line]:
    """A text in lines below a tile, of which the last may be cut off."""
    lines = textwrap.wrap(text, TEXT_WIDTH)
    if len(lines) > MOST_LINES:
        lines[MOST_LINES - 1 :] = [" ".join(lines[MOST_LINES - 1 :])]
    return [(line, colour) for line in lines]


def labels_of_size(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask (H, W) at another size (width, height), each pixel the nearest one's."""
    width, height = size
    rows = (np.arange(height) + 0.5) * labels.shape[0] / height
    columns = (np.arange(width) + 0.5) * labels.shape[1] / width
    return labels[rows.astype(np.int64)[:, None], columns.astype(np.int64)[None]]


def overlaid(
    image: Image.Image, labels: np.ndarray, colours: np.ndarray, cover: float = COVER
) -> Image.Image:
    """An image under the colours of a mask; what is no class is hatched.

    Args:
        image: RGB.
        labels: integers (H, W) of any size.
        colours: uint8 (C, 3).
        cover: share of the colours, in [0, 1].
    """
    labels = labels_of_size(labels, image.size)
    known = (labels >= 0) & (labels < len(colours))
    laid = Image.fromarray(colours[np.where(known, labels, 0)])
    mixed = Image.blend(image, laid, cover)
    return mixed if known.all() else Image.composite(mixed, _hatched(image), _as_mask(known))


def overlaid_masks(
    image: Image.Image, masks: np.ndarray, colours: np.ndarray, cover: float = COVER
) -> Image.Image:
    """An image under the colours of masks that may overlap; where they do, under their mean.

    Args:
        image: RGB.
        masks: integers (C, H, W) of any size, above 0 where a pixel is of the class; a pixel of
            which nothing is known of any class, below 0, is hatched.
        colours: uint8 (C, 3).
        cover: share of the colours, in [0, 1].
    """
    masks = np.stack([labels_of_size(each, image.size) for each in masks])
    there = (masks > 0).astype(np.float64)
    number = there.sum(0)  # (H, W)
    mean = np.einsum("chw,ck->hwk", there, colours[: len(masks)].astype(np.float64))
    laid = Image.fromarray(np.rint(mean / np.maximum(number, 1)[..., None]).astype(np.uint8))
    mixed = Image.composite(Image.blend(image, laid, cover), image, _as_mask(number > 0))
    known = masks.max(0) >= 0
    return mixed if known.all() else Image.composite(mixed, _hatched(image), _as_mask(known))


def error_map(image: Image.Image, target: np.ndarray, prediction: np.ndarray) -> Image.Image:
    """An image in grey where a mask is right, red where it is wrong, hatched where it is ignored.

    Args:
        image: RGB.
        target: the true mask (H, W); what is ignored is below 0.
        prediction: class ids (H, W).
    """
    target, prediction = (labels_of_size(each, image.size) for each in (target, prediction))
    grey = Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size, PAPER), 0.25)
    wrong = Image.blend(grey, Image.new("RGB", image.size, (225, 25, 45)), 0.65)
    shown = Image.composite(grey, wrong, _as_mask(target == prediction))
    ignored = target < 0
    return Image.composite(_hatched(image), shown, _as_mask(ignored)) if ignored.any() else shown


def error_of_masks(image: Image.Image, target: np.ndarray, prediction: np.ndarray) -> Image.Image:
    """`error_map` of masks (C, H, W) that may overlap: red where one of any class is wrong."""
    wrong = ((target > 0) != (prediction > 0)) & (target >= 0)
    marked = np.where((target < 0).all(0), -1, wrong.any(0))  # -1: of no class is it known
    return error_map(image, marked, np.zeros_like(marked))


def as_percent(value: float | None) -> str:
    """A fraction as a text, without digits behind the point."""
    return "unknown" if value is None else f"{100 * value:.0f} %"


def as_colour(value: np.ndarray) -> Colour:
    """A colour from an array (3,)."""
    red, green, blue = (int(part) for part in value)
    return red, green, blue


def _as_mask(truth: np.ndarray) -> Image.Image:
    return Image.fromarray(truth.astype(np.uint8) * 255)


def _hatched(image: Image.Image) -> Image.Image:
    """An image under diagonal stripes of white and dark grey."""
    return Image.blend(image, _stripes(image.size), 0.65)


@lru_cache(maxsize=16)
def _stripes(size: tuple[int, int]) -> Image.Image:
    width, height = size
    place = (np.arange(height)[:, None] + np.arange(width)[None]) % 10
    return Image.fromarray(np.where(place < 4, 250, 70).astype(np.uint8)).convert("RGB")


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Images in a row, two pixels apart."""
    width = sum(image.width for image in images) + 2 * (len(images) - 1)
    row = Image.new("RGB", (width, max(image.height for image in images)), PAPER)
    left = 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width + 2
    return row


def sheet(
    title: str,
    subtitle: str,
    tiles: Sequence[Tile],
    legend: Sequence[Line] = (),
    width: int = 1000,
) -> Image.Image:
    """Tiles in rows under a title, and below them which colour is which class.

    Args:
        title: in large letters.
        subtitle: below it.
        tiles: of any sizes.
        legend: names and colours.
        width: of the sheet in pixels, at least that of a tile.
    """
    drawn = [_drawn(tile) for tile in tiles]
    cell = max(image.width for image in drawn)
    columns = max(1, min(len(drawn), (width - MARGIN) // (cell + MARGIN)))
    width = max(columns * (cell + MARGIN) + MARGIN, 480)
    rows = [drawn[first : first + columns] for first in range(0, len(drawn), columns)]
    head = _head(title, subtitle, width)
    foot = _legend(legend, width)
    heights = [max(image.height for image in row) + MARGIN for row in rows]
    page = Image.new("RGB", (width, head.height + sum(heights) + foot.height), PAPER)
    page.paste(head, (0, 0))
    top = head.height
    for row, height in zip(rows, heights):
        for place, image in enumerate(row):
            page.paste(image, (MARGIN + place * (cell + MARGIN), top))
        top += height
    page.paste(foot, (0, top))
    return page


def _drawn(tile: Tile) -> Image.Image:
    images = side_by_side(tile.images)
    # a tile of a narrow image is wide enough for a name
    width = max(images.width, 150)
    height = images.height + len(tile.lines) * (TEXT + 5) + (6 if tile.lines else 0)
    page = Image.new("RGB", (width, height), STRIP)
    page.paste(images, ((width - images.width) // 2, 0))
    draw = ImageDraw.Draw(page)
    for place, (text, colour) in enumerate(tile.lines):
        top = images.height + 3 + place * (TEXT + 5)
        draw.text((5, top), cut(text, width - 10), fill=colour, font=_font(TEXT))
    return page


def cut(text: str, width: int, size: int = TEXT) -> str:
    """A text that is no wider than so many pixels, its end left out where it is longer."""
    text, font = " ".join(text.split()), _font(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def _head(title: str, subtitle: str, width: int) -> Image.Image:
    head = Image.new("RGB", (width, TITLE + TEXT + 3 * MARGIN + 4), PAPER)
    draw = ImageDraw.Draw(head)
    room = width - 2 * MARGIN
    draw.text((MARGIN, MARGIN), cut(title, room, TITLE), fill=INK, font=_font(TITLE))
    place = (MARGIN, MARGIN + TITLE + 6)
    draw.text(place, cut(subtitle, room), fill=MUTED, font=_font(TEXT))
    return head


def _legend(entries: Sequence[Line], width: int) -> Image.Image:
    if not entries:
        return Image.new("RGB", (width, 0), PAPER)
    shown = [*entries[:LEGEND]]
    if len(entries) > LEGEND:
        shown.append((f"and {len(entries) - LEGEND} more", PAPER))
    names = [cut(name, 200) for name, _ in shown]
    cell = max(round(_font(TEXT).getlength(name)) for name in names) + TEXT + 22
    columns = max(1, (width - MARGIN) // cell)
    foot = Image.new("RGB", (width, -(-len(shown) // columns) * (TEXT + 8) + MARGIN), PAPER)
    draw = ImageDraw.Draw(foot)
    for place, (name, (_, colour)) in enumerate(zip(names, shown)):
        left, top = MARGIN + place % columns * cell, place // columns * (TEXT + 8) + 2
        box = (left, top + 1, left + TEXT, top + 1 + TEXT)
        if colour != PAPER:
            draw.rectangle(box, fill=colour, outline=MUTED)
        draw.text((left + TEXT + 6, top), name, fill=INK, font=_font(TEXT))
    return foot


def class_bars(
    title: str,
    names: Sequence[str],
    colours: np.ndarray,
    truth: np.ndarray,
    predicted: np.ndarray,
) -> Image.Image:
    """Pixels of each class as bars: what it has above, what it is given below, paler.

    Args:
        title: in large letters.
        names: of the C classes.
        colours: uint8 (C, 3).
        truth: pixels of each class, (C,).
        predicted: pixels taken for each class, (C,).
    """
    rows = 24
    columns = max(1, -(-len(names) // 40))
    label = min(170, max(round(_font(TEXT).getlength(name)) for name in names) + 6)
    cell, bar = (640, 330) if columns == 1 else (470, 160)
    most = max(1, int(max(truth.max(), predicted.max())))
    each = -(-len(names) // columns)
    head = _head(title, "of each class: pixels it has (above), pixels it is given (below)", 640)
    size = (max(640, columns * cell + MARGIN), head.height + each * rows + MARGIN)
    page = Image.new("RGB", size, PAPER)
    page.paste(head, (0, 0))
    draw = ImageDraw.Draw(page)
    shares = [counts / max(1, int(counts.sum())) for counts in (truth, predicted)]
    for place, name in enumerate(names):
        left = MARGIN + place // each * cell
        top = head.height + place % each * rows
        draw.text((left, top + 2), cut(name, label), fill=INK, font=_font(TEXT))
        colour = tuple(int(part) for part in colours[place])
        pale = tuple((part + 255) // 2 for part in colour)
        start = left + label + 6
        for number, (counts, fill) in enumerate(((truth, colour), (predicted, pale))):
            length = round(bar * int(counts[place]) / most)
            box = (start, top + 2 + 10 * number, start + max(length, 1), top + 10 + 10 * number)
            draw.rectangle(box, fill=fill, outline=colour)
        text = f"{100 * shares[0][place]:.2f} %, given {100 * shares[1][place]:.2f} %"
        draw.text((start + bar + 8, top + 2), text, fill=MUTED, font=_font(TEXT - 2))
    return page
