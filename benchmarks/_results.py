"""One way to record a run of a benchmark: a JSON file that benchmarks/tables.py makes tables of."""

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # trainkit as it stands here, whatever is installed


def add_option(parser: argparse.ArgumentParser) -> None:
    """`--results FOLDER`; give another folder to try a program without recording it."""
    parser.add_argument(
        "--results",
        type=Path,
        default=ROOT / "benchmarks" / "results",
        metavar="FOLDER",
        help="where the JSON file goes; default: %(default)s",
    )


def machine() -> dict[str, Any]:
    """Processor, cores, memory and GPU, and these in a few words."""
    cpu = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else None
    name = found[1] if found else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None
    words = f"{cores} cores of {name}, {memory:.0f} GiB, {gpu or 'no GPU'}"
    return {
        "description": words,
        "cpu": name,
        "cores": cores,
        "memory_gib": round(memory),
        "gpu": gpu,
    }


def commit() -> str:
    """Of the code that was measured; with a plus where files differ from it."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    short = git("rev-parse", "--short", "HEAD") or "unknown"
    return short + ("+" if git("status", "--porcelain", "trainkit", "benchmarks/*.py") else "")


def rounded(value: float) -> float:
    """To four digits, which is more than any machine repeats."""
    return value if isinstance(value, int) else float(f"{value:.4g}")


class Results:
    """The measurements of one run.

    Args:
        name: of the file, such as `step_overhead-tiny`.
        libraries: whose versions are recorded, where installed.
        rounds: over which medians are taken.
        baseline: the row or column that ratios are to.
        note: a few words for below the table.
    """

    def __init__(
        self,
        name: str,
        *libraries: str,
        rounds: int | None = None,
        baseline: str | None = None,
        note: str | None = None,
    ):
        self.name = name
        versions = {"python": platform.python_version()}
        for library in libraries:
            try:
                versions[library] = version(library).partition("+")[0]
            except PackageNotFoundError:
                continue
        arguments = list(sys.argv[1:])
        if "--results" in arguments:
            place = arguments.index("--results")
            del arguments[place : place + 2]
        program = f"benchmarks/{Path(sys.argv[0]).name}"
        self.head = {
            "benchmark": name.partition("-")[0],
            "command": shlex.join(["python", program, *arguments]),
            "source": f"measured {date.today()}, commit {commit()}",
            "machine": machine(),
            "versions": versions,
        }
        optional = {"rounds": rounds, "baseline": baseline, "note": note}
        self.head |= {key: value for key, value in optional.items() if value is not None}
        self.measurements: list[dict[str, Any]] = []

    def add(
        self,
        row: str,
        column: str,
        unit: str,
        values: Sequence[float],
        ratio: float | None = None,
    ) -> None:
        """Median and range of the values of all rounds, and a ratio of medians."""
        found = {"median": median(values), "min": min(values), "max": max(values)}
        self._keep(row, column, unit, found, ratio)

    def put(
        self, row: str, column: str, unit: str, value: float | str, ratio: float | None = None
    ) -> None:
        """A single value."""
        self._keep(row, column, unit, {"value": value}, ratio)

    def _keep(
        self, row: str, column: str, unit: str, found: dict[str, Any], ratio: float | None
    ) -> None:
        found = {k: v if isinstance(v, str) else rounded(v) for k, v in found.items()}
        if ratio is not None:
            found["ratio"] = float(f"{ratio:.3g}")
        self.measurements.append({"row": row, "column": column, "unit": unit, **found})

    def write(self, folder: Path) -> Path:
        """One measurement a line, so that a change of one is a change of one line."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{self.name}.json"
        head = json.dumps(self.head, indent=2).removesuffix("\n}")
        rows = ",\n".join(f"    {json.dumps(row)}" for row in self.measurements)
        file.write_text(f'{head},\n  "measurements": [\n{rows}\n  ]\n}}\n')
        print(f"written: {file}")
        return file
