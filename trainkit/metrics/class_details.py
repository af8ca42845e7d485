"""Accuracy of each class and the confusion matrix, as results.json has them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MOST_IN_ROWS = 200  # classes: a matrix of 8,000 would be 64 million numbers, nearly all of them 0


def details_of_classes(
    cells: Tensor, counts: Tensor, num_classes: int, names: Sequence[str] | None
) -> dict[str, Any]:
    """Results too large for a row of the log.

    Args:
        cells: reference * num_classes + prediction of each pair of classes that occurs, each once:
            int64 (P,).
        counts: how often: int64 (P,).
        num_classes: how many classes there are.
        names: of the classes.

    Returns:
        "accuracy" of each class, None where it does not occur. "confusion": up to 200 classes a
        list of rows, one for each class of the references, with a column for each class predicted;
        of more the pairs that occur, as three lists, "truth", "predicted" and "count".
    """
    truth, predicted = cells // num_classes, cells % num_classes
    of_class = torch.zeros(num_classes, dtype=torch.int64).index_add_(0, truth, counts)
    right = torch.zeros_like(of_class)
    same = truth == predicted
    right[truth[same]] = counts[same]
    found = (right / of_class.clamp(min=1)).tolist()
    found = [value if here else None for value, here in zip(found, (of_class > 0).tolist())]
    confusion: Any = {"truth": truth, "predicted": predicted, "count": counts}
    if num_classes <= MOST_IN_ROWS:
        matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        matrix[truth, predicted] = counts
        confusion = matrix.tolist()
    else:
        confusion = {name: values.tolist() for name, values in confusion.items()}
    return {"accuracy": found if names is None else dict(zip(names, found)), "confusion": confusion}
