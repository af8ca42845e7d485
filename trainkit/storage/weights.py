"""Loads weights into a model, and reports what of them does not fit."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from trainkit.distributed.sharded_tensors import part
from trainkit.errors import UserError
from trainkit.models.positions import resized_positions
from trainkit.storage import checkpoint
from trainkit.storage.adapters import fitted
from trainkit.storage.lookup import find_weights
from trainkit.storage.weight_files import load_weights

# What DDP, averaged models, torch.compile, Lightning and the trainers of whole tasks put before all
# names.
PREFIXES = ("module.", "model.", "backbone.", "_orig_mod.", "net.")
SHOWN = 4  # names of each kind in a message


@dataclass(frozen=True)
class Fit:
    """Result of matching a state dict with a model: what fits, by the model's names."""

    matched: dict[str, Tensor]
    unmatched: list[str]
    """names in the file that the model has not"""
    missing: list[str]
    """names in the model that the file has not"""
    shape_mismatches: list[str]
    """names in both with a shape mismatch, each with the two shapes"""
    mistyped: list[str]
    """names in both whose values the model cannot hold, such as complex ones, with both types"""
    renamed: str | None = None
    """how the file's names were read, where not as they are"""
    resized: tuple[str, ...] = ()
    """position embeddings that were resized to the model's images, see `resized_positions`"""

    @property
    def exact(self) -> bool:
        """Whether everything fits."""
        return not (self.unmatched or self.missing or self.shape_mismatches or self.mistyped)

    def lines(self) -> list[str]:
        """What does not fit, a line a kind: how many, and which."""
        kinds = {
            "of another shape": self.shape_mismatches,
            "of another type": self.mistyped,
            "missing in the file": self.missing,
            "unknown to the model": self.unmatched,
        }
        return [
            f"{len(names)} {kind}: {', '.join(names)}" for kind, names in kinds.items() if names
        ]


def fit(model: nn.Module, weights: Mapping[str, Tensor], resize: bool = False) -> Fit:
    """Match names, shapes and types, the file's names read in the way that fits most of them.

    See `_readings`. Adapters (LoRA) that the model has not are merged into their layers. With
    `resize`, position embeddings of images of another size are resized, see `resized_positions`.
    """
    ours = model.state_dict()
    weights, merging = fitted(ours, weights)
    reported, names = _best_reading(model, ours, weights)
    reported = ", and ".join(each for each in (merging, reported) if each) or None
    named = {new: weights[old] for old, new in names.items()}
    resized: list[str] = []
    if resize:
        named, resized = resized_positions(model, named)
    shared = [name for name in ours if name in named]
    shape_mismatches = [name for name in shared if not _in_shape(named[name], ours[name])]
    mistyped = [
        name
        for name in shared
        if name not in shape_mismatches and not _holds(ours[name], named[name])
    ]
    return Fit(
        {
            n: _reshaped(named[n], ours[n])
            for n in shared
            if n not in shape_mismatches and n not in mistyped
        },
        [name for name in named if name not in ours],
        # Files older than batch norm's counter lack it, as torch allows.
        [name for name in ours if name not in named and not name.endswith(".num_batches_tracked")],
        [_shapes(name, named[name], ours[name]) for name in shape_mismatches],
        [f"{name} (file {named[name].dtype}, model {ours[name].dtype})" for name in mistyped],
        reported,
        tuple(resized),
    )


def _shapes(name: str, theirs: Tensor, ours: Tensor) -> str:
    return f"{name} (file {list(theirs.shape)}, model {list(ours.shape)})"


def named_as(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors by the names that `fit` reads them by, in the model's shapes."""
    ours = model.state_dict()
    weights, _ = fitted(ours, weights)
    _, names = _best_reading(model, ours, weights)
    found = {new: weights[old] for old, new in names.items()}
    return {
        n: v.reshape(ours[n].shape) if n in ours and _in_shape(v, ours[n]) else v
        for n, v in found.items()
    }


def require_same_names(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Check that the checkpoint at `path` names its weights as the model does.

    Raises:
        UserError: it does not.
    """
    ours = model.state_dict()
    saved, now = (
        [name for name in weights if name not in ours],
        [name for name in ours if name not in weights],
    )
    if saved or now:
        older = checkpoint.format_of(path) < checkpoint.FORMAT
        raise UserError(
            f"{path} cannot be resumed: it has {_first(saved) or 'none'} that the model has not,"
            " and lacks"
            f" {_first(now) or 'none'}.{' An older trainkit named them so.' if older else ''}"
            " evaluate, predict and export read its weights; to train on from them, begin another"
            " run with --init-from and --out"
        )


def _best_reading(
    model: nn.Module, ours: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> tuple[str | None, dict[str, str]]:
    """The first of `_readings` by which most names and shapes fit."""
    best: tuple[int, str | None, dict[str, str]] = (-1, None, {})
    for reported, names in _readings(model, ours, list(weights)):
        fits = sum(new in ours and _in_shape(weights[old], ours[new]) for old, new in names.items())
        best = (fits, reported, names) if fits > best[0] else best
    return best[1:]


def _readings(
    model: nn.Module, ours: Mapping[str, Tensor], names: Sequence[str]
) -> Iterator[tuple[str | None, dict[str, str]]]:
    """Ways to read a file's names, old -> new each, the plainest first, and a message for the user.

    As they are; without prefixes that all of them have; with one more that all of them lack; and as
    checkpoints of format 1 called the parts of what `fine_tuned` makes, "backbone" and "head".
    """
    off, bare = "", {name: name for name in names}
    while True:
        took = f"{off!r} was taken off the names in the file" if off else None
        yield took, {old: _as_compiled(new, ours) for old, new in bare.items()}
        for prefix in PREFIXES:
            put = f"{prefix!r} was put before the names in the file"
            yield (
                f"{took}, and {put}" if took else put,
                {old: prefix + new for old, new in bare.items()},
            )
        common = [
            prefix
            for prefix in PREFIXES
            if bare and all(new.startswith(prefix) for new in bare.values())
        ]
        if not common:
            break
        off += common[0]
        bare = {old: new.removeprefix(common[0]) for old, new in bare.items()}
    heads: tuple[str, ...] = getattr(model, "head_names", ())
    if len(heads) == 1 and all(name.startswith(("backbone.", "head.")) for name in names):
        yield (
            "the names in the file are those of an older trainkit (backbone and head)",
            {
                n: n.removeprefix("backbone.") if n.startswith("backbone.") else heads[0] + n[4:]
                for n in names
            },
        )


def _as_compiled(name: str, ours: Mapping[str, Tensor]) -> str:
    """Without what torch.compile puts into the name where a part of the model was compiled."""
    return name if name in ours else name.replace("._orig_mod.", ".")


def _in_shape(value: Tensor, ours: Tensor) -> bool:
    """Whether a tensor has our shape; a linear layer's (N, C) is a convolution's (N, C, 1, 1)."""
    return value.shape == ours.shape or (ours.ndim == 4 and (*value.shape, 1, 1) == ours.shape)


def _reshaped(value: Tensor, ours: Tensor) -> Tensor:
    """In our shape; of the same shape as it is, in whatever way it is sharded."""
    return value if value.shape == ours.shape else value.reshape(ours.shape)


def _holds(ours: Tensor, value: Tensor) -> bool:
    """Whether a tensor of our type holds the values: no complex number, no code of an integer."""
    return (
        ours.is_complex() == value.is_complex()
        and ours.is_floating_point() <= value.is_floating_point()
    )


def load_model(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    path: Path,
    partial: bool = False,
    resize: bool = False,
) -> Fit:
    """Load weights and return how they fit.

    Args:
        model: takes the weights.
        weights: tensors by name.
        path: where they were read, for messages.
        partial: whether some may not fit.
        resize: whether position embeddings are resized to the model's images.

    Raises:
        UserError: they do not fit, or none does; the message lists the names.
    """
    found = fit(model, weights, resize)
    what = f"the weights in {path} do not fit {type(model).__name__}"
    if not found.matched:
        raise UserError(
            f"{what}: none of its {len(weights)} names and shapes match ({_first(list(weights))};"
            f" the model has {_first(list(model.state_dict()))}){_of_shared(found)}"
        )
    if not (found.exact or partial):
        raise UserError(
            f"{what}: {'; '.join(found.lines())}. Give the settings the weights were trained with;"
            " evaluate, predict and export take what fits with --partial"
        )
    _take_up(model, found)
    return found


def take_weights(
    model: nn.Module,
    path: Path,
    key: str | None = None,
    partial: bool = False,
    averaged: bool = True,
) -> list[str]:
    """Load the weights at `path`, see `read_weights` and `load_model`; return lines to report."""
    weights, lines = read_weights(path, key, averaged)
    found = load_model(model, weights, path, partial)
    renamed = [f"{path.name}: {found.renamed}"] if found.renamed else []
    return [*lines, *renamed, *(f"--partial: left out, {line}" for line in found.lines())]


def start_from(model: nn.Module, path: Path, key: str | None = None) -> list[str]:
    """Begin a training with the weights at `path`, a run or what `evaluate --weights` takes.

    What does not fit, such as the last layer for other classes, stays as it is; position embeddings
    of images of another size are resized, see `resized_positions`.

    Returns:
        Lines to report.

    Raises:
        UserError: nothing fits, or position embeddings cannot be resized.
        MissingFileError: there is nothing.
    """
    file, _ = find_weights(path)
    weights, lines = read_weights(file, key)
    found = load_model(model, weights, file, partial=True, resize=True)
    renamed = [f"{file.name}: {found.renamed}"] if found.renamed else []
    left = [f"left as they are, {line}" for line in found.lines()]
    resized = [
        f"resized to the model's images, {len(found.resized)} position embeddings:"
        f" {_first(found.resized)}"
    ]
    more = [*lines, *renamed, *(resized if found.resized else []), *left]
    return [f"starting from the weights in {file}", *more]


def read_weights(
    path: Path, key: str | None = None, averaged: bool = True
) -> tuple[dict[str, Tensor], list[str]]:
    """Read weights of a checkpoint folder or of a file.

    Args:
        path: of the checkpoint or file.
        key: which set, see `weight_files.load_weights`.
        averaged: of a checkpoint the EMA weights, where the run has them.

    Returns:
        Tensors by name, and lines on which of several sets they are.
    """
    if not path.is_dir():
        return load_weights(path, key)
    if key is not None:
        raise UserError(
            f"weights_key is {key!r}, and {path} is a checkpoint of trainkit: leave it out"
        )
    weights, state = checkpoint.load(path)
    mean = averaged and state.get("ema")
    return (averaged_weights(weights, state["ema"]["averages"]) if mean else weights), []


@torch.no_grad()
def _take_up(model: nn.Module, found: Fit) -> None:
    ours = model.state_dict()
    model.load_state_dict(
        {name: part(value, ours[name]) for name, value in found.matched.items()}, strict=False
    )


def _of_shared(found: Fit) -> str:
    """Names that are the same, where shapes or types are not."""
    return "".join(f"; {len(each)} of another {of}: {each[0]}" for of, each in (
        ("shape", found.shape_mismatches), ("type", found.mistyped)) if each)  # fmt: skip


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def averaged_weights(
    weights: Mapping[str, Tensor], averages: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The EMA weights by the names of `weights`, the state dict they were saved beside.

    Earlier versions left out the second name of a tied weight, which is filled from the first, and
    had buffers that are not persistent, which are left out.

    Raises:
        UserError: it is unclear which weight a name is tied to.
    """
    found = {name: averages[name] for name in weights if name in averages}
    for name in weights.keys() - averages.keys():
        equal = [each for each in found if _equal(weights[each], weights[name])]
        if not equal or any(not _equal(averages[each], averages[equal[0]]) for each in equal):
            raise UserError(
                f"the checkpoint has no average of {name}, and no other weight that it is surely"
                " tied to: it was written by an earlier version of trainkit. Give the weights"
                " alone (model.safetensors in it)"
            )
        found[name] = averages[equal[0]]
    return {name: found[name] for name in weights}


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
