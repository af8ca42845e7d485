"""Writes the data of a recipe once, before its transforms, into files that are fast to read."""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from trainkit.commands.arguments import read_settings_and_options
from trainkit.commands.dataset_check import untransformed
from trainkit.commands.pack_options import QUALITY, PackOptions
from trainkit.commands.recipe_file import build, load_recipe
from trainkit.commands.recipe_names import find_recipe
from trainkit.data.dataset_info import DatasetInfo, SizedDataset
from trainkit.data.datasets.pack_shards import Shard, ShardWriter, recorded, shards_of
from trainkit.data.datasets.packed_format import (
    INDEX,
    MANIFEST,
    PARTS,
    PLACE,
    PLAN,
    RECOGNITION,
    SEGMENTATION,
    Encoding,
    Manifest,
    PackedSplit,
    digest_of,
    read_manifest,
)
from trainkit.data.workers import Loader, choose_workers, worker_deaths_reported
from trainkit.display.terminal import Display
from trainkit.display.wording import counted
from trainkit.distributed.launcher import rank
from trainkit.engine.introduction import Introduction
from trainkit.errors import UserError
from trainkit.files import flush, replace_file, require_room
from trainkit.recipe import Recipe
from trainkit.storage.setting_values import plain
from trainkit.tasks.dense_regression import DenseRegression
from trainkit.tasks.multilabel import MultiLabel
from trainkit.tasks.multilabel_segmentation import MultiLabelSegmentation

LOCK = ".lock"
ABOUT = ("task", "classes", "raw_ids", "palette", "upright")  # of a source, in the manifest


class Source(NamedTuple):
    """What is packed: the data of a recipe without its transforms, and what its labels mean."""

    data: dict[str, SizedDataset]
    names: dict[str, str | None]
    task: str
    classes: Sequence[str] | int
    raw_ids: list[int] | None
    palette: list[list[int]] | None
    upright: bool


def run(recipe: str, words: list[str]) -> int:
    """Pack the data of a recipe, a file or the name of one; the exit code."""
    path = find_recipe(recipe)
    recipe_file = load_recipe(path)
    prog = f"trainkit pack {recipe}"
    settings, options = read_settings_and_options(recipe_file, "pack", prog, words)
    if rank() != 0:
        return 0  # it starts workers of its own
    if "pretrained" in settings:
        settings["pretrained"] = False  # the network is not used, so nothing is downloaded for it
    pack(build(recipe_file, settings), options, path.stem, settings)
    return 0


def pack(
    recipe: Recipe, options: PackOptions, name: str, settings: Mapping[str, Any] | None = None
) -> Manifest:
    """Write training and validation images of a recipe into `options.out`, and show what is there.

    What a command that was stopped has written is kept, file by file, and not written again.

    Args:
        recipe: whose data is packed.
        options: of the command.
        name: of the recipe.
        settings: of the recipe, which are recorded.

    Raises:
        UserError: the recipe's task has neither class ids nor masks, the folder holds something
            else, or an image is unusable.
        OSError: the folder cannot be written.
    """
    display = Display()
    Introduction(recipe, display.note).say()
    source = _source(recipe)
    encoding = Encoding(
        options.encoding,
        (options.quality or QUALITY) if options.encoding == "jpeg" else None,
        options.largest_side,
        options.short_side,
    )
    plan = {
        "recipe": name,
        "settings": {each: plain(value) for each, value in (settings or {}).items()},
        "task": source.task,
        "classes": source.classes,
        "num_images": {split: len(data) for split, data in source.data.items()},
        "encoding": asdict(encoding),
        "shard_images": options.shard_images,
        "on_bad_image": options.on_bad_image,
    }
    plan = json.loads(json.dumps(plan))  # as it is read again
    require_room(options.out)
    with _alone_in(options.out):
        manifest = _begun(options.out, plan)
        if manifest is None:
            root = None if settings is None else settings.get("data")
            splits = _write(source, encoding, recipe, options, display, root)
            about = {each: getattr(source, each) for each in ABOUT}
            manifest = Manifest(**about, encoding=encoding, splits=splits, recipe=name, plan=plan)
            replace_file(options.out / MANIFEST, manifest.content())
        else:
            display.note(f"{options.out} was packed by this command already")
        flush(options.out)
        (options.out / PLAN).unlink(missing_ok=True)
        shutil.rmtree(options.out / PARTS, ignore_errors=True)
    _show(manifest, options.out, display)
    return manifest


def _source(recipe: Recipe) -> Source:
    """The data to be packed. Raises UserError where it is not of one of the two tasks."""
    kind = type(recipe.task.given).__name__
    others = (MultiLabel, MultiLabelSegmentation, DenseRegression)
    if isinstance(recipe.task, others) or recipe.task.known_classes is None:
        raise UserError(
            f"pack is for recognition (an image and a class id) and segmentation (an image and a"
            f" mask), and the recipe's task is {kind}"
        )
    data, names = {}, {}
    for split, each in (("train", recipe.train_data), ("val", recipe.val_data)):
        if len(each) == 0:
            raise UserError(f"{split}_data is empty: it has no images")
        data[split], kept = untransformed(each)
        if kept is not None:
            raise UserError(
                f"{split}_data cannot be packed before its transform: {kept}. A dataset has its"
                " transform in an attribute `transform`, and can be read where that is None"
            )
        names[split] = DatasetInfo.of(each).split
    classes = recipe.task.known_classes
    dense, palette = recipe.task.is_dense, recipe.task.known_palette
    return Source(
        data,
        {"train": names["train"], "val": names["val"]},
        SEGMENTATION if dense else RECOGNITION,
        classes if isinstance(classes, int) else [str(each) for each in classes],
        _raw_ids(recipe) if dense else None,
        None if palette is None else np.asarray(palette).tolist(),
        recipe.upright,
    )


def _raw_ids(recipe: Recipe) -> list[int]:
    """The label in the original masks of each class."""
    own = recipe.task.known_raw_ids
    number = recipe.task.known_num_classes
    assert number is not None  # as there are classes
    return list(range(number)) if own is None else np.asarray(own).tolist()


def _begun(folder: Path, plan: dict[str, Any]) -> Manifest | None:
    """What is packed in a folder by this plan; None where it is to be packed, or on with it.

    Raises UserError where the folder holds something else.
    """
    there = sorted(path.name for path in folder.iterdir() if path.name != LOCK)
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        if manifest.plan == plan:
            return manifest
        raise UserError(_other(folder, manifest.plan, plan))
    if (folder / PLAN).is_file():
        try:
            before = json.loads((folder / PLAN).read_bytes())
        except ValueError as error:
            raise UserError(f"{folder / PLAN} is damaged: empty {folder}, and pack anew") from error
        if before != plan:
            raise UserError(_other(folder, before, plan))
    elif there:
        raise UserError(
            f"out is {folder}, which holds {', '.join(there[:3])} and is no packed folder: give"
            " another with --out"
        )
    (folder / PARTS).mkdir(exist_ok=True)
    replace_file(folder / PLAN, json.dumps(plan, indent=1).encode())
    return None


def _other(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The message where a folder was packed in another way."""
    flat = [{**plan, **plan.get("settings", {}), **plan["encoding"]} for plan in (before, now)]
    differing = [
        f"{name} was {flat[0].get(name)} and is {flat[1].get(name)}"
        for name in sorted(flat[0].keys() | flat[1].keys())
        if name not in ("settings", "encoding") and flat[0].get(name) != flat[1].get(name)
    ]
    return f"{folder} was packed otherwise: {'; '.join(differing)}. Give another folder with --out"


def _write(
    source: Source,
    encoding: Encoding,
    recipe: Recipe,
    options: PackOptions,
    display: Display,
    root: Any,
) -> dict[str, PackedSplit]:
    """Write what is missing of both splits, and the index of each.

    root: of the data, below which images have their names.
    """
    folder, splits = options.out, {}
    for split, data in source.data.items():
        shards = shards_of(split, len(data), options.shard_images)
        records = {shard: recorded(folder, shard) for shard in shards}
        missing = [shard for shard, record in records.items() if record is None]
        if len(missing) < len(shards):
            display.note(f"{split}: {len(shards) - len(missing)} of {len(shards)} files are there")
        writer = ShardWriter(
            folder, missing, data, source.task, source.classes, encoding,
            recipe.task.own_check, options.on_bad_image == "skip", root,
        )  # fmt: skip
        workers = min(choose_workers(options.workers, 1), max(0, len(missing) - 1))
        batches = Loader(writer, batch_size=1, num_workers=workers, collate_fn=list)
        with worker_deaths_reported():
            for _ in display.track(batches, len(missing), f"packing {split}, files"):
                pass
        splits[split] = _joined(folder, split, source.names[split], shards)
    return splits


def _joined(folder: Path, split: str, name: str | None, shards: Sequence[Shard]) -> PackedSplit:
    """What is there of a split, whose index is written.

    Raises UserError where no image is left.
    """
    records = [json.loads((folder / PARTS / f"{shard.file}").with_suffix(".json").read_bytes())
               for shard in shards]  # fmt: skip
    parts = [np.load((folder / PARTS / shard.file).with_suffix(".npy")) for shard in shards]
    index = np.concatenate([np.zeros(0, PLACE), *parts])
    left_out = [line for record in records for line in record.pop("left_out")]
    if not len(index):
        raise UserError(f"no image of {split} can be read, the first: {left_out[0]}")
    file = folder / INDEX.format(split)
    np.save(folder / f".{file.name}", index)  # ends as .npy does
    flush(folder / f".{file.name}")
    (folder / f".{file.name}").replace(file)
    about = {"file": file.name, "bytes": file.stat().st_size, "sha256": digest_of(file)}
    return PackedSplit(name, len(index), records, about, left_out)


@contextmanager
def _alone_in(folder: Path):
    """Context manager: no other process packs into this folder meanwhile.

    Raises UserError where one does.
    """
    lock = FileLock(folder / LOCK)
    with suppress(NotImplementedError):  # a file system without locks
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"another command packs into {folder}: wait for it, or give another --out"
            ) from error
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):
            (folder / LOCK).unlink(missing_ok=True)


def _show(manifest: Manifest, folder: Path, display: Display) -> None:
    for name, split in manifest.splits.items():
        size = sum(each["bytes"] for each in split.shards) / 2**20
        files = counted(len(split.shards), "file")
        display.note(f"{name}: {counted(split.num_images, 'image')} in {files}, {size:,.1f} MiB")
        for line in split.left_out:
            display.note(f"warning: {name}: left out: image {line}")
    if manifest.encoding.changed is not None:
        display.note(
            f"warning: images are not the originals, but {manifest.encoding.changed}: results on"
            " them are not those on the original images"
        )
    display.note(f"to train on it: the recipe's command with --data {folder}")
