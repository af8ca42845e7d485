"""Thumbnails of validation images in a run's folder, in shown/ and preview/, and their index."""

from pathlib import Path
from typing import Any

from trainkit.storage.checked_json import COUNT, STRING, load_json, require

PARTS = ("image", "target", "prediction", "error")


def entries_of(folder: Path) -> list[dict[str, Any]]:
    """What index.json of thumbnails says of each image: at least "index" and "kind".

    Raises:
        Fault: it is damaged.
    """
    index = load_json(folder / "index.json")
    entries = index if isinstance(index, list) else [index]
    for entry in entries:
        require(entry, {"index": COUNT, "kind": STRING})
    return entries


def files_of(folder: Path, index: int) -> dict[str, Path]:
    """The thumbnails of an image that are there, by what they show."""
    files = {part: folder / f"{index}-{part}.webp" for part in PARTS}
    return {part: file for part, file in files.items() if file.is_file()}
