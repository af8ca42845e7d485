"""Masks of COCO's annotations, by the rules of its own tools: run lengths and polygons."""

from collections.abc import Sequence

import numpy as np

from trainkit.errors import MissingPackageError, UserError

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
    content = text.encode() if isinstance(text, str) else text
    groups = np.frombuffer(content, dtype=np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(groups & 32 == 0)  # group of each number
    if len(groups) and (not len(last) or last[-1] < len(groups) - 1):
        raise UserError(f"run lengths {text[:20]!r}... end within a number")
    first = np.concatenate([[0], last[:-1] + 1]) if len(last) else last
    lengths = last - first + 1
    shifts = 5 * (np.arange(len(groups)) - np.repeat(first, lengths))
    values = np.add.reduceat((groups & 31) << shifts, first) if len(last) else last
    values = values - np.where(groups[last] & 16, 1 << 5 * lengths, 0)
    for start in (1, 2):  # sums of differences, of every other number
        values[start::2] = np.cumsum(values[start::2])
    return values.tolist()


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

    pycocotools draws it as run lengths, which are decoded here, in less than its own time.

    Raises:
        MissingPackageError: pycocotools is not installed.
    """
    if not len(corners):
        return np.zeros((height, width), dtype=bool)
    try:
        from pycocotools.mask import frPyObjects
    except ImportError as error:
        raise MissingPackageError(
            'COCO\'s polygons need pycocotools: pip install "trainkit[coco]"'
        ) from error
    # What `to_grid` rounds back to the same corners: numbers are cut off towards 0.
    pixels = (corners - np.where(corners < 0, 0.75, 0.25)) / GRID
    if len(pixels) < 6:  # of two corners pycocotools would make a box
        pixels = np.concatenate([pixels, *[pixels[-2:]] * 2])
    (drawn,) = frPyObjects([pixels.tolist()], height, width)
    return runs_to_mask(decode_counts(drawn["counts"]), height, width)
