"""Reads and writes model.json, with which a checkpoint's weights are used without a recipe.

network    what built it: "function", "arguments", and the file of a "recipe" where the function is
           its own; null where it is not known
task       "type" and "arguments"; "of" trainkit or a recipe
transform  what an evaluation makes of an image: likewise; null where it is not known
classes    names, or how many
mean, std  per channel, of images in [0, 1]
size, interpolation, crop_fraction, crop_mode   of recognition, where known
channels, bits  of image files as they are read, 3 and 8 where it does not say
upright    whether images are turned by their EXIF orientation
inference  windows, scales and flips of an evaluation; null for whole images
batch_size of an evaluation
palette, raw_ids                                of segmentation, where the dataset says them
"""

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

import trainkit
from trainkit.data.dataset_info import DatasetInfo
from trainkit.errors import UserError
from trainkit.recipe import Recipe
from trainkit.settings.rebuildable import built_by
from trainkit.storage.checked_json import (
    MAPPING,
    POSITIVE,
    STRING,
    TRUTH,
    Fault,
    Kind,
    is_number,
    load_json,
    maybe,
    or_none,
    require,
)
from trainkit.storage.run_files import MODEL_JSON

FORMAT = 2  # 1 did not say how images are read and seen, see SINCE_2
PARTS = {
    "format": POSITIVE,
    "trainkit": STRING,
    "type": STRING,
    "network": or_none(MAPPING),
    "task": MAPPING,
    "transform": or_none(MAPPING),
}
NUMBERS = Kind(
    "a list of numbers",
    lambda value: isinstance(value, list) and value != [] and all(map(is_number, value)),
)
NUMBERS_ABOVE_0 = Kind(
    "a list of numbers above 0", lambda value: NUMBERS.accepts(value) and min(value) > 0
)
SINCE_2 = {
    "upright": TRUTH,
    "inference": or_none(MAPPING),
    "batch_size": POSITIVE,
    "mean": NUMBERS,
    "std": NUMBERS_ABOVE_0,
    "channels": maybe(POSITIVE),
    "bits": maybe(Kind("8 or 16", lambda value: type(value) is int and value in (8, 16))),
}
INSIDE = {
    "network": {"function": STRING, "recipe": or_none(STRING), "arguments": MAPPING},
    "task": {"type": STRING, "arguments": MAPPING, "of": maybe(STRING)},
    "transform": {"function": STRING, "recipe": maybe(or_none(STRING)), "arguments": MAPPING},
    "inference": {
        "scales": NUMBERS_ABOVE_0,
        "flip": maybe(TRUTH),
        "window": maybe(or_none(POSITIVE)),
        "window_width": maybe(or_none(POSITIVE)),
        "stride": maybe(or_none(POSITIVE)),
        "window_batch": maybe(POSITIVE),
    },
}
AS_STORED: Mapping[str, Any] = {"function": "as_stored", "arguments": {}}
INPUT = ("interpolation", "crop_fraction", "crop_mode")


def model_json(recipe: Recipe) -> dict[str, Any]:
    """What stands in model.json of the checkpoints of a training of `recipe`."""
    task, transform = recipe.task, _transform(DatasetInfo.of(recipe.val_data))
    given = {} if transform is None else transform["arguments"]
    return {
        "format": FORMAT,
        "trainkit": trainkit.__version__,
        "type": type(recipe.model).__name__,
        "network": built_by(recipe.model),
        "task": _task(task.given),
        "transform": transform,
        "classes": _plain(task.known_classes),
        "mean": list(recipe.mean),
        "std": list(recipe.std),
        "size": given.get("size"),
        **{name: recipe.input.get(name, given.get(name)) for name in INPUT},
        **asdict(DatasetInfo.of(recipe.val_data).pixels),
        "upright": recipe.upright,
        "inference": None if recipe.inference is None else asdict(recipe.inference),
        "batch_size": recipe.eval_batch_size,
        "palette": _plain(task.known_palette),
        "raw_ids": _plain(task.known_raw_ids),
    }


def read_model_json(folder: Path) -> dict[str, Any] | None:
    """Read model.json in `folder`, a checkpoint or what `trainkit push` wrote.

    Returns:
        None where there is none, as in older ones.

    Raises:
        UserError: it is damaged, lacks something, or is of a newer trainkit.
    """
    file = folder / MODEL_JSON
    if not file.exists():
        return None
    try:
        content = load_json(file)
        require(content, PARTS)
        if content["format"] == FORMAT:
            require(content, SINCE_2)
        if content["format"] <= FORMAT:
            _require_inside(content)
    except Fault as error:
        raise UserError(f"{file} is damaged: {error}. Put a whole copy in its place") from error
    if content["format"] > FORMAT:
        raise UserError(
            f"{file} is of format {content['format']}, of a newer trainkit; this one reads {FORMAT}"
        )
    return content


def require_same_build(model: nn.Module, path: Path, resumed: bool = True) -> None:
    """Check that the network of the weights at `path` computed what `model` computes.

    A network says by an attribute `differs_without` what is otherwise in networks that an earlier
    trainkit built, whose function did not have an argument yet, or was not given it.

    Args:
        model: takes the weights.
        path: of a checkpoint or, not to be resumed, of a file of weights.
        resumed: whether a training is resumed; otherwise weights are taken as they are of which
            model.json does not say that the same function built their network.

    Raises:
        UserError: it did not.
    """
    built = built_by(model)
    if built is None or built["recipe"] is not None:  # by a recipe's own function, which may change
        return
    found = read_model_json(path if path.is_dir() else path.parent) or {}  # older ones have none
    network = found.get("network") or {}
    if not resumed and network.get("function") != built["function"]:
        return
    arguments = network.get("arguments", {})
    for module in model.modules():
        for argument, what in getattr(module, "differs_without", {}).items():
            if arguments.get(argument) is None:
                raise UserError(
                    f"{path} cannot be {'resumed' if resumed else 'loaded'}: an earlier trainkit"
                    f" wrote it, and in its {type(model).__name__} {what} now, and were not then."
                    f" {_remedy(argument, resumed)}"
                )


def _remedy(argument: str, resumed: bool) -> str:
    if resumed:
        return (
            "evaluate, predict and export build it as it was; to train on from its weights, begin"
            " another run with --init-from and --out"
        )
    return (
        f"Build the network without {argument}, or give the run, or a recipe's function, in place"
        " of a Recipe: then it is built as it was"
    )


def _require_inside(content: Mapping[str, Any]) -> None:
    """Check what the parts hold, where there are any. Raises Fault with the part's name."""
    for name, kinds in INSIDE.items():
        if content.get(name) is not None:
            try:
                require(content[name], kinds)
            except Fault as error:
                raise Fault(f"in {name}, {error}") from error


def _transform(info: DatasetInfo) -> Mapping[str, Any] | None:
    """What an evaluation makes of an image, as it is built again; None where that is not known."""
    if info.transformed is None or info.is_augmented:
        return None
    return AS_STORED if info.transform is None else built_by(info.transform)


def _task(task: Any) -> dict[str, Any]:
    """Type and arguments of a task, and whether it is one of trainkit's."""
    is_ours = type(task).__module__.startswith("trainkit.")
    return {**_described(task), "of": "trainkit" if is_ours else "recipe"}


def _described(value: Any) -> dict[str, Any]:
    """Type and arguments of a dataclass; of something else the type alone."""
    arguments = {}
    if is_dataclass(value):
        arguments = {
            field.name: _plain(getattr(value, field.name)) for field in fields(value) if field.init
        }
    return {"type": type(value).__name__, "arguments": arguments}


def _plain(value: Any) -> Any:
    """A value as JSON gives it back; of other objects their type and arguments."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (np.ndarray, np.generic, Tensor)):
        return value.tolist()
    return _described(value)
