"""Warns of classes without a label: in training, between rows of the log, in evaluations."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainkit.data.class_counts import class_ids
from trainkit.data.dataset_info import DatasetInfo, SizedDataset
from trainkit.data.datasets.inventory import without_images
from trainkit.data.datasets.label_tables import IGNORED
from trainkit.data.datasets.segmentation import MaskDataset
from trainkit.data.reader import is_unusable
from trainkit.tasks.base import Task
from trainkit.tasks.multilabel import MultiLabel
from trainkit.tasks.multilabel_segmentation import MultiLabelSegmentation
from trainkit.tasks.recognition_protocols import AmongSome

# of an evaluation's results: names of classes, where there are such
WITHOUT = "classes_without_targets"
NUM_MASKS, SECONDS = 64, 1.0  # sampled before a training, spread over the set
SHOWN = 5  # classes named in a message


def names_of(task: Task) -> list[str]:
    """The names of a task's classes, or their ids; empty where it has none."""
    classes = task.known_classes
    if isinstance(classes, int):
        return [str(label) for label in range(classes)]
    return [str(name) for name in classes] if isinstance(classes, Sequence) else []


def classes_without_targets(counts: Tensor, task: Task) -> dict[str, list[str]]:
    """Results of an evaluation on classes that no target was of; empty where there is none.

    `counts` are valid targets of each class (C,).
    """
    names = names_of(task)
    if len(names) != len(counts):
        return {}
    measured: Sequence[int] = range(len(names))
    if isinstance(task, AmongSome):
        measured = task.allowed
    numbers = counts.tolist()
    without = [names[label] for label in measured if not numbers[label]]
    return {WITHOUT: without} if without else {}


def ranks(results: Mapping[str, Any], task: Task) -> bool:
    """Whether an evaluation can tell which weights are better: its targets are of two classes.

    Of any number of classes per image or pixel, one is enough: it has positives and negatives.
    """
    needed = 1 if isinstance(task, (MultiLabel, MultiLabelSegmentation)) else 2
    return WITHOUT not in results or len(names_of(task)) - len(results[WITHOUT]) >= needed


def evaluation_warnings(results: Mapping[str, Any], task: Task) -> list[str]:
    """Warn of an evaluation whose targets lack classes, in at most one line."""
    without, number = results.get(WITHOUT, []), len(names_of(task))
    if not without:
        return []
    if len(without) == number:
        return [
            "no validation image has a label: there is nothing to measure, and no checkpoint is"
            " called best"
        ]
    lacking = f"{_classes(without, number)} no label in the validation data"
    if not ranks(results, task):
        return [
            f"{lacking}: {task.headline} is of one class alone, and no checkpoint is called best by"
            " it"
        ]
    return [f"{lacking}: nothing measures {'it' if len(without) == 1 else 'them'}"]


def interval_warnings(num_intervals: int) -> list[str]:
    """Warn of the log intervals without any valid target, in at most one line."""
    if not num_intervals:
        return []
    return [
        f"{num_intervals} log intervals had no valid target: their steps learnt nothing. Look at"
        " the labels that are ignored (trainkit doctor)"
    ]


def training_warnings(data: SizedDataset, task: Task) -> list[str]:
    """Warn before a training of classes that no training target is of, in at most one line.

    Class ids are counted where the dataset has them at hand (an attribute `targets`). Of masks up
    to 64 are read, spread over the set, for at most about a second; those that cannot be read are
    left to the training. Masks of a dataset that is no `MaskDataset`, and streamed ones, are not
    sampled: an evaluation tells what they lack.
    """
    names = names_of(task)
    if not names:
        return []
    info = DatasetInfo.of(data)
    labelled = info.labelled
    indices = info.labelled_indices
    if isinstance(labelled, MaskDataset) and labelled.num_classes == len(names):
        if DatasetInfo.of(labelled).locality is not None or not len(indices):
            return []
        return _of_masks(labelled, indices, names)
    ids = class_ids(labelled)
    if ids is None or task.is_dense:
        return []
    whole = len(indices) == len(ids)
    ids = ids[torch.as_tensor(indices)]
    counts = torch.bincount(ids[(ids >= 0) & (ids < len(names))], minlength=len(names))
    without = [name for name, count in zip(names, counts.tolist()) if not count]
    if not without:
        return []
    # the same in the words of the run's introduction
    said = without_images(labelled) if whole else []
    return said or [f"{_classes(without, len(names))} no training image"]


def _of_masks(data: MaskDataset, indices: Sequence[int], names: Sequence[str]) -> list[str]:
    places = [len(indices) * place // NUM_MASKS for place in range(NUM_MASKS)]
    chosen = sorted({indices[place] for place in places})
    counts = np.zeros(256, dtype=np.int64)
    ignored: Counter[int] = Counter()
    until, num_read = time.monotonic() + SECONDS, 0
    for index in chosen:
        try:
            labels = data.labels_of(index).as_subclass(Tensor)
            ids = data.train_ids(labels, index).numpy()
        except Exception as error:  # the training says what is wrong with it
            if not is_unusable(error):
                raise
            continue
        num_read += 1
        counts += np.bincount(ids.ravel(), minlength=256)
        stored, pixels = np.unique(labels.numpy()[ids == IGNORED], return_counts=True)
        ignored.update(dict(zip(stored.tolist(), pixels.tolist())))
        if time.monotonic() > until:
            break
    without = [name for name, count in zip(names, counts) if not count]
    if not without or not num_read:
        return []
    whole = num_read == len(indices)
    masks = (
        "training mask"
        if whole
        else f"of {num_read} sampled training masks ({len(indices)} there are)"
    )
    warning = f"{_classes(without, len(names))} {'no' if whole else 'none'} {masks}"
    if ignored and data.mask_colors is None:
        label, most = ignored.most_common(1)[0]
        warning += (
            f", and label {label}, which is ignored, stands on {100 * most / counts.sum():.1f} %"
            " of the pixels. Where it is a class, say which label each class has (seg_folder:"
            " --mask-values), or what is ignored (--ignore)"
        )
    elif not whole:
        warning += "; trainkit doctor reads all"
    return [warning]


def _classes(without: Sequence[str], number: int) -> str:
    """The beginning of a sentence about them, up to its verb."""
    if len(without) == 1:
        return f"class {without[0]} has"
    more = f" and {len(without) - SHOWN} more" if len(without) > SHOWN else ""
    return f"{len(without)} of {number} classes ({', '.join(without[:SHOWN])}{more}) have"
