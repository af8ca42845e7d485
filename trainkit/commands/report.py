"""trainkit report: what a run did, in one HTML file."""

from pathlib import Path

from trainkit.commands.arguments import read_options
from trainkit.display.terminal import Display
from trainkit.distributed.launcher import rank
from trainkit.report.page import write_report


def run(first: str, words: list[str]) -> int:
    """Write the report of a run; the exit code."""
    asked = read_options("report", f"trainkit report {first}", words)
    if rank() != 0:
        return 0
    display = Display()
    file = write_report(Path(first), asked.out)
    display.note(f"{file}: {file.stat().st_size:,} bytes; open it in a browser")
    return 0
