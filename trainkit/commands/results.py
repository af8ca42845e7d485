"""Where results go: a folder that takes them, and results.json in it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainkit.storage.checkpoint import digest, reason
from trainkit.storage.run_folder import Run
from trainkit.storage.setting_values import plain


def require_room(folder: Path) -> None:
    """Make the folder that results go to, before there are any. Raises ValueError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fault = None if os.access(folder, os.W_OK | os.X_OK) else "it may not be written to"
    except OSError as error:
        fault = reason(error)
    if fault:
        raise ValueError(f"out is {folder}, which cannot hold results: {fault}; choose another folder with --out")


def write_results(folder: Path, weights: Path, settings: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """Write `results.json` into a folder that is there: the figures of an evaluation, and of what."""
    of = {"checkpoint": str(weights), "sha256": digest(weights), "settings": plain(settings)}
    Run(folder).write("results.json", {**of, **results})
