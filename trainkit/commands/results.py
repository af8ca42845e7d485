"""Where results go: a folder that takes them, and results.json in it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainkit.storage.checkpoint import digest
from trainkit.storage.run_folder import Run
from trainkit.storage.setting_values import plain


def write_results(
    folder: Path, weights: Path, settings: Mapping[str, Any], results: Mapping[str, Any]
) -> None:
    """Write `results.json` into a folder that is there: the figures of an evaluation, and of what."""
    of = {"checkpoint": str(weights), "sha256": digest(weights), "settings": plain(settings)}
    Run(folder).write("results.json", {**of, **results})
