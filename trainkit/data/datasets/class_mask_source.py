"""Opens the splits of images with masks of overlapping classes: folders, COCO's files, lists."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from trainkit.data.bands import USUAL, PixelSettings
from trainkit.data.datasets.class_masks import ClassMasks
from trainkit.data.datasets.coco_style import categories_of, coco_files, of_coco
from trainkit.data.datasets.divided import SPLITS, Division, Whole
from trainkit.data.datasets.held_out import NO_SPLIT, SplitSettings
from trainkit.data.datasets.inventory import some
from trainkit.data.datasets.layouts import HOLD_OUT, IMAGES, MASKS
from trainkit.data.datasets.listing import list_images
from trainkit.data.datasets.lists import is_list
from trainkit.data.datasets.undivided import groups_of_folders, of_lists
from trainkit.data.datasets.value_maps import of_pairs
from trainkit.data.file_names import leftover, stem
from trainkit.errors import MissingFileError, UserError

KINDS = ("masks", *(kind for kind in MASKS if kind != "masks"))  # folders of masks
OF_CLASS = (".png", ".tif", ".tiff", ".bmp", ".gif")  # a file with the mask of one class
OF_ALL = (".npz", ".npy", ".tif", ".tiff")  # a file with the masks of all
BETWEEN = ("_", "-")  # an image's name and what is behind it
SPLIT_FOLDERS = ("", *(name for names in SPLITS.values() for name in names))


@dataclass(eq=False)
class ClassMaskSource:
    """Images with masks of overlapping classes, whose splits are opened one by one.

    Args:
        source: a folder with images/<split>/ and masks/<split>/, or <split>/images/ and
            <split>/masks/, or images/ and masks/ of which `held_out` says what is "val"; with files
            of COCO's kind, see `coco_files`; or a list of path and mask. In masks/ there is a
            folder for each class with files called as the images, or files <image>_<class>.png, or
            one for each image with all bands, see `read_masks`.
        classes: their names; None: those of the folders, or of COCO's categories.
        image_column: of a list.
        mask_column: of a list.
        ignore: see `ClassMasks`.
        held_out: which images are held out for validation.
        pixels: channels and bits of the images.
    """

    source: str | Path
    classes: Sequence[str] | None = None
    image_column: str | None = None
    mask_column: str | None = None
    ignore: int | None = None
    held_out: SplitSettings = NO_SPLIT
    pixels: PixelSettings = USUAL

    def open(self, split: str, transform: Callable[..., Any] | None = None) -> ClassMasks:
        """Open one split, "train" or "val".

        Raises:
            MissingFileError: there is no such split, or masks are missing.
            UserError: the data cannot be divided, or nothing names the classes.
        """
        if not self._divided.side(split)[0]:
            raise MissingFileError(
                f"no {split} images in {Path(self.source).resolve()}: {HOLD_OUT}"
            )
        division = self._divided
        data = ClassMasks(division, split, self.names, transform, self.ignore, self.pixels)
        data.used_warnings = [*data.used_warnings, *self._warnings]
        return data

    @cached_property
    def _warnings(self) -> list[str]:
        return []

    @cached_property
    def names(self) -> list[str]:
        """The classes, in the order of their ids."""
        if self.classes is not None:
            return list(self.classes)
        folder = self._existing()
        found = coco_files(folder) if not has_masks(folder) else {}
        if found:
            return list(categories_of(next(iter(found.values()))).values())
        names = _class_folders(folder)
        if not names:
            raise UserError(
                f"classes is empty, and {folder} has no folder of masks for each class that names"
                " them: --classes liver,tumour"
            )
        return names

    def _existing(self) -> Path:
        """The source. Raises MissingFileError where it is not there."""
        source = Path(self.source)
        if not (source.is_dir() or (source.is_file() and (is_list(source) or _is_json(source)))):
            raise MissingFileError(
                f"no folder or list {source.resolve()}: give a folder with images/ and masks/, each"
                " with train/ and val/, a file of COCO's kind, or a list (.csv, .jsonl) of path and"
                " mask, with --data; or try --sample"
            )
        return source

    @cached_property
    def _divided(self) -> Division:
        source = self._existing()
        whole = None if has_masks(source) else of_coco(source, self.held_out)
        if whole is None:
            whole = of_lists(
                source,
                self.held_out,
                image_column=self.image_column,
                target_column=self.mask_column,
                masks=True,
            )
        if whole is None:
            whole = of_pairs(source, self.held_out, KINDS, self._paired, "masks")
        return whole.divided(self.held_out)

    def _paired(self, folder: Path, images: str, masks: str, settings: SplitSettings) -> Whole:
        """Each image with its files in masks/."""
        names, inventory = list_images(folder / images)
        found = _targets(folder, masks, [stem(name) for name in names], self.names)
        missing = [name for name, target in zip(names, found) if target is None]
        if len(missing) == len(names):
            raise MissingFileError(
                f"no image in {folder / images} has a mask in {folder / masks}: looked for"
                f" {self.names[0]}/{_example(names)}.png, {_example(names)}_{self.names[0]}.png and"
                f" {_example(names)}.npz, and so on"
            )
        if missing:
            self._warnings.append(
                f"{len(missing)} of {len(names)} images in {folder / images} have no mask, and are"
                f" taken as being of no class: {some(missing)}"
            )
        return Whole(
            folder,
            [os.path.join(images, name) for name in names],
            ["{}" if target is None else target for target in found],
            ("path", "masks"),
            [""] * len(names),
            groups_of_folders(settings, names, folder / images),
            inventory=inventory,
        )


def _targets(
    root: Path, masks: str, stems: Sequence[str], classes: Sequence[str]
) -> list[str | None]:
    """The masks of each image, as `ClassMasks` takes them; None where it has none."""
    folder = root / masks
    if any((folder / name).is_dir() for name in classes):
        found = _in_class_folders(folder, stems, classes)
    else:
        single = _files(folder, OF_CLASS)
        found = {}
        for image in stems:
            names = ((label, image + mark + label) for label in classes for mark in BETWEEN)
            there = {label: single[name] for label, name in names if name in single}
            if there:
                found[image] = there
    several = _files(folder, OF_ALL)
    if found:
        mixed = [image for image in stems if image in several and image not in found]
        if mixed:
            raise UserError(
                f"{folder} has files of one class each, and {several[mixed[0]]} of all classes:"
                " give the masks of all images in one way"
            )
        several = {}
    targets: list[str | None] = []
    for image in stems:
        if image in several:
            targets.append(os.path.join(masks, several[image]))
        elif image in found:
            files = {label: os.path.join(masks, name) for label, name in found[image].items()}
            targets.append(json.dumps(files, ensure_ascii=False))
        else:
            targets.append(None)
    return targets


def _in_class_folders(
    folder: Path, stems: Sequence[str], classes: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Files of each image by class: called as the image, or with more behind it and a mark."""
    lacking = [name for name in classes if not (folder / name).is_dir()]
    if lacking:
        raise MissingFileError(
            f"{folder} has folders of classes, and none of {some(lacking)}: correct --classes, or"
            " make an empty folder where no image is of it"
        )
    images = set(stems)
    found: dict[str, dict[str, str]] = {}
    for label in classes:
        files = _files(folder / label, OF_CLASS)
        unlike = len(files)
        for name, file in files.items():
            image = name
            while image and image not in images:  # such as 0001_liver of image 0001
                image = (
                    image[: max(image.rfind(mark) for mark in BETWEEN)]
                    if any(mark in image for mark in BETWEEN)
                    else ""
                )
            if not image:
                continue
            of_image = found.setdefault(image, {})
            if label in of_image:
                raise UserError(
                    f"{folder / label} has two masks of image {image}, {of_image[label]} and"
                    f" {os.path.join(label, file)}: put them into one, or remove one"
                )
            of_image[label] = os.path.join(label, file)
            unlike -= 1
        if files and unlike == len(files):
            raise MissingFileError(
                f"no file in {folder / label} is called as an image, such as {some(files)}: masks"
                f" are called as their images, such as {some(stems)}"
            )
    return found


def _files(folder: Path, suffixes: Sequence[str]) -> dict[str, str]:
    """Files below a folder by their names without the suffix."""
    found: dict[str, str] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in suffixes and not leftover(file.name):
            name = str(file.relative_to(folder))
            found.setdefault(stem(name), name)
    return found


def has_masks(folder: Path) -> bool:
    """Whether files of masks lie in a folder of their own."""
    kinds = (folder / part / kind for kind in KINDS for part in SPLIT_FOLDERS)
    return folder.is_dir() and any(
        file.suffix.lower() in (*OF_CLASS, *OF_ALL) for kind in kinds for file in kind.rglob("*")
    )


def _class_folders(folder: Path) -> list[str]:
    """Names of the folders of classes in the first folder of masks that has some."""
    for kind in KINDS:
        for place in (folder / kind / "train", folder / "train" / kind, folder / kind):
            inside = place.iterdir() if place.is_dir() else ()
            names = sorted(each.name for each in inside if each.is_dir())
            if names and not set(SPLIT_FOLDERS) & set(names):
                return names
    return []


def class_masks_in_words(folder: Path) -> tuple[str, bool] | None:
    """What folders of masks for each class hold, and whether some are for validation.

    None where there are none; folders below masks/ that images/ has too are of no class.
    """
    names, found = _class_folders(folder), set()
    for part, kind, order in product(SPLIT_FOLDERS, KINDS, ("{0}/{1}", "{1}/{0}")):
        masks, images = (folder / order.format(each, part) for each in (kind, IMAGES))
        inside = [name for name in names if (masks / name).is_dir()]
        if images.is_dir() and any(not (images / name).is_dir() for name in inside):
            found.add(part)
    if not found:
        return None
    has_val = any(part in found for part in SPLITS["val"])
    divided = "divided" if has_val else "not divided"
    return f"images with masks of {len(names)} classes ({some(names)}), {divided}", has_val


def _is_json(file: Path) -> bool:
    return file.suffix == ".json"


def _example(names: Sequence[str]) -> str:
    return stem(names[0]) if names else "image"
