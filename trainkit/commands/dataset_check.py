"""Reads and measures one image and its target as stored, and finds what is wrong with them."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional

from trainkit.data.dataset_info import DatasetInfo, SizedDataset, put_in, without_transform
from trainkit.data.image_io import LabelError, MaskSizeError
from trainkit.data.pillow_decoder import taking_notes
from trainkit.data.reader import is_unusable, name_of
from trainkit.data.sampler import EVALUATION
from trainkit.data.seeding import Seeded
from trainkit.data.targets import as_target
from trainkit.losses.class_weights import balanced
from trainkit.tasks.base import Task

UNEVEN = 3  # times as many of one class as of another: weights are suggested
LISTED_WEIGHTS = 30
STRIDE = 8  # pixels; sizes that are proposed are multiples of it


@dataclass(frozen=True)
class ImageReport:
    """Result of checking one image: plain numbers, which cost little to send.

    Attributes:
        digest: 8 bytes of a hash of its file, or of its pixels where it has none.
        size: (width, height).
        counts: pixels of each label, or 0 of the image's one class, or of each of several.
        ignored: pixels that are never counted.
        notes: what decoders warned of.
        highest: the highest value of an image of 16 bits.
        fault: kind and words.
    """

    index: int
    digest: int | None = None
    size: tuple[int, int] | None = None
    counts: dict[int, int] | None = None
    ignored: int = 0
    notes: tuple[str, ...] = ()
    highest: int | None = None
    fault: tuple[str, str] | None = None


class Examiner(Dataset):
    """Dataset of index -> ImageReport.

    Args:
        data: the dataset.
        check: what the task says of a target.
        ignore: the label that is never counted.
        kept_transform: why images are not as they are stored, None where they are.
    """

    def __init__(self, data: SizedDataset, task: Task):
        self.data, self.kept_transform = untransformed(data)
        self.as_stored = self.kept_transform is None
        self.check, self.ignore = task.own_check, task.ignored_label

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> ImageReport:
        file, digest = name_of(self.data, index), None
        try:
            if os.path.isfile(file):
                digest = _digest(Path(file).read_bytes())
            with taking_notes() as notes:
                image, target = Seeded(self.data, 0)[EVALUATION, index]
        except Exception as error:
            if not is_unusable(error):
                raise
            kind = _kind(error)
            size = None if kind == "unreadable" else _size(file)
            return ImageReport(
                index, digest, size, fault=(kind, str(error) or type(error).__name__)
            )
        target = torch.as_tensor(as_target(_array(target)))
        height, width = (
            image.shape[:2] if isinstance(image, np.ndarray) else functional.get_size(image)
        )
        if digest is None:
            digest = _digest(_array(image).tobytes())
        found: dict[str, Any] = {"index": index, "digest": digest, "size": (width, height)}
        found |= {"notes": tuple(notes.lines), "highest": max(notes.highest, default=None)}
        if self.as_stored and target.ndim == 2 and tuple(target.shape) != (height, width):
            words = (
                f"its mask is {target.shape[1]}x{target.shape[0]} and the image is {width}x{height}"
            )
            return ImageReport(**found, fault=("mask_size", words))
        wrong = self.check(target) if self.check is not None else None
        if wrong:
            return ImageReport(**found, fault=("label", wrong))
        return ImageReport(**found, **_counted(target, self.ignore))


def untransformed(data: SizedDataset) -> tuple[SizedDataset, str | None]:
    """A dataset without its attribute `transform`, where it can do without.

    Of repeated images there is one each, and of those held on a device the ones that were read.

    Returns:
        The dataset, and None; where it cannot do without, the dataset as it is and the reason.
    """
    info = DatasetInfo.of(data)
    layer = info.transformed
    if layer is None:
        return put_in(info.data, info.innermost, info.innermost), "it has no attribute `transform`"
    bare = without_transform(layer)
    try:
        bare[0]
    except TypeError:  # it calls its transform without asking whether there is one
        name = type(layer).__name__
        return put_in(info.data, layer, layer), f"{name} cannot be read with transform = None"
    except Exception as error:
        if not is_unusable(error):
            raise  # anything else is found again, and reported, when all are read
    return put_in(info.data, layer, bare), None


def _size(file: str) -> tuple[int, int] | None:
    """(width, height) by a file's header; None where it is no image file."""
    try:
        with Image.open(file) as image:
            return image.size
    except OSError:
        return None


def _kind(error: Exception) -> str:
    if isinstance(error, MaskSizeError):
        return "mask_size"
    return "label" if isinstance(error, LabelError) else "unreadable"


def _array(value: Any) -> np.ndarray:
    """A tensor, a Pillow image or a number as an array of its own."""
    return value.numpy() if isinstance(value, Tensor) else np.array(value)


def _digest(content: bytes) -> int:
    """64 bits: two of a million unlike images share one with a chance of 3 in 100 million."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _counted(target: Tensor, ignore: int | None) -> dict[str, Any]:
    """`counts` and `ignored` of an ImageReport; nothing for targets that are no class ids."""
    if target.is_floating_point() or target.ndim not in (0, 1, 2, 3):
        return {}
    if target.ndim == 3:  # a mask for each class
        sizes = (target > 0).sum((1, 2)).tolist()
        counts = {label: size for label, size in enumerate(sizes) if size}
        return {"counts": counts, "ignored": int((target < 0).all(0).sum())}
    if target.ndim == 1:  # multi-hot; of no class is a valid negative, and no image without label
        present = (target > 0).nonzero()[:, 0].tolist()
        return {"counts": dict.fromkeys(present, 0)} if present or (target < 0).all() else {}
    if target.ndim == 0:
        return {"counts": {int(target): 0} if target >= 0 and target != ignore else {}}
    valid = target >= 0 if ignore is None else (target >= 0) & (target != ignore)
    pixels = np.bincount(target[valid].numpy())
    counts = {int(label): int(pixels[label]) for label in pixels.nonzero()[0]}
    return {"counts": counts, "ignored": target.numel() - sum(counts.values())}


def suggested_weights(
    classes: Sequence[dict[str, Any]], takes_weights: bool
) -> tuple[list[float] | None, str]:
    """Weights that balance the classes of the training images, and a line that suggests them."""
    dense = any(row["pixels"] for row in classes)
    counts = [row["pixels" if dense else "images"] for row in classes]
    there = [count for count in counts if count]
    if len(there) < 2 or max(there) < UNEVEN * min(there):
        return None, ""
    weights = [round(weight, 3) for weight in balanced(counts, power=0.5 if dense else 1.0)]
    things = "pixels" if dense else "images"
    hint = (
        f"the largest class has {max(there) / min(there):,.0f} times the {things} of the smallest"
    )
    if takes_weights and len(weights) <= LISTED_WEIGHTS:
        words = " ".join(f"{each:g}" for each in weights)
        hint += f"; to balance them: --class-weights auto, which is {words}"
    return weights, hint


def median_and_extreme_sizes(sizes: np.ndarray) -> dict[str, list[int]]:
    """The smallest, median and largest (width, height) by number of pixels.

    `sizes`: (N, 2), 0 where unread.
    """
    known = sizes[sizes[:, 0] > 0]
    if not len(known):
        return {}
    known = known[np.argsort(known.prod(1), kind="stable")]
    return {
        name: known[place].tolist()
        for name, place in (("smallest", 0), ("median", len(known) // 2), ("largest", -1))
    }


def smaller_size(sizes: Mapping[str, Sequence[int]], settings: Mapping[str, Any]) -> str:
    """Flags that set the recipe's size to that of its images; empty where these are as large.

    Args:
        sizes: see `median_and_extreme_sizes`, of the training images.
        settings: of the recipe; "size", or "long_side" and "crop", decide.
    """
    if "median" not in sizes:
        return ""
    width, height = sizes["median"]
    if {"long_side", "crop"} <= settings.keys():
        long_side = max(width, height)
        if long_side >= settings["long_side"]:
            return ""
        crop = _multiple(settings["crop"] * long_side / settings["long_side"])
        return f"--long-side {long_side} --crop {crop}"
    if isinstance(settings.get("size"), int) and min(width, height) < settings["size"]:
        return f"--size {_multiple(min(width, height))}"
    return ""


def suggested_size(sizes: Mapping[str, Sequence[int]], settings: Mapping[str, Any]) -> str:
    """A line that proposes `smaller_size`; empty where that is."""
    proposed = smaller_size(sizes, settings)
    if not proposed:
        return ""
    width, height = sizes["median"]
    now = f"size is {settings.get('size')}"
    if "--crop" in proposed:
        now = f"long_side is {settings['long_side']} and crop {settings['crop']}"
    return (
        f"the median image has {width}x{height} pixels, and {now}: they would be enlarged;"
        f" {proposed} costs less time and memory"
    )


def _multiple(length: float) -> int:
    """The largest multiple of STRIDE up to a length, as networks halve images several times."""
    return max(1, int(length) // STRIDE) * STRIDE


def equal_digests(digests: np.ndarray) -> list[list[int]]:
    """Indices that share a digest, in groups."""
    order = np.argsort(digests, kind="stable")
    groups = np.split(order, np.diff(digests[order]).nonzero()[0] + 1)
    return [group.tolist() for group in groups if len(group) > 1 and digests[group[0]]]
