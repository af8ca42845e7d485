"""Folders of images for a trained network: of some of its classes, or called by their numbers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from trainkit.data.bands import PixelSettings
from trainkit.data.datasets.folder import ClassFolder
from trainkit.data.datasets.label_lists import in_wnid_order
from trainkit.data.datasets.tables_to_open import with_pixels
from trainkit.errors import UserError


def open_images(
    folder: Path,
    transform: Callable[[Any], Any] | None,
    classes: Sequence[str],
    pixels: PixelSettings,
) -> tuple[ClassFolder, tuple[int, ...]]:
    """Images of a folder with <class>/<image>, and which classes have any.

    Folders are called as classes, or by numbers where no class is called so: ImageNet-V2's 0 to 999
    count the classes in the order of `in_wnid_order`.

    Args:
        folder: the folder.
        transform: of the images.
        classes: names, in the order of the network's outputs.
        pixels: how images are read.

    Raises:
        UserError: a folder is called as no class, or its number is none.
        MissingFileError: there is no folder, or no image in it.
    """
    names = {each.name for each in folder.iterdir() if each.is_dir()} if folder.is_dir() else set()
    numbers = {name for name in names if name.isdecimal()} - {str(name) for name in classes}
    if numbers and numbers == names:
        data = ClassFolder(folder, transform)
        order = in_wnid_order(classes)
        outside = [name for name in data.classes if int(name) >= len(classes)]
        if outside:
            raise UserError(
                f"{folder / outside[0]} is called by a number, and there are {len(classes)}"
                f" classes, 0 to {len(classes) - 1}"
            )
        ids = torch.tensor([order[int(name)] for name in data.classes])
        data.targets = ids[data.targets]
        data.classes = list(classes)
    else:
        data = ClassFolder(folder, transform, classes)
    data.used_warnings = []  # of classes without an image, which are those that are not asked for
    return with_pixels(data, pixels), tuple(data.targets.unique().tolist())
