"""What a step costs beside its arithmetic.

The same network, images and optimizer in trainkit and in other loops.

    python benchmarks/step_overhead.py                          # tiny network, batches of 32
    python benchmarks/step_overhead.py --work mlp               # two layers, on one thread
    python benchmarks/step_overhead.py --work mlp --ready       # batches handed over ready-made
    python benchmarks/step_overhead.py --work resnet18 --turn 5 --seconds 600

Each loop is a process of its own with a terminal for its screen. All are held open and take turns
of a fraction of a second (see _turns.py), so that they are compared over the same period; a figure
is the median over seven portions of it. The network itself takes the time, at each forward pass in
training, so that every loop is measured between the same two points and all that it does in between
counts: reading, logging, its bar. Images lie in memory; every loop shuffles them, reads them in the
training process, follows a cosine and shows the loss every 50 steps; with --ready it is given
batches as they are instead. pip install "trainkit[benchmarks]" for the peers.
"""

import argparse
import os
import platform
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch
from _loops import LOOPS, NEEDS, WORKS, installed_loops
from _results import Results, add_option
from _turns import ROUNDS, Program, Taken, take_turns

ROWS = {
    "bare": "bare PyTorch",
    "accelerate": "bare Accelerate",
    "trainkit": "trainkit, images read one by one",
    "trainkit_held": "trainkit, images held and read by the batch (OnDevice)",
    "trainkit_ready": "trainkit, batches handed over",
    "hf_trainer": "HF Trainer",
    "ignite": "Ignite",
    "pytorch_accelerated": "pytorch-accelerated",
    "lightning": "Lightning",
}
ONE_BY_ONE, READY = "trainkit_ready", "pytorch_accelerated"
"""what cannot run without ready-made batches, and with them"""


def start(
    work: str, loop: str, options: argparse.Namespace, folder: Path, side: Path | None = None
) -> Program:
    """A process that trains with a loop; trainkit's is that of the folder `side`.

    Such a trainkit seeds every image, as commits do that know no `draws_nothing`.
    """
    command = [sys.executable, str(Path(__file__).parent / "_loops.py"), "--work", work]
    command += ["--loop", loop, "--batch", str(options.batch), "--steps", str(options.steps)]
    command += ["--ready"] if options.ready else []
    environment = {"TMPDIR": str(folder)}
    if side is not None:
        environment["TRAINKIT_SIDE"] = str(side)
        command.append("--seeded")
    # of its own: folders of two sides may have the same name
    return Program(command, environment, Path(tempfile.mkdtemp(dir=folder)) / "stamps")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=1_000_000, help="at most, of each loop")
    parser.add_argument("--seconds", type=float, default=60.0, help="of all loops together")
    parser.add_argument("--turn", type=float, default=0.15, help="seconds of one loop at a time")
    parser.add_argument("--ready", action="store_true", help="hand batches over ready-made")
    add_option(parser)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", choices=WORKS, default="tiny")
    parser.add_argument("--loops", nargs="+", choices=LOOPS)
    add_options(parser)
    asked = parser.parse_args()
    left_out = READY if asked.ready else ONE_BY_ONE
    loops = asked.loops or [name for name in installed_loops() if name != left_out]
    if asked.ready and asked.loops is None:
        loops.remove("trainkit")
    with tempfile.TemporaryDirectory() as folder:
        programs = {name: start(asked.work, name, asked, Path(folder)) for name in loops}
        taken = take_turns(programs, asked.seconds, asked.turn)
    print(
        f"{asked.work}, batches of {asked.batch}, {asked.seconds:g} s in turns;"
        f" torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores"
    )
    first = loops[0]
    results = Results(
        f"step_overhead-{asked.work}{'_ready' if asked.ready else ''}",
        "torch",
        "accelerate",
        *(package.replace("ignite", "pytorch-ignite") for package in NEEDS.values()),
        rounds=ROUNDS,
        baseline=ROWS[first],
    )
    add_rows(results, {ROWS[name]: found for name, found in taken.items()})
    results.write(asked.results)


def add_rows(results: Results, taken: dict[str, Taken]) -> None:
    """Record and print each, with its ratio to the first."""
    first = next(iter(taken.values()))
    for name, found in taken.items():
        ratio, cpu = (
            median(found.means) / median(first.means),
            median(found.cpu) / median(first.cpu),
        )
        middle = found.median / first.median
        results.add(name, "time per step", "ms", found.means, ratio)
        results.add(name, "processor's time", "ms", found.cpu, cpu)
        results.put(name, "median step", "ms", found.median, middle)
        print(f"{name:40} {median(found.means):.3f} ms ({ratio:.3f} x), processor"
              f" {median(found.cpu):.3f} ms ({cpu:.3f} x), median step {found.median:.3f} ms"
              f" ({middle:.3f} x)")  # fmt: skip


if __name__ == "__main__":
    main()
