"""Remembers which runs were trained here, by this user: their code need not be trusted anew.

A mark for each lies in the user's cache, outside of the run's folder, so that nobody can send it.
"""

import hashlib
from contextlib import suppress
from pathlib import Path

from trainkit.data.datasets.cache import default_folder
from trainkit.storage.recorded import read_recorded


def remember(run: Path, source: bytes, recipe_file: Path) -> None:
    """Mark the run in a folder as trained here, by the recipe `source` read from `recipe_file`.

    Where the cache cannot be written, the run's code asks for --trust-recipe later.
    """
    mark = _mark(run, source, str(recipe_file.resolve()))
    with suppress(OSError):
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(f"{run.resolve()}\n")


def is_trained_here(run: Path | None) -> bool:
    """Whether a training of this user wrote the run in this very folder, by its recipe.py.

    Raises:
        UserError: its settings are damaged.
    """
    if run is None or not (run / "recipe.py").is_file():
        return False
    origin = read_recorded(run)["recipe"]
    return origin is not None and _mark(run, (run / "recipe.py").read_bytes(), origin).is_file()


def _mark(run: Path, source: bytes, origin: str) -> Path:
    """The file that says so: of this folder, this code, and the place it was read from.

    Modules that the code imports may lie in either place.
    """
    parts = (str(run.resolve()).encode(), source, origin.encode())
    digests = (hashlib.sha256(part).digest() for part in parts)
    return default_folder() / "trained" / hashlib.sha256(b"".join(digests)).hexdigest()
