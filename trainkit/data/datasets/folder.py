"""Datasets in local folders: one folder per class, or images with masks of the same name."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from trainkit.data.bands import USUAL, PixelSettings, as_stored
from trainkit.data.datasets.inventory import Inventory, images_of, no_image
from trainkit.data.datasets.label_tables import IGNORED
from trainkit.data.datasets.listing import ListingCache, Names, class_files, list_images
from trainkit.data.datasets.mask_files import MaskFiles
from trainkit.data.file_names import EXTENSIONS, composed, stem
from trainkit.data.first_crop import read_transformed
from trainkit.errors import MissingFileError, UserError


class FileList(Sequence[Path]):
    """Paths relative to a root, kept as `Names`: workers share them, at the cost of their text."""

    def __init__(self, root: Path, paths: Sequence[str]):
        self.root, self.names = root, paths if isinstance(paths, Names) else Names.of(paths)
        self._folder = "" if root == Path() else os.path.join(root, "")
        self._appends = os.sep == "/"  # where a name that begins with none is appended

    def __len__(self) -> int:
        return len(self.names)

    # no slices, as of `Names`
    def __getitem__(self, index: int) -> Path:  # type: ignore[override]
        return self.root / self.names[index]

    def path(self, index: int) -> str:
        """The same as a string, which takes a tenth of the time."""
        name = self.names.__getitem__(index)  # in a tenth less time than [index]
        if self._appends and name[:1] != "/":
            return self._folder + name
        return os.path.join(self._folder, name)


class ClassFiles(Dataset):
    """Image files with a class each: index -> (uint8 image (3, H, W), class id).

    Args:
        files: of the images.
        targets: the class id of each file, among `classes`.
        classes: their names.
        transform: of the image.
    """

    pixels: PixelSettings = USUAL  # how its images are read
    used_warnings: list[str]  # of those that look for their files

    def __init__(
        self,
        files: FileList,
        targets: Sequence[int] | np.ndarray,
        classes: Sequence[str],
        transform: Callable[[Any], Any] | None,
    ):
        self.files, self.targets = files, torch.as_tensor(targets, dtype=torch.int64)
        self.classes, self.transform = list(classes), transform

    @property
    def targets(self) -> Tensor:
        """The class id of each file: int64 (N,)."""
        return torch.from_numpy(self._ids)

    @targets.setter
    def targets(self, targets: Tensor) -> None:
        """Take other ones, such as those of fewer classes."""
        # NumPy gives a number in less time. A copy: what starts a spawned worker moves a tensor's
        # memory, and a view would read what was freed.
        self._ids = targets.numpy().copy()

    @property
    def draws_nothing(self) -> bool:
        """Whether reading an image draws no random number: where there is nothing that could."""
        return self.transform is None and type(self).__getitem__ is ClassFiles.__getitem__

    def __len__(self) -> int:
        return len(self.files)

    def name_of(self, index: int) -> Path:
        """The image's file."""
        return self.files[index]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.read(self.files.path(index)), self._ids.item(index)

    def read(self, file: str) -> Tensor:
        """Read the image in a file, changed by the transform: (C, H, W)."""
        image = read_transformed(file, self.pixels, self.transform)
        return as_stored(image, self.pixels).as_subclass(Tensor)


class ClassFolder(ClassFiles):
    """One folder per class, root/<class>/**/<image>: index -> (uint8 image (3, H, W), class id).

    Every file whose extension an installed decoder knows is taken, whatever else its name says. For
    `used` and `used_warnings` see `trainkit.data.datasets.inventory`.

    Args:
        root: the folder.
        transform: of the image.
        classes: names of the subfolders in the order of ids, which a validation folder gets from
            the training folder so that ids agree; None: all subfolders, sorted.
        cache: see `trainkit.data.datasets.listing.class_files`, which lists a large folder once.

    Raises:
        MissingFileError: there is no such folder.
        UserError: a subfolder is none of `classes`, or there is no image.
    """

    def __init__(
        self,
        root: Path,
        transform: Callable[[Any], Any] | None = None,
        classes: Sequence[str] | None = None,
        cache: Path | ListingCache | None = None,
    ):
        root = Path(root)
        if not root.is_dir():
            raise MissingFileError(f"no folder {root}: put one folder of images per class there")
        found, counts, names, inventory = class_files(root, cache)
        if not found:
            raise MissingFileError(
                f"{root} has no subfolders: put one folder of images per class there"
            )
        ids = _ids(root, found, found if classes is None else classes)
        if not len(names):
            raise MissingFileError(
                f"{root} has class folders but no images in them ({', '.join(sorted(EXTENSIONS))})"
                f"{inventory.left_out_words}"
            )
        targets = np.repeat([ids[composed(name)] for name in found], counts)
        super().__init__(FileList(root, names), targets, list(classes or found), transform)
        self.split = root.name
        self.used = (
            f"{images_of(len(names), len(self.classes))}"
            f" ({inventory.formats}){inventory.left_out_words}"
        )
        self._root = root
        self.used_warnings = [*self.without_images(), *inventory.warnings]

    def without_images(self) -> list[str]:
        """A line on classes without an image."""
        return no_image(self.classes, set(self.targets.tolist()), self._root)


def _ids(root: Path, found: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """The class id of each class folder's name, `composed`.

    Raises UserError for one that is none of `classes`.
    """
    ids = {composed(name): target for target, name in enumerate(classes)}
    require_different(root, classes)
    require_different(root, found)
    unknown = sorted(name for name in found if composed(name) not in ids)
    if unknown:
        raise UserError(
            f"{root} has classes {unknown[:5]} that the training folder has not, or the list of "
            "classes that was given; remove or rename them"
        )
    return ids


def require_different(root: Path, classes: Sequence[str]) -> None:
    """Raises UserError for a class that is there twice, in two spellings that look alike."""
    names = [composed(name) for name in classes]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise UserError(
            f"{root}: the class {twice[0]!r} is there twice, in two spellings that look alike"
            " (Unicode's NFC and NFD) or as the same name: merge them or rename one"
        )


class MaskFolder(MaskFiles):
    """Images and their masks in two folders, paired by name without extension.

    Index -> (image, mask). Image: uint8 (3, H, W). Mask: train ids, uint8 (H, W), IGNORED = 255
    where nothing counts.

    Args:
        images: folder of the images.
        masks: folder of the masks.
        num_classes: how many classes there are.
        transform: of image and mask.
        to_train_ids: see `MaskDataset`.
        ignore: see `MaskDataset`.
        label_shift: see `MaskDataset`.
        **settings: mask_values and mask_colors, see `MaskDataset`.

    Raises:
        MissingFileError: a folder is missing.
        UserError: an image has no mask, or several have one name.
    """

    def __init__(
        self,
        images: Path,
        masks: Path,
        num_classes: int,
        transform: Callable[..., Any] | None = None,
        to_train_ids: Callable[[Tensor], Tensor] | None = None,
        ignore: Sequence[int] = (IGNORED,),
        label_shift: int = 0,
        **settings: Any,
    ):
        names, with_mask, inventory = paired(Path(images), Path(masks))
        files = (
            FileList(Path(images), names),
            FileList(Path(masks), [with_mask[stem(name)] for name in names]),
        )
        super().__init__(
            *files,
            num_classes,
            transform,
            to_train_ids=to_train_ids,
            ignore=ignore,
            label_shift=label_shift,
            **settings,
        )
        self.split = Path(images).name
        self.used = self._used(inventory, with_mask, names)
        self.used_warnings = inventory.warnings

    def _used(self, inventory: Inventory, with_mask: dict[str, str], names: Sequence[str]) -> str:
        unpaired = len(with_mask) - len(names)
        if unpaired:
            inventory.left_out["unpaired", ""] += unpaired
        return (
            f"{images_of(len(names), self.num_classes)}"
            f" ({inventory.formats}){inventory.left_out_words}"
        )


def paired(images: Path, masks: Path) -> tuple[list[str], dict[str, str], Inventory]:
    """The images below a folder, the mask of each `stem` below another, and what was left out.

    Raises MissingFileError where there are no images, or one has no mask; UserError where two have
    the same.
    """
    for folder in (images, masks):
        if not folder.is_dir():
            raise MissingFileError(f"no folder {folder}")
    names, inventory = list_images(images)
    with_mask = _masks(masks, images)
    missing = [name for name in names if stem(name) not in with_mask]
    if missing:
        raise MissingFileError(
            f"{len(missing)} of {len(names)} images in {images} have no mask in {masks}: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        )
    if not names:
        raise MissingFileError(
            f"no images in {images} ({', '.join(sorted(EXTENSIONS))}){inventory.left_out_words}"
        )
    _require_one_image_each(images, names, masks, with_mask)
    if images == masks:
        inventory.left_out.pop(("file", ".json"), None)
    return names, with_mask, inventory


def _require_one_image_each(
    images: Path, names: Sequence[str], masks: Path, with_mask: dict[str, str]
) -> None:
    """Raise UserError that names two images of one `stem`, which would share a mask."""
    found: dict[str, str] = {}
    pairs = [
        (other, name) for name in names if (other := found.setdefault(stem(name), name)) != name
    ]
    if pairs:
        first, second = pairs[0]
        more = f" ({len(pairs) - 1:,} more such pairs)" if len(pairs) > 1 else ""
        raise UserError(
            f"{images} has two images of one name, {first} and {second}{more}, and {masks} has one"
            f" mask for both, {with_mask[stem(first)]}: nothing says whose it is. Remove one of the"
            " images, or give each a name and a mask of its own"
        )


def _masks(folder: Path, images: Path) -> dict[str, str]:
    """The mask file of each `stem`, an image or JSON with polygons.

    Raises UserError where two have the same.
    """
    found: dict[str, str] = {}
    drawn = [str(file.relative_to(folder)) for file in sorted(folder.rglob("*.json"))]
    for name in drawn if folder == images else [*list_images(folder)[0], *drawn]:
        other = found.setdefault(stem(name), name)
        if other != name:
            raise UserError(
                f"{folder} has two masks of one name, {other} and {name}: nothing says which one is"
                " the image's; remove one"
            )
    return found
