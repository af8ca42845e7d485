"""What a step of trainkit takes, against what it took at other commits.

    python benchmarks/compare_commits.py --before 1f9f3c5 b9f0296
    python benchmarks/compare_commits.py --before FOLDER --after . --works mlp --loops trainkit

Each commit is unpacked into a folder of its own and trains in a process of its own; all take turns
of a fraction of a second, see step_overhead.py, which says what the works and loops are.
"""

import argparse
import subprocess
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

from _loops import LOOPS, WORKS
from _results import ROOT, Results
from _turns import ROUNDS, take_turns
from step_overhead import ROWS, add_options, add_rows, start


def side(given: str, folder: Path) -> Path:
    """The folder of a commit of this repository, unpacked, or a folder as it is."""
    if Path(given).is_dir():
        return Path(given).resolve()
    command = ["git", "-C", str(ROOT), "archive", given, "trainkit"]
    archive = subprocess.run(command, capture_output=True, check=True).stdout
    unpacked = folder / given
    with tarfile.open(fileobj=BytesIO(archive)) as opened:
        opened.extractall(unpacked, filter="data")
    return unpacked


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", nargs="+", required=True, help="commits, or folders of them")
    parser.add_argument("--after", default=str(ROOT), help="a commit, or a folder of one")
    parser.add_argument("--works", nargs="+", choices=WORKS, default=["tiny", "mlp"])
    choices = [name for name in LOOPS if name.startswith("trainkit")]
    parser.add_argument("--loops", nargs="+", choices=choices, default=choices[:2])
    add_options(parser)
    asked = parser.parse_args()
    results = Results("compare_commits", "torch", "accelerate", rounds=ROUNDS)
    for work in asked.works:
        for loop in asked.loops:
            print(f"{work}, {ROWS[loop]}")
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                sides = {given: side(given, folder) for given in (*asked.before, asked.after)}
                programs = {
                    given: start(work, loop, asked, folder, path) for given, path in sides.items()
                }
                taken = take_turns(programs, asked.seconds, asked.turn)
            labels = [*(Path(given).name for given in asked.before), "now"]
            rows = {
                f"{work}, {loop}, {label}": found for label, found in zip(labels, taken.values())
            }
            add_rows(results, rows)
    results.write(asked.results)


if __name__ == "__main__":
    main()
