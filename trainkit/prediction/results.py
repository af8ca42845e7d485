"""What a model says of an image, as classes with probabilities or shares of the image."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trainkit.tasks.multilabel import called_classes

VALUES_AT_ONCE = 1 << 25  # logits held at an image's own size: 128 MiB


def mask_type(num_classes: int) -> torch.dtype:
    """The type of a mask's class ids: uint8, or int32 for more classes than it holds."""
    return torch.uint8 if num_classes <= 256 else torch.int32


def predicted_mask(
    logits: Tensor, size: tuple[int, int], values_at_once: int = VALUES_AT_ONCE
) -> Tensor:
    """The class of each pixel at `size`, (H, W), from logits (C, h, w) resized bilinearly.

    Of the `mask_type` of C classes. As `resize(logits).argmax(0)`, a few classes at a time, at
    least one: 150 classes of a photo of 12 million pixels are 7 GB.
    """
    at_once = max(1, values_at_once // (size[0] * size[1]))
    best: Tensor | None = None
    for first in range(0, len(logits), at_once):
        part = logits[None, first : first + at_once]
        if part.shape[-2:] != size:
            part = F.interpolate(part, size, mode="bilinear", align_corners=False)
        values, classes = part[0].max(0)
        classes = (classes + first).to(mask_type(len(logits)))
        if best is None:
            best, chosen = values, classes
        else:
            better = values > best
            best, chosen = torch.where(better, values, best), torch.where(better, classes, chosen)
    return chosen


def predicted_masks(
    probabilities: Tensor, size: tuple[int, int], thresholds: Sequence[float]
) -> Tensor:
    """Masks of overlapping classes at `size`, uint8 (C, H, W), from probabilities (C, h, w).

    These are resized bilinearly, class by class. thresholds: of each class.
    """
    masks = torch.empty((len(probabilities), *size), dtype=torch.uint8, device=probabilities.device)
    for each, threshold, mask in zip(probabilities, thresholds, masks):
        part = each[None, None]
        if part.shape[-2:] != size:
            part = F.interpolate(part, size, mode="bilinear", align_corners=False)
        mask.copy_(part[0, 0] > threshold)
    return masks


def records_of_masks(
    probabilities: Iterable[Tensor],
    sizes: Iterable[tuple[int, int]],
    thresholds: Sequence[float],
    names: Sequence[str],
    top_k: int,
) -> list[dict[str, Any]]:
    """Of each image "masks", see `predicted_masks`, and "classes", the `top_k` largest."""
    found = [predicted_masks(each, size, thresholds) for each, size in zip(probabilities, sizes)]
    return [{"masks": masks, "classes": shares_of_masks(masks, names)[:top_k]} for masks in found]


def shares_of_masks(masks: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """The classes of masks (C, H, W) that have a pixel, the largest first, as `largest_classes`.

    Shares may sum to more than 1.
    """
    counts = masks.flatten(1).sum(1, dtype=torch.int64)
    return [
        {"class": index, "name": names[index], "share": int(counts[index]) / masks[0].numel()}
        for index in counts.argsort(descending=True, stable=True).tolist()
        if counts[index]
    ]


def predicted_values(
    values: Tensor, size: tuple[int, int], limits: tuple[float, float] | None
) -> dict[str, Any]:
    """The values (1, h, w) of an image at `size`, within `limits`, and what they are on the whole.

    Returns:
        "values", float32 (H, W), "least", "mean" and "largest".
    """
    found = values[None]
    if found.shape[-2:] != size:
        found = F.interpolate(found, size, mode="bilinear", align_corners=False)
    found = found[0, 0] if limits is None else found[0, 0].clamp(*limits)
    numbers = {"least": found.min(), "mean": found.double().mean(), "largest": found.max()}
    return {"values": found, **{name: float(number) for name, number in numbers.items()}}


def top_classes(
    probabilities: Tensor, names: Sequence[str], top_k: int
) -> list[list[dict[str, Any]]]:
    """For each row (N, C) its most probable classes: "class", "name", "probability"."""
    values, ids = (each.tolist() for each in probabilities.topk(min(top_k, len(names))))
    return [
        [
            {"class": index, "name": names[index], "probability": value}
            for index, value in zip(row_ids, row)
        ]
        for row_ids, row in zip(ids, values)
    ]


def called(
    probabilities: Tensor, names: Sequence[str], thresholds: Sequence[float | None] | None
) -> list[list[dict[str, Any]]]:
    """For each row (N, C) the classes above their thresholds, the most probable first.

    thresholds: see `trainkit.tasks.multilabel.called_classes`. Returns "class", "name" and
    "probability" of each.
    """
    rows = []
    above = called_classes(probabilities, thresholds)
    for values, chosen in zip(probabilities.tolist(), above.tolist()):
        ids = [index for index, is_called in enumerate(chosen) if is_called]
        ids.sort(key=lambda index: -values[index])
        rows.append(
            [{"class": index, "name": names[index], "probability": values[index]} for index in ids]
        )
    return rows


def largest_classes(mask: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """The classes of a mask (H, W), the largest first.

    Returns:
        "class", "name" and "share" of the mask's pixels of each.
    """
    counts = torch.bincount(mask.flatten(), minlength=len(names))
    order = counts.argsort(descending=True, stable=True)
    shares = (counts.double() / mask.numel()).tolist()
    return [
        {"class": index, "name": names[index], "share": shares[index]}
        for index in order.tolist()
        if counts[index]
    ]


def in_words(found: Sequence[Mapping[str, Any]], shown: int) -> str:
    """The first few classes in a line, such as "cat 98.2 %, dog 1.1 %"."""
    return ", ".join(
        f"{each['name']} {100 * each.get('probability', each.get('share')):.1f} %"
        for each in found[:shown]
    )
