"""Images with labels through the `datasets` library: names on the Hugging Face Hub, and parquet files."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Features, get_dataset_split_names, load_dataset, load_dataset_builder
from datasets import Image as ImageFeature
from torch import Tensor
from torch.utils.data import Dataset

from trainkit.data.images import read_image, read_mask
from trainkit.data.masks import IGNORED, MaskDataset, read_image_like
from trainkit.data.order import Locality
from trainkit.data.parquet import ParquetTable

TAKE_OUT = "take the row out of the dataset"


class Rows(Dataset):
    """What datasets have in common whose images are a column of a table, beside others: `datasets`' or a streamed one.

    source: what a person calls the table. image_column: its column of images.
    """

    source: str
    table: Any
    image_column: str

    @property
    def locality(self) -> Locality | None:
        """The order that streamed files ask for."""
        return getattr(self.table, "locality", None)

    @property
    def fingerprint(self) -> str | None:
        """Of streamed files, which may change where they lie."""
        return getattr(self.table, "fingerprint", None)

    def __len__(self) -> int:
        return len(self.table)

    def name_of(self, index: int) -> str:
        """The image's row, and its file where the table holds one's name."""
        return self.row_name(index, self.table[index][self.image_column])

    def row_name(self, index: int, stored: dict[str, Any] | None) -> str:
        """The row, and the file whose name is stored with one of its images."""
        path = stored["path"] if stored else None
        return f"row {index} of {self.source}" + (f" ({path})" if path else "")

    def encoded(self, row: dict[str, Any], index: int, column: str) -> tuple[bytes | Path, str]:
        """The bytes or the file of an image of row `index`, and its name. Raises ValueError where there are none."""
        stored = row[column]
        name = self.row_name(index, stored)
        if not stored or not (stored["bytes"] or stored["path"]):
            raise ValueError(f"{name} is null in the column {column!r}; {TAKE_OUT}")
        return stored["bytes"] or Path(stored["path"]), name


class HubImages(Rows):
    """One split of a dataset with an image and a label column: index -> (uint8 image (3, H, W), class id).

    source: a dataset's name on the Hub ("uoft-cs/cifar10"), or a local folder of parquet files whose names
    begin with the split's. Columns are found by their type and name where they are not given. Images are
    decoded here, not by `datasets`. stream: parquet files are read where they lie, so many row groups side by side,
    instead of being downloaded and converted first (`trainkit.data.parquet`); an epoch's order is then a `Locality`'s.
    classes: names whose places class ids are, which a validation split gets from the training split so that ids agree;
    None: the split's own. ValueError where it names others; a column of plain numbers holds these ids already.
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
    ):
        self.source, self.split = f"{source} ({split})", split
        self.table, features = _load(source, split, stream)
        self.image_column = image_column or _only(
            source, "image", [name for name, feature in features.items() if isinstance(feature, ImageFeature)]
        )
        self.label_column = label_column or _only(
            source, "label", [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
        )
        for column in (self.image_column, self.label_column):
            if column not in features:
                raise ValueError(f"{source} has no column {column!r}; its columns: {', '.join(features)}")
        self.table = _as_stored(self.table, [self.image_column, self.label_column], [self.image_column])
        label = features[self.label_column]
        names = list(label.names) if isinstance(label, ClassLabel) else None
        self.classes = list(classes) if classes is not None else names or self._count_classes()
        self.ids = self._ids_of(names or self.classes)
        self.transform = transform

    def _ids_of(self, names: list[str]) -> list[int]:
        """The place among `classes` of each of the split's names."""
        more, fewer = sorted(set(names) - set(self.classes)), sorted(set(self.classes) - set(names))
        if more or fewer:
            raise ValueError(
                f"{self.source} has classes {more[:5]} that the training data has not, and lacks {fewer[:5]} that it "
                "has; give both the same names"
            )
        places = {name: place for place, name in enumerate(self.classes)}
        return [places[name] for name in names]

    def _count_classes(self) -> list[str]:
        labels = self.table.unique(self.label_column)
        if not all(isinstance(label, int) and label >= 0 for label in labels):
            raise ValueError(f"column {self.label_column!r} holds {labels[:3]}...; class ids must be integers from 0")
        return [str(label) for label in range(max(labels) + 1)]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row = self.table[index]
        image = read_image(*self.encoded(row, index, self.image_column))
        label = row[self.label_column]
        if label is None:
            raise ValueError(f"{self.name_of(index)} is null in the column {self.label_column!r}; {TAKE_OUT}")
        if self.transform is not None:
            image = self.transform(image)
        inside = 0 <= label < len(self.ids)  # others are the task's to tell
        return image.as_subclass(Tensor), torch.tensor(self.ids[label] if inside else label)


class HubMasks(Rows, MaskDataset):
    """One split of a dataset with a column of images and one of masks: index -> (image, train ids, uint8 (H, W)).

    source, stream: as for `HubImages`. classes: how many, or their names. Columns: the image's is the one called image,
    img, picture or pixel_values, the mask's the other one, where they are not given. ignore: labels of the masks
    that count nowhere; label_shift: added to the others to get train ids, so -1 where they begin with 1, and 0 is
    ignored.
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
    ):
        self.classes = [str(label) for label in range(classes)] if isinstance(classes, int) else list(classes)
        super().__init__(len(self.classes), transform, ignore=ignore, label_shift=label_shift)
        self.source, self.split = f"{source} ({split})", split
        table, features = _load(source, split, stream)
        found = [name for name, feature in features.items() if isinstance(feature, ImageFeature)]
        self.image_column = image_column or _only(
            source, "image", [name for name in found if name in ("image", "img", "picture", "pixel_values")]
        )
        self.mask_column = mask_column or _only(source, "mask", [name for name in found if name != self.image_column])
        for column in (self.image_column, self.mask_column):
            if column not in found:
                raise ValueError(f"{source} has no column {column!r} of images; it has {', '.join(found) or 'none'}")
        columns = [self.image_column, self.mask_column]
        self.table = _as_stored(table, columns, columns)

    def mask_name(self, index: int) -> str:
        """The mask's column and row."""
        return f"{self.mask_column} of {self.row_name(index, self.table[index][self.mask_column])}"

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """See `MaskDataset`."""
        row = self.table[index]
        image, name = self.encoded(row, index, self.image_column)
        mask, mask_name = self.encoded(row, index, self.mask_column)
        labels = read_mask(mask, f"{self.mask_column} of {mask_name}")
        return read_image_like(image, tuple(labels.shape), name=name), labels


def _load(source: str | Path, split: str, stream: int | None) -> tuple[Any, Features]:
    """The rows of a split by index, and what their columns hold."""
    files = _files(source, split) if stream is not None or Path(source).is_dir() else []
    if stream is not None:
        table = ParquetTable(files, stream)
        return table, Features.from_arrow_schema(table.schema)
    if files:
        table = load_dataset("parquet", data_files=files, split="train")
    else:
        with _hub_errors(source):
            table = load_dataset(str(source), split=split)
    return table, table.features


def _files(source: str | Path, split: str) -> list[str]:
    """The parquet files of a split, in a folder or on the Hub (at the revision that is there now)."""
    if Path(source).is_dir():
        files = sorted(str(path) for path in Path(source).glob(f"{split}*.parquet"))
        if not files:
            found = ", ".join(sorted(path.name for path in Path(source).iterdir())[:5])
            raise FileNotFoundError(f"no {split}*.parquet in {source} (it holds: {found or 'nothing'})")
        return files
    with _hub_errors(source):
        builder = load_dataset_builder(str(source))
    files = [str(file) for file in (builder.config.data_files or {}).get(split, [])]
    others = [file for file in files if not file.endswith(".parquet")]
    if others or not files:
        stored = f"as {Path(others[0]).name}" if others else "in no files"
        raise ValueError(
            f"{source} cannot be streamed: its split {split} is stored {stored}, which does not say how many images it "
            "holds, so that no exact order of them is known before they are read. Parquet files do; without --stream "
            "the whole set is downloaded first"
        )
    return files


def _as_stored(table: Any, columns: list[str], images: Sequence[str]) -> Any:
    """A table of these columns alone, `images` among them as encoded bytes."""
    table = table.select_columns(columns)
    for column in images if not isinstance(table, ParquetTable) else ():
        table = table.cast_column(column, ImageFeature(decode=False))
    return table


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
        f"say which with {what}_column (--{what}-column where the recipe has that setting)"
    )
