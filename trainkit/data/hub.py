"""Images with labels through the `datasets` library: names on the Hugging Face Hub, and parquet files."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, get_dataset_split_names, load_dataset
from datasets import Image as ImageFeature
from torch import Tensor
from torch.utils.data import Dataset

from trainkit.data.images import read_image


class HubImages(Dataset):
    """One split of a dataset with an image and a label column: index -> (uint8 image (3, H, W), class id).

    source: a dataset's name on the Hub ("uoft-cs/cifar10"), or a local folder of parquet files whose names
    begin with the split's. Columns are found by their type and name where they are not given. Images are
    decoded here, not by `datasets`.
    """

    def __init__(
        self,
        source: str | Path,
        split: str,
        transform: Callable[[Any], Any] | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
    ):
        self.source, self.table = f"{source} ({split})", _load(source, split)
        features = self.table.features
        self.image_column = image_column or _only(
            source, "image", [name for name, feature in features.items() if isinstance(feature, ImageFeature)]
        )
        self.label_column = label_column or _only(
            source, "label", [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
        )
        for column in (self.image_column, self.label_column):
            if column not in features:
                raise ValueError(f"{source} has no column {column!r}; its columns: {', '.join(features)}")
        self.table = self.table.select_columns([self.image_column, self.label_column])
        self.table = self.table.cast_column(self.image_column, ImageFeature(decode=False))
        label = self.table.features[self.label_column]
        self.classes = list(label.names) if isinstance(label, ClassLabel) else self._count_classes()
        self.transform = transform

    def _count_classes(self) -> list[str]:
        labels = self.table.unique(self.label_column)
        if not all(isinstance(label, int) and label >= 0 for label in labels):
            raise ValueError(f"column {self.label_column!r} holds {labels[:3]}...; class ids must be integers from 0")
        return [str(label) for label in range(max(labels) + 1)]

    def __len__(self) -> int:
        return len(self.table)

    def name_of(self, index: int) -> str:
        """The image's row, and its file where the table holds one's name."""
        return self._name(index, self.table[index][self.image_column]["path"])

    def _name(self, index: int, path: str | None) -> str:
        return f"row {index} of {self.source}" + (f" ({path})" if path else "")

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row = self.table[index]
        stored = row[self.image_column]
        image = read_image(stored["bytes"] or Path(stored["path"]), self._name(index, stored["path"]))
        if self.transform is not None:
            image = self.transform(image)
        return image.as_subclass(Tensor), torch.tensor(row[self.label_column])


def _load(source: str | Path, split: str) -> Any:
    if Path(source).is_dir():
        files = sorted(str(path) for path in Path(source).glob(f"{split}*.parquet"))
        if not files:
            found = ", ".join(sorted(path.name for path in Path(source).iterdir())[:5])
            raise FileNotFoundError(f"no {split}*.parquet in {source} (it holds: {found or 'nothing'})")
        return load_dataset("parquet", data_files=files, split="train")
    with _hub_errors(source):
        return load_dataset(str(source), split=split)


def choose_split(source: str, names: Sequence[str]) -> str:
    """The first of `names` that the Hub's dataset `source` has as a split."""
    with _hub_errors(source):
        known = get_dataset_split_names(source)
    for name in names:
        if name in known:
            return name
    raise ValueError(f"{source} has none of the splits {', '.join(names)}; it has {', '.join(known)}")


@contextmanager
def _hub_errors(source: str | Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # datasets raises a dozen kinds for "not there", from several libraries
        raise FileNotFoundError(
            f"cannot load {str(source)!r}: there is no such local folder, and the Hub said "
            f"{type(error).__name__}: {error}"
        ) from error


def _only(source: str | Path, what: str, columns: list[str]) -> str:
    if len(columns) == 1:
        return columns[0]
    raise ValueError(
        f"{source} has {len(columns)} columns that could be the {what} ({', '.join(columns) or 'none'}); "
        f"say which with {what}_column"
    )
