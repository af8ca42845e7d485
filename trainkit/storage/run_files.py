"""Reads files of a run, with one parser for each that says what is wrong with the file."""

import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from mmap import mmap
from pathlib import Path
from types import ModuleType
from typing import Any

from trainkit.errors import UserError

MANIFEST = "manifest.json"
CHECKPOINT_FILES = ("model.safetensors", "state.safetensors", "state.json")
MODEL_JSON = "model.json"  # not in checkpoints of earlier versions
EVALUATION_BEGINS, NEW_LINE = b'{"event": "evaluate", ', b"\n"
ROW_BEGINS = b'{"event": "'  # each row of log.jsonl
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


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MOST


def _is_positive(value: Any) -> bool:
    return _is_count(value) and value > 0


def _is_file_name(value: Any) -> bool:
    """Whether it names a file in the same folder, and nothing outside."""
    return (
        isinstance(value, str) and value not in ("", ".", "..") and not re.search(r"[/\\\0]", value)
    )


def _is_description(value: Any) -> bool:
    """Size and SHA-256 of a file, and nothing else."""
    return (
        isinstance(value, dict)
        and value.keys() == {"bytes", "sha256"}
        and _is_count(value["bytes"])
        and _is_sha256(value["sha256"])
    )


def _is_init(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("weights"), str)
        and _is_sha256(value.get("sha256"))
        and isinstance(value.get("weights_key"), (str, type(None)))
    )


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def is_number(value: Any) -> bool:
    """Whether it is a finite number; True and False are none."""
    return type(value) in (int, float) and abs(value) < 1e300


COUNT = Kind(f"a whole number from 0 to {MOST}", _is_count)
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


SUMMARY = {
    "final": MAPPING,
    "best": MAPPING,
    **dict.fromkeys(("steps", "images", "skipped_steps", "bad_images", "num_processes"), COUNT),
    **dict.fromkeys(("seconds", "images_per_s", "peak_memory_gib"), NUMBER),
    "stopped_early_at": maybe(or_none(COUNT)),
}
MEMORY = {"micro_batch": POSITIVE, "asked": or_none(POSITIVE)}
EVALUATION = {
    **{"epoch": NUMBER, "best": or_none(NUMBER), "best_step": or_none(COUNT)},
    "precise_bn": maybe(POSITIVE),  # where BatchNorm statistics were re-estimated
}
REPORT = {
    "step": POSITIVE,
    "num_processes": POSITIVE,
    "precision": STRING,
    "checkpoint": or_none(STRING),
    "micro_batch": or_none(POSITIVE),
    "on_bad_image": Kind("stop or skip", lambda value: value in ("stop", "skip")),
    "channels_last": TRUTH,
    "tf32": TRUTH,
    "batch": maybe(STRING),
    "static_graph": maybe(TRUTH),  # not told before these were
    "activation_checkpointing": maybe(TRUTH),
    "init": maybe(Kind("a file of weights and its SHA-256", _is_init)),
}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read manifest.json of a checkpoint: "step", "files" (name -> "bytes", "sha256"), "format".

    Raises:
        Fault: it cannot be read, or describes other files than a checkpoint has.
    """
    content = load_json(folder / MANIFEST)
    require(content, {"step": COUNT, "files": MAPPING, "format": maybe(POSITIVE)})
    for name, described in content["files"].items():
        if not _is_file_name(name):
            raise Fault(f"it names {short(name)}, which is no file of the checkpoint")
        if not _is_description(described):
            raise Fault(f"it does not give size and SHA-256 of {name}, but {short(described)}")
    missing = [name for name in CHECKPOINT_FILES if name not in content["files"]]
    if missing:
        raise Fault(f"it does not name {', '.join(missing)}")
    return content


def read_summary(run: Path) -> dict[str, Any] | None:
    """Read summary.json, how the run ended; None where it has not.

    Raises:
        UserError: it is damaged.
    """
    remedy = "Remove it, and the same command ends the run again from its last checkpoint"
    return _read(run / "summary.json", SUMMARY, remedy)


def read_memory(run: Path) -> dict[str, Any] | None:
    """Read memory.json: the "micro_batch" that was found to fit, and the number "asked" for.

    None where there was no OOM.

    Raises:
        UserError: it is damaged.
    """
    return _read(
        run / "memory.json",
        MEMORY,
        "Remove it, and the run finds out again how much fits into memory",
    )


def read_results(run: Path) -> dict[str, Any] | None:
    """Read results.json, which `trainkit evaluate` wrote; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    remedy = "Remove it, or write it anew with trainkit evaluate"
    return _read(run / "results.json", {"sha256": STRING, "checkpoint": STRING}, remedy)


def read_report(failure: Path) -> dict[str, Any]:
    """Read report.json of a failed step, in its folder.

    Raises:
        UserError: it is damaged or missing.
    """
    remedy = "Put a whole copy in its place; without it this step cannot be run again"
    report = _read(failure / "report.json", REPORT, remedy)
    if report is None:
        raise UserError(f"{failure} has no report.json. {remedy}")
    return report


def read_bad_images(run: Path) -> set[str]:
    """Lines of bad_images.txt; names of files need not be UTF-8.

    Raises:
        UserError: it is no regular file.
    """
    file = run / "bad_images.txt"
    if not os.path.lexists(file):
        return set()
    try:
        return set(read_regular(file).decode(errors="surrogateescape").splitlines())
    except Fault as error:
        raise UserError(f"{file} cannot be used: {error}. Remove it") from error


def _read(file: Path, kinds: Mapping[str, Kind], remedy: str) -> dict[str, Any] | None:
    """Read a JSON file that may be missing.

    Raises:
        UserError: it is damaged; the message has its name, the fault and the remedy.
    """
    if not os.path.lexists(file):
        return None
    try:
        content = load_json(file)
        require(content, kinds)
    except Fault as error:
        raise UserError(f"{file} is damaged: {error}. {remedy}") from error
    return content


def parse_row(line: bytes) -> dict[str, Any] | None:
    """Parse a row of log.jsonl; None for one that was cut short as it was written.

    Raises:
        Fault: it is anything else.
    """
    try:
        row = parse_json(line)
    except NotJSON:
        if _is_cut(line):
            return None
        raise
    require(row, {"event": STRING, "step": COUNT})
    if row["event"] == "evaluate":
        require(row, EVALUATION)
    return row


def _is_cut(line: bytes) -> bool:
    """Whether it is the beginning of a row, or what a disk gives for one that never reached it."""
    written = line.strip(b"\0 \r\n")
    return (written + ROW_BEGINS[len(written) :]).startswith(ROW_BEGINS) and not line.rstrip(
        b"\r\n"
    ).endswith(b"}")


def kept_rows(data: mmap, step: int) -> tuple[int, dict[str, Any] | None]:
    """Length of a log without rows after `step` at its end, and the last evaluation left.

    Raises:
        UserError: a line is no row of a log; the message has its number.
    """
    kept, end, evaluation = 0, len(data), None
    while end and evaluation is None:
        start = data.rfind(b"\n", 0, end - 1) + 1
        line = data[start:end]
        try:
            row = parse_row(line) if not kept or EVALUATION_BEGINS in line else None
        except Fault as error:
            raise UserError(f"line {data[:start].count(NEW_LINE) + 1}: {error}") from error
        if not kept:
            told_late = row is not None and row["event"] == "save"  # a row about a step long past
            kept = end if row is not None and row["step"] <= step and not told_late else 0
        if kept and EVALUATION_BEGINS in line:
            evaluation = row
        end = start
    return kept, evaluation


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


def posix_locks() -> ModuleType:
    """Python's fcntl, by which a run's folder is locked.

    Raises:
        UserError: there is none, as on Windows.
    """
    try:
        import fcntl
    except ImportError as error:
        raise UserError(
            "training takes Linux or macOS (on Windows: WSL), where the run's folder can be locked;"
            " doctor, evaluate, predict and export run here"
        ) from error
    return fcntl
