"""What grows with the number of images and of processes, without having them.

Results of docs/scale.md.

    python benchmarks/scaling.py           # orders up to 10^10 images, a checkpoint of 1 GB
    python benchmarks/scaling.py --tables order kinds host
    python benchmarks/scaling.py --images 5 --gb 0.01 --rounds 1 --steps 20

The last table is of real trainings of a tiny network on 10^3 images and more, each a process of its
own, interleaved: the time of a step, and the time to the first step of a resumed run, which draws
the order of its epoch first: from the command, and from the call of `train`. How it depends on the
step: benchmarks/crash_recovery.py --kills 0.
"""

import argparse
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median

import torch
from _results import Results, add_option
from _timing import in_words, versions
from torch.utils.data import Dataset

from trainkit import Options, Recipe, train
from trainkit.data.balanced_draws import Balanced
from trainkit.data.local_order import Locality
from trainkit.data.sampler import COMPUTED, DRAWN, TrainOrder
from trainkit.distributed.accelerator import use_whole_host
from trainkit.schedules import cos
from trainkit.storage import checkpoint
from trainkit.tasks.recognition import Recognition

TABLES = ("order", "kinds", "host", "checkpoint", "runs")

INTERLEAVED = 16  # row groups that are read at a time
CLASSES = 1000


def seconds(work: Callable[[], object], rounds: int = 5) -> float:
    """Median of so many rounds."""
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return median(taken)


@dataclass(frozen=True)
class Case:
    """An order of 10^exponent images, drawn whole or computed, and the last of its processes."""

    exponent: int
    version: int
    processes: int = 1
    kind: str = "uniform"
    group: int = 0
    """images of a row group, where they are streamed"""

    @property
    def row(self) -> str:
        kind = {
            "uniform": "images",
            "streamed": f"streamed images, row groups of {self.group:,}",
            "balanced": "balanced draws",
        }[self.kind]
        return f"10^{self.exponent} {kind}, {'drawn' if self.version == DRAWN else 'computed'}"

    def order(self) -> TrainOrder:
        """With 64 images of each batch for a process."""
        num_images, more = 10**self.exponent, {}
        if self.kind == "streamed":
            lengths = (self.group,) * (num_images // self.group)
            more["locality"] = Locality(lengths, INTERLEAVED)
        elif self.kind == "balanced":
            members = torch.full((CLASSES,), num_images // CLASSES)
            more["balanced"] = Balanced(torch.arange(num_images), members)
        return TrainOrder(
            num_images, 64 * self.processes, 0, self.processes, micro_batch=32,
            version=self.version, **more,
        )  # fmt: skip


def orders(largest: int, rounds: int, results: Results) -> None:
    """A uniform order, by the number of images and of processes."""
    add_orders(
        [
            Case(exponent, version, processes)
            for exponent in (6, 8, 10)
            for version in (DRAWN, COMPUTED)
            for processes in (1, 512, 1024)
            if exponent <= max(6, largest) and (version == COMPUTED or exponent < 10)  # 37 GiB
        ],
        rounds,
        results,
    )


def kinds(largest: int, rounds: int, results: Results) -> None:
    """Streamed orders and balanced ones; the table of a class's images is made before."""
    cases = [
        Case(exponent, version, processes, "streamed", group)
        for exponent, version, group in (
            (6, DRAWN, 1000), (6, COMPUTED, 1000), (8, COMPUTED, 1000), (8, COMPUTED, 100),
        )
        for processes in (1, 512)
    ]  # fmt: skip
    cases += [
        Case(exponent, version, processes, "balanced")
        for exponent, version in ((6, DRAWN), (6, COMPUTED), (7, DRAWN), (7, COMPUTED))
        for processes in (1, 512)
    ]
    add_orders([case for case in cases if case.exponent <= max(6, largest)], rounds, results)


def add_orders(cases: list[Case], rounds: int, results: Results) -> None:
    """Memory, first batch, and each further step of an epoch's order. Each case is a fork."""
    found: dict[Case, list[tuple[float, ...]]] = {case: [] for case in cases}
    for _, case in product(range(rounds), cases):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(writer, json.dumps(of_order(case)).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as stream:
            found[case].append(tuple(json.loads(stream.read())))
        os.waitpid(child, 0)
    for case, measured in found.items():
        memory, first, step = zip(*measured)
        if case.processes == 1:
            results.add(case.row, "memory of each process", "MiB", memory)
            results.add(case.row, "first batch of an epoch", "s", first)
        words = f"step, {case.processes:,} process{'es' if case.processes > 1 else ''}"
        results.add(case.row, words, "us", step)
        print(
            f"{case.row}, {words:22} {median(memory):8.2f} MiB, first batch"
            f" {median(first):9.6f} s, {median(step):7.1f} us"
        )


def of_order(case: Case) -> tuple[float, float, float]:
    """MiB that are needed at most, seconds to the first batch, and us of a step after it."""
    steps = 256
    order = case.order()
    start = min(1000, order.steps_per_epoch // 2)  # resumed in the middle
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    begun = time.perf_counter()
    batches = order.batches(start, start + steps, case.processes - 1)
    next(batches)
    first = time.perf_counter() - begun
    taken = time.perf_counter()
    for step in range(start + 1, start + steps):
        order.passes(step, case.processes - 1)
        order.share(step, case.processes - 1)
        next(batches)
    taken = time.perf_counter() - taken
    return resident("VmHWM") - before, first, 1e6 * taken / (steps - 1)


def resident(name: str) -> float:
    """MiB of this process, as Linux counts them."""
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)
    )
    return int(line.split()[1]) / 2**10


def host_work(results: Results) -> None:
    """Arithmetic of one step in one process: its share of the batch, its passes, its keys."""
    for processes in (1, 8, 64, 512, 1024):
        order = TrainOrder(10**6, 64 * processes, 0, processes, micro_batch=32)

        def step(order: TrainOrder = order, processes: int = processes) -> None:
            order.passes(7, processes - 1)
            order.share(7, processes - 1)
            order.num_images_of(7)

        taken = 1e6 * seconds(step, 101)
        row = f"{processes} process{'es' if processes > 1 else ''}"
        results.put(row, "host arithmetic of a step", "us", taken)
        print(
            f"{processes:4} processes, batch {64 * processes:6}: {taken:8.1f} us of host arithmetic"
            " a step"
        )


def saving(gb: float, results: Results) -> None:
    """Seconds to write one checkpoint, flushed and hashed, and to read and verify it."""
    weights = {f"layer{i}": torch.randn(int(gb * 1e9 / 4 / 64)) for i in range(64)}
    snapshot = checkpoint.Snapshot.of(weights, {}, copy=False)
    with tempfile.TemporaryDirectory() as folder:
        written = seconds(lambda: checkpoint.write(Path(folder), 1, snapshot), 3)
        path = checkpoint.checkpoint_path(Path(folder), 1)
        read = seconds(lambda: (checkpoint.verify(path), checkpoint.load(path, verified=True)), 3)
    results.put("write a checkpoint", "seconds per GB", "s", written / gb)
    results.put("verify and read it", "seconds per GB", "s", read / gb)
    print(
        f"checkpoint: {written / gb:6.2f} s per GB to write, {read / gb:6.2f} s per GB to verify"
        " and read"
    )


class Same(Dataset):
    """So many images, all of them the same."""

    def __init__(self, num_images: int):
        self.num_images = num_images
        self.image, self.target = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.tensor(1)

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.image, self.target


def stopped_training(out: Path, num_images: int, steps: int) -> None:
    """Begin a run, or resume it, for so many steps.

    Print when `train` was called, and when each step was done.
    """
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(192, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
    )
    optimizer, done = torch.optim.SGD(model.parameters(), lr=0.01), []

    def note(*_: object) -> None:
        done.append(time.time())
        if len(done) == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    optimizer.register_step_post_hook(note)
    recipe = Recipe(
        task=Recognition(10), model=model, train_data=Same(num_images), val_data=Same(8),
        optimizer=optimizer, schedule=cos(), epochs=10**6 * 32 / num_images, batch_size=32,
    )  # fmt: skip
    use_whole_host()
    begun = time.time()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        train(recipe, Options(out=out, workers=0, checkpoint_every=10**9, evaluate_every=10**9))
    print(json.dumps([begun, *done]))


def growth(largest: int, rounds: int, steps: int, results: Results) -> None:
    """Steps and resumes of real trainings on 10^3 to 10^largest images."""
    found: dict[int, list[tuple[float, ...]]] = {exponent: [] for exponent in range(3, largest + 1)}
    with tempfile.TemporaryDirectory() as folder:
        for number, exponent in product(range(rounds + 1), found):
            words = [
                "--images",
                str(exponent),
                "--steps",
                str(steps),
                "--train",
                str(Path(folder) / str(exponent)),
            ]
            command, env = (
                [sys.executable, __file__, *words],
                {**os.environ, "OMP_NUM_THREADS": "1"},
            )
            asked = time.time()
            printed = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE).stdout
            begun, *done = json.loads(printed)
            step = median(after - before for before, after in zip(done, done[1:]))
            if number:  # the first is the run's beginning
                found[exponent].append((done[0] - asked, done[0] - begun, step))
    for exponent, rows in found.items():
        print(f"10^{exponent} images")
        from_command, from_call, of_step = zip(*rows)
        row = f"10^{exponent} images"
        results.add(row, "step", "ms", [1e3 * each for each in of_step])
        results.add(row, "resume: command to first step", "s", from_command)
        results.add(row, "resume: call of train to first step", "s", from_call)
        for name, seconds in {
            "resume: from the command": from_command,
            "resume: from the call of train": from_call,
            "a step": of_step,
        }.items():
            print(in_words(f"  {name}", seconds))


def main() -> None:
    """All tables asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", nargs="*", choices=TABLES, default=TABLES, help="which")
    parser.add_argument("--images", type=int, default=10, help="largest power of ten")
    parser.add_argument("--gb", type=float, default=1.0, help="size of the checkpoint")
    parser.add_argument("--rounds", type=int, default=5, help="of trainings")
    parser.add_argument("--steps", type=int, default=100, help="of each training in each round")
    parser.add_argument("--train", type=Path, metavar="OUT", help="be one of these trainings")
    add_option(parser)
    asked = parser.parse_args()
    if asked.train is not None:
        stopped_training(asked.train, 10**asked.images, asked.steps)
        return
    print(versions("torch"))
    note = f"rounds of {asked.steps} steps"
    for name in asked.tables:
        rounds = asked.rounds if name in ("order", "kinds", "runs") else None
        results = Results(
            f"scaling-{name}", "torch", rounds=rounds, note=note if name == "runs" else None
        )
        if name == "order":
            orders(asked.images, asked.rounds, results)
        elif name == "kinds":
            kinds(asked.images, asked.rounds, results)
        elif name == "host":
            host_work(results)
        elif name == "checkpoint":
            saving(asked.gb, results)
        else:
            growth(min(7, asked.images), asked.rounds, asked.steps, results)
        results.write(asked.results)


if __name__ == "__main__":
    main()
