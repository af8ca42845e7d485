"""Sends a dataset to workers that are spawned, not forked, as on macOS and Windows.

Such a worker imports what the dataset's classes are in. A recipe's file is no importable module, so
its path goes along, and the worker loads it under the same name first.
"""

import importlib.util
import io
import multiprocessing
import pickle
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from torch.utils.data import Dataset

from trainkit.data.dataset_info import SizedDataset
from trainkit.errors import UserError

RECIPES: dict[str, str] = {}  # files loaded in this process, by the names of their modules
LOADING: list[Path] = []  # files that are being loaded at this moment, the innermost last


def load_file(name: str, path: Path) -> ModuleType:
    """Load a Python file as the module `name`, here and in workers started later."""
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise UserError(f"{path} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # pickle looks the recipe's classes up by name
    RECIPES[name] = str(path.resolve())
    LOADING.append(path)
    try:
        specification.loader.exec_module(module)
    finally:
        LOADING.pop()
    return module


def forks() -> bool:
    """Whether workers are forked: on Linux, unless the program has chosen another start method.

    Elsewhere system libraries do not survive a fork.
    """
    return sys.platform == "linux" and multiprocessing.get_start_method(allow_none=True) in (
        None,
        "fork",
    )


class Sendable(Dataset):
    """Stands for `data` in the training's process; a worker receives `data` itself.

    The worker loads the recipes' files first.

    Raises:
        UserError: by the start of a worker, where `data` cannot be pickled.
    """

    def __init__(self, data: SizedDataset):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __reduce__(self) -> tuple:
        try:
            return _receive, (dict(RECIPES), _pickled(self.data))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UserError(
                "the dataset cannot be sent to data-loading workers, which are started anew here:"
                f" {error}. Define functions and classes at the top of the recipe's file instead of"
                " a lambda or a function inside another, or read without workers (--workers 0)"
            ) from error


class _OfNoFile(ForkingPickler):
    """Pickles in a program that no file holds, such as a notebook."""

    def reducer_override(self, value: Any) -> Any:
        """Raise UserError for a class or function of this program, which no worker can import."""
        if isinstance(value, (type, FunctionType)) and value.__module__ == "__main__":
            raise UserError(
                f"{value.__qualname__} is defined in a notebook's cell or at a prompt, and"
                " data-loading workers, which are started anew here, cannot import it: put it into"
                " a file (%%writefile my_data.py in a notebook) and import it from there, or read"
                " without workers (workers=0, or --workers 0)"
            )
        return NotImplemented


def _pickled(data: SizedDataset) -> bytes:
    """The dataset as bytes. Raises UserError where no worker could read them."""
    if hasattr(sys.modules["__main__"], "__file__"):
        return bytes(ForkingPickler.dumps(data))
    buffer = io.BytesIO()
    _OfNoFile(buffer).dump(data)
    return buffer.getvalue()


def _receive(recipes: dict[str, str], pickled: bytes) -> Any:
    for name, path in recipes.items():
        if name not in sys.modules:
            load_file(name, Path(path))
    return pickle.loads(pickled)
