"""Datasets of images with labels or masks, of the Hub and of parquet files."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel
from torch import Tensor

from trainkit.data.bands import USUAL, read_image_like
from trainkit.data.datasets.columns import choose_image, choose_image_and_mask, choose_label
from trainkit.data.datasets.hub_tables import as_stored, load_rows, values_of
from trainkit.data.datasets.inventory import no_image
from trainkit.data.datasets.label_tables import IGNORED
from trainkit.data.datasets.parquet import ParquetTable
from trainkit.data.datasets.segmentation import MaskDataset
from trainkit.data.datasets.table_rows import TAKE_OUT, Rows
from trainkit.data.first_crop import read_transformed
from trainkit.errors import UserError


class HubImages(Rows):
    """One split of a dataset with an image and a label column: index -> (image, class id).

    Images are uint8 (3, H, W), decoded here, not by `datasets`; they may be structs of bytes and
    path, or bytes, without the Hub's types.

    Args:
        source: a dataset's name on the Hub ("uoft-cs/cifar10"), or a local folder of parquet files
            (see `parquet_files`).
        split: its name.
        transform: of the image.
        image_column: found by type and name where None.
        label_column: found by type and name where None.
        stream: read parquet files where they are, with so many interleaved row groups, instead of
            downloading and converting them first; an epoch's order is then a `Locality`'s.
        classes: names in the order of class ids, which a validation split gets from the training
            split so that ids agree; None: the split's own, and of a column of strings its different
            ones, sorted. A column of plain numbers holds these ids already.
        group_by: "folder", or the column of groups, where rows are to be divided (see `whole`).

    Raises:
        MissingFileError: there are no such files.
        UserError: a column is unclear, or the split has names that are none of `classes`.
    """

    def __init__(
        self,
        source: str | Path,
        split: str,
        transform: Callable[[Any], Any] | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        stream: int | None = None,
        classes: Sequence[str] | None = None,
        group_by: str | None = None,
    ):
        self.source, self.split = f"{source} ({split})", split
        self.table, features, self.files = load_rows(source, split, stream)
        self.read_groups(self.table, source, group_by)
        self.image_column = choose_image(source, features, image_column)
        self.label_column = choose_label(source, features, label_column)
        self.table = as_stored(self.table, [self.image_column, self.label_column], features)
        label = features[self.label_column]
        if isinstance(label, ClassLabel):
            self.classes = list(label.names if classes is None else classes)
            self.ids: Mapping[Any, int] = dict(enumerate(self._ids_of(label.names)))
        else:
            labels = [each for each in self.table.unique(self.label_column) if each is not None]
            self._read_classes(labels, classes)
        self.transform = transform
        self.used = self.used_of(source, len(self.classes))

    @property
    def targets(self) -> Tensor | None:
        """The class id of each image, -1 where it has none; None of streamed files."""
        ids = self._all_targets
        return ids if ids is None or self.chosen is None else ids[self.chosen]

    @cached_property
    def _all_targets(self) -> Tensor | None:
        if isinstance(self.table, ParquetTable):
            return None
        labels = values_of(self.table, self.label_column)
        return torch.tensor([self.ids.get(label, -1) for label in labels], dtype=torch.int64)

    def target_names(self) -> list[str]:
        """See `Rows`; nothing where a row has no label."""
        label = self.table.features[self.label_column]
        names: dict[Any, str] = (
            dict(enumerate(label.names)) if isinstance(label, ClassLabel) else {}
        )
        labels = ["" if each is None else each for each in values_of(self.table, self.label_column)]
        return [str(names.get(each, each)) for each in labels]

    def _read_classes(self, labels: list[Any], classes: Sequence[str] | None) -> None:
        """`classes` and `ids` from the different labels of a column without class names."""
        if labels and all(isinstance(label, str) for label in labels):
            self.classes = sorted(labels) if classes is None else list(classes)
            self.ids = dict(zip(labels, self._ids_of(labels)))
        elif (
            labels
            and all(isinstance(label, int) for label in labels)
            and (classes is not None or min(labels) >= 0)
        ):
            self.classes = (
                [str(label) for label in range(max(labels) + 1)]
                if classes is None
                else list(classes)
            )
            self.ids = {label: label for label in range(len(self.classes))}
        else:
            raise UserError(
                f"column {self.label_column!r} of {self.source} holds {labels[:3] or 'nothing'};"
                " class ids must be integers from 0, or names: make strings or integers of them,"
                " as by .astype(str)"
            )

    def without_images(self) -> list[str]:
        """See `Rows`; of streamed files it is known where their column of labels had to be read."""
        if isinstance(self.table, ParquetTable):
            found: set[int | None] = set(self.ids.values())
        elif self.targets is not None and self.chosen is not None:
            found = set(self.targets.tolist())
        else:
            found = {self.ids.get(label) for label in self.table.unique(self.label_column)}
        side = "" if self.chosen is None else f"{self.split} of "
        return no_image(self.classes, found, f"{side}{self.source}")

    def _ids_of(self, names: Sequence[str]) -> list[int]:
        """The place among `classes` of each of the split's names."""
        more = sorted(set(names) - set(self.classes))
        if more:
            raise UserError(
                f"{self.source} has classes {more[:5]} that the training data has not, or the list"
                " of classes that was given; give both the same names"
            )
        places = {name: place for place, name in enumerate(self.classes)}
        return [places[name] for name in names]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row = self.row(index)
        content, name = self.encoded(row, index, self.image_column)
        label = row[self.label_column]
        if label is None:
            raise UserError(
                f"{self.name_of(index)} is null in the column {self.label_column!r}; {TAKE_OUT}"
            )
        image = read_transformed(content, USUAL, self.transform, name)
        # others are the task's to tell
        return image.as_subclass(Tensor), torch.tensor(self.ids.get(label, label))


class HubMasks(Rows, MaskDataset):
    """One split with a column of images and one of masks: index -> (image, train ids).

    Images are uint8 (3, H, W), train ids uint8 (H, W).

    Args:
        source: as for `HubImages`.
        split: its name.
        classes: how many, or their names.
        transform: of image and mask.
        image_column: where None, the one called image, img, picture or pixel_values.
        mask_column: where None, the other one.
        ignore: labels of the masks that are never counted.
        label_shift: added to the other labels to get train ids: -1 where they begin with 1, and 0
            is ignored.
        stream: as for `HubImages`.
        group_by: as for `HubImages`.
        **settings: mask_values and mask_colors, see `MaskDataset`.

    Raises:
        MissingFileError: there are no such files.
        UserError: a column is unclear.
    """

    def __init__(
        self,
        source: str | Path,
        split: str,
        classes: int | Sequence[str],
        transform: Callable[..., Any] | None = None,
        image_column: str | None = None,
        mask_column: str | None = None,
        ignore: Sequence[int] = (IGNORED,),
        label_shift: int = 0,
        stream: int | None = None,
        group_by: str | None = None,
        **settings: Any,
    ):
        self.classes = (
            [str(label) for label in range(classes)] if isinstance(classes, int) else list(classes)
        )
        super().__init__(
            len(self.classes), transform, ignore=ignore, label_shift=label_shift, **settings
        )
        self.source, self.split = f"{source} ({split})", split
        table, features, self.files = load_rows(source, split, stream)
        self.read_groups(table, source, group_by)
        self.image_column, self.mask_column = choose_image_and_mask(
            source, features, image_column, mask_column
        )
        self.table = as_stored(table, [self.image_column, self.mask_column], features)
        self.used = self.used_of(source, self.num_classes)

    def mask_name(self, index: int) -> str:
        """The mask's column and row."""
        return f"{self.mask_column} of {self.row_name(index, self.row(index)[self.mask_column])}"

    def labels_of(self, index: int) -> Tensor:
        """See `MaskDataset`."""
        return self._labels(self.row(index), index)

    def _labels(self, row: dict[str, Any], index: int) -> Tensor:
        mask, name = self.encoded(row, index, self.mask_column)
        return self.decode_labels(mask, f"{self.mask_column} of {name}")

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """See `MaskDataset`."""
        row = self.row(index)
        image, name = self.encoded(row, index, self.image_column)
        labels = self._labels(row, index)
        return read_image_like(image, tuple(labels.shape), name=name), labels
