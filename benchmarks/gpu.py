"""One GPU.

ResNet-50 in bfloat16, and CIFAR-10 held on the device, each against a loop tuned by hand.

Without a GPU it runs on the CPU, which tells that it runs and nothing else.

    python benchmarks/gpu.py resnet50 [--compile] [--batch 256] [--steps 60] [--rounds 5]
    python benchmarks/gpu.py cifar10 --data PARQUET [--epochs 12] [--target 0.88] [--rounds 3]

Each run is a process of its own and the loops take turns; medians. resnet50: random uint8 images in
memory, read by worker processes, channels_last; images a second between two steps with the device
idle at both, and the most memory taken. timm: the step of its train script, on the same batches.
cifar10: ResNet-18 with a 3x3 stem, PadCrop and Flip, one-cycle schedule, an evaluation after each
epoch; seconds from the first image to the first evaluation that reaches the target, images held on
the device in both loops.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from _results import Results, add_option
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.models import resnet18, resnet50

sys.path.insert(0, str(Path(__file__).parent.parent))

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Images(Dataset):
    """Random uint8 images in memory."""

    def __init__(self, num_images: int, size: int = 224, classes: int = 1000):
        self.images = torch.randint(
            256, (num_images, 3, size, size), dtype=torch.uint8
        ).share_memory_()
        self.labels = torch.randint(classes, (num_images,))

    def __len__(self) -> int:
        return 100 * len(self.images)  # an epoch longer than the measurement

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index % len(self.images)], self.labels[index % len(self.images)]


class Clock:
    """Seconds between two updates of an optimizer, with the device idle at both."""

    def __init__(self, optimizer: torch.optim.Optimizer, first: int, last: int):
        self.first, self.last, self.step, self.times = first, last, 0, []
        optimizer.register_step_post_hook(self)

    def __call__(self, *_: object) -> None:
        self.step += 1
        if self.step in (self.first, self.last):
            wait()
            self.times.append(time.perf_counter())

    @property
    def per_step(self) -> float:
        return (self.times[1] - self.times[0]) / (self.last - self.first)


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def normaliser():
    mean, std = (255 * torch.tensor(values, device=DEVICE).view(-1, 1, 1) for values in (MEAN, STD))

    def normalised(images: Tensor) -> Tensor:
        images = images.to(DEVICE, non_blocking=True, memory_format=torch.channels_last)
        return images.float().sub_(mean).div_(std)

    return normalised


def loop_by_hand(
    model: nn.Module, optimizer: SGD, loader: DataLoader, steps: int, timms: bool
) -> None:
    """A tuned loop; with `timms`, the meters and synchronisation of timm's train script too."""
    normalised = normaliser()
    if timms:
        from timm.loss import LabelSmoothingCrossEntropy
        from timm.utils import AverageMeter

        losses, loss_of = AverageMeter(), LabelSmoothingCrossEntropy(0.0).to(DEVICE)
    else:
        loss_of = F.cross_entropy
    for step, (images, labels) in enumerate(loader, 1):
        images, labels = normalised(images), labels.to(DEVICE, non_blocking=True)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = loss_of(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0:
            if timms:
                losses.update(loss.item(), len(images))
            print(f"step {step} loss {loss.item():.4f}")
        if step == steps:
            return


def resnet50_of(asked: argparse.Namespace) -> dict[str, float]:
    """Images a second and GiB of one loop."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = asked.cudnn_benchmark
    model, data = resnet50(), Images(8 * asked.batch, asked.size)
    workers = max(1, len(os.sched_getaffinity(0)) - 2)
    if asked.one == "trainkit":
        from trainkit import Options, Recipe, train
        from trainkit.tasks.recognition import Recognition

        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
        if asked.compile:
            os.environ["ACCELERATE_DYNAMO_BACKEND"] = "INDUCTOR"
        optimizer = SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-5, fused=True)
        clock = Clock(optimizer, asked.steps // 3, asked.steps)
        recipe = Recipe(
            task=Recognition(1000), model=model, train_data=data, val_data=Subset(data, range(16)),
            optimizer=optimizer, schedule=lambda *_: 1.0,
            epochs=asked.steps / (len(data) // asked.batch), batch_size=asked.batch,
            eval_batch_size=16,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            train(
                recipe,
                Options(
                    out=Path(folder) / "run",
                    workers=workers,
                    log_every=10,
                    channels_last=True,
                    tf32=True,
                ),
            )
    else:
        model = model.to(DEVICE, memory_format=torch.channels_last).train()
        optimizer = SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-5, fused=True)
        clock = Clock(optimizer, asked.steps // 3, asked.steps)
        loader = DataLoader(
            data,
            asked.batch,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            pin_memory=DEVICE.type == "cuda",
            prefetch_factor=4,
        )
        called = torch.compile(model) if asked.compile else model
        loop_by_hand(called, optimizer, loader, asked.steps, timms=asked.one == "timm")
    gib = {"gib": torch.cuda.max_memory_allocated() / 2**30} if DEVICE.type == "cuda" else {}
    return {"images_per_s": asked.batch / clock.per_step, **gib}


def few(data: Dataset, most: int | None) -> Dataset:
    """Its first `most` images."""
    part = Subset(data, range(min(len(data), most or len(data))))
    part.classes = data.classes
    return part


def cifar_network() -> nn.Module:
    network = resnet18(num_classes=10)
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return network


def cifar10_of(asked: argparse.Namespace) -> dict[str, float]:
    """Seconds to the target, to the end, and the last accuracy, of one loop."""
    from trainkit.data.datasets.hub import HubImages
    from trainkit.data.on_device import Flip, OnDevice, PadCrop

    torch.manual_seed(asked.seed)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = asked.cudnn_benchmark
    model = cifar_network()
    splits = (HubImages(asked.data, split) for split in ("train", "test"))
    train_images, test_images = (few(images, asked.images) for images in splits)
    train_data, val_data = OnDevice(train_images, [PadCrop(4), Flip()]), OnDevice(test_images)
    steps_per_epoch = len(train_data) // asked.batch
    total = asked.epochs * steps_per_epoch
    settings = {
        "lr": asked.lr,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "nesterov": True,
        "fused": True,
    }
    if asked.one == "trainkit":
        found = cifar10_by_trainkit(asked, model, train_data, val_data, settings)
    else:
        found = cifar10_by_hand(asked, model, train_data, val_data, settings, total)
    reached = [seconds for seconds, top1 in found if top1 >= asked.target]
    return {
        "to_target": reached[0] if reached else float("nan"),
        "to_end": found[-1][0],
        "top1": found[-1][1],
    }


def cifar10_by_trainkit(asked, model, train_data, val_data, settings) -> list[tuple[float, float]]:
    from trainkit import Options, Recipe, train
    from trainkit.data.on_device import OnDevice
    from trainkit.schedules import cos
    from trainkit.tasks.recognition import Recognition

    times: dict[int, float] = {}

    class Watched(OnDevice):
        """Notes when each epoch's first batch is asked for.

        Evaluation and checkpoint before it are done.
        """

        def read(self, seed, epoch, indices):
            times.setdefault(epoch, time.perf_counter())
            return super().read(seed, epoch, indices)

    train_data.__class__ = Watched
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    recipe = Recipe(
        task=Recognition(10), model=model, train_data=train_data, val_data=val_data,
        optimizer=SGD(model.parameters(), **settings), schedule=cos(warmup_epochs=asked.epochs / 4),
        epochs=asked.epochs, batch_size=asked.batch, eval_batch_size=1000, drop_last=True,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        train(recipe, Options(out=out, log_every=50, channels_last=True, tf32=True))
        rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    times[asked.epochs] = time.perf_counter()
    accuracies = [row["top1"] for row in rows if row["event"] == "evaluate"]
    return [(times[epoch] - times[0], top1) for epoch, top1 in enumerate(accuracies, 1)]


def cifar10_by_hand(
    asked, model, train_data, val_data, settings, total
) -> list[tuple[float, float]]:
    device, normalised = DEVICE, normaliser()
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = SGD(model.parameters(), **settings)
    schedule = OneCycleLR(optimizer, asked.lr, total, pct_start=0.25, cycle_momentum=False)
    images, labels = train_data.images.to(device), train_data.targets.to(device)
    test_images, test_labels = val_data.images.to(device), val_data.targets.to(device)
    padded, side, found = F.pad(images, [4] * 4), torch.arange(32, device=device), []
    channels = torch.arange(3, device=device)[:, None, None]
    wait()
    began = time.perf_counter()
    for _ in range(asked.epochs):
        model.train()
        for batch in torch.randperm(len(images), device=device).split(asked.batch)[
            : len(images) // asked.batch
        ]:
            top, left = torch.randint(9, (2, len(batch), 1), device=device)
            rows, columns = (top + side)[:, None, :, None], (left + side)[:, None, None, :]
            crops = padded[batch[:, None, None, None], channels, rows, columns]
            crops = torch.where(
                torch.rand(len(batch), 1, 1, 1, device=device) < 0.5, crops.flip(-1), crops
            )
            with torch.autocast(DEVICE.type, torch.bfloat16):
                loss = F.cross_entropy(model(normalised(crops)), labels[batch])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
        model.eval()
        right = 0
        with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16):
            for part, truth in zip(test_images.split(1000), test_labels.split(1000)):
                right += (model(normalised(part)).argmax(1) == truth).sum()
        found.append((int(right) / len(test_labels), time.perf_counter() - began))
        print(f"top1 {found[-1][0]:.4f}")
    return [(seconds, top1) for top1, seconds in found]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["resnet50", "cifar10"])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=224, help="of resnet50's images")
    parser.add_argument("--images", type=int, help="of cifar10, the first of each split")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cudnn-benchmark", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--data", default="uoft-cs/cifar10")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--target", type=float, default=0.88)
    parser.add_argument("--loops", nargs="+", choices=["bare", "timm", "trainkit"])
    for hidden in ("--one", "--into"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    add_option(parser)
    asked = parser.parse_args()
    if asked.one:
        found = (resnet50_of if asked.what == "resnet50" else cifar10_of)(asked)
        Path(asked.into).write_text(json.dumps(found))
        return
    loops = asked.loops or ["bare", *(["timm"] if asked.what == "resnet50" else []), "trainkit"]
    runs: dict[str, list[dict[str, float]]] = {loop: [] for loop in loops}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(asked.rounds):
            for loop, taken in runs.items():
                into = Path(folder) / "found.json"
                hidden = ["--one", loop, "--into", str(into), "--seed", str(turn)]
                done = subprocess.run(
                    [sys.executable, __file__, *sys.argv[1:], *hidden],
                    capture_output=True,
                    text=True,
                )
                if done.returncode:
                    sys.exit(done.stdout + done.stderr)
                taken.append(json.loads(into.read_text()))
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "no GPU"
    print(f"{' '.join(sys.argv[1:])}: {name}, torch {torch.__version__}")
    first = runs[loops[0]]
    results = Results(f"gpu-{asked.what}", "torch", rounds=asked.rounds, baseline=loops[0])
    for loop, taken in runs.items():
        line = f"{loop:9}"
        for name in taken[0]:
            values = [each[name] for each in taken]
            ratio = median(values) / median(each[name] for each in first)
            results.add(loop, name, "", values, ratio)
            line += (
                f"  {name} {median(values):.4g} ({min(values):.4g} to {max(values):.4g}),"
                f" {ratio:.3f} x {loops[0]};"
            )
        print(line.rstrip(";"), flush=True)
    results.write(asked.results)


if __name__ == "__main__":
    main()
