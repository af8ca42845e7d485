"""How long a save keeps a training waiting: ResNet-50 with momentum, in the foreground, beside, and torch.save.

    python benchmarks/checkpoint.py --rounds 7

Interleaved; medians. The background's pause is the copy of the tensors; the rest is written by a thread beside.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torchvision.models import resnet18, resnet50

sys.path.insert(0, str(Path(__file__).parent.parent))

from trainkit.saving import Saver


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--small", action="store_true", help="ResNet-18, to see that it runs")
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
        savers = {}
        for name in ("foreground", "background"):
            (work / name).mkdir()
            savers[name] = Saver(work / name, keep=2, background=name == "background")
        for step in range(1, arguments.rounds + 1):
            for name, saver in savers.items():
                saver.save(step, model.state_dict(), {"optimizer": optimizer.state_dict()})
                saver.wait()
                (row,) = saver.written()
                taken[name].append(row["pause_s"])
                written.append(row["bytes"])
            begun = time.perf_counter()
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, work / "plain.pth")
            taken["torch.save"].append(time.perf_counter() - begun)
    plain = statistics.median(taken["torch.save"])
    print(f"{statistics.median(written) / 2**20:.0f} MiB; torch {torch.__version__}")
    for name, seconds in taken.items():
        middle = statistics.median(seconds)
        spread = f"({min(seconds):.3f} to {max(seconds):.3f})"
        print(f"{name}: pause {middle:.3f} s {spread}, {middle / plain:.2f} x torch.save")


if __name__ == "__main__":
    main()
