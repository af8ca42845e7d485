"""Files of a run as they are read back: one parser for each, which says what is wrong with the file."""

import json
import math
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
CHECKPOINT_FILES = ("model.safetensors", "state.safetensors", "state.json")
MOST = 2**53  # no number of steps, images or bytes is larger, and a float still holds it


class Fault(ValueError):
    """What is wrong with a file, in words that follow its name: `manifest.json is damaged: <fault>`."""


@dataclass(frozen=True)
class Kind:
    """What a value must be, in words and as a test."""

    words: str
    accepts: Callable[[Any], bool]
    optional: bool = False
    """the name may be missing"""


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MOST


def _is_positive(value: Any) -> bool:
    return _is_count(value) and value > 0


def _is_file_name(value: Any) -> bool:
    """Whether it names a file in the same folder, and nothing outside."""
    return isinstance(value, str) and value not in ("", ".", "..") and not re.search(r"[/\\\0]", value)


def _is_description(value: Any) -> bool:
    """Size and SHA-256 of a file, and nothing else."""
    return (
        isinstance(value, dict)
        and value.keys() == {"bytes", "sha256"}
        and _is_count(value["bytes"])
        and isinstance(value["sha256"], str)
        and re.fullmatch("[0-9a-f]{64}", value["sha256"]) is not None
    )


COUNT = Kind(f"a whole number from 0 to {MOST}", _is_count)
MAPPING = Kind("a mapping", lambda value: isinstance(value, dict))


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of the checkpoint in `folder`: "step", "files" (name -> "bytes", "sha256"), perhaps "format".

    Raises Fault where it cannot be read, or describes other files than a checkpoint has.
    """
    content = load_json(folder / MANIFEST)
    require(content, {"step": COUNT, "files": MAPPING, "format": Kind(COUNT.words, _is_positive, optional=True)})
    for name, described in content["files"].items():
        if not _is_file_name(name):
            raise Fault(f"it names {short(name)}, which is no file of the checkpoint")
        if not _is_description(described):
            raise Fault(f"it does not give size and SHA-256 of {name}, but {short(described)}")
    missing = [name for name in CHECKPOINT_FILES if name not in content["files"]]
    if missing:
        raise Fault(f"it does not name {', '.join(missing)}")
    return content


def load_json(file: Path) -> Any:
    """What a JSON file holds. Raises Fault where there is none, or it is no regular file, or not JSON."""
    data = read_regular(file)
    if not data.strip(b"\0 \t\r\n"):
        raise Fault("it is empty")
    return parse_json(data)


def read_regular(file: Path) -> bytes:
    """Bytes of a regular file; to open a FIFO would wait for ever. Raises Fault where it is none or cannot be read."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise Fault("it is not a regular file")
        return file.read_bytes()
    except OSError as error:
        raise Fault(f"it cannot be read: {error.strerror or error}") from error


def parse_json(data: str | bytes) -> Any:
    """The value in `data`, of which no number is infinite or none. Raises Fault."""
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except Fault:
        raise
    except ValueError as error:  # not JSON, not UTF-8, or a number of more digits than Python reads
        raise Fault(f"it is not JSON ({str(error).partition(';')[0]})") from error
    except RecursionError as error:
        raise Fault("it is not JSON of ours (nested too deeply)") from error


def _refuse_constant(name: str) -> None:
    raise Fault(f"it holds {name}, which is no number")


def require(content: Any, kinds: Mapping[str, Kind]) -> None:
    """Raises Fault that names the first value which is missing or of another kind."""
    if not isinstance(content, dict):
        raise Fault(f"it holds {short(content)}, and must hold a mapping")
    for name, kind in kinds.items():
        if name not in content:
            if not kind.optional:
                raise Fault(f"it has no {name}")
        elif not kind.accepts(content[name]):
            raise Fault(f"{name} is {short(content[name])}, and must be {kind.words}")


def is_number(value: Any) -> bool:
    """Whether it is a finite number; True and False are none."""
    return type(value) in (int, float) and abs(value) < math.inf and abs(value) < 1e308


def short(value: Any) -> str:
    """A value in a message: JSON of at most 80 characters."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
