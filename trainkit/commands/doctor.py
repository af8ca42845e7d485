"""Reads all data of a recipe once, before any GPU time is spent, and reports its faults.

Images and targets are checked as they are stored: a dataset's transform is left out where it is the
attribute `transform`, as in all of trainkit.data and torchvision. An error is what would stop a
training or an evaluation: a file that cannot be read, a mask of another size than its image, a
label outside the classes. A warning is what spoils one in silence; official splits have some of
that, too.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from trainkit.commands.arguments import read_settings_and_options
from trainkit.commands.dataset_check import (
    Examiner,
    equal_digests,
    median_and_extreme_sizes,
    smaller_size,
    suggested_size,
    suggested_weights,
)
from trainkit.commands.doctor_report import KINDS, show, some_of, warnings_of
from trainkit.commands.recipe_file import build, load_recipe
from trainkit.commands.recipe_names import find_recipe
from trainkit.commands.recognise import is_data, propose, refuse_run
from trainkit.data.dataset_info import SizedDataset
from trainkit.data.datasets.inventory import without_images
from trainkit.data.datasets.packed_format import is_packed, require_unchanged
from trainkit.data.reader import name_of
from trainkit.data.workers import Loader, choose_workers, worker_deaths_reported
from trainkit.display.terminal import Display
from trainkit.display.wording import counted
from trainkit.distributed.launcher import rank
from trainkit.engine.introduction import Introduction
from trainkit.engine.one_class import why_one_class
from trainkit.errors import UserError
from trainkit.files import require_room
from trainkit.recipe import Recipe
from trainkit.tasks.base import Task

NO_SETTINGS: Mapping[str, Any] = MappingProxyType({})
READ_AT_ONCE = 16  # images between two messages of a worker


def run(recipe: str, words: list[str]) -> int:
    """Look through the data of a recipe, a file or the name of one.

    the exit code: 2 where there are errors.
    """
    refuse_run(Path(recipe))
    command = None
    if is_data(recipe):
        recipe, words, command = propose(Path(recipe), words)
    path = find_recipe(recipe, or_folders=True)
    recipe_file = load_recipe(path)
    prog = f"trainkit doctor {recipe}"
    settings, options = read_settings_and_options(recipe_file, "doctor", prog, words)
    if rank() != 0:
        return 0  # reading takes no launcher: one process does it all
    if "pretrained" in settings:
        settings["pretrained"] = False  # the network is not used, so nothing is downloaded for it
    if isinstance(data := settings.get("data"), (str, Path)) and is_packed(data):
        require_unchanged(data)
    out = options.out or Path("runs") / f"{path.stem}-doctor"
    report = examine(build(recipe_file, settings), options.workers, out, settings)
    if report["num_errors"]:
        return 2
    if command is not None:
        words = [command, smaller_size(report["train"]["sizes"], settings)]
        Display().note(f"to train on it: {' '.join(filter(None, words))}")
    return 0


def examine(
    recipe: Recipe, workers: int | None, out: Path, settings: Mapping[str, Any] = NO_SETTINGS
) -> dict[str, Any]:
    """Read both splits, show what was found, and write it to `out`/doctor.json.

    Args:
        recipe: its data are read, its task says what a target may be.
        workers: reading processes, 0 for none.
        out: the folder that doctor.json is written into.
        settings: of the recipe, such as class_weights and size, for which values are proposed.

    Returns:
        "num_errors", "refusal" (why a training refuses all the data; None: it does not), "warnings"
        (lines), "in_both" (pairs of names), "class_weights" (what balances the classes of the
        training images; None: nothing needs it), and for "train" and "val" each:
        num_images; as_stored (without transforms) and kept_transform (why not); faults, by
        kind, of index, name and what; warned, the same of images at which a decoder warned;
        sixteen_bit (num_images that have 16 bits a channel, highest value); sizes (width, height);
        classes of id, name, images and pixels; ignored_pixels; unlabelled (names of images in
        which nothing counts); repeated (names of images that are the same). Images at fault are in
        no histogram.

    Raises:
        UserError: there are no training images, or `out` cannot be written.
    """
    require_room(out)
    display = Display()
    if len(recipe.train_data) == 0:
        raise UserError("train_data is empty: it has no images")
    introduction = Introduction(recipe, display.note)
    introduction.say(with_warnings=False)
    splits, digests = {}, {}
    for split, data in (("train", recipe.train_data), ("val", recipe.val_data)):
        splits[split], digests[split] = _look_through(
            data, split, recipe.task, choose_workers(workers, 1), display
        )
    in_both = _in_both(recipe, digests)
    errors = sum(len(faults) for report in splits.values() for faults in report["faults"].values())
    refusal = why_one_class(recipe.train_data)
    errors += refusal is not None
    warnings = introduction.data_warnings()
    for split, data in (("train", recipe.train_data), ("val", recipe.val_data)):
        warnings += warnings_of(splits[split], split, reported=bool(without_images(data)))
    if in_both:
        warnings.append(
            f"{counted(len(in_both), 'image')} in both train and val:"
            f" {some_of([b for _, b in in_both])}"
        )
    unrepeatable = introduction.unrepeatable(0, choose_workers(workers, 1), in_process=True)
    if unrepeatable:
        warnings.append(unrepeatable)
    weights, hint = suggested_weights(splits["train"]["classes"], "class_weights" in settings)
    found = {"warnings": warnings, "in_both": in_both, "class_weights": weights}
    found["refusal"] = refusal
    report = {"num_errors": errors, **found, **splits}
    (out / "doctor.json").write_text(json.dumps(report, indent=1))
    show(report, display)
    for line in (hint, suggested_size(splits["train"]["sizes"], settings)):
        if line:
            display.note(line)
    display.note(
        f"{counted(errors, 'error')}, {counted(len(warnings), 'warning')};"
        f" all of it in {out / 'doctor.json'}"
    )
    return report


def _look_through(
    data: SizedDataset, split: str, task: Task, workers: int, display: Display
) -> tuple[dict[str, Any], np.ndarray]:
    """A split's report, and the digest of each image: uint64 (num_images,), 0 for none."""
    examiner = Examiner(data, task)
    data = examiner.data
    sizes = np.zeros((len(data), 2), np.int64)
    digests = np.zeros(len(data), np.uint64)
    pixels: Counter[int] = Counter()
    images: Counter[int] = Counter()
    ignored, unlabelled = 0, []
    faults: dict[str, list] = {kind: [] for kind in KINDS}
    warned, highest = [], []
    batches = Loader(examiner, batch_size=READ_AT_ONCE, num_workers=workers, collate_fn=list)
    with worker_deaths_reported():
        for batch in display.track(batches, len(data), f"reading {split}"):
            for image_report in batch:
                digests[image_report.index] = image_report.digest or 0
                sizes[image_report.index] = image_report.size or 0
                if image_report.notes:
                    what = "; ".join(dict.fromkeys(image_report.notes))
                    warned.append(
                        {
                            "index": image_report.index,
                            "name": name_of(data, image_report.index),
                            "what": what,
                        }
                    )
                if image_report.highest is not None:
                    highest.append(image_report.highest)
                if image_report.fault is not None:
                    kind, words = image_report.fault
                    faults[kind].append(
                        {
                            "index": image_report.index,
                            "name": name_of(data, image_report.index),
                            "what": words,
                        }
                    )
                elif image_report.counts is not None:
                    pixels.update(image_report.counts)
                    images.update(image_report.counts.keys())
                    ignored += image_report.ignored
                    if not image_report.counts:
                        unlabelled.append(name_of(data, image_report.index))
    report = {
        "num_images": len(data),
        "as_stored": examiner.as_stored,
        "kept_transform": examiner.kept_transform,
        "faults": faults,
        "warned": warned,
        "sixteen_bit": {"num_images": len(highest), "highest": max(highest, default=None)},
        "sizes": median_and_extreme_sizes(sizes),
        "classes": _histogram(task, pixels, images),
        "ignored_pixels": ignored,
        "unlabelled": unlabelled,
        "repeated": [[name_of(data, index) for index in same] for same in equal_digests(digests)],
    }
    return report, digests


def _histogram(task: Task, pixels: Counter, images: Counter) -> list[dict[str, Any]]:
    """Every class with the images it is in and its pixels (None where an image has one class)."""
    if not images:
        return []
    names = task.known_classes
    names = list(names) if isinstance(names, Sequence) else []
    dense = any(pixels.values())
    number = task.known_num_classes
    return [
        {
            "id": label,
            "name": str(names[label] if label < len(names) else label),
            "images": images[label],
            "pixels": pixels[label] if dense else None,
        }
        for label in range(max(images) + 1 if number is None else number)
    ]


def _in_both(recipe: Recipe, digests: dict[str, np.ndarray]) -> list[list[str]]:
    """Names of a training image and of the validation image that is the same, for each such one."""
    common, train, val = np.intersect1d(digests["train"], digests["val"], return_indices=True)
    pairs = sorted(
        (int(index), int(val_index))
        for digest, index, val_index in zip(common, train, val)
        if digest
    )
    return [
        [name_of(recipe.train_data, index), name_of(recipe.val_data, val_index)]
        for index, val_index in pairs
    ]
