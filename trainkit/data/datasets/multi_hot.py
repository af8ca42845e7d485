"""Turns lists of class ids into multi-hot targets, a row of numbers for each image."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainkit.data.dataset_info import SizedDataset
from trainkit.data.datasets.wrapper import Wrapper
from trainkit.errors import UserError

IGNORED = -1  # of an image and a class of which nothing is known


def multi_hot(labels: Sequence[int], num_classes: int, ignored: Sequence[int] = ()) -> Tensor:
    """The target of an image of several classes.

    Args:
        labels: ids of its classes; none for an image of no class, which is a valid negative.
        num_classes: how many classes there are.
        ignored: ids of classes of which nothing is known.

    Returns:
        int8 (num_classes,): 1 for its classes, -1 for the ignored ones, else 0.

    Raises:
        UserError: an id is outside of the classes, or both present and ignored.
    """
    row = torch.zeros(num_classes, dtype=torch.int8)
    for ids, value in ((labels, 1), (ignored, IGNORED)):
        for label in ids:
            if not 0 <= int(label) < num_classes:
                raise UserError(
                    f"label {label} is outside the {num_classes} classes 0 to {num_classes - 1}"
                )
            if row[int(label)] == -value:
                raise UserError(f"class {label} is both among the labels and ignored")
            row[int(label)] = value
    return row


class MultiHot(Wrapper):
    """A dataset whose targets are lists of class ids, given as multi-hot rows.

        train_data=MultiHot(my_data, num_classes=80)

    Args:
        data: index -> (image, ids of its classes, none for an image of no class).
        num_classes: how many classes there are.
    """

    def __init__(self, data: SizedDataset, num_classes: int):
        super().__init__(data)
        self.num_classes = num_classes

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        image, labels = self.data[index]
        return image, multi_hot(labels, self.num_classes)
