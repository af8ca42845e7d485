"""Refuses masks of which one class is left, because 255 counts nowhere unless it is a class."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from trainkit.data.dataset_info import DatasetInfo, SizedDataset
from trainkit.data.datasets.label_tables import IGNORED
from trainkit.data.datasets.mask_files import MaskFiles
from trainkit.data.datasets.segmentation import MaskDataset
from trainkit.data.reader import is_unusable
from trainkit.errors import UserError

NUM_MASKS = 256  # at most, spread over the set; the first of two classes is the last that is read


def refuse_one_class(data: SizedDataset) -> None:
    """Raise UserError for what `why_one_class` tells of a training's data."""
    why = why_one_class(data)
    if why is not None:
        raise UserError(why)


def why_one_class(data: SizedDataset) -> str | None:
    """Why masks cannot be trained on that hold one class, or none, beside label 255; else None.

    Nobody said that 255 counts nowhere: it does by default. Binary masks of 0 and 255 would give an
    mIoU of 100 %, whatever is learned. Up to 256 masks are read, until one holds a second class;
    those that cannot be read are left to the training. With `mask_values`, colours, or ignored
    labels of one's own it is said what counts, and nothing is read.
    """
    info = DatasetInfo.of(data)
    labelled = info.labelled
    if not isinstance(labelled, MaskDataset) or not _is_default(labelled):
        return None
    if DatasetInfo.of(labelled).locality is not None or not len(info.labelled_indices):
        return None  # streamed
    stored, num_read = _labels(labelled, info.labelled_indices)
    counting = sorted(stored - {IGNORED})
    if len(counting) > 1 or IGNORED not in stored:
        return None
    found = f"labels {counting[0]} and {IGNORED} alone" if counting else f"label {IGNORED} alone"
    both = ",".join(map(str, [counting[0] if counting else 0, IGNORED]))
    kept = ",".join(map(str, range(labelled.num_classes)))
    return (
        f"the training masks hold {found} ({num_read} of {len(info.labelled_indices)} were read),"
        f" and {IGNORED} counts nowhere unless it is said to be a class: every prediction would be"
        f" right, mIoU 100 %. Where {IGNORED} is a class: --classes background,object"
        f" --mask-values {both}. Where it is to be ignored: --mask-values {kept}. In Python it is"
        " mask_values"
    )


def _is_default(data: MaskDataset) -> bool:
    """Whether masks are images, of which nobody said what counts."""
    said = data.label_values is not None or data.to_train_ids is not None or data.label_shift
    if isinstance(data, MaskFiles) and data.masks and data.masks[0].suffix.startswith(".json"):
        return False  # a background is asked for by a warning
    return not said and data.ignore == (IGNORED,)


def _labels(data: MaskDataset, indices: Sequence[int]) -> tuple[set[int], int]:
    """The labels of masks, up to the second that counts, and how many masks were read."""
    number = min(NUM_MASKS, len(indices))
    found: set[int] = set()
    num_read = 0
    for place in range(number):
        try:
            labels = data.labels_of(indices[len(indices) * place // number])
        except Exception as error:  # the training says what is wrong with it
            if not is_unusable(error):
                raise
            continue
        num_read += 1
        found.update(np.unique(labels.as_subclass(Tensor).numpy()).tolist())
        if len(found - {IGNORED}) > 1:
            break
    return found, num_read
