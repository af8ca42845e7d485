"""Lines of Python for a model card that use a published model without trainkit."""

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors import safe_open
from torch import nn

from trainkit.models.hf_networks import is_hf

SEGMENTATION = torchvision.models.segmentation
LONG = "F.resize(image, [max(1, round(n * ({side} / max(image.shape)))) for n in image.shape[1:]])"
CUT = "F.center_crop(F.resize(image, [{short}], F.InterpolationMode.{mode}), [{size}])"


def plain_code(described: Mapping[str, Any] | None, weights: Path) -> list[str] | None:
    """Lines that load the weights, of model.json's network, and predict an image.

    None where neither torchvision nor timm has this network, or its images are prepared otherwise
    than they have it: the network is built, and its names and shapes compared with the file's.
    """
    if described is None or described["network"] is None or described["transform"] is None:
        return None
    if described.get("inference") is not None:  # windows, scales or flips
        return None
    if (described.get("channels", 3), described.get("bits", 8)) != (3, 8):
        return None
    found = library_and_call(described["network"], weights)
    prepared = _prepared(described["transform"])
    if found is None or prepared is None:
        return None
    library, call = found
    mean, std = ([round(each, 6) for each in described[name]] for name in ("mean", "std"))
    opened = 'Image.open("photo.jpg")'
    if described["upright"]:
        opened = f"ImageOps.exif_transpose({opened})"
    kind = described["task"]["type"]
    activation = ".sigmoid())" if kind == "MultiLabel" else ".softmax(1))"
    ends = {
        "Segmentation": '["out"].argmax(1))  # class ids',
        "MultiLabelSegmentation": '["out"].sigmoid())  # a mask of each class',
        "DenseRegression": '["out"])  # values, or with output="log" their logarithms',
    }
    last = ends.get(kind, activation)
    return [
        f"import {library}",
        "from PIL import Image, ImageOps" if described["upright"] else "from PIL import Image",
        "from safetensors.torch import load_file",
        "from torchvision.transforms.v2 import functional as F",
        "",
        f"model = {call}.eval()",
        f'model.load_state_dict(load_file("{weights.name}"))',
        f'image = F.to_image({opened}.convert("RGB"))',
        f"image = {prepared} / 255",
        f"image = F.normalize(image, {mean}, {std})",
        f"print(model(image[None]){last}",
    ]


def library_and_call(network: Mapping[str, Any] | None, weights: Path) -> tuple[str, str] | None:
    """Who takes the weights: "torchvision" or "timm", and the call that builds the network there.

    None where neither has it.

    Args:
        network: model.json's.
        weights: a safetensors file.
    """
    if network is None:
        return None
    found = _network(network["function"], network["arguments"])
    return found if found is not None and _fits(*found, weights) else None


def _network(function: str, arguments: Mapping[str, Any]) -> tuple[str, str] | None:
    """The library and the call that build the network; None where none does."""
    if is_hf(arguments.get("name", "")):  # its configuration is no line of Python
        return None
    number = int(arguments.get("num_classes", 0))
    if function in ("recognition.classifier", "recognition.fine_tuned"):
        name = arguments["name"]
        if name.startswith("timm:"):
            return (
                "timm",
                f"timm.create_model({quoted(name.removeprefix('timm:'))}, num_classes={number})",
            )
        call = f"torchvision.models.get_model({quoted(name)}, num_classes={number})"
        return "torchvision", call
    if function == "segmentation.segmenter":
        name = f"{arguments['name']}_{arguments['backbone']}"
        if name in torchvision.models.list_models(module=SEGMENTATION):
            aux = f", aux_loss={bool(arguments['aux'])}" if arguments["name"] != "lraspp" else ""
            settings = f"weights_backbone=None, num_classes={number}{aux}"
            return "torchvision", f'torchvision.models.get_model("{name}", {settings})'
    return None


def quoted(name: str) -> str:
    """A name as a string of Python, whatever is in it."""
    return json.dumps(name)


def _prepared(transform: Mapping[str, Any]) -> str | None:
    """What an evaluation does to the size of an image; None where no two words say it."""
    arguments = transform["arguments"]
    if transform["function"] == "recognition.eval_transform":
        if arguments["ten_crop"] or arguments["crop_mode"] != "center":
            return None
        short = round(arguments["size"] / arguments["crop_fraction"])
        mode = arguments["interpolation"].upper()
        return CUT.format(short=short, mode=mode, size=arguments["size"])
    if transform["function"] == "segmentation.eval_transform" and arguments["crop"] is None:
        side = arguments["long_side"]
        return "image" if side is None else LONG.format(side=side)
    return None


def _fits(library: str, call: str, weights: Path) -> bool:
    """Whether the network that the call builds takes the weights, by names and shapes."""
    network = _built(library, call)
    if network is None:
        return False
    ours = {name: list(value.shape) for name, value in network.state_dict().items()}
    with safe_open(weights, "pt") as file:
        theirs = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return ours == theirs


def _built(library: str, call: str) -> nn.Module | None:
    """The network of a call as `_network` writes it, without memory; None where there is none."""
    name, settings = _parsed(call)
    try:
        with torch.device("meta"):
            if library == "timm":
                import timm

                return timm.create_model(name, **settings)
            return torchvision.models.get_model(name, **settings)
    except (ImportError, ValueError, RuntimeError, TypeError):  # of other images, or not there
        return None


def _parsed(call: str) -> tuple[str, dict[str, Any]]:
    """The name and the settings in a call."""
    tree = ast.parse(call, mode="eval").body
    assert isinstance(tree, ast.Call)
    settings = {str(each.arg): ast.literal_eval(each.value) for each in tree.keywords}
    return ast.literal_eval(tree.args[0]), settings
