"""What a step costs beside its arithmetic.

The same network, images and optimizer in trainkit and in other loops.

    python benchmarks/step_overhead.py                    # tiny network, batches of 32
    python benchmarks/step_overhead.py --network resnet18 --steps 30
    python benchmarks/step_overhead.py --loops bare trainkit --rounds 1 --steps 40

Each run is a process of its own with a terminal for its screen; the loops take turns, and a figure
is the median over the rounds. The network itself takes the time, at each forward pass in training,
so that every loop is measured between the same two points and all that it does in between counts:
reading, logging, its bar. Images lie in memory; every loop shuffles them, reads them in the
training process, follows a cosine and shows the loss every 50 steps. pip install
"trainkit[benchmarks]" for the peers.
"""

import argparse
import json
import math
import os
import platform
import pty
import subprocess
import sys
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import torch
from _results import Results, add_option
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet18

sys.path.insert(0, str(Path(__file__).parent.parent))

CLASSES, LOG_EVERY, EPOCH = 10, 50, 200  # EPOCH: steps
ROWS = {
    "bare": "bare PyTorch",
    "accelerate": "bare Accelerate",
    "trainkit": "trainkit, images read one by one",
    "trainkit_held": "trainkit, images held and read by the batch (OnDevice)",
    "hf_trainer": "HF Trainer",
    "pytorch_accelerated": "pytorch-accelerated",
    "lightning": "Lightning",
}
NEEDS = {
    "lightning": "lightning",
    "hf_trainer": "transformers",
    "pytorch_accelerated": "pytorch_accelerated",
}


class Timed(nn.Module):
    """A network that notes when it was asked."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.times: list[float] = []

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.times.append(time.perf_counter())
        return self.network(images)


class Images(Dataset):
    """Random images in memory, as floats: there is nothing to do but to hand them out."""

    classes = tuple(map(str, range(CLASSES)))

    def __init__(self, num_images: int, size: int):
        self.images, self.classes = (
            torch.randn(num_images, 3, size, size),
            torch.randint(CLASSES, (num_images,)),
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.classes[index]


def tiny() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES),
    )  # fmt: skip


def cosine(step: int, total: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))


def bare(network: nn.Module, data: Dataset, batch: int, steps: int, device: torch.device) -> None:
    """A loop as one writes it by hand."""
    network.to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    schedule = LambdaLR(optimizer, lambda step: cosine(step, steps))
    loader, step = DataLoader(data, batch, shuffle=True, drop_last=True), 0
    while step < steps:
        for images, classes in loader:
            loss = F.cross_entropy(network(images.to(device)), classes.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if step % LOG_EVERY == 0:
                print(f"\rstep {step} loss {loss.item():.4f}", end="")
            if step == steps:
                break


def accelerate(
    network: nn.Module, data: Dataset, batch: int, steps: int, device: torch.device
) -> None:
    """Accelerate's example loop."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=device.type == "cpu")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    schedule = LambdaLR(optimizer, lambda step: cosine(step, steps))
    loader = DataLoader(data, batch, shuffle=True, drop_last=True)
    network, optimizer, loader, schedule = accelerator.prepare(network, optimizer, loader, schedule)
    network.train()
    step = 0
    while step < steps:
        for images, classes in loader:
            loss = F.cross_entropy(network(images), classes)
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step % LOG_EVERY == 0:
                accelerator.print(f"\rstep {step} loss {loss.item():.4f}", end="")
            if step == steps:
                break


def trainkit(
    network: nn.Module,
    data: Dataset,
    batch: int,
    steps: int,
    device: torch.device,
    held: bool = False,
) -> None:
    """As users get it.

    Each image's own seed, gradient norm, BatchNorm's snapshot, signals, log, checkpoints, screen.
    """
    from trainkit import Options, Recipe, train
    from trainkit.data.on_device import OnDevice
    from trainkit.distributed.accelerator import use_whole_host
    from trainkit.tasks.recognition import Recognition

    data = OnDevice(data) if held else data
    recipe = Recipe(
        task=Recognition(CLASSES),
        model=network,
        train_data=data,
        val_data=Images(batch, data.images.shape[-1]),
        optimizer=torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9),
        schedule=lambda step, total, per_epoch: cosine(step, total),
        epochs=steps / (len(data) // batch),
        batch_size=batch,
        eval_batch_size=batch,
    )
    use_whole_host()
    with tempfile.TemporaryDirectory() as folder:
        options = Options(
            out=Path(folder) / "run", workers=0, log_every=LOG_EVERY, evaluate_every=10**6
        )
        train(recipe, options)


def trainkit_held(
    network: nn.Module, data: Dataset, batch: int, steps: int, device: torch.device
) -> None:
    """With images read by the batch, as a recipe for small images has them."""
    trainkit(network, data, batch, steps, device, held=True)


def lightning(
    network: nn.Module, data: Dataset, batch: int, steps: int, device: torch.device
) -> None:
    """Lightning's Trainer, its bar on, without checkpoints."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = network

        def training_step(self, rows, _):
            loss = F.cross_entropy(self.network(rows[0]), rows[1])
            self.log("loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)
            schedule = LambdaLR(optimizer, lambda step: cosine(step, steps))
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule, "interval": "step"},
            }

    with tempfile.TemporaryDirectory() as folder:
        lightning.Trainer(
            max_steps=steps, accelerator="cpu" if device.type == "cpu" else "gpu", devices=1,
            default_root_dir=folder, log_every_n_steps=LOG_EVERY, enable_checkpointing=False,
        ).fit(Module(), DataLoader(data, batch, shuffle=True, drop_last=True))  # fmt: skip


def hf_trainer(
    network: nn.Module, data: Dataset, batch: int, steps: int, device: torch.device
) -> None:
    """Hugging Face's Trainer, its bar on, without checkpoints."""
    from transformers import Trainer, TrainingArguments

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, images, labels):
            logits = self.network(images)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    class Rows(Dataset):
        def __len__(self):
            return len(data)

        def __getitem__(self, index):
            image, label = data[index]
            return {"images": image, "labels": label}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=batch, max_steps=steps, logging_steps=LOG_EVERY,
            save_strategy="no", report_to=[], use_cpu=device.type == "cpu", learning_rate=0.01,
            lr_scheduler_type="cosine", optim="sgd", optim_args="momentum=0.9",
            dataloader_drop_last=True, remove_unused_columns=False,
        )  # fmt: skip
        Trainer(Model(), arguments, train_dataset=Rows()).train()


def pytorch_accelerated(
    network: nn.Module, data: Dataset, batch: int, steps: int, device: torch.device
) -> None:
    """pytorch-accelerated's Trainer with its usual callbacks."""
    from pytorch_accelerated import Trainer

    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    Trainer(network, nn.CrossEntropyLoss(), optimizer).train(
        data, num_epochs=math.ceil(steps / (len(data) // batch)), per_device_batch_size=batch,
        train_dataloader_kwargs={"num_workers": 0, "drop_last": True},
        create_scheduler_fn=lambda optimizer: LambdaLR(optimizer, lambda step: cosine(step, steps)),
    )  # fmt: skip


LOOPS = {
    loop.__name__: loop
    for loop in (
        bare,
        accelerate,
        trainkit,
        trainkit_held,
        lightning,
        hf_trainer,
        pytorch_accelerated,
    )
}


def measure(asked: argparse.Namespace) -> None:
    """Milliseconds a step of one loop, in this process, into the file asked for."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = Timed(tiny() if asked.network == "tiny" else resnet18(num_classes=CLASSES))
    size = 32 if asked.network == "tiny" else 64
    LOOPS[asked.one](network, Images(EPOCH * asked.batch, size), asked.batch, asked.steps, device)
    times = network.times[asked.steps // 4 : asked.steps]  # the first quarter warms up
    asked.into.write_text(json.dumps(1e3 * (times[-1] - times[0]) / (len(times) - 1)))


def in_a_terminal(command: list[str]) -> None:
    """Run it with a terminal for its screen; what it shows is thrown away unless it fails."""
    ours, its = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        while True:
            try:
                shown.append(os.read(ours, 65536))
            except OSError:  # all ends closed
                return

    reader = threading.Thread(target=read, daemon=True)
    process = subprocess.Popen(
        command, stdin=its, stdout=its, stderr=its, env=os.environ | {"TERM": "xterm-256color"}
    )
    os.close(its)
    reader.start()
    if process.wait():
        reader.join(1)
        sys.exit(b"".join(shown).decode(errors="replace"))
    os.close(ours)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=["tiny", "resnet18"], default="tiny")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    there = [name for name in LOOPS if name not in NEEDS or find_spec(NEEDS[name])]
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=there)
    parser.add_argument("--one", choices=LOOPS, help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    add_option(parser)
    asked = parser.parse_args()
    if asked.one:
        return measure(asked)
    found: dict[str, list[float]] = {name: [] for name in asked.loops}
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "ms.json"
        settings = [
            "--network",
            asked.network,
            "--batch",
            str(asked.batch),
            "--steps",
            str(asked.steps),
        ]
        for _ in range(asked.rounds):
            for name, taken in found.items():
                in_a_terminal(
                    [sys.executable, __file__, "--one", name, "--into", str(into), *settings]
                )
                taken.append(json.loads(into.read_text()))
    print(
        f"{asked.network}, batches of {asked.batch}, {asked.steps} steps, medians of"
        f" {asked.rounds}; torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores"
    )
    first = median(found[asked.loops[0]])
    results = Results(
        f"step_overhead-{asked.network}",
        "torch",
        "accelerate",
        rounds=asked.rounds,
        baseline=ROWS.get(asked.loops[0], asked.loops[0]),
    )
    for name, taken in found.items():
        here = median(taken)
        results.add(ROWS.get(name, name), "time per step", "ms", taken, here / first)
        print(f"{name:20} {here:8.3f} ms a step ({min(taken):.3f} to {max(taken):.3f}), "
              f"{here / first:.2f} x {asked.loops[0]}")  # fmt: skip
    results.write(asked.results)


if __name__ == "__main__":
    main()
