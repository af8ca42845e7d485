"""How the benchmarks take time.

What is compared runs in turn, round after round, and the middle one counts.
"""

import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


def interleaved(
    ways: dict[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each way in each round; a round before them, which is not counted, warms up.

    A single round goes without: it shows that everything runs, and no more.
    """
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(0 if rounds > 1 else 1, rounds + 1):
        for name, work in ways.items():
            begun = clock()
            work()
            if number:
                taken[name].append(clock() - begun)
    return taken


def in_words(name: str, seconds: list[float], unit: float = 1e-3) -> str:
    """A row: median, and the least and the most of the rounds, in ms, or where `unit` is 1 in s."""
    middle, least, most = (
        f"{value / unit:.2f}" for value in (median(seconds), min(seconds), max(seconds))
    )
    return f"{name:44} {middle:>9} {'s' if unit == 1 else 'ms'} ({least} to {most})"


def versions(*names: str) -> str:
    """Python and libraries, those that are not installed left out."""
    found = [f"Python {sys.version.split()[0]}"]
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
