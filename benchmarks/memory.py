"""What a training step takes beside its weights.

The loss of a segmentation mask, a ResNet's activations, what LoRA leaves out of a ViT's step, DDP's
gradients, and an optimizer's update.

    python benchmarks/memory.py                  # the table of docs/results.md
    python benchmarks/memory.py --size 64        # the same, small

First a whole tiny training (benchmarks/_tiny_run.py), by trainkit and bare: the most that the
process took. Then parts of a step. Each row is a process of its own; peak: the most of its memory
in use during the work, less what was in use before it (Linux, /proc/self/clear_refs and VmHWM).
"""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from _results import Results, add_option
from _timing import versions
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import resnet50

from trainkit.distributed.accelerator import use_whole_host
from trainkit.engine.activation_checkpointing import checkpoint_activations
from trainkit.losses.functional import cross_entropy_sum
from trainkit.models.recognition import fine_tuned

IGNORE = 255


def pixels(way: str, dtype: torch.dtype, size: int) -> Callable[[], None]:
    """Loss and gradient of 4 masks of 150 classes."""
    logits = torch.randn(4, 150, size, size).to(dtype).requires_grad_()
    targets = torch.randint(150, (4, size, size))
    targets[:, : size // 8] = IGNORE

    def work() -> None:
        logits.grad = None
        if way == "trainkit":
            loss = cross_entropy_sum(logits, targets, IGNORE)
        else:
            loss = F.cross_entropy(logits.float(), targets, ignore_index=IGNORE, reduction="sum")
        loss.backward()

    return work


def activations(way: str, size: int) -> Callable[[], None]:
    """Forward and backward of ResNet-50 on 8 images."""
    model, images = resnet50(), torch.randn(8, 3, size, size)
    if way == "checkpointed":
        checkpoint_activations(model)

    def work() -> None:
        model.zero_grad()
        model(images).sum().backward()

    return work


def adapters(rank: int | None, size: int) -> Callable[[], None]:
    """Two steps of AdamW with a ViT-S and 10 classes, 8 images of 224, trained whole or by LoRA."""
    side = max(32, size * 7 // 16)
    model = fine_tuned("timm:vit_small_patch16_224", 10, False, [side], lora=rank).train()
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    images, targets = torch.randn(8, 3, side, side), torch.arange(8)
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).step()  # imports torch's compiler

    def work() -> None:
        for _ in range(2):  # the second one beside the optimizer's state
            optimizer.zero_grad()
            F.cross_entropy(model(images), targets).backward()
            optimizer.step()

    return work


def gradients(as_views: bool, size: int) -> Callable[[], None]:
    """ResNet-50's gradients under DDP, of one small image: as views of what is sent, or beside it.

    One gloo process is enough: its buckets are those of any number.
    """
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    model, image = resnet50().eval(), torch.randn(1, 3, max(32, size // 16), max(32, size // 16))

    def work() -> None:
        model.zero_grad()
        wrapped = DistributedDataParallel(model, gradient_as_bucket_view=as_views)
        wrapped(image).sum().backward()

    return work


def updates(way: str, _size: int) -> Callable[[], None]:
    """Two updates of ResNet-50's weights by AdamW, whose gradients are there."""
    model = resnet50()
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    kinds = {"fused": {"fused": True}, "foreach": {"foreach": True}}
    optimizer = torch.optim.AdamW(model.parameters(), **kinds.get(way, {"foreach": False}))
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).step()  # imports torch's compiler

    def work() -> None:
        for _ in range(2):  # the second one beside the optimizer's state
            optimizer.step()

    return work


WAYS = {
    "loss, bfloat16: F.cross_entropy": lambda size: pixels("torch", torch.bfloat16, size),
    "loss, bfloat16: trainkit": lambda size: pixels("trainkit", torch.bfloat16, size),
    "loss, float32: F.cross_entropy": lambda size: pixels("torch", torch.float32, size),
    "loss, float32: trainkit": lambda size: pixels("trainkit", torch.float32, size),
    "ResNet-50: all activations kept": lambda size: activations("kept", size // 2),
    "ResNet-50: --activation-checkpointing": lambda size: activations("checkpointed", size // 2),
    "ViT-S: all trained": lambda size: adapters(None, size),
    "ViT-S: --lora 16": lambda size: adapters(16, size),
    "DDP: gradients beside the buckets": lambda size: gradients(False, size),
    "DDP: gradients as views of the buckets": lambda size: gradients(True, size),
    "AdamW: fused": lambda size: updates("fused", size),
    "AdamW: foreach": lambda size: updates("foreach", size),
    "AdamW: weight by weight": lambda size: updates("single", size),
}


def tiny_runs(rounds: int, results: Results) -> None:
    """The peaks of both, interleaved."""
    peaks: dict[str, list[float]] = {"bare": [], "trainkit": []}
    for _ in range(rounds):
        for way, found in peaks.items():
            words = [sys.executable, str(Path(__file__).parent / "_tiny_run.py"), way]
            printed = subprocess.run(words, check=True, text=True, stdout=subprocess.PIPE).stdout
            found.append(float(printed.split()[-1]))
    for way, found in peaks.items():
        spread, ratio = (
            f"({min(found):.0f} to {max(found):.0f})",
            median(found) / median(peaks["bare"]),
        )
        row = "trainkit" if way == "trainkit" else "bare PyTorch"
        results.add(row, "peak", "MiB", found, ratio)
        print(f"tiny run: {way:30} {median(found):8.0f} MiB {spread}, {ratio:.3f} x bare")


def measure(work: Callable[[], None], rounds: int) -> tuple[float, float]:
    """Peak in MiB beside what there was, and median seconds."""
    Path("/proc/self/clear_refs").write_text("5")
    before, seconds = peak(), []
    work()
    taken = peak() - before
    use_whole_host()  # from here on the C library keeps freed memory, as it does in a training
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return taken / 1024, median(seconds)


def peak() -> int:
    """The most memory so far, in KiB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()).group(1))


def main() -> None:
    """Each way in turn, in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=512, help="height and width of a mask")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=["tiny run", *WAYS], help="default: all")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    add_option(parser)
    asked = parser.parse_args()
    if asked.way is not None:
        mib, seconds = measure(WAYS[asked.way](asked.size), asked.rounds)
        print(f"{asked.way:40} {mib:8.0f} MiB {seconds:8.3f} s")
        return
    print(versions("torch", "accelerate"))
    chosen = asked.only or ["tiny run", *WAYS]
    tiny = Results("memory-tiny_run", "torch", rounds=asked.rounds, baseline="bare PyTorch")
    if "tiny run" in chosen:
        tiny_runs(asked.rounds, tiny)
    parts = {
        "loss": Results("memory-loss", "torch"),
        "ResNet-50": Results("memory-resnet50", "torch", rounds=asked.rounds),
        "ViT-S": Results("memory-lora", "torch", "timm", "peft"),
        "DDP": Results("memory-ddp", "torch"),
        "AdamW": Results("memory-adamw", "torch"),
    }
    for way in [each for each in WAYS if each in chosen]:
        size = ["--size", str(asked.size), "--rounds", str(asked.rounds)]
        command = [sys.executable, __file__, "--way", way, *size]
        printed = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout
        print(printed, end="")
        mib, seconds = (float(each) for each in re.findall(r"([\d.]+) (?:MiB|s)\b", printed))
        kind, _, program = way.partition(": ")
        if kind == "ViT-S":
            parts[kind].put(program, "peak of a step", "MiB", mib)
        elif kind == "ResNet-50":
            parts[kind].put(program, "peak", "MiB", mib)
            parts[kind].put(program, "time of forward and backward", "s", seconds)
        elif kind in ("DDP", "AdamW"):
            parts[kind].put(program, "peak", "MiB", mib)
        else:
            row = f"4 x 150 x {asked.size} x {asked.size}, {kind.removeprefix('loss, ')}"
            parts["loss"].put(row, program, "MiB", mib)
    for results in (tiny, *parts.values()):
        if results.measurements:
            results.write(asked.results)


if __name__ == "__main__":
    main()
