"""What a step of trainkit takes, or reading an image, against what it took at other commits.

    python benchmarks/compare_commits.py --before 1f9f3c5 b9f0296
    python benchmarks/compare_commits.py --before FOLDER --after . --works mlp --loops trainkit
    python benchmarks/compare_commits.py --before 1f9f3c5 --reads segment-jpeg segment-png

Each commit is unpacked into a folder of its own and trains in a process of its own; all take turns
of a fraction of a second, see step_overhead.py, which says what the works and loops are. Each image
is seeded at all of them, also where a commit can leave that out (`draws_nothing`). What is
read is that of input_pipeline.py, in one process with one thread; "anew" means that no image was
read before, where a process remembers which ones are sound. Of reading the processor's time counts.
"""

import argparse
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path
from statistics import median

from _loops import LOOPS, WORKS
from _results import ROOT, Results
from _turns import ROUNDS, Program, take_turns
from input_pipeline import COLUMNS, SIZES, long_side, prepare
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


PARTS = {
    "decoded": "decoded",
    "anew": "decoded anew",
    "batches": "training batches",
}


def compare_reading(asked: argparse.Namespace) -> None:
    """Record the processor's time of an image and its mask at each commit."""
    libraries = ("torch", "torchvision", "pillow")
    results = Results("compare_commits-reading", *libraries, rounds=ROUNDS, note="processor's time")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sides = {given: side(given, folder) for given in asked.before}
        sides["now"] = side(asked.after, folder)
        for case in asked.reads:
            root = prepare(case, folder)
            for part, words in PARTS.items():
                command = [sys.executable, str(Path(__file__).parent / "_reading.py"), part]
                command += [str(root), "--long-side", str(long_side(SIZES[case]))]
                programs = {
                    given: Program(
                        command,
                        {"TRAINKIT_SIDE": str(path)},
                        folder / f"{case}-{part}-{place}.stamps",
                    )
                    for place, (given, path) in enumerate(sides.items())
                }
                taken = take_turns(programs, asked.seconds, asked.turn)
                row = f"{COLUMNS[case]}, {words}"
                for given, found in taken.items():
                    results.add(row, Path(given).name, "ms", found.cpu)
                    print(f"{row:50} {given:10} {median(found.cpu):.3f} ms")
                first, last = taken[asked.before[0]].cpu, taken["now"].cpu
                more = [100 * (now / before - 1) for before, now in zip(first, last)]
                results.add(row, "more", "%", more)
                print(f"{row:50} {'more':10} {median(more):.1f} %", flush=True)
    results.write(asked.results)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", nargs="+", required=True, help="commits, or folders of them")
    parser.add_argument("--after", default=str(ROOT), help="a commit, or a folder of one")
    parser.add_argument("--works", nargs="+", choices=WORKS, default=["tiny", "mlp"])
    choices = [name for name in LOOPS if name.startswith("trainkit")]
    parser.add_argument("--loops", nargs="+", choices=choices, default=choices[:2])
    parser.add_argument("--reads", nargs="+", choices=SIZES, help="compare reading, not steps")
    add_options(parser)
    asked = parser.parse_args()
    if asked.reads:
        return compare_reading(asked)
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
