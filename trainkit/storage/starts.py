"""The starts of a run, starts.jsonl: when each was, from which step, and on which machine.

The log tells nothing of them: that of a resumed run is the log of one that was never stopped.
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from trainkit.storage.checked_json import (
    COUNT,
    MAPPING,
    POSITIVE,
    STRING,
    Fault,
    parse_json,
    read_regular,
    require,
)

NAME = "starts.jsonl"
START = {
    "step": COUNT,
    "when": STRING,
    "num_processes": POSITIVE,
    "device": STRING,
    "precision": STRING,
    "machine": MAPPING,
}


def add_start(
    run: Path,
    step: int,
    num_processes: int,
    device: str,
    precision: str,
    initial_weights: Sequence[str] = (),
) -> None:
    """Add a line about a start that is now.

    Args:
        run: the run's folder.
        step: steps that the run had done.
        num_processes: of the training, over all machines.
        device: name of the accelerator of a process, or "cpu".
        precision: as accelerate calls it.
        initial_weights: lines on those of --init-from, and what of them was resized or left out;
            left out where there are none.

    Raises:
        OSError: the file cannot be written.
    """
    start = {
        "step": step,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "num_processes": num_processes,
        "device": device,
        "precision": precision,
        "machine": _machine(),
    }
    if initial_weights:
        start["initial_weights"] = list(initial_weights)
    file = run / NAME
    before = file.read_bytes() if file.is_file() else b""
    line = json.dumps(start) + "\n"
    if before and not before.endswith(b"\n"):  # the last one was cut short as it was written
        line = "\n" + line
    with file.open("a") as starts:
        starts.write(line)


def read_starts(run: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The starts of a run, first to last, and what is wrong with lines that are left out.

    Returns:
        Both are empty for a run of a trainkit that did not write them.
    """
    file = run / NAME
    if not os.path.lexists(file):
        return [], []
    found: list[dict[str, Any]] = []
    faults: list[str] = []
    try:
        lines = read_regular(file).splitlines()
    except Fault as error:
        return [], [f"{NAME} is left out: {error}"]
    for number, line in enumerate(lines, 1):
        try:
            start = parse_json(line)
            require(start, START)
            found.append(start)
        except Fault as error:
            faults.append(f"{NAME}, line {number}, is left out: {error}")
    return found, faults


def _machine() -> Mapping[str, Any]:
    """What the machine is; not its name, as reports are sent to others."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


def _processor() -> str:
    """The processor's model where the system tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
