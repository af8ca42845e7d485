"""trainkit predict: predicts images in files and folders, one after the other.

None is held longer than it takes.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from trainkit.commands.prediction_writers import Writer, keep_tables, make_writer, tables_in
from trainkit.commands.trained import load_trained, read_model
from trainkit.data.datasets.inventory import images_of
from trainkit.data.workers import Loader, choose_workers, worker_deaths_reported
from trainkit.display.terminal import Display
from trainkit.display.wording import counted
from trainkit.distributed.accelerator import start_accelerator, use_whole_host
from trainkit.errors import UserError
from trainkit.files import reason, require_room
from trainkit.options import PredictOptions
from trainkit.prediction.crops import cropped
from trainkit.prediction.images import Picture, Pictures, find_images
from trainkit.prediction.model_info import ModelInfo, scored
from trainkit.prediction.results import in_words
from trainkit.recipe import Recipe
from trainkit.storage.lookup import read_thresholds, run_of
from trainkit.tasks.multilabel import THRESHOLD, MultiLabel
from trainkit.tasks.multilabel_segmentation import MultiLabelSegmentation

FAULTS = "unreadable.txt"
SHOWN = 10  # unreadable files named on the screen
CLASSES_SHOWN = 3  # of an image, on the screen
THRESHOLDS_SHOWN = 8  # of classes, by name


def run(first: str, words: list[str]) -> int:
    """Predict the images that the words name; the exit code."""
    model, weights, asked = read_model("predict", first, words)
    use_whole_host()
    predict(model, weights, asked)
    return 0


def predict(model: ModelInfo | Recipe, weights: Path, asked: PredictOptions) -> None:
    """Write predictions of the images at `asked.paths` into `asked.out`, and show a line for each.

    In the order of the files, each read as validation images are. Tables get their names at the
    end: after an interrupt those of an earlier call stay, and *.partial has the lines so far.

    Args:
        model: what was trained.
        weights: a checkpoint folder, or a file of weights.
        asked: options of the command.

    Raises:
        UserError, MissingFileError: before anything is read where it cannot work.
        OSError: the predictions cannot be written.
        UserError: at the end, with the names of files that could not be read.
    """
    info = _as_asked(ModelInfo.of(model) if isinstance(model, Recipe) else model, asked)
    info = _with_thresholds(info, weights, asked)
    found, inventory = find_images(asked.paths, asked.out)
    accelerator = _one_process()
    display = Display()
    display.note(f"{images_of(len(found), None)} ({inventory.formats}){inventory.left_out_words}")
    for line in inventory.warnings:
        display.note(f"warning: {line}")
    load_trained(info, weights, asked, display)
    pictures = Pictures(
        list(found), list(found.values()), info.transform, asked.overlay, info.upright, info.pixels
    )
    loader = Loader(
        pictures,
        info.batch_size,
        num_workers=min(choose_workers(asked.workers, 1), len(pictures)),
        collate_fn=list,
    )
    require_room(asked.out)
    if earlier := tables_in(asked.out):
        display.note(
            f"{asked.out} has predictions of an earlier call: {' and '.join(earlier)} will be"
            " replaced, and images and masks in its folders stay unless they are written again"
        )
    with _write_errors_reported(asked.out):
        writer = make_writer(info, asked)
    faults: list[str] = []
    with worker_deaths_reported(), _closed_at_the_end(writer, asked.out):
        if writer.one_file_each:
            _no_two_alike(found)
        batches = _without_faults(display.track(loader, len(pictures), "images"), faults)
        blocks = None if asked.probabilities else info.blocks(accelerator)
        results = scored(batches, info.infer(accelerator), info, blocks, accelerator.device)
        for alike, outputs in results:
            with _write_errors_reported(asked.out):
                rows = writer.add(alike, outputs)
            for picture, row in zip(alike, rows):
                display.note(f"{picture.file}  {_shown(row)}")
    with _write_errors_reported(asked.out):
        keep_tables(asked.out, writer.written)
    _list_faults(faults, asked.out)
    if isinstance(info.task, MultiLabel):
        display.note(_thresholds_in_words(info, asked))
    display.note(
        f"{asked.out}: predictions of {counted(len(pictures) - len(faults), 'image')}:"
        f" {', '.join(writer.written)}"
    )
    if faults:
        raise UserError(_unreadable(faults, asked.out))


def _as_asked(info: ModelInfo, asked: PredictOptions) -> ModelInfo:
    """With the windows, scales, flips and crops that are asked for, in place of the evaluation's.

    Raises UserError where the task has none, or images are cut, of which there are no whole masks.
    """
    inference = asked.inference(info.inference)
    if inference is not info.inference and not info.task.is_dense:
        raise UserError(
            f"task {type(info.task.given).__name__} has no scores to put together: windows, scales"
            " and flips are for segmentation"
        )
    if asked.as_stored and not info.task.is_dense:
        raise UserError("--as-stored is for segmentation: leave it out")
    transform: Any = None if asked.as_stored else info.transform
    if not getattr(transform, "whole", True):
        raise UserError(
            f"val_data gives a {transform.label}, and segmentation masks are of whole images: "
            "predict with --as-stored"
        )
    if asked.crops is not None:
        transform = cropped(transform, asked.crops)
    return replace(info, inference=inference, transform=transform)


def _with_thresholds(info: ModelInfo, weights: Path, asked: PredictOptions) -> ModelInfo:
    """With the threshold that is asked for, else those found on the validation images.

    Raises UserError where one is asked for, and the task has none.
    """
    is_asked = asked.threshold is not None
    if not isinstance(info.task, (MultiLabel, MultiLabelSegmentation)):
        if is_asked:
            raise UserError(
                f"--threshold is of the task MultiLabel or MultiLabelSegmentation, any number of"
                f" classes per image or pixel, and this is {type(info.task.given).__name__}: leave"
                " it out"
            )
        return info
    if asked.threshold is not None and not 0 <= asked.threshold <= 1:
        raise UserError(f"threshold is {asked.threshold}; it must be in [0, 1] (--threshold)")
    if is_asked:
        return replace(info, thresholds=[asked.threshold] * info.task.num_classes)
    if isinstance(info.task, MultiLabelSegmentation):
        return info
    return replace(info, thresholds=read_thresholds(info.task, run_of(weights), weights))


def _thresholds_in_words(info: ModelInfo, asked: PredictOptions) -> str:
    """Above which probability an image is said to be of a class, and where that is from."""
    found = info.thresholds
    if asked.threshold is not None:
        return f"threshold of each class: {asked.threshold:g} (--threshold)"
    if found is None:
        return (
            f"threshold of each class: {THRESHOLD:g} (no evaluation of these weights is recorded)"
        )
    values = [THRESHOLD if each is None else each for each in found]
    where = "the best F1 of each on the validation images; --threshold sets one for all"
    if len(values) > THRESHOLDS_SHOWN:
        least, largest = min(values), max(values)
        return f"thresholds of {len(values)} classes: {least:.2f} to {largest:.2f} ({where})"
    named = ", ".join(f"{name} {each:.2f}" for name, each in zip(info.classes, values))
    return f"thresholds: {named} ({where})"


def _one_process() -> Accelerator:
    """The accelerator of this process. Raises UserError where there are several."""
    accelerator = start_accelerator()
    if accelerator.num_processes > 1:
        raise UserError(
            f"{accelerator.num_processes} processes were started, and predict takes one: start it"
            " without a launcher, or one for each part of the images"
        )
    return accelerator


def _without_faults(
    batches: Iterable[Sequence[Picture]], faults: list[str]
) -> Iterator[Sequence[Picture]]:
    """The batches; a line about each file that could not be read goes to `faults`."""
    for batch in batches:
        faults += [picture.fault for picture in batch if picture.fault]
        yield batch


def _shown(row: dict[str, Any]) -> str:
    """What was found in an image, in a line."""
    if row.get("labels") == []:
        return "no class above its threshold"
    classes = row.get("top", row.get("labels", row.get("classes")))
    if classes == []:
        return "of no class"
    if classes is not None:
        return in_words(classes, CLASSES_SHOWN)
    if "values" in row:
        return f"{row['least']:.4g} to {row['largest']:.4g}, mean {row['mean']:.4g}"
    return ", ".join(f"{name} {value}" for name, value in row.items())


def _no_two_alike(found: dict[Path, Path]) -> None:
    """Raise UserError where two images would be written to one file."""
    taken: dict[Path, Path] = {}
    for file, name in found.items():
        other = taken.setdefault(name.with_suffix(""), file)
        if other is not file:
            raise UserError(
                f"{other} and {file} would both be written as {name.with_suffix('.png')}: rename"
                " one, or predict them into two folders"
            )


def _list_faults(faults: list[str], out: Path) -> None:
    """Write `unreadable.txt`, and remove one of an earlier call."""
    with _write_errors_reported(out):
        (out / FAULTS).unlink(missing_ok=True)
        if faults:
            lines = "".join(f"{' '.join(fault.split())}\n" for fault in faults)
            (out / FAULTS).write_text(lines, encoding="utf-8", errors="backslashreplace")


def _unreadable(faults: list[str], out: Path) -> str:
    """The message about unreadable files."""
    more = f"\nand {len(faults) - SHOWN} more in {out / FAULTS}" if len(faults) > SHOWN else ""
    lines = "\n".join(faults[:SHOWN])
    return f"{len(faults)} of the files could not be read, the rest is done:\n{lines}{more}"


@contextmanager
def _closed_at_the_end(writer: Writer, out: Path) -> Iterator[None]:
    """Close the writer, which writes the last lines."""
    try:
        yield
    finally:
        with _write_errors_reported(out):
            writer.close()


@contextmanager
def _write_errors_reported(out: Path) -> Iterator[None]:
    """Raise OSError that names the folder where it cannot be written."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"predictions cannot be written to {out}: {reason(error)}; choose another folder with"
            " --out"
        ) from error
