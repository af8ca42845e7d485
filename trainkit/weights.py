"""Weights into a model: from a checkpoint of ours or a file from elsewhere, and what of them does not fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from trainkit import checkpoint
from trainkit.finding import find_weights
from trainkit.sharding import part

WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel, DDP, averaged models and torch.compile put before names
SHOWN = 4  # names of each kind in a message


@dataclass(frozen=True)
class Fit:
    """How weights meet a model: by the model's names, those that fit, and what does not."""

    matched: dict[str, Tensor]
    unmatched: list[str]
    """names in the file that the model has not"""
    missing: list[str]
    """names in the model that the file has not"""
    misshapen: list[str]
    """names in both, of another shape, each with the two shapes"""

    @property
    def exact(self) -> bool:
        return not (self.unmatched or self.missing or self.misshapen)

    def lines(self) -> list[str]:
        """What does not fit, a line a kind: how many, and which."""
        kinds = {
            "of another shape": self.misshapen,
            "missing in the file": self.missing,
            "unknown to the model": self.unmatched,
        }
        return [f"{len(names)} {kind}: {', '.join(names)}" for kind, names in kinds.items() if names]


def fit(model: nn.Module, weights: Mapping[str, Tensor]) -> Fit:
    """Compare names and shapes; wrappers' prefixes in the file count as nothing where the model has them not."""
    ours = model.state_dict()
    named = {_bare(name, ours): value for name, value in weights.items()}
    shared = [name for name in ours if name in named]
    matched = {name: named[name] for name in shared if named[name].shape == ours[name].shape}
    misshapen = [
        f"{name} (file {list(named[name].shape)}, model {list(ours[name].shape)})"
        for name in shared
        if name not in matched
    ]
    # Files older than batch norm's counter lack it, as torch allows.
    missing = [name for name in ours if name not in named and not name.endswith(".num_batches_tracked")]
    return Fit(matched, [name for name in named if name not in ours], missing, misshapen)


def load_model(model: nn.Module, weights: Mapping[str, Tensor], path: Path, partial: bool = False) -> list[str]:
    """Load weights, read from `path`, and return lines on what does not fit, which `partial` allows.

    Raises ValueError that lists the names where they do not fit, or where none does.
    """
    found = fit(model, weights)
    what = f"the weights in {path} do not fit {type(model).__name__}"
    if not found.matched:
        raise ValueError(
            f"{what}: none of its {len(weights)} names and shapes match ({_first(list(weights))}; the model has "
            f"{_first(list(model.state_dict()))})"
        )
    if not (found.exact or partial):
        raise ValueError(
            f"{what}: {'; '.join(found.lines())}. Give the settings the weights were trained with; evaluate, "
            "predict and export take what fits with --partial"
        )
    _take_up(model, found)
    return found.lines()


def start_from(model: nn.Module, path: Path) -> list[str]:
    """Begin a training with the weights at `path`, a run or what `evaluate --checkpoint` takes: lines to be told.

    What does not fit, such as the last layer for other classes, stays as it is. Raises ValueError where nothing
    fits, FileNotFoundError where there is nothing.
    """
    file, _ = find_weights(path)
    lines = load_model(model, read_weights(file), file, partial=True)
    return [f"starting from the weights in {file}", *(f"left as they are, {line}" for line in lines)]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Weights of a checkpoint folder, averaged ones where the run kept an average, or of a file."""
    if not path.is_dir():
        return checkpoint.load_weights(path)
    weights, state = checkpoint.load(path)
    return weights | (state["ema"]["averages"] if state.get("ema") else {})


@torch.no_grad()
def _take_up(model: nn.Module, found: Fit) -> None:
    ours = model.state_dict()
    model.load_state_dict({name: part(value, ours[name]) for name, value in found.matched.items()}, strict=False)


def _bare(name: str, ours: Mapping[str, Tensor]) -> str:
    """The name without wrappers' prefixes, where the model knows it so or in no other way."""
    bare = name.replace("._orig_mod.", ".")  # a part of the model was compiled
    while name not in ours and bare not in ours and bare.startswith(WRAPPERS):
        bare = bare.split(".", 1)[1]
    return name if name in ours else bare


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
