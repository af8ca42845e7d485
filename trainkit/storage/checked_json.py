"""Reads JSON with values of the kinds expected, or says what is wrong with it."""

import json
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

MOST = 2**53  # no number of steps, images or bytes is larger, and a float still holds it


class Fault(ValueError):
    """What is wrong with a file, in words that follow its name, as in `x.json is damaged: ...`."""


class NotJSON(Fault):
    """It cannot be parsed."""


@dataclass(frozen=True)
class Kind:
    """What a value must be, in words and as a test."""

    words: str
    accepts: Callable[[Any], bool]
    optional: bool = False
    """the name may be missing"""


def is_count(value: Any) -> bool:
    """Whether it is a whole number from 0 to MOST; True and False are none."""
    return type(value) is int and 0 <= value <= MOST


def _is_positive(value: Any) -> bool:
    return is_count(value) and value > 0


def is_number(value: Any) -> bool:
    """Whether it is a finite number; True and False are none."""
    return type(value) in (int, float) and abs(value) < 1e300


COUNT = Kind(f"a whole number from 0 to {MOST}", is_count)
POSITIVE = Kind(f"a whole number from 1 to {MOST}", _is_positive)
NUMBER = Kind("a number", is_number)
STRING = Kind("a string", lambda value: isinstance(value, str))
TRUTH = Kind("true or false", lambda value: isinstance(value, bool))
MAPPING = Kind("a mapping", lambda value: isinstance(value, dict))


def or_none(kind: Kind) -> Kind:
    """The same, or null."""
    return replace(
        kind,
        words=f"{kind.words}, or null",
        accepts=lambda value: value is None or kind.accepts(value),
    )


def maybe(kind: Kind) -> Kind:
    """The same, or missing."""
    return replace(kind, optional=True)


def load_json(file: Path) -> Any:
    """Load what a JSON file holds.

    Raises:
        Fault: there is none, or it is no regular file, or not JSON.
    """
    data = read_regular(file)
    if not data.strip(b"\0 \t\r\n"):
        raise Fault("it is empty")
    return parse_json(data)


def read_regular(file: Path) -> bytes:
    """Bytes of a regular file; to open a FIFO would wait for ever.

    Raises:
        Fault: it is none or cannot be read.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise Fault("it is not a regular file")
        return file.read_bytes()
    except OSError as error:
        raise Fault(f"it cannot be read: {error.strerror or error}") from error


def parse_json(data: str | bytes) -> Any:
    """Parse JSON whose numbers are all finite.

    Raises:
        Fault: it is something else.
    """
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except Fault:
        raise
    except ValueError as error:  # not JSON, not UTF-8, or a number of more digits than Python reads
        raise NotJSON(f"it is not JSON ({str(error).partition(';')[0]})") from error
    except RecursionError as error:
        raise NotJSON("it is not JSON of ours (nested too deeply)") from error


def _refuse_constant(name: str) -> None:
    raise Fault(f"it holds {name}, which is not a finite number")


def require(content: Any, kinds: Mapping[str, Kind]) -> None:
    """Check that values are there and of their kinds.

    Raises:
        Fault: one is not; the message has its name.
    """
    if not isinstance(content, dict):
        raise Fault(f"it holds {short(content)}, and must hold a mapping")
    for name, kind in kinds.items():
        if name not in content:
            if not kind.optional:
                raise Fault(f"it has no {name}")
        elif not kind.accepts(content[name]):
            raise Fault(f"{name} is {short(content[name])}, and must be {kind.words}")


def short(value: Any) -> str:
    """A value in a message: JSON of at most 80 characters."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
