"""The kinds of files that a model is exported to: how each is written, and run again."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainkit.errors import UserError
from trainkit.files import save_tensors
from trainkit.models.outputs import main_logits

KEY = "trainkit"  # of the metadata in each file: JSON
INPUT, OUTPUT = "images", "logits"
AXES = {"batch": 0, "height": 2, "width": 3}
Forward = Callable[[Tensor], Tensor]  # images (N, C, H, W) -> logits


class Logits(nn.Module):
    """A model of which only the logits come out that predictions are made of."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W), normalised -> (N, classes) or (N, classes, h, w)."""
        return main_logits(self.model(images))


class HalfLogits(Logits):
    """The same in float16, from images and to logits in float32."""

    def __init__(self, logits: Logits):
        super().__init__(copy.deepcopy(logits.model).half())

    def forward(self, images: Tensor) -> Tensor:
        """As `Logits`."""
        return super().forward(images.half()).float()


def require_half_range(model: nn.Module) -> None:
    """Raises UserError that names a weight which float16 does not hold."""
    for name, value in model.state_dict().items():
        if (
            value.is_floating_point()
            and value.isfinite().all()
            and not value.half().isfinite().all()
        ):
            raise UserError(
                f"{name} reaches {float(value.abs().max()):.3g}, and float16 ends at 65504: export"
                " without --half"
            )


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
    # multiplied out: what torch's other kernels return is laid out in another order, which the
    # exporter does not decompose
    with sdpa_kernel(SDPBackend.MATH), _unfused(model):
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


@contextmanager
def _unfused(model: nn.Module) -> Iterator[None]:
    """Context manager: timm's layers multiply attention out.

    Those of some of its networks (NesT, Twins) have five dimensions, of which the exporter knows no
    fused attention.
    """
    fused: list[Any] = [each for each in model.modules() if getattr(each, "fused_attn", False)]
    for each in fused:
        each.fused_attn = False
    try:
        yield
    finally:
        for each in fused:
            each.fused_attn = True


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


WEIGHTS_ALONE = "safetensors"
SUFFIXES = {"safetensors": ".safetensors", "torch-export": ".pt2", "onnx": ".onnx"}
FORMATS = {
    "safetensors": (_write_safetensors, _load_safetensors),
    "torch-export": (_write_program, _load_program),
    "onnx": (_write_onnx, _load_onnx),
}


def format_of(file: Path) -> str:
    """The format that a file's suffix means; weights alone where it means none."""
    return next((name for name, suffix in SUFFIXES.items() if suffix == file.suffix), WEIGHTS_ALONE)


def require_suffix(file: Path, asked: str | None) -> None:
    """Raise UserError where a file's suffix is that of another format.

    Args:
        file: to be written.
        asked: the format that was given; None: the suffix says it.
    """
    if asked is None:
        if file.suffix in SUFFIXES.values() or file.is_dir():  # which is reported as a folder
            return
        known = ", ".join(f"{suffix} ({name})" for name, suffix in SUFFIXES.items())
        raise UserError(
            f"out is {file}, and its suffix is of no format: a file's suffix says how it is"
            f" written, {known}. Without one, give --format too"
        )
    if file.suffix in {".pth", ".pt", *SUFFIXES.values()} - {SUFFIXES[asked]}:
        raise UserError(
            f"out is {file}, and format {asked}, whose files are called *{SUFFIXES[asked]}:"
            " give the one that is meant, with --out or --format"
        )
