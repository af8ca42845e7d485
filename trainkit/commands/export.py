"""A trained model as a file for other programs, tried on real images before it gets its name."""

import copy
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from trainkit import __version__
from trainkit.commands.trained import read_trained
from trainkit.data.dataset_info import DatasetInfo
from trainkit.data.to_device import ToDevice
from trainkit.display.terminal import Display
from trainkit.engine.task_module import set_step
from trainkit.errors import CommandFailed, UserError
from trainkit.files import reason, save_tensors
from trainkit.models.outputs import fill_up, main_logits, size_divisor
from trainkit.options import ExportOptions
from trainkit.recipe import Recipe
from trainkit.storage.lookup import COUNTED, read_precise_bn, run_of, trained_steps
from trainkit.storage.weights import take_weights

LIMIT = 1e-3  # largest difference between the file's logits and the model's
KEY = "trainkit"  # of the metadata in each file: JSON
INPUT, OUTPUT = "images", "logits"
AXES = {"batch": 0, "height": 2, "width": 3}
# axes whose length is left open: as many as the model allows
FREE = (("batch", "height", "width"), ("batch",), ())
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
Forward = Callable[[Tensor], Tensor]  # images (N, C, H, W) -> logits


def run(first: str, words: list[str]) -> int:
    """Write the model that the words name to a file; the exit code."""
    trained, asked = read_trained("export", first, words)
    export(trained.build(), trained.weights, asked)
    return 0


class Logits(nn.Module):
    """A model of which only the logits come out that predictions are made of."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W), normalised -> (N, classes) or (N, classes, h, w)."""
        return main_logits(self.model(images))


def export(recipe: Recipe, weights: Path, asked: ExportOptions) -> None:
    """Write the model with the weights at `weights` to `asked.out`.

    Written aside, loaded again and run on validation images: it gets its name only where its logits
    are within LIMIT of the model's. Raises UserError for weights that do not fit, for libraries
    that are not there and for models that cannot be written so, CommandFailed where the file was
    not kept.
    """
    display = Display()
    expected = SUFFIXES[asked.format]
    if asked.out.suffix in {".pth", ".pt", *SUFFIXES.values()} - {expected}:
        raise UserError(
            f"out is {asked.out}, and format {asked.format}, whose files are called *{expected}:"
            " give the one that is meant, with --out or --format"
        )
    if asked.out.is_dir():
        raise UserError(
            f"out is {asked.out}, which is a folder: name the file to be written, with --out"
        )
    absent = (
        [name for name in PACKAGES if find_spec(name) is None] if asked.format == "onnx" else []
    )
    if absent:
        raise UserError(
            f'ONNX takes {", ".join(absent)}, not installed here: pip install "trainkit[export]"'
        )
    for line in take_weights(recipe.model, weights, asked.weights_key, asked.partial):
        display.note(line)
    if number := read_precise_bn(run_of(weights), weights):
        display.note(COUNTED.format(number))
    set_step(recipe.task, recipe.model, trained_steps(recipe.task, run_of(weights), weights))
    model = Logits(recipe.model.cpu().float()).eval()
    images = [fill_up(image, _divisor(recipe)) for image in _images(recipe, asked.images)]
    about = describe(recipe, weights)
    with torch.no_grad():
        about["output"]["layout"] = "NC" if model(images[0]).ndim == 2 else "NCHW"
    try:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"{asked.out} cannot be written: {reason(error)}; choose another file with --out"
        ) from error
    aside = asked.out.with_name(f".writing-{os.getpid()}-{asked.out.name}")
    try:
        with _quiet():
            difference, tried = _written(model, images, aside, asked.format, about)
        if not difference <= LIMIT:  # also where it is NaN
            raise CommandFailed(
                f"{asked.out} was not kept: its logits differ from the model's by {difference:.2g}"
                f" on {tried} images; {LIMIT:g} is allowed"
            )
        aside.replace(asked.out)
    finally:
        aside.unlink(missing_ok=True)
    display.note(
        f"{asked.out}: {asked.format}, {asked.out.stat().st_size / 2**20:.1f} MiB; input"
        f" {about['input']['shape']}; largest difference from the model on {tried} images:"
        f" {difference:.2g}"
    )


def describe(recipe: Recipe, weights: Path) -> dict[str, Any]:
    """What stands in the file's metadata.

    How an image becomes the model's input, and what comes out.
    """
    image, _ = recipe.val_data[0]
    raw = image.dtype == torch.uint8
    scaled = {"scale": 1 / 255, "mean": list(recipe.mean), "std": list(recipe.std)}
    classes, divisor = recipe.task.known_classes, _divisor(recipe)
    filled = {
        "fill": (
            "0 after normalisation, at the bottom and on the right, to sides divisible by"
            f" {divisor}; what comes out is resized to that and cut to the image"
        )
    }
    return {
        "trainkit": __version__,
        "checkpoint": weights.name,
        "model": type(recipe.model).__name__,
        "task": type(recipe.task.given).__name__,
        "classes": classes if classes is None or isinstance(classes, int) else list(classes),
        "input": {"name": INPUT, "layout": "NCHW", "dtype": "float32", "colours": "RGB"},
        "output": {"name": OUTPUT},
        "preprocessing": {
            "read": (
                f"RGB, {'upright by EXIF' if recipe.upright else 'as stored whatever EXIF says'},"
                " uint8"
            ),
            "transform": str(DatasetInfo.of(recipe.val_data).transform),
            "size": list(image.shape[-2:]),  # of the first validation image
            "then": (
                "(image * scale - mean) / std, per channel" if raw else "as the transform leaves it"
            ),
            **(scaled if raw else {}),
            **(filled if divisor > 1 else {}),
        },
    }


def _divisor(recipe: Recipe) -> int:
    return size_divisor(recipe.model) if recipe.task.is_dense else 1


def _images(recipe: Recipe, number: int) -> list[Tensor]:
    """The first validation images as the model gets them, (1, C, H, W) each."""
    to_device = ToDevice(torch.device("cpu"), recipe.mean, recipe.std)
    number = min(number, len(recipe.val_data))
    return [
        to_device(recipe.val_data[index][0][None], torch.empty(1))[0] for index in range(number)
    ]


def _written(
    model: Logits, images: list[Tensor], path: Path, kind: str, about: dict[str, Any]
) -> tuple[float, int]:
    """Write the file with as many free axes as the model allows, and try it.

    What `_largest_difference` says.

    Raises UserError where it cannot be written at all.
    """
    write, load = FORMATS[kind]
    for free in FREE:
        shape = [
            name if name in free else length
            for name, length in zip(("batch", "", "height", "width"), images[0].shape)
        ]
        about["input"]["shape"] = shape
        try:
            write(model, images[0], free, path, json.dumps(about))
            return _largest_difference(model, load(path, model), images, free)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # exporters raise dozens of kinds for what a model cannot do
            if free == FREE[-1]:
                told = str(error).strip().splitlines()[0]
                raise UserError(f"{about['model']} cannot be written as {kind}: {told}") from error
    raise AssertionError("FREE is empty")


@torch.no_grad()
def _largest_difference(
    model: nn.Module, run: Forward, images: list[Tensor], free: tuple[str, ...]
) -> tuple[float, int]:
    """Over the logits of all images of a shape that the file takes, and how many those are.

    With free axes also over three images at once, and over one of another size.
    """
    first = images[0]
    batches = [image for image in images if "height" in free or image.shape == first.shape]
    tried = len(batches)
    if "batch" in free:
        batches.append(torch.cat([first, first.flip(-1), first]))
    if "height" in free:
        batches.append(
            F.interpolate(first, (first.shape[2] + 64, first.shape[3] + 32), mode="bilinear")
        )
    differences = []
    for batch in batches:
        expected, found = model(batch), run(batch)
        if found.shape != expected.shape:
            raise RuntimeError(
                f"the file gives {list(found.shape)} for {list(batch.shape)}, not"
                f" {list(expected.shape)}"
            )
        differences.append((found.float() - expected).abs().max())
    return float(torch.stack(differences).max()), tried  # NaN, where one of them is


def _write_safetensors(
    model: Logits, image: Tensor, free: tuple[str, ...], path: Path, about: str
) -> None:
    tensors = {
        name: tensor.detach().clone().contiguous()
        for name, tensor in model.model.state_dict().items()
    }
    save_tensors(tensors, path, {"format": "pt", KEY: about})


def _load_safetensors(path: Path, model: Logits) -> Forward:
    empty = copy.deepcopy(model)
    for tensor in empty.model.state_dict().values():  # what the file does not hold stays as it is
        if tensor.is_floating_point():
            tensor.data.fill_(float("nan"))  # whatever the file does not bring
    empty.model.load_state_dict(load_file(path))
    return empty


def _write_program(
    model: Logits, image: Tensor, free: tuple[str, ...], path: Path, about: str
) -> None:
    # refused where the model fixes one
    axes = {AXES[name]: torch.export.Dim.DYNAMIC for name in free}
    program = torch.export.export(model, (_example(image, free),), dynamic_shapes=(axes,))
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={KEY: about})


def _load_program(path: Path, model: Logits) -> Forward:
    with path.open("rb") as file:
        return torch.export.load(file).module()


def _write_onnx(
    model: Logits, image: Tensor, free: tuple[str, ...], path: Path, about: str
) -> None:
    program = torch.onnx.export(
        model,
        (_example(image, free),),
        dynamo=True,
        dynamic_shapes=({AXES[name]: name for name in free},),
        input_names=[INPUT],
        output_names=[OUTPUT],
        verbose=False,
    )
    assert program is not None  # with dynamo=True
    program.model.metadata_props[KEY] = about
    program.save(path, external_data=False)


def _load_onnx(path: Path, model: Logits) -> Forward:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

    return run


def _example(image: Tensor, free: tuple[str, ...]) -> Tensor:
    """An input to trace.

    Two images where their number is free, as a length of 1 is taken for fixed.
    """
    return torch.cat([image, image]) if "batch" in free else image


SUFFIXES = {"safetensors": ".safetensors", "torch-export": ".pt2", "onnx": ".onnx"}
FORMATS = {
    "safetensors": (_write_safetensors, _load_safetensors),
    "torch-export": (_write_program, _load_program),
    "onnx": (_write_onnx, _load_onnx),
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' own warnings and progress, which a user can do nothing about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
