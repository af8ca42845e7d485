"""Configurations of transformers' networks: of a name on the Hub, of a folder, or of a type."""

import ast
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from trainkit.errors import MissingFileError, UserError, did_you_mean
from trainkit.models.hf_files import read_file
from trainkit.models.recorded import recorded_network, takes_config

PREFIX = "hf:"
CONFIG = "config.json"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
ARGUMENT = re.compile(r"([A-Za-z]\w*(?:\.[A-Za-z]\w*)*)\s*=\s*(.*)", re.DOTALL)

# SegFormer's encoders MiT-B0 to B5 and the width of its head (Xie et al., 2021, SegFormer, table 6;
# NVIDIA's checkpoints), by their names, and the encoders' weights for ImageNet.
_WIDE = {"hidden_sizes": [64, 128, 320, 512]}
SEGFORMERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "segformer_b0": (
        "nvidia/mit-b0",
        {"hidden_sizes": [32, 64, 160, 256], "depths": [2, 2, 2, 2], "decoder_hidden_size": 256},
    ),
    "segformer_b1": (
        "nvidia/mit-b1",
        {**_WIDE, "depths": [2, 2, 2, 2], "decoder_hidden_size": 256},
    ),
    "segformer_b2": (
        "nvidia/mit-b2",
        {**_WIDE, "depths": [3, 4, 6, 3], "decoder_hidden_size": 768},
    ),
    "segformer_b3": (
        "nvidia/mit-b3",
        {**_WIDE, "depths": [3, 4, 18, 3], "decoder_hidden_size": 768},
    ),
    "segformer_b4": (
        "nvidia/mit-b4",
        {**_WIDE, "depths": [3, 8, 27, 3], "decoder_hidden_size": 768},
    ),
    "segformer_b5": (
        "nvidia/mit-b5",
        {**_WIDE, "depths": [3, 6, 40, 3], "decoder_hidden_size": 768},
    ),
}

# Of the data, or of whoever wrote the file, and not of the network. Code, and kernels that run as
# code, are never taken from a file.
LEFT_OUT = frozenset({
    "_name_or_path", "auto_map", "custom_pipelines", "dtype", "id2label",
    "label2id", "num_labels", "problem_type", "quantization_config", "torch_dtype",
    "transformers_version", "attn_implementation", "experts_implementation",
})  # fmt: skip
OF_THE_DATA = ("num_labels", "id2label", "label2id", "num_channels")


def recorded_config(name: str, model_args: Sequence[str]) -> Mapping[str, Any] | None:
    """The config of the network `name` within `recorded_networks`; None where it has none."""
    network = recorded_network() if takes_config() else None
    if network is None:
        return None
    given = network["arguments"]
    same = given.get("name") == name and list(given.get("model_args") or ()) == list(model_args)
    return given.get("config") if same else None


@dataclasses.dataclass(frozen=True)
class Found:
    """What a name stands for."""

    config: Any
    """transformers' PreTrainedConfig"""
    num_classes: int | None
    """that the published weights are for"""
    files: str | None
    """a folder, or a name on the Hub, with weights and the preprocessor; None for a type alone"""


def transformers_of(name: str) -> Any:
    """The package transformers, which the network `name` needs.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module("transformers")
    except ModuleNotFoundError as error:
        raise UserError(
            f'model {name} needs transformers: pip install "trainkit[transformers]"'
        ) from error


def found(name: str, model_args: Sequence[str] = (), known: Sequence[str] = ()) -> Found:
    """Find what a name stands for.

    Args:
        name: "hf:" and a type of transformers, a size of SegFormer (`SEGFORMERS`), a folder that
            `save_pretrained` wrote, or a name on the Hub.
        model_args: arguments of the configuration, such as "depths=3,4,6,3"; those of one within it
            have a point: "backbone_config.depths=2,2,2,2".
        known: types that may be meant by a misspelt name.

    Raises:
        UserError: there is no such type, folder or name on the Hub, or the configuration does not
            take the arguments.
    """
    types = _types(name)
    short = name.removeprefix(PREFIX)
    given = _parsed(model_args)
    if short in SEGFORMERS:
        files, sizes = SEGFORMERS[short]
        return Found(_of_type(types, "segformer", {**sizes, **given}), None, files)
    if short in types:
        return Found(_of_type(types, short, given), None, None)
    folder = files_of(name, (*known, *SEGFORMERS))
    assert folder is not None  # of a type alone
    plain = _read_config(name, folder)
    labels = plain.get("id2label")
    num_classes = len(labels) if isinstance(labels, Mapping) else plain.get("num_labels")
    _check_arguments(types, plain["model_type"], given)
    return Found(config_of(_merged(plain, given)), num_classes, folder)


def is_segformer_size(name: str) -> bool:
    """Whether the network `name` is one of `SEGFORMERS`."""
    return name.removeprefix(PREFIX) in SEGFORMERS


def files_of(name: str, known: Sequence[str] = ()) -> str | None:
    """The folder, or the name on the Hub, with the files of the network `name`.

    Returns:
        None for a type alone.

    Raises:
        UserError: it is none of these; `known` are types that may be meant.
    """
    short = name.removeprefix(PREFIX)
    if short in SEGFORMERS:
        return SEGFORMERS[short][0]
    if short in _types(name):
        return None
    if short and Path(short).expanduser().is_dir():
        return str(Path(short).expanduser())
    if HUB_NAME.fullmatch(short):
        return short
    if "/" in short:
        raise MissingFileError(
            f"model is {name}, and there is no folder {short}: give one that save_pretrained wrote,"
            " a name on the Hub (hf:owner/name), or a type, such as hf:segformer"
        )
    near = did_you_mean(name, [f"{PREFIX}{each}" for each in known])
    raise UserError(
        f"no model {name!r}: it is no folder, no name on the Hub (hf:owner/name), and no type of"
        f" transformers for this task{near}"
    )


def config_of(plain: Mapping[str, Any]) -> Any:
    """The configuration, as transformers has it, that a mapping of plain values describes.

    Raises:
        UserError: transformers does not know its type, or does not take a value.
    """
    kind = str(plain.get("model_type"))
    types = _types(f"{PREFIX}{kind}")
    if kind not in types:
        version = transformers_of(f"{PREFIX}{kind}").__version__
        raise UserError(f"transformers {version} has no type of network {kind!r}")
    return _made(types[kind], kind, _without_code(plain))


def plain_config(config: Any) -> dict[str, Any]:
    """The configuration as plain values, of which `config_of` makes it again."""
    return _without_code(json.loads(json.dumps(config.to_dict())))


def _read_config(name: str, files: str) -> dict[str, Any]:
    plain = read_file(name, files, CONFIG)
    if plain is None:
        raise MissingFileError(
            f"model is {name}, and {files} has no {CONFIG}: give a folder that save_pretrained"
            " wrote, or a name on the Hub of a network of transformers"
        )
    if plain.get("model_type") not in _types(name):
        version = transformers_of(name).__version__
        raise UserError(
            f"{CONFIG} of {name} has model_type {plain.get('model_type')!r}, which transformers"
            f" {version} does not have: take another network, or another version"
        )
    return plain


def _types(name: str) -> Mapping[str, Any]:
    """Classes of configurations by transformers' types."""
    transformers_of(name)
    mapping = import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    return mapping


def _parsed(model_args: Sequence[str]) -> dict[str, Any]:
    """The arguments by name, those with a point in mappings of their own."""
    parsed: dict[str, Any] = {}
    for text in model_args:
        match = ARGUMENT.fullmatch(text.strip())
        if match is None:
            raise UserError(
                f"model_args has {text!r}: give NAME=VALUE, such as depths=3,4,6,3, several with"
                " spaces between"
            )
        *outer, last = match[1].split(".")
        within = parsed
        for part in outer:
            within = within.setdefault(part, {})
        within[last] = _value(match[2].strip())
    return parsed


def _value(text: str) -> Any:
    """A value of Python, a list of such with commas between, or the text itself."""
    if text.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return [each.strip() for each in text.split(",")] if "," in text else text
    return list(value) if isinstance(value, tuple) else value


def _of_type(types: Mapping[str, Any], kind: str, given: Mapping[str, Any]) -> Any:
    _check_arguments(types, kind, given)
    usual = types[kind]()
    full = dict(given)
    for name, value in given.items():
        inner = _type_within(usual, name)
        if isinstance(value, dict) and inner is not None:
            full[name] = {"model_type": inner, **value}
    return _made(types[kind], kind, full)


def _made(kind: Any, name: str, values: Mapping[str, Any]) -> Any:
    try:
        return kind.from_dict(dict(values))
    except Exception as error:  # of two libraries, for values that a network does not take
        said = " ".join(str(error).split())
        raise UserError(
            f"transformers does not take this configuration of {name} ({said}): correct"
            " --model-args, or its config.json"
        ) from error


def _check_arguments(types: Mapping[str, Any], kind: str, given: Mapping[str, Any]) -> None:
    """Raise UserError for an argument that the configuration of a type does not have."""
    usual = types[kind]()
    fields = [each.name for each in dataclasses.fields(usual)]
    for name, value in given.items():
        if name in OF_THE_DATA:
            raise UserError(f"model_args has {name}, which the data says: leave it out")
        if name == "model_type":
            continue
        present = getattr(usual, name, None)
        if name not in fields and (name.startswith("_") or present is None or callable(present)):
            raise UserError(
                f"model_args has {name}, which {kind} does not take{did_you_mean(name, fields)}"
            )
        if isinstance(value, dict):
            inner = str(value.get("model_type", _type_within(usual, name)))
            if inner not in types:
                raise UserError(
                    f"model_args has {name}.model_type={inner}, and transformers has no such type"
                    f"{did_you_mean(inner, types)}"
                )
            _check_arguments(types, inner, value)


def _type_within(config: Any, name: str) -> str | None:
    """The type of the configuration within another by name, if it is known."""
    for each in (getattr(config, name, None), type(config).sub_configs.get(name)):
        kind = getattr(each, "model_type", "")
        if kind:
            return kind
    return None


def _merged(plain: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(plain)
    for name, value in given.items():
        before = merged.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            merged[name] = _merged(before, value)
        else:
            merged[name] = value
    return merged


def _without_code(value: Any) -> Any:
    """Plain values, at any depth, without what `LEFT_OUT` names and private keys."""
    if isinstance(value, Mapping):
        return {
            key: _without_code(item)
            for key, item in value.items()
            if key not in LEFT_OUT and not key.startswith("_")
        }
    if isinstance(value, (list, tuple)):
        return [_without_code(item) for item in value]
    return value
