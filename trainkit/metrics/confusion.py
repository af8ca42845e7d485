"""Class ids from scores, and confusion counts: equal to plain torch's, faster on a CPU.

Memory bandwidth is the limit on a CPU. Scores are taken in pieces that fit into its cache, without
boolean indexing.
"""

import threading

import torch
from torch import Tensor

SCORES_AT_ONCE = 1 << 12  # pixels, whose scores of 150 classes are 2.4 MB
LABELS_AT_ONCE = 1 << 20  # pixels, 4 MiB as int32
LARGEST_TABLE = 1 << 20  # cells


def argmax_labels(scores: Tensor) -> Tensor:
    """The most probable class of each image or pixel, as `scores.argmax(1)` has it.

    Torch goes along the classes, which lie far apart, one pixel after the other. The largest score,
    whether each score is that one, and of these the first class are steps over whole rows of
    pixels.

    Args:
        scores: (N, C, ...).

    Returns:
        int64 (N, ...), the first class of the largest score.
    """
    lies_well = scores.device.type != "cpu" or scores.stride(1) == 1  # on a GPU, or channels last
    if (
        lies_well
        or not scores.is_floating_point()
        or not scores.numel()
        or torch.compiler.is_compiling()
    ):
        return scores.argmax(1)
    num_classes, flat = scores.shape[1], scores.detach().flatten(2)
    chosen = torch.empty(flat.shape[0], flat.shape[2], dtype=torch.int64)
    dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
    # above 0, and most for the first
    order = torch.arange(num_classes, 0, -1, dtype=dtype)[:, None]
    # the system would page fresh memory in each time
    room = torch.empty(num_classes, SCORES_AT_ONCE, dtype=dtype)
    for image, classes in zip(flat, chosen):
        for piece, out in zip(image.split(SCORES_AT_ONCE, 1), classes.split(SCORES_AT_ONCE)):
            piece = piece.to(dtype)  # exact: it is no narrower than the scores
            largest = piece.amax(0)
            found = torch.eq(piece, largest, out=room[:, : len(out)]).mul_(order).amax(0)
            # nothing equals NaN, which counts as the largest score
            out.copy_(num_classes - found if found.all() else piece.argmax(0))
    return chosen.view(scores.shape[0], *scores.shape[2:])


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
            self.room = torch.empty(2, LABELS_AT_ONCE, dtype=torch.int32, device="cpu")


_kept = _Kept()


def _count_as_they_are(
    predictions: Tensor, references: Tensor, num_classes: int, ignore: int
) -> Tensor | None:
    """Count from a table with a row for each value that a reference may have, the ignored ones too.

    None where an id has no place in it, or the ignored one is so far from the classes that it would
    be large.
    """
    low, high = min(0, ignore), max(num_classes - 1, ignore)
    if (high - low + 1) * num_classes > LARGEST_TABLE:
        return None
    size = (high - low + 1) * num_classes
    table: Tensor | None = None
    # Summed up as int32, far below 2^31 for LARGEST_TABLE: most CPUs do not multiply several int64
    # at a time.
    room = _kept.room
    for columns, rows in zip(predictions.split(LABELS_AT_ONCE), references.split(LABELS_AT_ONCE)):
        columns, rows = columns.long(), rows.long()
        if not (_within(columns, 0, num_classes - 1) and _within(rows, low, high)):
            return None
        cells, rows = room[0, : len(rows)].copy_(columns), room[1, : len(rows)].copy_(rows)
        cells.add_(rows.sub_(low) if low else rows, alpha=num_classes)
        piece = torch.bincount(cells, minlength=size)
        table = piece if table is None else table.add_(piece)
    assert table is not None  # no pixels are one piece, an empty one
    table = table.view(-1, num_classes)
    counts = torch.zeros(num_classes + 2, num_classes + 1, dtype=torch.int64)
    counts[:num_classes, :-1] = table[-low : num_classes - low]
    counts[num_classes, :-1] = table[ignore - low]
    counts[-1, :-1] = table.sum(0) - counts[:, :-1].sum(0)
    return counts


def _within(ids: Tensor, low: int, high: int) -> bool:
    """Whether all are from `low` to `high`; True for no ids."""
    if not len(ids):
        return True
    least, most = map(int, ids.aminmax())
    return low <= least and most <= high


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
