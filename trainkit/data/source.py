"""Recognition data wherever it is: class folders, parquet files, or a name on the Hub."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from trainkit.data.folder import ClassFolder

SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid", "test")}


def class_images(
    source: str | Path,
    split: str,
    transform: Callable[[Any], Any] | None = None,
    classes: Sequence[str] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    stream: int | None = None,
) -> Dataset:
    """One split, "train" or "val", of `source`: index -> (uint8 image (3, H, W), class id), with `.classes`.

    source: a folder with <split>/<class>/<image>, a folder with <split>*.parquet, or a dataset's name on the
    Hub. "val" is the first of val, validation, valid and test that there is. image_column, label_column, stream:
    see `HubImages`; class folders have none. Raises FileNotFoundError that says where it looked.
    """
    folder, names, how = Path(source), SPLITS[split], (image_column, label_column, stream)
    if folder.is_dir():
        for name in names:
            if (folder / name).is_dir() and not any((folder / name).glob("*.parquet")):
                if stream is not None:
                    raise ValueError(f"{folder / name} has class folders: stream is for parquet files, leave it out")
                return ClassFolder(folder / name, transform, classes)
            if any(folder.glob(f"{name}*.parquet")):
                return _from_datasets(source, name, transform, *how)
        raise FileNotFoundError(
            f"no {split} images in {folder.resolve()}: looked for {', '.join(f'{n}/<class>/' for n in names)} and "
            f"{', '.join(f'{n}*.parquet' for n in names)}"
        )
    if str(source).count("/") != 1 or folder.is_absolute() or str(source).startswith((".", "data/")):
        raise FileNotFoundError(
            f"no folder {folder.resolve()}: give one with train/<class>/ and val/<class>/ or with parquet files, or "
            "a dataset's name on the Hub (owner/name) with --data; or try --sample"
        )
    return _from_datasets(source, names, transform, *how)


def _from_datasets(
    source: str | Path, split: str | Sequence[str], transform: Callable[[Any], Any] | None, *how: Any
) -> Dataset:
    from trainkit.data.hub import HubImages, choose_split  # `datasets` takes a second to import

    name = split if isinstance(split, str) else choose_split(str(source), split)
    return HubImages(source, name, transform, *how)
