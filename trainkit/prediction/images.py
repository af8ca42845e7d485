"""Images that are no dataset's: in files, in folders, or in memory.

None is held longer than it takes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from trainkit.data.bands import USUAL, PixelSettings, as_stored, read_pixels, shown
from trainkit.data.datasets.folder import FileList
from trainkit.data.datasets.inventory import Inventory
from trainkit.data.datasets.listing import list_images
from trainkit.data.file_names import extension
from trainkit.data.image_io import image_to_rgb
from trainkit.data.reader import UNUSABLE
from trainkit.errors import MissingFileError, UserError, is_shortage

ImageLike = str | Path | Image.Image | np.ndarray | Tensor


@dataclass(frozen=True)
class Picture:
    """One image as it was read for the model; `fault` says why it was not."""

    file: Path
    name: Path
    """relative, of what is written about it"""
    image: Tensor | None = None
    """as the model wants it but for mean and std: (C, H, W)"""
    size: tuple[int, int] = (0, 0)
    """its own height and width"""
    original: Tensor | None = None
    """uint8 (3, height, width), where it is asked for"""
    fault: str | None = None


class Pictures(Dataset):
    """index -> Picture, read only when asked for.

    A file that cannot be read gives a Picture that says why.

    files: of the images; names: what is written about each is called, relative. original: keep the
    image at its own size beside the transformed one. upright: turn images by their EXIF
    orientation.
    """

    def __init__(
        self,
        files: Sequence[Path],
        names: Sequence[Path],
        transform: Callable | None,
        original: bool,
        upright: bool = True,
        pixels: PixelSettings = USUAL,
    ):
        # As bytes in one array each: workers share them, and a million names are no million
        # objects.
        self.files, self.names = (
            FileList(Path(), [str(path) for path in paths]) for paths in (files, names)
        )
        self.transform, self.original, self.upright = transform, original, upright
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Picture:
        file, name = self.files[index], self.names[index]
        try:
            image = read_pixels(file, self.pixels, self.upright)
            size = (image.shape[-2], image.shape[-1])
            original = shown(image) if self.original else None
            image = image if self.transform is None else self.transform(image)
            image = as_stored(image, self.pixels)
        except UNUSABLE as error:
            if is_shortage(error):
                raise
            fault = str(error) if str(file) in str(error) else f"{file}: {error}"
            return Picture(file, name, fault=fault)
        return Picture(file, name, image.as_subclass(Tensor), size, original)


def as_pixels(
    image: ImageLike, upright: bool = True, pixels: PixelSettings = USUAL
) -> tv_tensors.Image:
    """An image in memory, or in a file, as `read_pixels` gives it.

    Raises UserError for what is none.
    """
    if isinstance(image, (str, Path)):
        return read_pixels(Path(image), pixels, upright)
    if isinstance(image, Image.Image) and pixels.usual:
        return tv_tensors.Image(image_to_rgb(image, upright))
    if isinstance(image, np.ndarray) and image.ndim == 3:
        image = torch.tensor(image).permute(2, 0, 1)
    kind = torch.uint8 if pixels.bits == 8 else torch.uint16
    if isinstance(image, Tensor) and image.dtype == kind and image.shape[:-2] == (pixels.channels,):
        return tv_tensors.Image(image if pixels.bits == 8 else image.to(torch.float32) / 65535)
    shape = ""
    if isinstance(image, (np.ndarray, Tensor)):
        shape = f" of shape {tuple(image.shape)} and {image.dtype}"
    name = str(kind).removeprefix("torch.")
    picture = " a PIL image," if pixels.usual else ""
    raise UserError(
        f"an image is of type {type(image).__name__}{shape}: give a file,{picture} or {name}"
        f" pixels, an array (H, W, {pixels.channels}) or a tensor ({pixels.channels}, H, W)"
    )


def find_images(
    paths: Iterable[Path], out: Path | None = None
) -> tuple[dict[Path, Path], Inventory]:
    """The images that `paths` are or hold, but for those in `out`.

    File -> name of what is written about it. In the order given, sorted within a folder, each once;
    and what they are and what was left out of the folders. Raises MissingFileError for a path that
    is not there and for folders without images, UserError for no path.
    """
    found: dict[Path, Path] = {}
    inventory = Inventory()
    for path in paths:
        if path.is_dir():
            inside = _images_in(path, out, inventory)
        elif path.is_file():
            inside = {path: Path(path.name)}
        else:
            raise MissingFileError(f"no file or folder {path}")
        for file, name in inside.items():
            found.setdefault(file, name)
    if not found:
        raise UserError(
            "nothing to predict: name images or folders, as in trainkit predict RUN my_photos --out"
            " predictions"
        )
    inventory.taken.update(extension(file.name) for file in found)
    return found, inventory


def _images_in(folder: Path, out: Path | None, inventory: Inventory) -> dict[Path, Path]:
    """The images of a folder, but for those in `out`, of an earlier call."""
    names, here = list_images(folder)
    inside = {folder / name: Path(name) for name in names}
    if out is not None:
        own = out.resolve()
        outside = {
            file: name for file, name in inside.items() if not file.resolve().is_relative_to(own)
        }
        if inside and not outside:
            raise UserError(
                f"out is {out}, which holds all images of {folder}, and what lies there is taken"
                " for predictions: choose another folder with --out"
            )
        inside = outside
        if inside and own.is_dir() and own.is_relative_to(folder.resolve()):
            here.left_out -= list_images(own)[1].left_out
    if not inside:
        raise MissingFileError(f"no images in {folder}{here.left_out_words}")
    inventory.left_out += here.left_out
    return inside
