"""Masks of COCO's annotations, by the rules of its own tools: run lengths and polygons."""

from collections.abc import Sequence

import numpy as np

from trainkit.errors import UserError

# COCO's tools lay a polygon's corners on a grid of fifths of a pixel.
GRID = 5


def decode_counts(text: str | bytes) -> list[int]:
    """Decode run lengths from COCO's string form.

    Each number is written in groups of five bits, the lowest first, as characters from "0" on; 32
    says that more follow, and 16 in the last one that it is negative. From the fourth number on it
    is the difference to the last but one.

    Raises:
        UserError: the string ends within a number.
    """
    counts: list[int] = []
    value = shift = 0
    for code in text.encode() if isinstance(text, str) else text:
        group = code - 48
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise UserError(f"run lengths {text[:20]!r}... end within a number")
    return counts


def runs_to_mask(counts: Sequence[int] | np.ndarray, height: int, width: int) -> np.ndarray:
    """Draw alternating run lengths of 0 and 1, down the columns: bool (H, W).

    Raises:
        UserError: they are not height times width pixels.
    """
    counts = np.asarray(counts, dtype=np.int64)
    if counts.sum() != height * width or (counts < 0).any():
        raise UserError(
            f"run lengths sum up to {counts.sum()} pixels, and the image has {height * width}"
        )
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def to_grid(polygon: Sequence[float]) -> np.ndarray:
    """Round alternating x and y in pixels to COCO's grid: int32 (2K,)."""
    return (GRID * np.asarray(polygon, dtype=np.float64) + 0.5).astype(np.int32)


def polygon_to_mask(corners: np.ndarray, height: int, width: int) -> np.ndarray:
    """Draw a polygon of `to_grid`: bool (H, W), equal in every pixel to that of COCO's tools.

    The outline is walked on the grid; where it passes the middle of a column, it turns the pixels
    below it over.
    """
    x, y = _outline(corners.reshape(-1, 2).astype(np.int64))
    left = np.minimum(x[1:], x[:-1])
    crossing = (x[1:] != x[:-1]) & ((left - GRID // 2) % GRID == 0)
    column = (left[crossing] - GRID // 2) // GRID
    # the first pixel whose middle is below
    row = (np.minimum(y[1:], y[:-1])[crossing] + GRID // 2) // GRID
    inside = (column >= 0) & (column < width)
    turned = column[inside] * height + row[inside].clip(0, height)
    mask = np.zeros((width, height), dtype=bool)
    if len(turned):
        first, last = turned.min() // height, min(turned.max() // height + 1, width)
        turns = np.bincount(turned - first * height, minlength=(last - first) * height)
        parity = np.cumsum(turns, dtype=np.uint8) & 1  # which a sum modulo 256 keeps
        mask[first:last] = parity[: (last - first) * height].reshape(-1, height)
    return mask.T


def _outline(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All points of the grid around a polygon.

    Each side goes from its lower end in steps along its longer axis.
    """
    begin, end = corners, np.roll(corners, -1, axis=0)
    length = np.abs(end - begin)
    axis = (length[:, 0] < length[:, 1]).astype(np.int64)  # 0: x is the longer one
    sides = np.arange(len(corners))
    steps = length[sides, axis]
    flipped = begin[sides, axis] > end[sides, axis]
    low, high = np.where(flipped[:, None], end, begin), np.where(flipped[:, None], begin, end)
    slope = (high - low)[sides, 1 - axis] / np.maximum(steps, 1)

    side = np.repeat(sides, steps + 1)
    step = np.arange(len(side)) - np.repeat(np.cumsum(steps + 1) - steps - 1, steps + 1)
    step = np.where(flipped[side], steps[side] - step, step)
    along = low[side, axis[side]] + step
    across = (low[side, 1 - axis[side]] + slope[side] * step + 0.5).astype(np.int64)
    is_x = axis[side] == 0
    return np.where(is_x, along, across), np.where(is_x, across, along)
