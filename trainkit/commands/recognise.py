"""Finds out what a folder or a list holds, and the command that trains on it.

It is what `trainkit doctor FOLDER` shows.
"""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainkit.commands.mask_labels import UNKNOWN, labels_in, labels_of
from trainkit.commands.recipe_names import known_recipes
from trainkit.data.datasets.class_mask_source import class_masks_in_words
from trainkit.data.datasets.coco_style import categories_of, coco_files
from trainkit.data.datasets.divided import SPLITS
from trainkit.data.datasets.inventory import some
from trainkit.data.datasets.label_sets import several_labels, share_images
from trainkit.data.datasets.labelme import BACKGROUND
from trainkit.data.datasets.layouts import (
    IMAGES,
    class_folders,
    folders_in,
    has_mask_folders,
    mask_folders,
    undivided_masks,
)
from trainkit.data.datasets.listing import image_files
from trainkit.data.datasets.lists import MASK, ImageList, is_list, list_in, read_list
from trainkit.data.datasets.packed_format import SEGMENTATION, is_packed, read_manifest
from trainkit.data.datasets.split_files import all_parquet_files
from trainkit.data.datasets.tables_to_open import named_splits
from trainkit.data.datasets.value_maps import holds_maps
from trainkit.display.terminal import Display
from trainkit.distributed.launcher import rank
from trainkit.errors import MissingFileError, UserError
from trainkit.storage.recorded import is_run, read_recorded

SHARE = {"--val-share": "0.2"}
CLASSES = ("--classes", "--mask-values")
GROUPS = ("patient", "patient_id", "subject", "subject_id", "scene", "group", "case", "site")
# networks that need no weights from elsewhere: reading the data takes none
LRASPP = ["--model", "lraspp", "--backbone", "small"]
SMALL = dict.fromkeys(("recog_folder", "recog_multilabel"), ["--model", "small"])
SMALL |= dict.fromkeys(("depth_folder", "seg_folder", "seg_multilabel"), LRASPP)


@dataclass(frozen=True)
class Layout:
    """What was found in a folder or a list.

    Attributes:
        settings: those of the recipe that it takes.
        hints: a line each.
    """

    what: str
    recipe: str
    settings: dict[str, str]
    hints: list[str] = field(default_factory=list)

    def words(self, source: Path, given: Sequence[str]) -> list[str]:
        """The settings as words of a command line, before those that are `given`, which win."""
        left = {flag: value for flag, value in self.settings.items() if flag not in given}
        if "--fold" in given:
            left.pop("--val-share", None)
        if "--mask-colors" in given:
            left.pop("--mask-values", None)
            left.pop("--classes", None)
        return ["--data", str(source), *(word for pair in left.items() for word in pair), *given]


def refuse_run(named: Path) -> None:
    """Raise UserError for a run, whose lists and pictures look like data."""
    if not is_run(named):
        return
    settings = read_recorded(named)["settings"]
    data = None if settings.get("sample") is True else settings.get("data")
    given = "its data" if data is None else f"its data, {data}"
    raise UserError(
        f"{named} is a run: give {given}, or a recipe; `trainkit report {named}` shows a run"
    )


def is_data(word: str) -> bool:
    """Whether the first word of a command is a folder or a list, and no recipe."""
    path = Path(word)
    return path.is_dir() and word not in known_recipes() or (is_list(path) and path.is_file())


def propose(source: Path, words: list[str]) -> tuple[str, list[str], str]:
    """Show what a folder or a list holds.

    Returns:
        The recipe's name, the words by which it examines the data, and the command that trains on
        it, which is shown where no fault stops it.

    Raises:
        UserError: it is no layout, or leaves open what the classes are.
    """
    layout = recognise(source)
    own = layout.words(source, words)
    command = shlex.join(["trainkit", layout.recipe, *_without_options(own)])
    if rank() == 0:
        for line in (f"{source}: {layout.what}", *layout.hints):
            Display().note(line)
    if UNKNOWN in own:
        raise UserError(
            "the masks do not say which classes there are: give --classes, and --mask-colors FILE"
            f" where colours stand for them, to examine the data; it is trained on by {command}"
        )
    # what is said on the command line goes before what is proposed
    small = [] if {"--model", "--backbone"} & set(words) else SMALL[layout.recipe]
    return layout.recipe, [*small, *own], command


def _without_options(words: Sequence[str]) -> list[str]:
    """The words without the options of doctor itself."""
    options = [place for place, word in enumerate(words) if word in ("--workers", "--out")]
    left_out = {*options, *(place + 1 for place in options)}
    return [word for place, word in enumerate(words) if place not in left_out]


def recognise(source: Path) -> Layout:
    """The layout of a folder or a list.

    Raises:
        MissingFileError: nothing is there.
        UserError: it is none of those that trainkit reads; it says what was found.
    """
    if not source.exists():
        raise MissingFileError(f"no folder or list {source.resolve()}")
    if is_list(source):
        return _list(source, read_list(source, keep_lists=True))
    annotations = coco_files(source)
    if annotations and not has_mask_folders(source):
        return _coco(annotations)
    if is_packed(source):
        return _packed(source)
    if not source.is_dir():
        raise UserError(f"{source} is neither a folder nor a list (.csv, .jsonl)")
    for look in (_maps, _class_masks, _masks, _classes, _lists, _tables):
        found = look(source)
        if found is not None:
            return found
    raise UserError(f"{source.resolve()} is no layout that trainkit reads: {_instead(source)}")


def _coco(files: dict[str, Path]) -> Layout:
    names = list(
        dict.fromkeys(name for each in files.values() for name in categories_of(each).values())
    )
    names = [name for name in names if name not in BACKGROUND]
    what = f"images with objects of {len(names)} categories in {some(map(str, files.values()))}"
    settings = {} if "val" in files else SHARE
    return Layout(what, "seg_folder", {"--classes": ",".join(["background", *names])} | settings)


def _packed(folder: Path) -> Layout:
    manifest = read_manifest(folder)
    what = f"what trainkit pack wrote of the data of {manifest.recipe}, for {manifest.task}"
    hints = [f"its recipe takes it too: trainkit {manifest.recipe} --data {folder}"]
    if manifest.encoding.changed is not None:
        hints.append(f"images are not the originals, but {manifest.encoding.changed}")
    recipe = "seg_folder" if manifest.task == SEGMENTATION else "recog_folder"
    return Layout(what, recipe, {}, hints)


def _maps(folder: Path) -> Layout | None:
    has_val = holds_maps(folder)
    if has_val is None:
        return None
    what = f"images with maps of numbers, {'divided' if has_val else 'not divided'}"
    hint = "--scale says what one step of the maps is worth, such as 0.001 of millimetres"
    return Layout(what, "depth_folder", {} if has_val else SHARE, [hint])


def _class_masks(folder: Path) -> Layout | None:
    found = class_masks_in_words(folder)
    return found and Layout(found[0], "seg_multilabel", {} if found[1] else SHARE)


def _masks(folder: Path) -> Layout | None:
    train = mask_folders(folder, SPLITS["train"])
    val = mask_folders(folder, SPLITS["val"])
    if train is not None and val is not None:
        _, images, masks = train
        what = f"images with masks, divided: {images}/ with {masks}/, {val[1]}/ with {val[2]}/"
        settings = {}
    else:
        pair = undivided_masks(folder) if val is None else None
        if pair is None:
            return None
        images, masks = pair
        what, settings = f"images with masks, not divided: {images}/ with {masks}/", SHARE
    ids, hints = labels_in(folder / masks)
    if settings:
        hints = [*hints, *_folders_hint(folder / images, 0)]
    return Layout(what, "seg_folder", ids | settings, hints)


def _classes(folder: Path) -> Layout | None:
    there = class_folders(folder)
    sides = {side: [name for name in names if name in there] for side, names in SPLITS.items()}
    if sides["train"]:
        root = folder / sides["train"][0]
        classes = class_folders(root)
        if not classes:
            return None
        divided = f"in {sides['train'][0]}/ alone"
        if sides["val"]:
            divided = f"divided: {sides['train'][0]}/ and {sides['val'][0]}/"
            if not share_images(root):  # as `ClassFolder`: an empty one is a class, with a warning
                classes = folders_in(root)
        what = f"folders of {len(classes)} classes ({some(classes)}), {divided}"
    elif sides["val"] or len(there) < 2 or IMAGES in there:
        return None
    else:
        root, what = folder, f"folders of {len(there)} classes ({some(there)}), not divided"
    if share_images(root):
        shared = f"{what}, which share images"
        return Layout(shared, "recog_multilabel", {} if sides["val"] else SHARE)
    if sides["val"]:
        return Layout(what, "recog_folder", {})
    hints = _folders_hint(root, 1) or _other_level_hint(root)
    return Layout(what, "recog_folder", SHARE, hints)


def _lists(folder: Path) -> Layout | None:
    found = [list_in(folder, name) for names in SPLITS.values() for name in names]
    lists = [file for file in found if file is not None]
    if not lists:
        return None
    names = some(file.name for file in lists)
    if len(lists) == 1:
        raise UserError(
            f"{folder} has {names} alone: give it by itself, trainkit doctor {lists[0]}"
        )
    layout = _list(lists[0], read_list(lists[0], keep_lists=True))
    settings = {name: value for name, value in layout.settings.items() if name in CLASSES}
    hints = layout.hints[: len(settings) > 0]
    return Layout(f"lists of images: {names}", layout.recipe, settings, hints)


def _list(file: Path, rows: ImageList) -> Layout:
    columns = {name.strip().lower(): name for name in rows.columns}
    masks = any(name in columns for name in MASK if "label" not in name)
    hints: list[str] = []
    settings = SHARE if rows.sides() is None else {}
    groups = [columns[name] for name in GROUPS if name in columns]
    if settings and groups:
        settings = settings | {"--group-by": groups[0]}
        hints.append(f"rows of one {groups[0]} are kept on one side by --group-by {groups[0]}")
    what = f"a list of {len(rows.lines):,} images with {'masks' if masks else 'labels'}"
    several = None if masks else several_labels(rows)
    if several is not None:
        what = f"a list of {len(rows.lines):,} rows, {several}"
        return Layout(what, "recog_multilabel", settings, hints)
    if not masks:
        return Layout(what, "recog_folder", settings, hints)
    known = next(columns[name] for name in MASK if name in columns)
    ids, more = labels_of([file.parent / mask for mask in rows.columns[known]])
    return Layout(what, "seg_folder", ids | settings, [*more, *hints])


def _tables(folder: Path) -> Layout | None:
    named = named_splits(folder)
    hint = "for a column of masks instead of class ids: trainkit seg_folder --classes ..."
    if len(named) > 1:
        return Layout(f"parquet files of {' and '.join(named)}", "recog_folder", {}, [hint])
    if not named and not all_parquet_files(folder).files:
        return None
    what = f"parquet files of {named[0] if named else 'one split'}, not divided"
    return Layout(what, "recog_folder", SHARE, [hint])


def _folders_hint(root: Path, depth: int) -> list[str]:
    """A line where all images lie in folders below `depth` others, which may be groups."""
    depths = {name.count(os.sep) for name in image_files(root)}
    if not depths or min(depths) <= depth:
        return []
    return [
        f"images lie in folders below {root}: where those of one folder belong together, as of a"
        " patient or a scene, add --group-by folder"
    ]


def _other_level_hint(root: Path) -> list[str]:
    """Lines where a folder beside those of images holds folders, which may be a dataset itself."""
    flat = {name.split(os.sep)[0] for name in image_files(root) if name.count(os.sep) == 1}
    return [
        f"{root / name} holds folders and no image itself: where they are classes or images and"
        f" masks, trainkit doctor {root / name}"
        for name in class_folders(root)
        if name not in flat and len(class_folders(root / name)) > 1
    ]


def _instead(folder: Path) -> str:
    names = image_files(folder)
    if (folder / "labels").is_dir() and any((folder / "labels").rglob("*.txt")):
        return "labels/ holds text files, as boxes of YOLO; trainkit takes classes and masks"
    if names:
        return (
            f"{len(names)} images lie in it without classes or masks, such as {names[0]}. Put those"
            " of each class into a folder, or write a list (path,label)"
        )
    entries = sorted(os.listdir(folder))
    return f"no images in it, but {some(entries)}" if entries else "it is empty"
