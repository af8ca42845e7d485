"""Which training images are of which class, and how many targets each class has."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainkit.data.dataset_info import DatasetInfo, SizedDataset
from trainkit.data.datasets.cache import cached, short_hash
from trainkit.data.datasets.mask_files import MaskFiles
from trainkit.data.datasets.segmentation import MaskDataset
from trainkit.errors import UserError


@dataclass(frozen=True)
class ClassCounts:
    """What a dataset has of each class.

    Attributes:
        targets: images of each class, or pixels: int64 (C,).
        images: the images of class 0 in the order of their indices, then those of class 1, and so
            on: int64 (M,). An image of several classes is there once for each.
        members: how many images each class has: int64 (C,).
    """

    targets: Tensor
    images: Tensor
    members: Tensor

    @property
    def digest(self) -> str:
        """A hash of which image is of which class."""
        content = self.images.numpy().tobytes() + self.members.numpy().tobytes()
        return hashlib.sha256(content).hexdigest()[:16]


def count_classes(data: SizedDataset, num_classes: int) -> ClassCounts:
    """Count the classes of a dataset: by targets that it has at hand, or masks, which are all read.

    Args:
        data: with an attribute `targets`, class ids or multi-hot rows of integers, or of masks of
            `trainkit.data`; also inside a `Subset`.
        num_classes: ids outside 0 to num_classes - 1 count nowhere.

    Raises:
        UserError: neither class ids nor masks are at hand, as where files are streamed.
        DataError: a mask cannot be used.
    """
    info = DatasetInfo.of(data)
    labelled, indices = info.labelled, info.labelled_indices
    of_masks = isinstance(labelled, MaskDataset)
    what = "masks" if of_masks else "images"
    label_sets = None if of_masks else _label_sets(labelled)
    if label_sets is not None:
        return _of_table((label_sets[torch.as_tensor(indices)] > 0).long())
    ids = None if of_masks else class_ids(labelled)
    if ids is None and DatasetInfo.of(labelled if of_masks else data).locality is not None:
        raise UserError(f"the classes of streamed {what} are not counted: leave --stream out")
    if of_masks:
        return _of_masks(labelled, indices, num_classes)
    if ids is None:
        raise UserError(
            f"the classes of {type(labelled).__name__} are not at hand: give it an attribute"
            " `targets`, the class id of each image"
        )
    ids = ids[torch.as_tensor(indices)]
    counts = torch.bincount(ids[(ids >= 0) & (ids < num_classes)], minlength=num_classes)
    order = ids.argsort(stable=True)
    ranked = ids[order]
    images = order[(ranked >= 0) & (ranked < num_classes)]
    return ClassCounts(counts, images, counts)


def class_ids(data: Any) -> Tensor | None:
    """The class id of each image, where an attribute `targets` says them: int64 (N,)."""
    ids = DatasetInfo.of(data).targets
    if isinstance(ids, (list, tuple)) and not all(
        isinstance(each, (int, np.integer)) for each in ids
    ):
        return None
    if not isinstance(ids, (list, tuple, np.ndarray, Tensor)):
        return None
    ids = torch.as_tensor(ids)
    if ids.ndim != 1 or ids.is_floating_point() or len(ids) != len(data):
        return None
    return ids.long().cpu()


def _of_masks(data: MaskDataset, indices: Sequence[int], num_classes: int) -> ClassCounts:
    def count(index: int) -> np.ndarray:
        ids = data.train_ids(data.labels_of(index).as_subclass(Tensor), index)
        return np.bincount(ids.numpy().ravel(), minlength=256)[:num_classes]

    def build() -> dict[str, np.ndarray]:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return {"counts": np.stack(list(pool.map(count, indices))).astype(np.int32)}

    meaning = data.labels_mean()
    rows: Mapping[str, np.ndarray]
    if isinstance(data, MaskFiles) and meaning is not None and _are_there(data, indices):
        names = None if data.draw is None else data.draw.keywords
        how = repr((num_classes, meaning, names))
        files = [data.masks[index] for index in indices]
        rows = cached(f"mask-counts-v2-{short_hash(how.encode())}", files, build)
    else:
        rows = build()
    return _of_table(torch.from_numpy(np.array(rows["counts"], dtype=np.int64)))


def _label_sets(data: Any) -> Tensor | None:
    """Multi-hot rows (N, C), negative where nothing is known, that `targets` holds; else None."""
    rows = DatasetInfo.of(data).targets
    if not isinstance(rows, (np.ndarray, Tensor)):
        return None
    rows = torch.as_tensor(rows)
    if rows.ndim != 2 or rows.is_floating_point() or len(rows) != len(data):
        return None
    return rows.cpu()


def _of_table(table: Tensor) -> ClassCounts:
    """Of how much of each class each image has, (N, C)."""
    has = table > 0
    return ClassCounts(table.sum(0), has.T.nonzero()[:, 1].contiguous(), has.sum(0))


def _are_there(data: MaskFiles, indices: Sequence[int]) -> bool:
    """Whether all masks are files; reading one that is not says so."""
    return all(data.masks[index].is_file() for index in indices)


def opened_if_needed(data: SizedDataset | Callable[[], SizedDataset]) -> SizedDataset:
    """The dataset itself, or the one that a function opens."""
    return data() if callable(data) else data
