"""Where in a folder the images of a split are, and their masks."""

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainkit.data.datasets.divided import SIDES, SPLITS
from trainkit.data.datasets.inventory import some
from trainkit.data.datasets.listing import identity
from trainkit.data.file_names import extension, is_image, leftover
from trainkit.errors import MissingFileError, UserError

IMAGES = "images"
MASKS = ("annotations", "masks", "labels")
HOLD_OUT = "hold out a part of them for validation with --val-share 0.2"


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in `folder` with an image in or below them, sorted."""
    return sorted(each.name for each in _folders(folder) if _holds_images(each))


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in `folder`, with or without an image, as `class_files` finds them."""
    return sorted(each.name for each in _folders(folder))


def undivided_classes(folder: Path) -> Path | None:
    """The folder of class folders to be divided: `folder`, or train/ where there is no val.

    Returns:
        None where there are no class folders.

    Raises:
        UserError: there is a split already.
    """
    splits = {side: _first(folder, SPLITS[side]) for side in SIDES}
    _require_undivided(folder, splits)
    if splits["train"] is not None:
        return folder / splits["train"]
    return folder if class_folders(folder) else None


def require_no_masks(folder: Path) -> None:
    """Check that a folder of classes does not hold images and their masks, which pass for classes.

    Raises:
        UserError: it does.
    """
    masks = [f"{name}/" for name in MASKS if (folder / name).is_dir()]
    if masks and (folder / IMAGES).is_dir():
        raise UserError(
            f"{folder} has {IMAGES}/ and {' and '.join(masks)}, images and their masks and no"
            " classes: seg_folder trains on them. Where these are the names of classes, say so by"
            " a list (path,label)"
        )


def nothing_to_divide(source: str | Path, asked: str, layout: str) -> UserError:
    """The error for data that cannot be divided, with what was found in their place.

    Args:
        source: what was given as the data.
        asked: the flags that ask for a division.
        layout: what is divided, in words.
    """
    folder = Path(source)
    takes = (
        f"{asked} is for {layout}, parquet files of one split, a list (path.csv), or a dataset on"
        " the Hub (owner/name) with --data"
    )
    if not folder.exists():
        near = near_name(folder)
        meant = "." if near is None else f"; did you mean {near}?"
        return MissingFileError(f"no folder or list {folder.resolve()}{meant} {takes}")
    number, there = 0, []
    if folder.is_dir():
        number = sum(is_image(extension(each.name)) for each in folder.iterdir())
        there = class_folders(folder)
    if number:
        how = "images/ and masks/" if "masks" in layout else "a folder for each class"
        return UserError(
            f"{folder.resolve()} has {number} images and no labels: give {how}, or a list"
            f" ({'path,mask' if 'masks' in layout else 'path,label'}). The folder above it may be"
            " meant; `trainkit predict` takes images without labels"
        )
    elif there and "masks" in layout:
        what = f": its folders are {some(there)}. Where these are classes, take recog_folder"
    else:
        what = ": leave it out, or give another --data"
    return UserError(f"{takes}, and {folder.resolve()} is none{what}")


def near_name(path: Path) -> Path | None:
    """What is beside `path`, which is not there, and has a similar name; None for nothing."""
    beside = sorted(path.parent.glob("*")) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, [each.name for each in beside], n=1)
    return path.parent / near[0] if near else None


def mask_folders(folder: Path, names: Sequence[str]) -> tuple[str, str, str] | None:
    """The first of the splits `names` that is there, its folder of images, and that of its masks.

    They are images/train and masks/train, or train/images and train/masks; for masks one may say
    annotations or labels as well. They are one folder where JSON files lie beside the images.

    Raises:
        MissingFileError: there are images without masks.
    """
    for name in names:
        for layout in ("{kind}/{name}", "{name}/{kind}"):
            images = layout.format(kind=IMAGES, name=name)
            if (folder / images).is_dir():
                return name, images, _masks_of(folder, layout, name)
        if (folder / name).is_dir() and _is_outlined(folder / name):
            return name, name, name
    return None


def has_mask_folders(folder: Path) -> bool:
    """Whether there is a folder of masks that are images."""
    splits = ["", *(name for names in SPLITS.values() for name in names)]
    return any(_holds_images(folder / split / kind) for split in splits for kind in MASKS)


def undivided_masks(folder: Path) -> tuple[str, str] | None:
    """The folders of images and masks to be divided: images/ and masks/, or those of train.

    Those of train are divided where there is no val.

    Returns:
        None where there are none.

    Raises:
        UserError: there is a split already.
    """
    found = {side: mask_folders(folder, SPLITS[side]) for side in SIDES}
    _require_undivided(folder, {side: split and split[1] for side, split in found.items()})
    if found["train"] is not None:
        return found["train"][1:]
    if not (folder / IMAGES).is_dir():
        return (".", ".") if _is_outlined(folder) else None
    return IMAGES, _masks_of(folder, "{kind}", "")


def _masks_of(folder: Path, layout: str, name: str) -> str:
    asked = [layout.format(kind=kind, name=name) for kind in MASKS]
    there = [each for each in asked if (folder / each).is_dir()]
    filled = (
        there
        if len(there) < 2
        else [each for each in there if _holds_images(folder / each, and_json=True)]
    )
    if len(filled) > 1:
        raise UserError(
            f"{folder} has {' and '.join(filled)}: nothing says which are the masks of"
            f" {layout.format(kind=IMAGES, name=name)}; rename or move the other one"
        )
    if not (filled or there):
        raise MissingFileError(
            f"{folder / layout.format(kind=IMAGES, name=name)} has images, and their masks are not"
            f" there: looked for {', '.join(asked)} in {folder.resolve()}"
        )
    chosen = (filled or there)[0]
    _require_no_yolo(folder, chosen)
    return chosen


def _require_no_yolo(folder: Path, labels: str) -> None:
    """Raise UserError where a folder of masks holds text files and no image, as YOLO's labels."""
    names = [name for listed in _files_below(folder / labels) for name in listed]
    texts = sorted(name for name in names if extension(name) == ".txt")
    if texts and not any(is_image(extension(name)) or extension(name) == ".json" for name in names):
        raise UserError(
            f"{folder / labels} holds text files such as {texts[0]}, as YOLO's boxes and polygons"
            " are written, which trainkit does not read: export the dataset as COCO or as masks,"
            " which the tool that wrote it, or one such as FiftyOne or Roboflow, does"
        )


def _require_undivided(folder: Path, splits: dict[str, str | None]) -> None:
    there = [name for name in splits.values() if name is not None]
    if splits["val"] is not None:
        raise UserError(
            f"{folder} is divided already, it has {' and '.join(there)}: leave --val-share and"
            " --fold out (of a run that was trained with one: --val-share None, --fold None), or"
            " give with --data a folder or a list that is not divided"
        )


def _first(folder: Path, names: Sequence[str]) -> str | None:
    return next((name for name in names if (folder / name).is_dir()), None)


def _folders(folder: Path) -> list[Path]:
    return [each for each in folder.iterdir() if each.is_dir() and not leftover(each.name)]


def _files_below(folder: Path) -> Iterator[list[str]]:
    """Names of the files in a folder and in each below it.

    Links are followed, but for those to a folder that they lie in.
    """
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(str(folder), frozenset())]
    while waiting:
        where, above = waiting.pop()
        listed = next(os.walk(where, followlinks=True), None)
        if listed is None or (here := identity(where)) in above:
            continue
        _, folders, names = listed
        yield names
        waiting += [(os.path.join(where, name), above | {here}) for name in reversed(folders)]


def _holds_images(folder: Path, and_json: bool = False) -> bool:
    return any(
        is_image(extension(name)) or (and_json and extension(name) == ".json")
        for names in _files_below(folder)
        for name in names
        if not leftover(name)
    )


def _is_outlined(folder: Path) -> bool:
    """Whether an image in or below a folder has a JSON file beside it, as LabelMe writes them."""
    for names in _files_below(folder):
        if any(is_image(extension(name)) for name in names):
            stems = {os.path.splitext(name)[0] for name in names if is_image(extension(name))}
            return any(f"{each}.json" in names for each in stems)
    return False
