"""How long a save keeps a training waiting.

ResNet-50 with momentum, in the foreground, beside, and torch.save.

    python benchmarks/checkpoint.py --rounds 7

Interleaved; medians. Before each the disk is done with what came before, since torch.save leaves
its bytes to it. The background's pause is the copy of the tensors; the rest is written by a thread
beside. Then what a save consists of, each by itself: hashing goes on beside the writing and
flushing, and the removal beside the training.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from _results import Results, add_option
from _timing import in_words, interleaved, versions
from safetensors.torch import save_file
from torchvision.models import resnet18, resnet50

from trainkit.files import flush
from trainkit.storage.checkpoint import Snapshot, digest
from trainkit.storage.checkpoint_writer import CheckpointWriter


def parts(work: Path, snapshot: Snapshot, rounds: int) -> dict[str, list[float]]:
    """Seconds of what a save consists of."""
    files = {
        work / "model.safetensors": snapshot.model,
        work / "state.safetensors": snapshot.tensors,
    }
    return interleaved(
        {
            "writing": lambda: [save_file(tensors, file) for file, tensors in files.items()],
            "flushing": lambda: [flush(file) for file in files],
            "hashing": lambda: [digest(file) for file in files],
            "removing an older checkpoint": lambda: [file.unlink() for file in files],
        },
        rounds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--small", action="store_true", help="ResNet-18, to see that it runs")
    add_option(parser)
    arguments = parser.parse_args()
    model = resnet18() if arguments.small else resnet50()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    taken: dict[str, list[float]] = {"foreground": [], "background": [], "torch.save": []}
    written: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        writers = {}
        for name in ("foreground", "background"):
            (work / name).mkdir()
            writers[name] = CheckpointWriter(work / name, keep=2, background=name == "background")
        for step in range(arguments.rounds + 1):
            for name, writer in writers.items():
                os.sync()
                writer.save(step, model.state_dict(), {"optimizer": optimizer.state_dict()})
                writer.wait()
                (row,) = writer.written()
                taken[name].append(row["pause_s"])
                written.append(row["bytes"])
            os.sync()
            begun = time.perf_counter()
            torch.save(
                {"model": model.state_dict(), "optimizer": optimizer.state_dict()},
                work / "plain.pth",
            )
            taken["torch.save"].append(time.perf_counter() - begun)
        snapshot = Snapshot.of(model.state_dict(), {"optimizer": optimizer.state_dict()})
        of_parts = parts(work, snapshot, arguments.rounds)
    plain = statistics.median(taken["torch.save"][1:])
    print(f"{statistics.median(written) / 2**20:.0f} MiB; {versions('torch', 'safetensors')}")
    network = "ResNet-18" if arguments.small else "ResNet-50"
    results = Results(
        "checkpoint",
        "torch",
        "safetensors",
        rounds=arguments.rounds,
        baseline="torch.save",
        note=f"{network} with SGD's momentum, {statistics.median(written) / 2**20:.0f} MiB",
    )
    rows = {
        "foreground": "foreground: written, flushed, hashed, renamed",
        "background": "--async-checkpoint",
        "torch.save": "torch.save, neither flushed nor hashed",
    }
    for name, (_, *seconds) in taken.items():  # the first round warms up
        results.add(rows[name], "pause", "s", seconds, statistics.median(seconds) / plain)
        middle = statistics.median(seconds)
        spread = f"({min(seconds):.3f} to {max(seconds):.3f})"
        print(f"{name}: pause {middle:.3f} s {spread}, {middle / plain:.2f} x torch.save")
    for name, seconds in of_parts.items():
        results.add(name, "by itself", "ms", [1e3 * each for each in seconds])
        print(in_words(f"  {name}", seconds))
    results.write(arguments.results)


if __name__ == "__main__":
    main()
