"""Class ids from scores, and confusion counts: equal to plain torch's, faster on a CPU.

Memory bandwidth is the limit on a CPU: scores and ids are taken in pieces that fit into its cache,
by NumPy, which takes more of them at a time than torch does, and in as many threads as torch has.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

SCORES_AT_ONCE = 1 << 15  # pixels, whose scores of one class are 128 KiB
FEW_PIXELS = 1 << 8  # of an image: calls of NumPy for each class would take longer than copying
IDS_AT_ONCE = 1 << 14  # pixels, 128 KiB as int64
LABELS_AT_ONCE = 1 << 20  # pixels, 8 MiB as int64
LARGEST_TABLE = 1 << 20  # cells
WORTH_THREADS = 1 << 18  # pixels, half a millisecond


def argmax_labels(scores: Tensor) -> Tensor:
    """The most probable class of each image or pixel, as `scores.argmax(1)` has it.

    Torch goes along the classes one pixel after the other. Where they lie side by side (channels
    last), NumPy takes 16 at a time; where they lie apart, the largest score so far is kept, and
    class after class compared with it, over a whole row of pixels.

    Args:
        scores: (N, C, ...).

    Returns:
        int64 (N, ...), the first class of the largest score; NaN counts as the largest.
    """
    if (
        scores.device.type != "cpu"
        or not scores.is_floating_point()
        or not scores.numel()
        or torch.compiler.is_compiling()
    ):
        return scores.argmax(1)
    scores = scores.detach()
    chosen = torch.empty(scores.shape[0], *scores.shape[2:], dtype=torch.int64)
    if scores.stride(1) == 1 or scores.shape[2:].numel() < FEW_PIXELS:
        rows = scores.movedim(1, -1).reshape(-1, scores.shape[1])  # (pixels, C)
        parts = chosen.view(-1).split(SCORES_AT_ONCE)
        _in_threads(_choose_in_rows, rows.split(SCORES_AT_ONCE), parts)
        return chosen
    pieces: list[Tensor] = []
    places: list[Tensor] = []
    for image, classes in zip(scores.flatten(2), chosen.flatten(1)):
        pieces += image.split(SCORES_AT_ONCE, 1)
        places += classes.split(SCORES_AT_ONCE)
    _in_threads(_choose_in_columns, pieces, places)
    return chosen


def _in_threads(work: Callable[..., Any], *columns: Sequence) -> list[Any]:
    """What `work` gives for each row of the columns, in any order, in torch's number of threads."""
    rows = list(zip(*columns))
    threads = min(torch.get_num_threads(), len(rows))

    def share(first: int) -> list[Any]:
        return [work(*row) for row in rows[first::threads]]

    if threads == 1:
        return share(0)
    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(share, first) for first in range(1, threads)]
        found = share(0)
        for other in others:
            found += other.result()
    return found


def _as_numpy_has_them(scores: Tensor) -> np.ndarray:
    """Scores in a type of NumPy's that holds them exactly, and that it is fast with."""
    wide = scores.dtype in (torch.float32, torch.float64)
    return (scores if wide else scores.to(torch.float32)).numpy()


def _choose_in_rows(scores: Tensor, chosen: Tensor) -> None:
    """Write the classes of scores (P, C) into int64 (P,)."""
    np.argmax(_as_numpy_has_them(scores), axis=1, out=chosen.numpy())


def _choose_in_columns(scores: Tensor, chosen: Tensor) -> None:
    """Write the classes of scores (C, P) into int64 (P,)."""
    first, *others = _as_numpy_has_them(scores)
    kind = np.min_scalar_type(len(others))
    best, found = first.copy(), np.zeros(len(first), kind)
    is_larger, candidates = np.empty(len(first), bool), np.empty(len(first), kind)
    as_numbers = is_larger.view(np.uint8)
    for number, each in zip(np.arange(1, len(others) + 1, dtype=kind), others):
        np.greater(each, best, out=is_larger)
        np.maximum(each, best, out=best)
        np.multiply(as_numbers, number, out=candidates)
        np.maximum(found, candidates, out=found)
    if np.isnan(best).any():  # which nothing is larger than
        # not torch's `copy_`: threads of their own are outside inference mode
        chosen.numpy()[:] = scores.argmax(0).numpy()
    else:
        chosen.numpy()[:] = found


def count_pairs(predictions: Tensor, references: Tensor, num_classes: int, ignore: int) -> Tensor:
    """Count the pixels of each pair of a reference and a predicted class.

    Args:
        predictions: class ids of any shape and integer type.
        references: class ids of the same shape.
        num_classes: C.
        ignore: the reference that is not counted among the classes.

    Returns:
        int64 (C + 2, C + 1). Rows: references 0..C-1, ignored, out of range. Columns: predictions
        0..C-1, out of range.
    """
    predictions, references = predictions.flatten(), references.flatten()
    shape, counts = (num_classes + 2, num_classes + 1), None
    if predictions.device.type == "cpu":
        counts = _count_as_they_are(predictions, references, num_classes, ignore)
    if counts is None:
        counts = _count_in_place(
            _cells(predictions, references, num_classes, ignore), shape[0] * shape[1]
        )
    return counts.view(shape)


class _Kept(threading.local):
    """Memory that stays from batch to batch: the system would page it in again each time."""

    def __init__(self) -> None:
        with torch.inference_mode(False):  # whichever mode the first batch is counted in
            self.room = torch.empty(LABELS_AT_ONCE, dtype=torch.int64, device="cpu")


_kept = _Kept()


def _count_as_they_are(
    predictions: Tensor, references: Tensor, num_classes: int, ignore: int
) -> Tensor | None:
    """Count in a table with a row for each value that a reference may have, the ignored ones too.

    Its sides are powers of two: then the bits of all ids together say whether one has no place in
    it. None where one has not, or where the ignored id is so far from the classes that the table
    would be large.
    """
    lowest = min(0, ignore)
    row_bits = (max(num_classes - 1, ignore) - lowest).bit_length()
    column_bits = (num_classes - 1).bit_length()
    if 1 << (row_bits + column_bits) > LARGEST_TABLE:
        return None
    ids = [
        (each.long() if each.is_floating_point() else each).numpy()
        for each in (predictions, references)
    ]
    table = torch.zeros(1 << (row_bits + column_bits), dtype=torch.int64)
    for first in range(0, len(ids[0]), LABELS_AT_ONCE):
        columns, rows = (each[first : first + LABELS_AT_ONCE] for each in ids)
        parts = torch.get_num_threads() if len(rows) >= WORTH_THREADS else 1
        # torch counts int32, in one thread, faster than NumPy int64
        room = _kept.room if parts > 1 else _kept.room.view(torch.int32)
        cells = room[: len(rows)].numpy()
        found = _in_threads(
            partial(_table_of, lowest=lowest, row_bits=row_bits, column_bits=column_bits),
            *(np.array_split(each, parts) for each in (columns, rows, cells)),
        )
        for part in found:
            if part is None:
                return None
            table += part
    table = table.view(1 << row_bits, 1 << column_bits)
    whole = torch.zeros(num_classes + 2, 1 << column_bits, dtype=torch.int64)
    whole[:num_classes] = table[-lowest : num_classes - lowest]
    if not 0 <= ignore < num_classes:
        whole[num_classes] = table[ignore - lowest]
    whole[-1] = table.sum(0) - whole.sum(0)
    beyond = whole[:, num_classes:].sum(1, keepdim=True)
    return torch.cat([whole[:, :num_classes], beyond], 1)


def _table_of(
    columns: np.ndarray,
    rows: np.ndarray,
    cells: np.ndarray,
    lowest: int,
    row_bits: int,
    column_bits: int,
) -> Tensor | None:
    """Count the pixels of each cell of the table, int64; None where one has none.

    Args:
        columns: predictions.
        rows: references.
        cells: room for as many, int32 or int64.
        lowest: the reference of the first row.
        row_bits: of a row's number.
        column_bits: of a column's number.
    """
    kind, size = cells.dtype, 1 << (row_bits + column_bits)
    for begin in range(0, len(rows), IDS_AT_ONCE):
        piece = slice(begin, begin + IDS_AT_ONCE)
        row, column, cell = rows[piece], columns[piece], cells[piece]
        if lowest:
            row = np.subtract(row, lowest, dtype=np.int64)
        if int(np.bitwise_or.reduce(row)) >> row_bits:
            return None
        if int(np.bitwise_or.reduce(column)) >> column_bits:
            return None
        np.left_shift(row, column_bits, out=cell, dtype=kind, casting="unsafe")
        np.bitwise_or(cell, column, out=cell, dtype=kind, casting="unsafe")
    if kind == np.int32:
        return torch.bincount(torch.from_numpy(cells), minlength=size)
    return torch.from_numpy(np.bincount(cells, minlength=size))


def _cells(predictions: Tensor, references: Tensor, num_classes: int, ignore: int) -> Tensor:
    """The cell that each pixel belongs to: int64, one dimension."""
    rows, columns = references.long(), predictions.long()
    rows = torch.where(
        (rows >= 0) & (rows < num_classes), rows, num_classes + 1 - (rows == ignore).long()
    )
    columns = torch.where((columns >= 0) & (columns < num_classes), columns, num_classes)
    return rows * (num_classes + 1) + columns


def _count_in_place(cells: Tensor, num_cells: int) -> Tensor:
    """Count how often each cell occurs, without waiting for a device, as bincount would."""
    counts = torch.zeros(num_cells, dtype=torch.int64, device=cells.device)
    return counts.scatter_add_(0, cells, torch.ones_like(cells))
