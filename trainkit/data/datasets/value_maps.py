"""Images with a map of numbers each, such as depth or height: PNG, TIFF or npy of the same name."""

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from trainkit.data.bands import USUAL, PixelSettings, as_stored, read_image_like
from trainkit.data.datasets.divided import SPLITS, Division, Whole, with_sides
from trainkit.data.datasets.folder import FileList
from trainkit.data.datasets.held_out import NO_SPLIT, SplitSettings
from trainkit.data.datasets.inventory import some
from trainkit.data.datasets.layouts import HOLD_OUT, IMAGES
from trainkit.data.datasets.listing import list_images
from trainkit.data.datasets.lists import MASK, is_list
from trainkit.data.datasets.undivided import groups_of_folders, of_lists
from trainkit.data.file_names import leftover, stem
from trainkit.data.image_io import MaskSizeError, read_with
from trainkit.errors import DataError, MissingFileError, UserError

KINDS = ("depth", "depths", "height", "heights", "maps", "targets")  # folders of maps
COLUMNS = ("depth", "height", "map", "target", *MASK)  # of their files in a list
SUFFIXES = (".png", ".tif", ".tiff", ".npy")
MODES = ("I;16", "I;16B", "I;16L", "I", "F", "L", "1")  # of one number for each pixel


def read_values(file: Path, scale: float = 1.0, invalid: float | None = 0.0) -> tv_tensors.Mask:
    """The map in a file of one number for each pixel.

    Args:
        file: PNG or TIFF of one channel, of 8 or 16 bits, whole numbers or floats, or .npy.
        scale: value of one step of the stored numbers.
        invalid: the stored number that says that nothing is known; None: none.

    Returns:
        float32 (H, W), NaN where nothing is known.

    Raises:
        DataError: it cannot be read, or holds several numbers for each pixel.
    """

    def decode(content: bytes) -> Tensor:
        if file.suffix.lower() == ".npy":
            stored = np.load(io.BytesIO(content), allow_pickle=False)
        else:
            with Image.open(io.BytesIO(content)) as image:
                if image.mode not in MODES:
                    raise DataError(
                        f"{file} is of Pillow's mode {image.mode}: a map has one number for each"
                        " pixel, as PNG of 16 bits, TIFF or npy"
                    )
                stored = np.asarray(image)
        if stored.ndim != 2 or stored.dtype.kind not in "biuf":
            raise DataError(
                f"{file} is {stored.dtype} of shape {stored.shape}: a map is numbers (H, W)"
            )
        values = stored.astype(np.float64)
        known = (
            np.isfinite(values) if invalid is None else np.isfinite(values) & (values != invalid)
        )
        return torch.from_numpy(np.where(known, values * scale, np.nan).astype(np.float32))

    return tv_tensors.Mask(read_with(file, decode))


class ValueMaps(Dataset):
    """One side of a division of images with maps: index -> (uint8 (3, H, W), float32 (H, W)).

    Args:
        division: the division; its targets are the maps' files.
        split: "train" or "val".
        transform: of image and map.
        scale: see `read_values`.
        invalid: likewise.
        pixels: channels and bits of the images.
    """

    upright = True

    def __init__(
        self,
        division: Division,
        split: str,
        transform: Callable[..., Any] | None = None,
        scale: float = 1.0,
        invalid: float | None = 0.0,
        pixels: PixelSettings = USUAL,
    ):
        names, maps = division.side(split)
        root = division.whole.root
        self.images, self.maps = FileList(root, names), FileList(root, maps)
        self.transform, self.scale, self.invalid, self.pixels = transform, scale, invalid, pixels
        self.split: str
        self.used: str
        self.used_warnings: list[str]
        division.mark(self, split, names, 1)
        self.used = self.used.replace(" of 1 class", " with maps")

    def name_of(self, index: int) -> Path:
        """The image's file."""
        return self.images[index]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        values = read_values(self.maps[index], self.scale, self.invalid)
        size = (values.shape[0], values.shape[1])
        image = read_image_like(self.images[index], size, self.upright, pixels=self.pixels)
        if tuple(image.shape[-2:]) != size:
            raise MaskSizeError(
                f"{self.images[index]} is {image.shape[-1]}x{image.shape[-2]} and its map"
                f" {self.maps[index]} is {size[1]}x{size[0]}"
            )
        if self.transform is not None:
            image, values = self.transform(image, values)
        return as_stored(image, self.pixels).as_subclass(Tensor), values.as_subclass(Tensor)


@dataclass(eq=False)
class ValueMapSource:
    """Images with maps, whose splits are opened one by one.

    Args:
        source: a folder with images/<split>/ and depth/<split>/ (or height, maps, targets), or
            <split>/images/ and <split>/depth/, or images/ and depth/ of which `held_out` says what
            is "val"; a list of path and depth, or a folder with train.csv and val.csv.
        image_column: of a list; None: one of `lists.IMAGE`.
        map_column: of a list; None: one of `COLUMNS`.
        scale: see `read_values`.
        invalid: likewise.
        held_out: which images are held out for validation.
        pixels: channels and bits of the images.
    """

    source: str | Path
    image_column: str | None = None
    map_column: str | None = None
    scale: float = 1.0
    invalid: float | None = 0.0
    held_out: SplitSettings = NO_SPLIT
    pixels: PixelSettings = USUAL

    def open(self, split: str, transform: Callable[..., Any] | None = None) -> ValueMaps:
        """Open one split, "train" or "val".

        Raises:
            MissingFileError: there is no such split, or a map is missing.
            UserError: the data cannot be divided.
        """
        if not self._divided.side(split)[0]:
            raise MissingFileError(
                f"no {split} images in {Path(self.source).resolve()}: {HOLD_OUT}"
            )
        return ValueMaps(self._divided, split, transform, self.scale, self.invalid, self.pixels)

    @cached_property
    def _divided(self) -> Division:
        source = Path(self.source)
        if not (source.is_dir() or (is_list(source) and source.exists())):
            raise MissingFileError(
                f"no folder or list {source.resolve()}: give a folder with images/ and depth/, each"
                " with train/ and val/, or a list (.csv, .jsonl) of path and depth, with --data; or"
                " try --sample"
            )
        whole = of_lists(
            source,
            self.held_out,
            image_column=self.image_column,
            target_column=self.map_column,
            masks=True,
            known_targets=COLUMNS,
        )
        if whole is None:
            whole = of_pairs(source, self.held_out, KINDS, _paired)
        return whole.divided(self.held_out)


def holds_maps(folder: Path) -> bool | None:
    """Whether a folder of images with maps has a split for validation; None where it has none."""
    splits = [name for names in SPLITS.values() for name in names]
    pairs = {
        name: (images, images.replace(IMAGES, kind))
        for name in ["", *splits]
        for images in (f"{IMAGES}/{name}".rstrip("/"), f"{name}/{IMAGES}".lstrip("/"))
        for kind in KINDS
        if (folder / images).is_dir() and (folder / images.replace(IMAGES, kind)).is_dir()
    }
    return any(name in pairs for name in SPLITS["val"]) if pairs else None


def of_pairs(
    folder: Path,
    settings: SplitSettings,
    kinds: Sequence[str],
    paired: Callable[[Path, str, str, SplitSettings], Whole],
    what: str = "maps",
) -> Whole:
    """Images and maps or masks in folders, divided by their names, or not yet.

    Args:
        folder: with images/train/ and <kind>/train/, train/images/ and train/<kind>/, or images/
            and <kind>/.
        settings: what is held out.
        kinds: names that the folder of maps may have.
        paired: finds the images and their maps in two folders below `folder`.
        what: the maps, in messages.

    Raises:
        MissingFileError: there are no such folders.
        UserError: the data is divided already.
    """
    parts: dict[str, tuple[str, str]] = {}
    for side, names in SPLITS.items():
        for name in names:
            for layout in ("{kind}/{name}", "{name}/{kind}"):
                images = layout.format(kind=IMAGES, name=name)
                if side not in parts and (folder / images).is_dir():
                    parts[side] = images, _maps_of(folder, layout, name, kinds, what)
    if settings.is_asked and "val" in parts:
        raise UserError(
            f"{folder} is divided already: leave {settings.words} out, or give images/ and"
            f" {kinds[0]}/ that are not"
        )
    if not parts and (folder / IMAGES).is_dir():
        if not settings.is_asked:
            raise MissingFileError(f"{folder} has {IMAGES}/ without train/ and val/: {HOLD_OUT}")
        parts["train"] = IMAGES, _maps_of(folder, "{kind}", "", kinds, what)
    if not parts:
        raise MissingFileError(
            f"no images with {what} in {folder.resolve()}: looked for {IMAGES}/train/ and"
            f" {kinds[0]}/train/, train/{IMAGES}/ and train/{kinds[0]}/, and train.csv"
        )
    wholes = {side: paired(folder, *pair, settings) for side, pair in parts.items()}
    if settings.is_asked:
        return wholes["train"]
    files = [each for part in wholes.values() for each in part.names]
    maps = [each for part in wholes.values() for each in part.targets]
    sides = [side for side, part in wholes.items() for _ in part.names]
    return with_sides(Whole(folder, files, maps, ("path", "mask"), [""] * len(files)), sides)


def _maps_of(folder: Path, layout: str, name: str, kinds: Sequence[str], what: str) -> str:
    asked = [layout.format(kind=kind, name=name) for kind in kinds]
    there = [each for each in asked if (folder / each).is_dir()]
    if len(there) != 1:
        found = f"has {' and '.join(there)}: remove all but one" if there else "has none of them"
        raise MissingFileError(
            f"the {what} of {folder / layout.format(kind=IMAGES, name=name)} are looked for in"
            f" {', '.join(asked)}, and {folder.resolve()} {found}"
        )
    return there[0]


def _paired(folder: Path, images: str, maps: str, settings: SplitSettings) -> Whole:
    """Each image with the map of its name."""
    names, inventory = list_images(folder / images)
    found: dict[str, str] = {}
    for file in sorted((folder / maps).rglob("*")):
        name = str(file.relative_to(folder / maps))
        if file.suffix.lower() in SUFFIXES and not leftover(file.name):
            other = found.setdefault(stem(name), name)
            if other != name:
                raise UserError(
                    f"{folder / maps} has two maps of one name, {other} and {name}; remove one"
                )
    missing = [name for name in names if stem(name) not in found]
    if missing or not names:
        raise MissingFileError(
            f"{len(missing)} of {len(names)} images in {folder / images} have no map in"
            f" {folder / maps} ({', '.join(SUFFIXES)}): {some(missing)}"
        )
    return Whole(
        folder,
        [os.path.join(images, name) for name in names],
        [os.path.join(maps, found[stem(name)]) for name in names],
        ("path", "mask"),
        [""] * len(names),
        groups_of_folders(settings, names, folder / images),
        inventory=inventory,
    )
