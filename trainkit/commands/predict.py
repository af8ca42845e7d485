"""Predictions of images in files and folders, one after the other.

None is held longer than it takes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import tv_tensors

from trainkit.commands.prediction_writers import Picture, Writer, make_writer
from trainkit.commands.trained import read_trained
from trainkit.data.dataset_info import DatasetInfo
from trainkit.data.datasets.folder import FileList
from trainkit.data.datasets.inventory import Inventory, images_of
from trainkit.data.datasets.listing import list_images
from trainkit.data.file_names import extension
from trainkit.data.image_io import read_image
from trainkit.data.reader import UNUSABLE
from trainkit.data.to_device import ToDevice
from trainkit.data.workers import Loader, choose_workers, worker_deaths_told
from trainkit.display.terminal import Display
from trainkit.distributed.accelerator import start_accelerator
from trainkit.distributed.fsdp import prepare
from trainkit.engine.sliding_window import SlidingWindowInferer
from trainkit.engine.task_module import TaskModule, set_step, uncompiled
from trainkit.errors import MissingFileError, UserError, is_shortage, shortage_told
from trainkit.files import reason, require_room
from trainkit.losses.functional import check_num_outputs
from trainkit.models.outputs import main_logits, refusals_told, run_padded, size_divisor
from trainkit.options import PredictOptions
from trainkit.recipe import Recipe
from trainkit.storage.lookup import COUNTED, read_precise_bn, run_of, trained_steps
from trainkit.storage.weights import take_weights

FAULTS = "unreadable.txt"
SHOWN = 10  # unreadable files named on the screen


def run(first: str, words: list[str]) -> int:
    """Predict the images that the words name; the exit code."""
    trained, asked = read_trained("predict", first, words)
    predict(trained.build(), trained.weights, asked)
    return 0


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
    ):
        # As bytes in one array each: workers share them, and a million names are no million
        # objects.
        self.files, self.names = (
            FileList(Path(), [str(path) for path in paths]) for paths in (files, names)
        )
        self.transform, self.original, self.upright = transform, original, upright

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Picture:
        file, name = self.files[index], self.names[index]
        try:
            image = read_image(file, upright=self.upright)
            size, original = (
                tuple(image.shape[-2:]),
                image.as_subclass(Tensor) if self.original else None,
            )
            image = image if self.transform is None else self.transform(image)
        except UNUSABLE as error:
            if is_shortage(error):
                raise
            return Picture(
                file, name, fault=str(error) if str(file) in str(error) else f"{file}: {error}"
            )
        return Picture(file, name, image.as_subclass(Tensor), size, original)


def find_images(paths: Iterable[Path], out: Path) -> tuple[dict[Path, Path], Inventory]:
    """The images that `paths` are or hold, but for those in `out`.

    File -> name of what is written about it.

    In the order given, sorted within a folder, each once; and what they are and what was left out
    of the folders. Raises MissingFileError for a path that is not there and for folders without
    images, ValueError for no path.
    """
    found: dict[Path, Path] = {}
    inventory = Inventory()
    own = out.resolve()  # of an earlier call, where it lies in one of the folders
    for path in paths:
        if path.is_dir():
            names, here = list_images(path)
            there = {path / name: Path(name) for name in names}
            inside = {
                file: name for file, name in there.items() if not file.resolve().is_relative_to(own)
            }
            if there and not inside:
                raise UserError(
                    f"out is {out}, which holds all images of {path}, and what lies there is taken"
                    " for predictions: choose another folder with --out"
                )
            if not inside:
                raise MissingFileError(f"no images in {path}{here.left_out_words}")
            if own.is_dir() and own.is_relative_to(path.resolve()):
                here.left_out -= list_images(own)[1].left_out
            inventory.left_out += here.left_out
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


def transform_of(data: Any) -> Callable[[Any], Any] | None:
    """How validation data treats an image after it is read.

    Its attribute `transform`, which takes an image alone.

    Raises UserError where it has none, or one that does not.
    """
    info = DatasetInfo.of(data)
    if info.transformed is None:
        raise UserError(
            f"val_data is of type {type(info.innermost).__name__}, without an attribute"
            " `transform`: give it one, a function from an image (uint8 (3, H, W)) to what the"
            " model is evaluated on, so that other images can be read alike"
        )
    transform = info.transform
    if transform is not None:
        try:
            transform(tv_tensors.Image(torch.zeros(3, 64, 64, dtype=torch.uint8)))
        except TypeError as error:
            raise UserError(
                f"val_data's transform does not take an image alone ({error}): torchvision's v2"
                " transforms do, with a mask beside it and without"
            ) from error
    return transform


def predict(recipe: Recipe, weights: Path, asked: PredictOptions) -> None:
    """Write predictions of the images at `asked.paths` into `asked.out`.

    weights: a checkpoint folder, or a file of weights. In the order of the files, each read as
    validation images are. Raises UserError and MissingFileError before anything is read where it
    cannot work, OSError where the predictions cannot be written, and at the end a UserError that
    names the files that could not be read.
    """
    transform: Any = transform_of(recipe.val_data)
    found, inventory = find_images(asked.paths, asked.out)
    if not getattr(transform, "whole", True):
        raise UserError(
            f"val_data gives a {transform.label}, and segmentation masks are of whole images: "
            "predict with --eval-crop None"
        )
    accelerator = start_accelerator()
    if accelerator.num_processes > 1:
        raise UserError(
            f"{accelerator.num_processes} processes were started, and predict takes one: start it"
            " without a launcher, or one for each part of the images"
        )
    display = Display()
    display.note(f"{images_of(len(found), None)} ({inventory.formats}){inventory.left_out_words}")
    for line in inventory.warnings:
        display.note(f"warning: {line}")
    for line in take_weights(recipe.model, weights, asked.weights_key, asked.partial):
        display.note(line)
    if number := read_precise_bn(run_of(weights), weights):
        display.note(COUNTED.format(number))
    set_step(recipe.task, recipe.model, trained_steps(recipe.task, run_of(weights), weights))
    to_device = ToDevice(accelerator.device, recipe.mean, recipe.std)
    infer = _inference_of(recipe, accelerator, to_device.black)
    pictures = Pictures(list(found), list(found.values()), transform, asked.overlay, recipe.upright)
    loader = Loader(
        pictures,
        recipe.eval_batch_size,
        num_workers=min(choose_workers(asked.workers, 1), len(pictures)),
        collate_fn=list,
    )
    require_room(asked.out)
    with _told(asked.out):
        writer = make_writer(recipe.task, asked.out, asked.top_k, asked.overlay)
    if writer.one_file_each:
        _no_two_alike(found)
    with worker_deaths_told(), closing(writer):
        batches = display.track(loader, len(pictures), "images")
        faults = _write_all(batches, infer, to_device, writer, asked.out, recipe.model)
    _list_faults(faults, asked.out)
    display.note(f"{asked.out}: predictions of {len(pictures) - len(faults)} images")
    if faults:
        raise UserError(_unreadable(faults, asked.out))


def _inference_of(
    recipe: Recipe, accelerator: Accelerator, black: Tensor
) -> Callable[[Tensor], Tensor]:
    """From images of one shape (N, C, h, w) to what the writer takes.

    Logits, or where the recipe's evaluations look in windows, at scales or flipped, probabilities
    at the size of the images.
    """
    if recipe.inference is None:
        model = uncompiled(prepare(accelerator, recipe.model), recipe.task).eval()
        divisor = size_divisor(recipe.model) if recipe.task.is_dense else 1

        def logits(images: Tensor) -> Tensor:
            found = main_logits(run_padded(model, images, divisor))
            if (number := recipe.task.known_num_classes) is not None:
                check_num_outputs(found, number, type(recipe.task.given).__name__)
            return found.float()

        return logits
    inferer = SlidingWindowInferer(
        recipe.inference,
        prepare(accelerator, TaskModule(recipe.model, recipe.task)).eval(),
        accelerator,
        black,
    )

    def infer(images: Tensor) -> Tensor:
        samples = ((image[None], image.new_empty(1, *image.shape[-2:])) for image in images)
        # in the images' order
        return torch.cat([scores for done in inferer.infer(samples) for scores, _ in done])

    return infer


@torch.inference_mode()
def _write_all(
    batches: Iterable[list[Picture]],
    infer: Callable[[Tensor], Tensor],
    to_device: ToDevice,
    writer: Writer,
    out: Path,
    model: nn.Module,
) -> list[str]:
    """Read, run and write batch by batch; a line about each file that could not be read."""
    faults = []
    for batch in batches:
        faults += [picture.fault for picture in batch if picture.fault]
        readable = [(picture, picture.image) for picture in batch if picture.image is not None]
        # neighbours of one shape
        for _, group in groupby(readable, key=lambda pair: pair[1].shape):
            alike = list(group)
            with shortage_told("the prediction"), refusals_told(model):
                images = torch.stack([image for _, image in alike])
                images, _ = to_device(images, torch.empty(len(alike)))
                logits = infer(images)
            with _told(out):
                writer.add([picture for picture, _ in alike], logits)
    return faults


def _no_two_alike(found: dict[Path, Path]) -> None:
    """Raises UserError where two images would be written to one file."""
    taken: dict[Path, Path] = {}
    for file, name in found.items():
        other = taken.setdefault(name.with_suffix(""), file)
        if other is not file:
            raise UserError(
                f"{other} and {file} would both be written as {name.with_suffix('.png')}: rename"
                " one, or predict them into two folders"
            )


def _list_faults(faults: list[str], out: Path) -> None:
    """Write `unreadable.txt`, and take one of an earlier call away."""
    with _told(out):
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
def _told(out: Path) -> Iterator[None]:
    """Raises OSError that names the folder where it cannot be written."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"predictions cannot be written to {out}: {reason(error)}; choose another folder with"
            " --out"
        ) from error
