"""Reads the optional attributes of datasets, all in one place.

A dataset is anything with `len(data)` and `data[index] -> (image, target)`. All else is optional,
and read here alone. A wrapper has the wrapped dataset as `inner`, as torch's `Subset` has it as
`dataset`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch.utils.data import Dataset, IterableDataset, Subset
from torchvision.datasets.vision import StandardTransform

from trainkit.data.bands import USUAL, PixelSettings
from trainkit.errors import UserError


class SizedDataset(Protocol):
    """What every dataset has: torch's with a length, a list of pairs, one of your own."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int, /) -> Any:
        """Image and target."""


class ClassDataset(SizedDataset, Protocol):
    """Images with a class id each, of named classes."""

    @property
    def classes(self) -> Sequence[str]:
        """Names, in the order of their ids."""


class LazyDataset(Dataset):
    """A dataset that is opened when it is first used.

    An evaluation needs no training data, and does not open it.

    Args:
        open_data: a function that opens it.
    """

    def __init__(self, open_data: Callable[[], SizedDataset]):
        self._open = open_data
        self._opened: SizedDataset | None = None

    @property
    def inner(self) -> SizedDataset:
        """The dataset, opened."""
        if self._opened is None:
            data = self._open()
            require_indexed("train_data", data)
            self._opened = data
        return self._opened

    @property
    def is_open(self) -> bool:
        """Whether it has been used."""
        return self._opened is not None

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        return self.inner[index]


def opened(data: SizedDataset) -> SizedDataset:
    """The dataset itself, or the one that a `LazyDataset` opens."""
    return data.inner if isinstance(data, LazyDataset) else data


def require_indexed(name: str, data: Any) -> None:
    """Raise UserError for an iterable dataset, which has neither a length nor an index."""
    lacks = [each for each in ("__len__", "__getitem__") if not hasattr(type(data), each)]
    if lacks or isinstance(data, IterableDataset):
        raise UserError(
            f"{name} is of type {type(data).__name__}, a stream without length or index: each image"
            " exactly once, and resuming within an epoch, take both. Parquet files have them, also"
            " where they are streamed: trainkit.data.datasets.hub.HubImages(..., stream=16)"
        )


def layers(data: Any) -> Iterator[Any]:
    """Yield a dataset, the one that it wraps, and so on, the outermost first."""
    while data is not None:
        yield data
        data = _inner(data)


def _inner(data: Any) -> Any:
    if isinstance(data, Subset):
        return data.dataset
    inner = getattr(data, "inner", None)
    return inner if isinstance(inner, Dataset) else None


def indices_in(data: SizedDataset, layer: SizedDataset) -> Sequence[int]:
    """Which images of `layer`, one of the layers of `data`, are in `data`; each once."""
    indices: Sequence[int] = range(len(data))
    for outer in layers(data):
        if outer is layer:
            return indices
        if isinstance(outer, Subset):
            indices = [outer.indices[index] for index in indices]
        else:
            number = len(_inner(outer))
            whole = isinstance(indices, range) and len(indices) >= number
            indices = range(number) if whole else list(dict.fromkeys(i % number for i in indices))
    raise AssertionError(f"{layer} is no layer of {data}")


def put_in(data: SizedDataset, layer: SizedDataset, other: Any) -> SizedDataset:
    """The images of `data`, read from `other` in the place of `layer`.

    What wraps it is left out.
    """
    indices = indices_in(data, layer)
    return other if isinstance(indices, range) else Subset(other, indices)


@dataclass(frozen=True)
class DatasetInfo:
    """The optional attributes of a dataset, each with its default, read when asked for."""

    data: Any

    @classmethod
    def of(cls, data: Any) -> "DatasetInfo":
        """The attributes of `data` and of what it wraps."""
        return cls(opened(data))

    # How the outermost dataset is to be read.

    @property
    def repeats(self) -> int:
        """Attribute `repeats`: copies of every image, which share a batch; 1."""
        return getattr(self.data, "repeats", 1)

    @property
    def locality(self) -> Any:
        """Attribute `locality` (see `trainkit.data.sampler`), an order for streamed files; None."""
        return getattr(self.data, "locality", None)

    @property
    def fingerprint(self) -> str | None:
        """Attribute `fingerprint`, a hash of files that may change, kept by a resume; None."""
        return getattr(self.data, "fingerprint", None)

    @property
    def pixels(self) -> PixelSettings:
        """Attribute `pixels`: channels and bits that image files are read with; 3 of 8 bits."""
        return self._first("pixels", USUAL)

    @property
    def lists(self) -> Mapping[str, bytes]:
        """Attribute `lists`: train.csv and val.csv of data divided here, by name; none."""
        return self._first("lists", {})

    @property
    def final_epoch(self) -> int:
        """Attribute `final_epoch`: the epoch from which on the dataset does not change; 0."""
        return getattr(self.data, "final_epoch", 0)

    @property
    def draws_nothing(self) -> bool:
        """Attribute `draws_nothing`: whether reading an item draws no random number; False.

        The training seeds nothing for its images then. What wraps a dataset says so itself, but for
        torch's Subset.
        """
        data = self.data
        while type(data) is Subset:
            data = data.dataset
        return getattr(data, "draws_nothing", False)

    @property
    def in_epoch(self) -> Callable[[int, int], Any] | None:
        """Method `in_epoch(epoch, index)`: the item in an epoch, where the epoch matters; None."""
        return getattr(self.data, "in_epoch", None)

    @property
    def own_name_of(self) -> Callable[[int], str] | None:
        """Method `name_of(index)`: the name of an image for messages; None.

        See `name_of` below, which always has a name.
        """
        return getattr(self.data, "name_of", None)

    # Of the outermost layer that has the attribute.

    @property
    def split(self) -> str | None:
        """Attribute `split`: the part of the whole, such as "val"; None."""
        return self._first("split")

    @property
    def upright(self) -> bool:
        """Attribute `upright`: whether images have their EXIF orientation applied; True."""
        return self._first("upright", True)

    @property
    def re_encoded(self) -> str | None:
        """Attribute `re_encoded`: how images differ from their originals, in words; None."""
        return self._first("re_encoded")

    @property
    def label_values(self) -> list[int] | None:
        """Attribute `label_values`: the values of the classes in masks, kept by a resume; None."""
        return self._first("label_values")

    @property
    def classes(self) -> int | Sequence[str] | None:
        """Attribute `classes`: how many, or their names; None."""
        return self._first("classes")

    @property
    def num_classes(self) -> int | None:
        """The number of `classes` where these are names, else the attribute `num_classes`; None."""
        classes = self.classes
        return len(classes) if isinstance(classes, Sequence) else self._first("num_classes")

    @property
    def transformed(self) -> Any:
        """The outermost layer with an attribute `transform`; None where none has it."""
        return next((layer for layer in layers(self.data) if hasattr(layer, "transform")), None)

    @property
    def transform(self) -> Callable[..., Any] | None:
        """Attribute `transform`: what an image goes through after it is read; None."""
        return self._first("transform")

    @property
    def is_augmented(self) -> bool:
        """Whether a wrapper has an attribute `augment`, changes of whole batches (`OnDevice`)."""
        around = [layer for layer in layers(self.data) if layer is not self.innermost]
        return any(getattr(layer, "augment", ()) for layer in around)

    @property
    def innermost(self) -> Any:
        """The layer that wraps no other."""
        *_, last = layers(self.data)
        return last

    @property
    def labelled(self) -> Any:
        """The outermost layer with an attribute `targets`, see below; else the innermost."""
        having = (layer for layer in layers(self.data) if hasattr(layer, "targets"))
        return next(having, self.innermost)

    @property
    def labelled_indices(self) -> Sequence[int]:
        """Which images of `labelled` are in the dataset; each once."""
        return indices_in(self.data, self.labelled)

    @property
    def targets(self) -> Any:
        """Attribute `targets`: the class id of each image; None."""
        return self._first("targets")

    @property
    def used(self) -> str | None:
        """Attribute `used` of the innermost layer: what it holds and leaves out, in words; None."""
        return getattr(self.innermost, "used", None)

    @property
    def used_warnings(self) -> list[str]:
        """Attribute `used_warnings` of the innermost layer, a line each; none."""
        return list(getattr(self.innermost, "used_warnings", ()))

    @property
    def without_images(self) -> list[str]:
        """Method `without_images()` of the innermost layer: classes without images; none."""
        innermost = self.innermost
        return innermost.without_images() if hasattr(innermost, "without_images") else []

    def name_of(self, index: int) -> str:
        """The name of an image for messages: its file where the dataset knows it, else its index.

        A dataset has a method `name_of(index)` for it; torchvision's have `samples` or `imgs`.
        """
        data: Any = self.data
        index %= len(data)  # of a later draw in an epoch, see `sampler.Balanced`
        while isinstance(data, Subset):
            data, index = data.dataset, data.indices[index]
        if hasattr(data, "name_of"):
            return str(data.name_of(index))
        files = getattr(data, "samples", None) or getattr(data, "imgs", None)
        return str(files[index][0]) if files else f"number {index} of {type(data).__name__}"

    def image_bytes(self, index: int) -> bytes | None:
        """The bytes of an image as they are stored; None where they are in no file.

        A dataset has a method `image_bytes(index)` for it, where images are not files by its names.
        """
        data: Any = self.data
        while isinstance(data, Subset):
            data, index = data.dataset, data.indices[index]
        if hasattr(data, "image_bytes"):
            return data.image_bytes(index)
        file = Path(DatasetInfo(data).name_of(index))
        return file.read_bytes() if file.is_file() else None

    def _first(self, name: str, default: Any = None) -> Any:
        for layer in layers(self.data):
            if hasattr(layer, name):
                return getattr(layer, name)
        return default


def without_transform(data: Any) -> Any:
    """A copy of a layer that has an attribute `transform`, without it."""
    bare = copy(data)
    bare.transform = None
    # torchvision's datasets of masks apply this one, which holds both
    if hasattr(bare, "transforms"):
        kept = bare.target_transform
        bare.transforms = StandardTransform(None, kept) if kept is not None else None
    return bare
