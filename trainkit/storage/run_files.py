"""Reads files of a run, with one parser for each that says what is wrong with the file."""

import os
import re
from collections.abc import Mapping
from mmap import mmap
from pathlib import Path
from typing import Any

from trainkit.errors import UserError
from trainkit.storage.checked_json import (
    COUNT,
    MAPPING,
    NUMBER,
    POSITIVE,
    STRING,
    TRUTH,
    Fault,
    Kind,
    NotJSON,
    is_count,
    is_number,
    load_json,
    maybe,
    or_none,
    parse_json,
    read_regular,
    require,
    short,
)
from trainkit.storage.tensor_files import file_names

MANIFEST = "manifest.json"
STRUCTURE = "state.json"
COMPARISON = "comparison.json"  # of an evaluation of several runs
MODEL_JSON = "model.json"  # not in checkpoints of earlier versions
EVALUATION_BEGINS, NEW_LINE = b'{"event": "evaluate", ', b"\n"
ROW_BEGINS = b'{"event": "'  # each row of log.jsonl


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
        and is_count(value["bytes"])
        and _is_sha256(value["sha256"])
    )


def _is_init(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("weights"), str)
        and _is_sha256(value.get("sha256"))
        and isinstance(value.get("weights_key"), (str, type(None)))
    )


def _is_teacher(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("named"), str)
        and _is_sha256(value.get("sha256"))
        and all(is_number(value.get(name)) for name in ("distill", "temperature"))
    )


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


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
    "static_graph": maybe(TRUTH),  # runs before these say nothing of them
    "activation_checkpointing": maybe(TRUTH),
    "teacher": maybe(Kind("a teacher and its SHA-256", _is_teacher)),
    "init": maybe(Kind("a file of weights and its SHA-256", _is_init)),
}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read manifest.json of a checkpoint: "step", "files" (name -> "bytes", "sha256"), "format".

    Of a sharded one also "shards", how many processes wrote it.

    Raises:
        Fault: it cannot be read, or describes other files than a checkpoint has.
    """
    content = load_json(folder / MANIFEST)
    require(
        content,
        {"step": COUNT, "files": MAPPING, "format": maybe(POSITIVE), "shards": maybe(POSITIVE)},
    )
    for name, described in content["files"].items():
        if not _is_file_name(name):
            raise Fault(f"it names {short(name)}, which is no file of the checkpoint")
        if not _is_description(described):
            raise Fault(f"it does not give size and SHA-256 of {name}, but {short(described)}")
    count = content.get("shards")
    if (count or 0) > len(content["files"]):
        raise Fault(f"it names {len(content['files'])} files of {count} shards")
    missing = [name for name in (*file_names(count), STRUCTURE) if name not in content["files"]]
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


def read_stopped(run: Path) -> dict[str, Any] | None:
    """Read stopped.json: the name of the "signal" that stopped the run, and after which "step".

    None where none did.

    Raises:
        UserError: it is damaged.
    """
    remedy = "Remove it; the log says how far the run is"
    return _read(run / "stopped.json", {"signal": STRING, "step": COUNT}, remedy)


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
    require_row(row)
    return row


def require_row(row: Any) -> None:
    """Check that a row of log.jsonl has what every row of its kind has.

    Raises:
        Fault: it has not; the message has the name.
    """
    require(row, {"event": STRING, "step": COUNT})
    if row["event"] == "evaluate":
        require(row, EVALUATION)


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
            # a row about a step long past
            reported_late = row is not None and row["event"] == "save"
            kept = end if row is not None and row["step"] <= step and not reported_late else 0
        if kept and EVALUATION_BEGINS in line:
            evaluation = row
        end = start
    return kept, evaluation
