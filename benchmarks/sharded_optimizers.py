"""Every optimizer that can be built here, under FSDP on two processes.

Its training against that of one process.

    torchrun --nproc-per-node 2 benchmarks/sharded_optimizers.py [NAME ...]

Each trains a small network for a few steps twice: whole, and sharded whatever the trial before the
first step says of it. What it says must agree: an optimizer that it lets pass trains as in one
process, to rounding.
"""

import argparse
import os
import re
import sys
import warnings
from pathlib import Path

os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2",
               "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP",
               "FSDP_MIN_NUM_PARAMS": "100"}  # fmt: skip

import torch
from accelerate.utils import gather_object
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from _results import Results, add_option

from helpers.optimizers import Builder, builders
from trainkit.distributed.accelerator import start_accelerator
from trainkit.distributed.fsdp import prepare
from trainkit.distributed.sharded_tensors import gathered
from trainkit.engine.fsdp_trial import require_same_updates
from trainkit.engine.optimizer_state import has_modes, require_supported
from trainkit.engine.task_module import TaskModule
from trainkit.tasks.recognition import Recognition

STEPS, BATCH, CLASSES = 4, 16, 7


def network(build: Builder) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 144), nn.Tanh(), nn.Linear(144, 136), nn.Tanh(), nn.Linear(136, CLASSES),
    )  # fmt: skip
    return model, build(model)


def trained(
    accelerator, build: Builder, share: slice, sharded: bool
) -> tuple[list[float], list[torch.Tensor]]:
    """Losses of each step and the weights to be measured, whole."""
    model, optimizer = network(build)
    task_module = TaskModule(model, Recognition(CLASSES))
    before = [weight.detach().clone() for weight in model.parameters()]
    if sharded:
        task_module = prepare(accelerator, task_module, optimizer)
    if has_modes(optimizer):
        optimizer.train()
    task_module.train()
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(STEPS):
        images = torch.randn(BATCH, 3, 12, 12, generator=generator)
        targets = torch.randint(CLASSES, (BATCH,), generator=generator)
        loss = task_module(images[share], targets[share]).sum() / BATCH
        (loss * (accelerator.num_processes if sharded else 1)).backward()
        losses.append((accelerator.reduce(loss.detach(), "sum") if sharded else loss).item())
        torch.manual_seed(2)
        optimizer.step()
        optimizer.zero_grad()
    if has_modes(optimizer):
        optimizer.eval()
    after = [gathered(weight.detach()).clone() for weight in model.parameters()]
    moved = max((one - other).abs().max().item() for one, other in zip(before, after))
    return [*losses, moved], after


def compared(accelerator, build: Builder) -> tuple[str, str]:
    """What the trial said, and how the training went."""
    model, optimizer = network(build)
    try:
        require_supported(optimizer, TaskModule(model, Recognition(CLASSES)))
    except ValueError as error:
        return "refused everywhere: " + str(error).split(":")[0], ""
    try:
        require_same_updates(optimizer, accelerator)
        said = "same"
    except ValueError as error:
        said = str(error)
    rank, half = accelerator.process_index, BATCH // accelerator.num_processes
    (*losses, moved), weights = trained(accelerator, build, slice(0, BATCH), False)
    try:
        (*others, _), parts = trained(
            accelerator, build, slice(rank * half, (rank + 1) * half), True
        )
    except Exception as error:
        went = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:80]}"
    else:
        gap = max((one - other).abs().max().item() for one, other in zip(weights, parts))
        went = (
            f"weights {gap / moved if moved else gap:.1e} of the way, losses "
            + f"{max(abs(one - other) for one, other in zip(losses, others)):.1e}"
        )
    return said, max(gather_object([went]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_option(parser)
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.compiler.set_stance("force_eager")
    accelerator = start_accelerator()
    known = builders()
    rows = []
    for name in given.names or known:
        rows.append((name, *compared(accelerator, known[name])))
        if accelerator.is_main_process:
            print(*rows[-1], sep=" | ", flush=True)
    if accelerator.is_main_process:
        record(rows, given.results)


def record(rows: list[tuple[str, str, str]], folder: Path) -> None:
    """Counts of what the trial said and how the trainings went: within 1e-3 is rounding."""
    everywhere = [row for row in rows if row[1].startswith("refused everywhere")]
    accepted = [row for row in rows if row[1] == "same"]
    gaps = [re.findall(r"weights (\S+) of the way, losses (\S+)", row[2]) for row in accepted]
    equal = [pair for pair in gaps if pair and max(map(float, pair[0])) < 1e-3]
    most = [f"{max((float(pair[0][i]) for pair in equal), default=0):.1e}" for i in (0, 1)]
    results = Results("optimizers-sharded", "torch", "timm", "prodigyopt", "schedulefree")
    results.head["command"] = "torchrun --nproc-per-node 2 benchmarks/sharded_optimizers.py"
    as_one = (
        f"train as one process does (weights within {most[0]} of the distance moved, losses within"
        f" {most[1]})"
    )
    counts = {
        "tried under FSDP2 on two processes": len(rows),
        as_one: len(equal),
        "refused by FSDP's trial before the first step": (
            len(rows) - len(everywhere) - len(accepted)
        ),
        "refused everywhere": len(everywhere),
        "accepted, yet trained differently": len(accepted) - len(equal),
    }
    for row, count in counts.items():
        results.put(row, "optimizers and variants", "", count)
    results.write(folder)


if __name__ == "__main__":
    main()
