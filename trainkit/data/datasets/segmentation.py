"""Base of segmentation datasets: images with segmentation masks."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from trainkit.data.bands import USUAL, PixelSettings, as_stored
from trainkit.data.datasets.label_tables import IGNORED, UNKNOWN, label_table, look_up
from trainkit.data.image_io import LabelError, MaskSizeError, read_color_mask, read_mask
from trainkit.data.palette import MaskColors, color_code, colour_map, unknown_colors
from trainkit.errors import UserError

LARGEST_VALUE = 65535  # of a grey mask
OURS = "trainkit."  # modules


class MaskDataset(Dataset):
    """Base of datasets of index -> (uint8 image (3, H, W), train ids, uint8 (H, W)).

    Train ids are IGNORED = 255 where nothing counts. A subclass defines by `read` what an image and
    its labels are. Labels become train ids here, once.

    Args:
        num_classes: how many classes there are.
        transform: of image and mask.
        to_train_ids: maps labels (H, W) to train ids, each label by itself; None: by `label_shift`.
        ignore: labels that are ignored, as are those that end below 0.
        label_shift: added to labels (-1: labels from 1, and 0 where nothing is labelled).
        mask_values: the label of each class in the files, in the order of their ids, such as (0,
            255); one that is 255 is then not ignored.
        mask_colors: the colour of each class, where masks are colour-coded.

    Raises:
        UserError: the arguments do not fit together.
        MaskSizeError: by an index, for labels of another size than their image.
        LabelError: by an index, for a label outside the classes.
    """

    pixels: PixelSettings = USUAL  # how images are read
    expects: str | None = None  # in the error about a strange label: which labels there are

    def __init__(
        self,
        num_classes: int,
        transform: Callable[..., Any] | None = None,
        to_train_ids: Callable[[Tensor], Tensor] | None = None,
        ignore: Sequence[int] = (IGNORED,),
        label_shift: int = 0,
        mask_values: Sequence[int] | None = None,
        mask_colors: MaskColors | None = None,
    ):
        if num_classes > IGNORED:
            raise UserError(
                f"{num_classes} classes; segmentation masks are uint8 and hold at most {IGNORED}"
            )
        # the first class would have a label below 0, in which no prediction can be written
        if label_shift > 0:
            raise UserError(
                f"label_shift is {label_shift}; give minus the first class's label, so 0 or less"
            )
        self.num_classes, self.transform, self.ignore = num_classes, transform, tuple(ignore)
        self.to_train_ids, self.label_shift, self.mask_colors = (
            to_train_ids,
            label_shift,
            mask_colors,
        )
        self.label_values: list[int] | None = None
        if mask_values is not None or mask_colors is not None:
            self._map_values(mask_values)

    def _map_values(self, mask_values: Sequence[int] | None) -> None:
        """Map labels by a table of those of the classes, grey values or colours as numbers."""
        for name, value in (("label_shift", self.label_shift), ("to_train_ids", self.to_train_ids)):
            if value:
                raise UserError(
                    f"{name} is {value} beside mask_values or mask_colors, which say all: leave"
                    " it out"
                )
        if mask_values is not None and self.mask_colors is not None:
            raise UserError(
                "mask_values and mask_colors are both given: masks hold numbers or colours"
            )
        if mask_values is not None:
            values, what = [int(value) for value in mask_values], "mask_values"
            doubled = sorted(set(values) & set(self.ignore) - {IGNORED})
            if doubled:
                raise UserError(
                    f"{', '.join(map(str, doubled))} is both in mask_values and ignored: it is one"
                    " of them"
                )
            strange = [label for label in self.ignore if not 0 <= label <= LARGEST_VALUE]
            if strange:
                raise UserError(
                    f"ignore holds {_listed(strange)} beside mask_values: masks hold 0 to"
                    f" {LARGEST_VALUE}, so leave it out, or give a label among these"
                )
            ignored = sorted(set(self.ignore) - set(values))
            if (
                len(set(values)) < len(values)
                or min(values, default=0) < 0
                or max(values, default=0) > LARGEST_VALUE
            ):
                raise UserError(
                    f"mask_values is {values}; give a number of its own to each class, 0 to"
                    f" {LARGEST_VALUE}"
                )
        else:
            if self.ignore != (IGNORED,):
                raise UserError(
                    f"ignore is {self.ignore} beside mask_colors: call ignored colours `ignore` in"
                    " its table"
                )
            assert self.mask_colors is not None  # one of the two is given
            values, what = color_code(self.mask_colors.colors).tolist(), "mask_colors"
            ignored = [int(color_code(color)) for color in self.mask_colors.ignored]
        if len(values) != self.num_classes or len(values) >= UNKNOWN:
            raise UserError(
                f"{what} names {len(values)} classes and there are {self.num_classes}: give one for"
                f" each, in the order of the classes, and fewer than {UNKNOWN}"
            )
        table = label_table(values, ignored, max(256, *values, *ignored) + 1)
        self.label_values, self.to_train_ids = values, partial(look_up, table=table)
        if self.expects is None and mask_values is not None:
            self.expects = (
                f"the classes are {_listed(values)} (--mask-values), and {_listed(ignored)} is"
                " ignored"
            )

    @property
    def palette(self) -> np.ndarray:
        """A colour for each train id: uint8 (K, 3)."""
        return (
            colour_map(self.num_classes) if self.mask_colors is None else self.mask_colors.palette
        )

    @property
    def raw_ids(self) -> np.ndarray:
        """The label in the files for each train id: integers (K,).

        A dataset with `to_train_ids` has its own. Of colour-coded masks it is the train ids
        themselves, as colours are no labels.
        """
        if self.label_values is not None and self.mask_colors is None:
            return np.array(self.label_values)
        return np.arange(self.num_classes) - self.label_shift

    def decode_labels(self, source: Path | bytes, name: str | None = None) -> Tensor:
        """The labels of a mask's file or bytes, integers (H, W): as stored, or `color_code`s."""
        return (
            read_mask(source, name) if self.mask_colors is None else read_color_mask(source, name)
        )

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Read the image, uint8 (3, H, W), and its labels as stored, integers (H, W).

        The transform may change both.
        """
        raise NotImplementedError

    def labels_mean(self) -> str | None:
        """What decides which train id a label becomes, the same text in each process.

        None where code from outside of trainkit does, which no text tells of.
        """
        codes: list[Any] = [type(self)]
        if self.to_train_ids is not None and self.label_values is None:
            codes.append(self.to_train_ids)
        for code in codes:
            if not (isinstance(code, (type, FunctionType)) and code.__module__.startswith(OURS)):
                return None
        how = self._table, self.label_values, self.label_shift, self.ignore, self.mask_colors
        return repr(([f"{code.__module__}.{code.__qualname__}" for code in codes], *how))

    def labels_of(self, index: int) -> Tensor:
        """The labels alone, as `read` gives them, which is faster where they are stored apart."""
        return self.read(index)[1]

    def name_of(self, index: int) -> Any:
        """The image's name, for messages."""
        raise NotImplementedError

    def mask_name(self, index: int) -> str:
        """The mask's name, for messages."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.item_of(*self.read(index), index)

    def item_of(self, image: Tensor, labels: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """An item of what `read` gave."""
        if image.shape[-2:] != labels.shape[-2:]:
            raise MaskSizeError(
                f"{self.mask_name(index)} is {_size(labels)} and its image {self.name_of(index)} is"
                f" {_size(image)}; a mask has the size of its image"
            )
        mask = tv_tensors.Mask(self.train_ids(labels.as_subclass(Tensor), index))
        if self.transform is not None:
            image, mask = self.transform(image, mask)
        return as_stored(image, self.pixels).as_subclass(Tensor), mask.as_subclass(Tensor)

    def train_ids(self, labels: Tensor, index: int) -> Tensor:
        """The train ids, uint8, of the labels of image `index`.

        Raises:
            LabelError: a label is no class; the message names the image.
        """
        if labels.dtype == torch.uint8:
            if self._shift is None:
                ids = _translated(labels, self._table)
            else:
                ids = labels + self._shift if self._shift else labels
            # IGNORED + 1 is 0
            if (ids.numpy() + np.uint8(1)).max(initial=0) <= min(self.num_classes, UNKNOWN):
                return ids
        ids, out_of_range = self._by_arithmetic(labels)
        if out_of_range.any() and self.mask_colors is not None:
            raise LabelError(
                f"{self.mask_name(index)} {unknown_colors(labels[out_of_range].numpy())}"
            )
        if out_of_range.any():
            label = int(labels[out_of_range][0])
            expects = self.expects or (
                f"the {self.num_classes} classes are {-self.label_shift} to"
                f" {self.num_classes - 1 - self.label_shift} (ignored:"
                f" {', '.join(map(str, self.ignore))}): ignore it (--ignore {label}), or raise the"
                " number of classes"
            )
            raise LabelError(
                f"{self.mask_name(index)} holds label {label} on {int((labels == label).sum())}"
                f" pixels; {expects}"
            )
        return ids

    @cached_property
    def _table(self) -> bytes:
        """Train ids of the labels 0 to 255; UNKNOWN for those that are none of the classes."""
        ids, out_of_range = self._by_arithmetic(torch.arange(256, dtype=torch.uint8))
        return ids.masked_fill(out_of_range, UNKNOWN).numpy().tobytes()

    @cached_property
    def _shift(self) -> int | None:
        """What makes train ids of labels when added to them as bytes; None where nothing does.

        It takes a third of the table's time.
        """
        shift = -self._table.find(0) % 256
        ids = (np.arange(256) + shift) % 256
        ids[(ids >= self.num_classes) & (ids < IGNORED)] = UNKNOWN
        return shift if ids.astype(np.uint8).tobytes() == self._table else None

    def _by_arithmetic(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Train ids, uint8, and where a label is none of the classes."""
        if self.to_train_ids is not None:
            ids = self.to_train_ids(labels)
            ignored = ids == IGNORED
        else:
            labels = labels.to(torch.int32)
            ids = labels + self.label_shift  # may be 255 for a label that nobody said to ignore
            ignored = torch.isin(labels, torch.tensor(self.ignore, dtype=torch.int32))
            if self.label_shift < 0:
                ignored |= ids < 0
        out_of_range = ~ignored & ((ids < 0) | (ids >= self.num_classes))
        return ids.masked_fill(ignored, IGNORED).to(torch.uint8), out_of_range


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values)) or "nothing"


def _translated(labels: Tensor, table: bytes) -> Tensor:
    """Look uint8 (H, W) up in a table of 256 bytes, by Python's own loop, which is the fastest."""
    ids = bytearray(labels.numpy()).translate(table)
    return torch.frombuffer(ids, dtype=torch.uint8).view(labels.shape)


def read_mask_values(text: str) -> list[int]:
    """Read the label of each class in the files, from numbers with commas, such as "0,255".

    Raises:
        UserError: the text is no such list.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(
            f"mask_values is {text!r}; give the number of each class in the masks, such as 0,255"
        )
    return [int(part) for part in parts]


def _size(image: Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]}"
