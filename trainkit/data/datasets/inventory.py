"""Summary of the files that a dataset uses and leaves out, logged before a run starts."""

import json
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Subset

from trainkit.data.dataset_info import DatasetInfo, layers
from trainkit.data.file_names import is_photograph

SHOWN = 5  # extensions, names
# Why something was left out; the words follow its count, one and several.
REASONS = {
    "file": ("file", "files"),
    "loose": ("image outside of the class folders", "images outside of the class folders"),
    "leftover": ("leftover", "leftovers"),  # what unzipping and file managers leave behind
    "hidden": ("hidden file or folder", "hidden files or folders"),
    "link": ("link to a folder that it lies in", "links to folders that they lie in"),
    "special": ("thing that is no file", "things that are no files"),
    "unpaired": ("mask without an image", "masks without an image"),
    "table": ("parquet file", "parquet files"),
}


class Inventory:
    """Counts of images taken, by extension, and left out, by (reason, name or extension)."""

    def __init__(self) -> None:
        self.taken: Counter[str] = Counter()
        self.left_out: Counter[tuple[str, str]] = Counter()

    def to_array(self) -> np.ndarray:
        """All counts as uint8 (N,), for a file."""
        content = [self.taken, [(*key, count) for key, count in self.left_out.items()]]
        return np.frombuffer(json.dumps(content).encode(), dtype=np.uint8)

    @classmethod
    def of_array(cls, array: np.ndarray) -> "Inventory":
        """Read an array of `to_array`."""
        taken, left_out = json.loads(array.tobytes())
        same = cls()
        same.taken.update(taken)
        same.left_out.update({(reason, what): count for reason, what, count in left_out})
        return same

    @property
    def formats(self) -> str:
        """The formats taken, such as "18 png, 8 jfif"."""
        return _counts(Counter({suffix.lstrip("."): count for suffix, count in self.taken.items()}))

    @property
    def left_out_words(self) -> str:
        """What was left out, such as "; left out: 3 files (.txt)"; empty for nothing."""
        parts = []
        for reason, (one, several) in REASONS.items():
            found = Counter(
                {what: count for (why, what), count in self.left_out.items() if why == reason}
            )
            total = found.total()
            if total:
                names = {what or "without extension": count for what, count in found.items()}
                known = reason in ("file", "leftover", "table")
                detail = (
                    f" ({next(iter(names)) if len(names) == 1 else _counts(Counter(names))})"
                    if known
                    else ""
                )
                parts.append(f"{total:,} {one if total == 1 else several}{detail}")
        return f"; left out: {', '.join(parts)}" if parts else ""

    @property
    def warnings(self) -> list[str]:
        """Lines on what was left out and looks like a user's image."""
        lines = []
        unread = {
            what: n
            for (why, what), n in self.left_out.items()
            if why == "file" and is_photograph(what)
        }
        if unread:
            number = sum(unread.values())
            were = "image was" if number == 1 else "images were"
            lines.append(
                f"{number:,} {were} left out ({_counts(Counter(unread))}): no decoder for them is"
                " installed here; convert them, such as to PNG"
            )
        return lines


def used(data: Any) -> str:
    """What a dataset holds and what was left out of it, in words.

    A dataset has an attribute `used` for it; of others it is the number of images and classes.
    """
    info = DatasetInfo.of(data)
    for layer in layers(info.data):
        if isinstance(layer, Subset):
            return f"{len(layer):,} of {used(layer.dataset)}"
    if info.used is not None:
        return info.used
    return images_of(len(info.innermost), info.num_classes)


def used_warnings(data: Any) -> list[str]:
    """Warnings before a training on a dataset begins, a line each."""
    return DatasetInfo.of(data).used_warnings


def without_images(data: Any) -> list[str]:
    """The line on classes without an image among `used_warnings`, see `no_image`; or none.

    A dataset has a method `without_images` for it.
    """
    return DatasetInfo.of(data).without_images


def images_of(number: int, classes: int | None) -> str:
    """A phrase such as "26 images of 2 classes"."""
    words = f"{number:,} image{'' if number == 1 else 's'}"
    return (
        words if classes is None else f"{words} of {classes:,} class{'' if classes == 1 else 'es'}"
    )


def no_image(classes: Sequence[str], found: Container[int | None], where: Any) -> list[str]:
    """A line that names those of `classes` whose ids are not among `found`; or none."""
    none = [name for target, name in enumerate(classes) if target not in found]
    if not none:
        return []
    has = "has" if len(none) == 1 else "have"
    return [f"{len(none):,} of {len(classes):,} classes {has} no image in {where}: {some(none)}"]


def some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _counts(found: Counter[str]) -> str:
    """A phrase such as "18 png, 8 jfif", the most frequent first."""
    pairs = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))
    return some(f"{count:,} {what}" for what, count in pairs)
