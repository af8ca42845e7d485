"""trainkit export: writes a trained model for other programs, tried on real images first."""

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import tv_tensors

from trainkit import __version__
from trainkit.commands.export_formats import (
    FORMATS,
    INPUT,
    OUTPUT,
    WEIGHTS_ALONE,
    Forward,
    HalfLogits,
    Logits,
    format_of,
    require_half_range,
    require_suffix,
)
from trainkit.commands.half_metric import measured_in_half
from trainkit.commands.plain_code import library_and_call
from trainkit.commands.trained import load_trained, read_model
from trainkit.data.bands import WHITE, as_stored
from trainkit.data.to_device import ToDevice
from trainkit.display.terminal import Display
from trainkit.errors import CommandFailed, UserError, first_line
from trainkit.files import reason
from trainkit.models.outputs import fill_up, first_window, only_window, size_divisor
from trainkit.options import ExportOptions
from trainkit.prediction.model_info import ModelInfo
from trainkit.recipe import Recipe
from trainkit.settings.rebuildable import built_by
from trainkit.tasks.mask_classification import MaskClassification

LIMIT = 1e-3  # largest difference between the file's logits and the model's
HALF_LIMIT = 0.02  # of the largest logit, in float16
# axes whose length is left open: as many as the model allows
FREE = (("batch", "height", "width"), ("batch",), ())
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
GENERATED = (480, 640)  # height and width of images to try a file on, where there are no others


def run(first: str, words: list[str]) -> int:
    """Write the model that the words name to a file; the exit code."""
    model, weights, asked = read_model("export", first, words)
    export(model, weights, asked)
    if asked.half:
        recipe = model if isinstance(model, Recipe) else None
        Display().note(measured_in_half(first, words, recipe, weights, asked))
    return 0


def export(exported: ModelInfo | Recipe, weights: Path, asked: ExportOptions) -> None:
    """Write the model with the weights at `weights` to `asked.out`.

    Written aside, loaded again and run on images, of the validation data or generated: it gets its
    name only where its logits are within LIMIT of the model's, in float16 within HALF_LIMIT of its
    largest logit.

    Raises:
        UserError: the weights do not fit, or the model cannot be written so.
        MissingPackageError: a library is missing.
        CommandFailed: the file was not kept.
    """
    display = Display()
    written_as = asked.format or format_of(asked.out)
    require_suffix(asked.out, asked.format)
    if asked.out.is_dir():
        raise UserError(
            f"out is {asked.out}, which is a folder: name the file to be written, with --out"
        )
    absent = [name for name in PACKAGES if find_spec(name) is None] if written_as == "onnx" else []
    if absent:
        raise UserError(
            f'ONNX takes {", ".join(absent)}, not installed here: pip install "trainkit[export]"'
        )
    info = _info(exported)
    load_trained(info, weights, asked, display)
    model = Logits(info.model.cpu().float()).eval()
    images = [fill_up(image, _divisor(info)) for image in _images(info, asked.images)]
    if info.task.is_dense:
        images = [_only_window(info, image) for image in images]
    about = describe(info, weights)
    with torch.no_grad():
        logits = model(images[0])
    about["output"]["layout"] = "NC" if logits.ndim == 2 else "NCHW"
    allowed, written = LIMIT, model
    if asked.half:
        require_half_range(info.model)
        about["weights"] = "float16"
        allowed, written = HALF_LIMIT * float(logits.abs().max()), HalfLogits(model)
    try:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"{asked.out} cannot be written: {reason(error)}; choose another file with --out"
        ) from error
    aside = asked.out.with_name(f".writing-{os.getpid()}-{asked.out.name}")
    try:
        with _quiet():
            of_windows = written_as != WEIGHTS_ALONE and isinstance(info.task, MaskClassification)
            free = FREE[1:] if of_windows else FREE
            difference, tried = _written(
                model, written, images, aside, written_as, about, allowed, free
            )
        if not difference <= allowed:  # also where it is NaN
            raise CommandFailed(
                f"{asked.out} was not kept: its logits differ from the model's by {difference:.2g}"
                f" on {tried} images; {allowed:.4g} is allowed"
            )
        aside.replace(asked.out)
    finally:
        aside.unlink(missing_ok=True)
    of = "images" if info.val_data is not None else "generated images"
    display.note(
        f"{asked.out}: {written_as}, {asked.out.stat().st_size / 2**20:.1f} MiB; input"
        f" {about['input']['shape']}; largest difference from the model on {tried} {of}:"
        f" {difference:.2g}"
    )
    if written_as == WEIGHTS_ALONE and not asked.half:
        display.note(_taken_by(info.model, asked.out))


def _taken_by(model: nn.Module, weights: Path) -> str:
    """Who else takes the weights, in words."""
    found = library_and_call(built_by(model), weights)
    if found is not None:
        library, call = found
        return f"{library} takes them: {call}.load_state_dict(...)"
    return (
        f"neither torchvision nor timm has this network ({type(model).__name__}): trainkit.load"
        " takes the run, and .pt2 or .onnx in place of .safetensors is a file that needs no code"
    )


def describe(info: ModelInfo, weights: Path) -> dict[str, Any]:
    """The file's metadata: how an image becomes the model's input, and what comes out."""
    (image,) = _raw_images(info, 1)
    raw = image.dtype in WHITE
    scaled = {
        "scale": 1 / WHITE.get(image.dtype, 255),
        "mean": list(info.mean),
        "std": list(info.std),
    }
    classes, divisor = info.task.known_classes, _divisor(info)
    channels = info.pixels.channels
    colours = "RGB" if channels == 3 else f"{channels} channels as stored"
    filled = {
        "fill": (
            "0 after normalisation, at the bottom and on the right, to sides divisible by"
            f" {divisor}; what comes out is resized to that and cut to the image"
        )
    }
    return {
        "trainkit": __version__,
        "checkpoint": weights.name,
        "model": type(info.model).__name__,
        "task": type(info.task.given).__name__,
        "classes": classes if classes is None or isinstance(classes, int) else list(classes),
        "input": {"name": INPUT, "layout": "NCHW", "dtype": "float32", "colours": colours},
        "output": {"name": OUTPUT},
        "preprocessing": {
            "read": (
                f"{colours},"
                f" {'upright by EXIF' if info.upright else 'as stored whatever EXIF says'},"
                f" {'uint8' if info.pixels.bits == 8 else 'uint16'}"
            ),
            "transform": str(info.transform),
            "size": list(image.shape[-2:]),  # of the first image
            "then": (
                "(image * scale - mean) / std, per channel" if raw else "as the transform leaves it"
            ),
            **(scaled if raw else {}),
            **(filled if divisor > 1 else {}),
        },
    }


def _info(exported: ModelInfo | Recipe) -> ModelInfo:
    if isinstance(exported, ModelInfo):
        return exported
    return ModelInfo.of(exported, for_other_images=False)


def _divisor(info: ModelInfo) -> int:
    return size_divisor(info.model) if info.task.is_dense else 1


def _images(info: ModelInfo | Recipe, number: int) -> list[Tensor]:
    """The first images as the model gets them, (1, C, H, W) each."""
    to_device = ToDevice(torch.device("cpu"), info.mean, info.std)
    return [to_device(image[None], torch.empty(1))[0] for image in _raw_images(info, number)]


def _raw_images(info: ModelInfo | Recipe, number: int) -> list[Tensor]:
    """Images of the validation data, (C, H, W), before mean and std; else generated ones."""
    data = info.val_data
    if data is not None:
        return [data[index][0] for index in range(min(number, len(data)))]
    assert isinstance(info, ModelInfo)  # a recipe has data
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(number):
        coarse = 255 * torch.rand(1, info.pixels.channels, 12, 16, generator=generator)
        pixels = F.interpolate(coarse, GENERATED, mode="bilinear")[0]
        image = tv_tensors.Image(pixels.to(torch.uint8) if info.pixels.bits == 8 else pixels / 255)
        image = image if info.transform is None else info.transform(image)
        found.append(as_stored(image, info.pixels))
    return [image.as_subclass(Tensor) for image in found]


def _written(
    model: Logits,
    written: Logits,
    images: list[Tensor],
    path: Path,
    kind: str,
    about: dict[str, Any],
    allowed: float,
    choices: Sequence[tuple[str, ...]] = FREE,
) -> tuple[float, int]:
    """Write the file with as many free axes as the model allows, and try it.

    Fewer are left free also where the file's logits differ by more than `allowed`: what a network
    does with the sides of its images may be written for those of the example. `written` is the
    model as it is written, or in float16. Returns what `_largest_difference` gives. Raises
    UserError where it cannot be written at all.
    """
    write, load = FORMATS[kind]
    for free in choices:
        shape = [
            name if name in free else length
            for name, length in zip(("batch", "", "height", "width"), images[0].shape)
        ]
        about["input"]["shape"] = shape
        try:
            write(written, images[0], free, path, json.dumps(about))
            found = _largest_difference(model, load(path, written), images, free)
            if found[0] <= allowed or free == choices[-1]:
                return found
        except (OSError, MemoryError):
            raise
        except Exception as error:  # exporters raise dozens of kinds for what a model cannot do
            if free == choices[-1]:
                raise UserError(
                    f"{about['model']} cannot be written as {kind}: {first_line(error)}"
                ) from error
    raise AssertionError("there is no choice")


def _only_window(info: ModelInfo, image: Tensor) -> Tensor:
    """What a network gets that takes images of one size, or sees windows in its evaluation.

    The latter of networks that classify masks alone: for sides that are free torch would simplify
    the formulas of Swin's padding, which takes it longer than anybody waits.
    """
    seen = info.inference
    sides = seen.sides if isinstance(info.task, MaskClassification) and seen is not None else None
    if sides is not None and not hasattr(info.model, "image_size"):
        return first_window(image, sides)
    return only_window(info.model, image)


@torch.no_grad()
def _largest_difference(
    model: nn.Module, run: Forward, images: list[Tensor], free: tuple[str, ...]
) -> tuple[float, int]:
    """The largest difference of logits over images of a shape that the file takes, and how many.

    With free axes also over three images at once, and over some of other sizes.
    """
    first = images[0]
    batches = [image for image in images if "height" in free or image.shape == first.shape]
    tried = len(batches)
    if "batch" in free:
        batches.append(torch.cat([first, first.flip(-1), first]))
    if "height" in free:
        batches += _of_other_sizes(model, first)
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


def _of_other_sizes(model: nn.Module, image: Tensor) -> list[Tensor]:
    """The image in other sizes, and one whose sides leave another rest, where the model takes it.

    Padding that depends on the rest, as TensorFlow's, is written for the sides of the example.
    """
    height, width = image.shape[2:]
    like, odd = (
        F.interpolate(image, (height + more[0], width + more[1]), mode="bilinear")
        for more in ((64, 32), (37, 21))
    )
    try:
        model(odd)
    except (RuntimeError, ValueError, AssertionError):  # no file need take what the model does not
        return [like]
    return [like, odd]


@contextmanager
def _quiet() -> Iterator[None]:
    """Context manager: silence the exporters' own warnings and progress."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
