"""Files of predictions: where they lie, lines of tables, names until all is written."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from trainkit.prediction.images import Picture

PARTIAL = ".partial"  # behind the name of a table until all lines are in it


def partial(table: Path) -> Path:
    """What a table is called until all lines are in it."""
    return table.with_name(table.name + PARTIAL)


def hexadecimal(colour: Sequence[int]) -> str:
    """A colour (red, green, blue) as in HTML: #rrggbb."""
    return "#" + "".join(f"{int(part):02x}" for part in colour)


def readable(file: Path) -> str:
    """A file's name, with marks for bytes of it that are no UTF-8."""
    return str(file).encode(errors="surrogateescape").decode(errors="replace")


def opened(file: Path, newline: str | None = None) -> TextIO:
    """Open a file to write lines to.

    Bytes of a file's name that are no UTF-8 are escaped (backslashreplace), which JSON reads as
    Python's name of it.
    """
    return file.open("w", encoding="utf-8", errors="backslashreplace", newline=newline)


def write_line(lines: TextIO, row: dict[str, Any]) -> None:
    """Write a row of a table of JSON lines."""
    lines.write(json.dumps(row, ensure_ascii=False) + "\n")


def pixels(picture: Picture) -> np.ndarray:
    """The image at its own size, uint8 (H, W, 3)."""
    assert picture.original is not None
    return picture.original.permute(1, 2, 0).numpy()


def path_of(out: Path, kind: str, picture: Picture, suffix: str) -> Path:
    """The file of a picture in the folder `kind`, which is made."""
    path = out / kind / picture.name.with_suffix(suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
