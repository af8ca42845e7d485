"""One exact training loop on Hugging Face Accelerate for recognition and segmentation.

A recipe is a Python file whose function `recipe(...)` returns a `Recipe`; `train` runs it and
`evaluate` measures a checkpoint of it; `load` gives a trained model. The names below load on first
use, so that `python -m trainkit --help` answers without importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers; at run time these load on first use
    from trainkit.commands.api import evaluate, train
    from trainkit.models.freezing import freeze
    from trainkit.options import Options
    from trainkit.prediction.loading import load
    from trainkit.recipe import Recipe

__version__ = "0.1.0"
__all__ = ["Options", "Recipe", "evaluate", "freeze", "load", "train"]

_HOMES = {
    "Options": "trainkit.options",
    "Recipe": "trainkit.recipe",
    "evaluate": "trainkit.commands.api",
    "freeze": "trainkit.models.freezing",
    "load": "trainkit.prediction.loading",
    "train": "trainkit.commands.api",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'trainkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
