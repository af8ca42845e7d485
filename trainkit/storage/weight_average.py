"""Averages the weights of several trained models (SWA, model soups)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainkit.errors import UserError
from trainkit.storage.adapters import MATRIX
from trainkit.storage.checkpoint import digest
from trainkit.storage.model_json import read_model_json
from trainkit.storage.recorded import read_recorded
from trainkit.storage.stored_model import StoredModel
from trainkit.storage.weights import read_weights

COUNTER = "num_batches_tracked"  # of batch norm, which is no part of what it computes
SHOWN = 3  # names in a message
# of model.json: what decides what an image becomes before the network
SEEN = ("mean", "std", "channels", "bits")


def average(models: Sequence[StoredModel]) -> dict[str, Tensor]:
    """The mean of the models' weights, of EMA weights where a run has them.

    Args:
        models: two or more, see `require_alike`.

    Returns:
        Tensors by name: numbers are added up in float64 and rounded once, to their own type; whole
        numbers, which must be equal, and batch norm's counters are those of the last model.

    Raises:
        UserError: names, shapes, types or whole numbers differ, a weight is NaN/Inf, or they are
            of adapters (LoRA).
    """
    first, *others = models
    last, _ = read_weights(first.weights)
    _require_finite(last, first)
    if any(MATRIX.fullmatch(name) for name in last):
        raise UserError(
            f"{first.named} was trained with --lora, and the mean of adapters is not that of the"
            " weights they make: average runs that were trained whole"
        )
    kinds = {name: (tuple(value.shape), value.dtype) for name, value in last.items()}
    sums = {name: value.to(_wide(value)) for name, value in last.items() if _is_averaged(value)}
    whole = {name: value for name, value in last.items() if not _is_averaged(value)}
    for model in others:
        last, _ = read_weights(model.weights)
        found = {name: (tuple(value.shape), value.dtype) for name, value in last.items()}
        _require_same_kinds(kinds, found, first, model)
        _require_finite(last, model)
        for name, value in whole.items():
            if not name.endswith(COUNTER) and not torch.equal(value, last[name]):
                raise UserError(
                    f"{first.named} and {model.named} differ in {name}, which holds whole numbers"
                    f" ({kinds[name][1]}): there is no average of them"
                )
        for name in sums:
            sums[name] += last[name]
    return {
        name: (sums[name] / len(models)).to(value.dtype) if name in sums else value
        for name, value in last.items()
    }


def require_alike(models: Sequence[StoredModel]) -> None:
    """Check that models are of one network, classes and normalisation, and none is there twice.

    Raises:
        UserError: they are not; the message names the two, and what differs.
    """
    first, *others = models
    digests: dict[str, Path] = {}
    for model in models:
        found = digest(model.weights)
        if found in digests:
            raise UserError(
                f"{digests[found]} and {model.named} are the same weights ({model.weights}): leave"
                " one of them out"
            )
        digests[found] = model.named
    expected = _described(first)
    for model in others:
        described = _described(model)
        for name in expected.keys() & described.keys():
            if expected[name] != described[name]:
                raise UserError(
                    f"{first.named} and {model.named} cannot be averaged: {name} is"
                    f" {_short(expected[name])} and {_short(described[name])}"
                )


def _described(model: StoredModel) -> dict[str, Any]:
    """What must be the same, as far as it is known."""
    found: dict[str, Any] = {}
    folder = model.weights if model.weights.is_dir() else model.weights.parent
    described = read_model_json(folder)
    if described is not None:
        found["network"] = described["type"]
        built = described["network"]
        if built is not None:
            # where its first weights came from is no part of what it is
            arguments = {n: v for n, v in built["arguments"].items() if n != "pretrained"}
            found["network"] = f"{built['function']} of {arguments}"
        found |= {name: described[name] for name in SEEN if name in described}
        found["classes"] = described["classes"]
    elif model.run is not None:
        found["classes"] = read_recorded(model.run).get("classes")
    return found


def _require_same_kinds(
    expected: Mapping[str, Any], found: Mapping[str, Any], first: StoredModel, model: StoredModel
) -> None:
    if expected == found:
        return
    lacks = [name for name in expected if name not in found]
    more = [name for name in found if name not in expected]
    others = [
        f"{name} {list(found[name][0])} {found[name][1]} in place of {list(expected[name][0])}"
        f" {expected[name][1]}"
        for name in expected
        if name in found and found[name] != expected[name]
    ]
    kinds = {"lacks": lacks, "has beside them": more, "has otherwise": others}
    said = [
        f"{verb} {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
        for verb, names in kinds.items()
        if names
    ]
    raise UserError(
        f"{first.named} and {model.named} cannot be averaged, as their networks differ: the second"
        f" one {'; '.join(said)}"
    )


def _require_finite(weights: Mapping[str, Tensor], model: StoredModel) -> None:
    for name, value in weights.items():
        if not value.isfinite().all():
            raise UserError(f"{model.named} contains NaN/Inf, in {name}: leave it out")


def _is_averaged(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _wide(value: Tensor) -> torch.dtype:
    return torch.complex128 if value.is_complex() else torch.float64


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
