"""Holds out a part of a dataset for validation.

Which one follows from the split's seed and the images' names alone: it is the same on every
machine, and in whatever order a folder is listed.
"""

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainkit.data.file_names import composed
from trainkit.errors import UserError
from trainkit.settings import SharedSettings

FOLDER = "folder"


@dataclass(frozen=True)
class SplitSettings(SharedSettings):
    """Which images are held out for validation, where the data has no split of its own.

    Attributes:
        val_share: share of each class that is held out for validation, such as 0.2, of data
            without a split of its own; None: it has train and val
        split_seed: decides which images are held out
        group_by: "folder", or a column of a list or of parquet files such as patient: images of
            one group are never on both sides; None: each image by itself
        fold: cross-validation: hold out this of so many parts, such as 2/5; None: none
    """

    val_share: float | None = None
    split_seed: int = 0
    group_by: str | None = None
    fold: str | None = None

    def __post_init__(self) -> None:
        share = self.val_share
        if share is not None and not 0 < share <= 1:
            raise UserError(
                f"val_share is {share}; it must be above 0 and at most 1, such as 0.2 (--val-share)"
            )
        if self.fold is not None:
            _parsed(self.fold)
        if self.fold is not None and share is not None:
            raise UserError(
                f"fold is {self.fold} and val_share {share}: a fold holds out its part by itself,"
                " so drop --val-share"
            )
        if self.group_by is not None and not self.is_asked:
            raise UserError(
                f"group_by is {self.group_by}, and nothing is held out: give --val-share or --fold"
                " beside it"
            )

    @property
    def is_asked(self) -> bool:
        """Whether a part is to be held out."""
        return self.val_share is not None or self.fold is not None

    @property
    def given(self) -> dict[str, Any]:
        """The settings by name that say how data is divided; None where they are not given."""
        return {name: getattr(self, name) for name in ("val_share", "fold", "group_by")}

    @property
    def words(self) -> str:
        """Such as "--val-share 0.2 --split-seed 0"."""
        what = f"--fold {self.fold}" if self.fold else f"--val-share {self.val_share:g}"
        group = f" --group-by {self.group_by}" if self.group_by else ""
        return f"{what}{group} --split-seed {self.split_seed}"


NO_SPLIT = SplitSettings()


def held_out(
    names: Sequence[str],
    classes: Sequence[str],
    settings: SplitSettings,
    groups: Sequence[str] | None = None,
) -> np.ndarray:
    """Which images are held out: bool (N,).

    A group is of the class that most of its images have, the first in the alphabet of several. The
    groups of a class are ranked by a hash of the split's seed and their name. Of n groups of a
    class the first `val_share` x n, rounded, are held out. With folds, all groups are dealt out in
    turn, class by class in the order of their ranks. Names and classes count in their `portable`
    and `composed` forms; of absolute paths counts what lies below their common folder.

    Args:
        names: the images, relative to the dataset's folder, or absolute.
        classes: the name of each image's class; one and the same where they have none.
        settings: what is asked for.
        groups: the group of each image; None: each is one by itself.

    Raises:
        UserError: nothing is held out, or everything, or there are fewer groups than folds.
    """
    if groups is None:
        keys = without_mount(names, {os.path.dirname(name) for name in names})
    elif settings.group_by == FOLDER:
        keys = without_mount(groups, set(groups))
    else:
        keys = [portable(group) for group in groups]
    class_of = _class_of_groups(keys, [composed(name) for name in classes])
    ranked = defaultdict(list)
    for key in sorted(class_of, key=lambda key: (_hash(settings.split_seed, key), key)):
        ranked[class_of[key]].append(key)
    if settings.fold is not None:
        number, of = _parsed(settings.fold)
        in_turn = [key for name in sorted(ranked) for key in ranked[name]]
        if len(in_turn) < of:
            raise UserError(
                f"fold is {settings.fold}, and there are {len(in_turn)} {_things(settings)}: give"
                " fewer folds"
            )
        chosen = set(in_turn[number - 1 :: of])
    else:
        assert settings.val_share is not None  # without a fold
        shares = [keys[: int(settings.val_share * len(keys) + 0.5)] for keys in ranked.values()]
        chosen = {key for keys in shares for key in keys}
    is_held_out = np.array([key in chosen for key in keys], dtype=bool)
    _require_both_sides(is_held_out, len(class_of), len(ranked), settings)
    return is_held_out


def portable(name: str) -> str:
    """A relative path as it is written on every machine: with "/", composed (NFC)."""
    return composed(name.replace("\\", "/"))


def without_mount(paths: Sequence[str], folders: set[str]) -> list[str]:
    """Paths in `portable` form, of which absolute ones begin at the common folder of `folders`.

    They begin with "/" still, so that none is taken for a relative path.
    """
    absolute = [folder for folder in folders if os.path.isabs(folder)]
    if not absolute:
        return [portable(path) for path in paths]
    common = os.path.commonpath(absolute)
    return [
        "/" + portable(os.path.relpath(path, common)) if os.path.isabs(path) else portable(path)
        for path in paths
    ]


def _class_of_groups(keys: Sequence[str], classes: Sequence[str]) -> dict[str, str]:
    counts: dict[str, Counter[str]] = {}
    for key, name in zip(keys, classes):
        counts.setdefault(key, Counter())[name] += 1
    return {key: min(found, key=lambda name: (-found[name], name)) for key, found in counts.items()}


def _hash(seed: int, key: str) -> bytes:
    content = f"{seed}:{key}".encode(errors="surrogateescape")
    return hashlib.blake2b(content, digest_size=8).digest()


def _parsed(fold: str) -> tuple[int, int]:
    """Number and how many, of "2/5"."""
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", fold)
    number, of = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= of or of < 2:
        raise UserError(
            f"fold is {fold!r}; give a number and how many there are, such as 2/5 (--fold)"
        )
    return number, of


def _things(settings: SplitSettings) -> str:
    return "images" if settings.group_by is None else f"groups by {settings.group_by}"


def _require_both_sides(
    is_held_out: np.ndarray, num_groups: int, num_classes: int, settings: SplitSettings
) -> None:
    if not is_held_out.any():
        raise UserError(
            f"{settings.words} holds out none of {num_groups} {_things(settings)} in {num_classes}"
            f" class{'' if num_classes == 1 else 'es'}: raise --val-share, or give --fold"
        )
    if is_held_out.all() and settings.val_share != 1:
        raise UserError(
            f"{settings.words} holds out all of {num_groups} {_things(settings)}, and leaves none"
            " to train on: give a lower --val-share, or another --group-by"
        )
