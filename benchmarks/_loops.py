"""The loops that benchmarks/step_overhead.py compares, and the work that all of them do.

Run as a program it trains with one of them, and notes when each step began:

    python benchmarks/_loops.py --work mlp --loop trainkit --steps 1000 --stamps stamps.bin
"""

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, os.environ.get("TRAINKIT_SIDE", str(Path(__file__).parent.parent)))

import torch
from _turns import Stamps
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet18

CLASSES, LOG_EVERY = 10, 50


def tiny() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES),
    )  # fmt: skip


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 64), nn.ReLU(), nn.Linear(64, CLASSES))


@dataclass(frozen=True)
class Work:
    network: Callable[[], nn.Module]
    size: int
    """pixels of an image's side"""
    epoch: int
    """steps of an epoch"""
    threads: int | None = None
    """None: as each loop has them"""


WORKS = {
    "mlp": Work(two_layers, size=8, epoch=1000, threads=1),
    "tiny": Work(tiny, size=32, epoch=200),
    "resnet18": Work(lambda: resnet18(num_classes=CLASSES), size=64, epoch=200),
}


class Timed(nn.Module):
    """A network that notes when it was asked."""

    def __init__(self, network: nn.Module, stamps: Stamps):
        super().__init__()
        self.network = network
        self.note = stamps.add

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.note()
        return self.network(images)


class Images(Dataset):
    """Random images in memory, as floats: there is nothing to do but to hand them out.

    Args:
        num_images: how many.
        size: pixels of a side.
        draws_nothing: trainkit seeds nothing for them; commits before that attribute always do.
    """

    classes = tuple(map(str, range(CLASSES)))

    def __init__(self, num_images: int, size: int, draws_nothing: bool = True):
        self.draws_nothing = draws_nothing
        self.images = list(torch.randn(num_images, 3, size, size))
        self.labels = torch.randint(CLASSES, (num_images,)).tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.labels[index]


class Ready:
    """Batches that are handed over as they are, epoch for epoch."""

    def __init__(self, batches: list):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator:
        return iter(self.batches)


@dataclass
class Job:
    """What a loop is given."""

    network: nn.Module
    data: Images
    batch: int
    steps: int
    device: torch.device
    ready: Ready | None
    """None: images are shuffled and read one by one"""
    one_thread: bool

    @property
    def loader(self) -> Iterable[tuple[Tensor, Tensor]]:
        return self.ready or DataLoader(self.data, self.batch, shuffle=True, drop_last=True)

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9)

    def schedule(self, optimizer: torch.optim.Optimizer) -> LambdaLR:
        return LambdaLR(optimizer, lambda step: cosine(step, self.steps))


def cosine(step: int, total: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))


def bare(job: Job) -> None:
    """A loop as one writes it by hand."""
    network, device = job.network.to(job.device).train(), job.device
    optimizer = job.optimizer()
    schedule = job.schedule(optimizer)
    loader, step = job.loader, 0
    while step < job.steps:
        for images, classes in loader:
            loss = F.cross_entropy(network(images.to(device)), classes.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if step % LOG_EVERY == 0:
                print(f"\rstep {step} loss {loss.item():.4f}", end="", flush=True)
            if step == job.steps:
                break


def accelerate(job: Job) -> None:
    """Accelerate's example loop."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=job.device.type == "cpu")
    optimizer = job.optimizer()
    network, optimizer, schedule = accelerator.prepare(
        job.network, optimizer, job.schedule(optimizer)
    )
    loader = job.ready or accelerator.prepare(job.loader)
    network.train()
    step = 0
    while step < job.steps:
        for images, classes in loader:
            loss = F.cross_entropy(network(images), classes)
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step % LOG_EVERY == 0:
                accelerator.print(f"\rstep {step} loss {loss.item():.4f}", end="", flush=True)
            if step == job.steps:
                break


def trainkit(job: Job, held: bool = False) -> None:
    """As users get it.

    Gradient norm, count of targets, seeds, BatchNorm's snapshot, signals, log, checkpoints, screen.
    """
    from trainkit import Options, Recipe, train
    from trainkit.data.on_device import OnDevice

    try:
        from trainkit.tasks.recognition import Recognition
    except ModuleNotFoundError:  # commits before the package's present layout
        from trainkit.recognition import Recognition
    with suppress(ImportError):  # commits that did not have it
        from trainkit.distributed.accelerator import use_whole_host

        if not job.one_thread:
            use_whole_host()

    recipe = Recipe(
        task=Recognition(CLASSES),
        model=job.network,
        train_data=OnDevice(job.data) if held else job.data,
        val_data=Images(job.batch, job.data.images[0].shape[-1]),
        optimizer=job.optimizer(),
        schedule=lambda step, total, per_epoch: cosine(step, total),
        epochs=job.steps / (len(job.data) // job.batch),
        batch_size=job.batch,
        eval_batch_size=job.batch,
    )
    with tempfile.TemporaryDirectory() as folder:
        options = Options(
            out=Path(folder) / "run", workers=0, log_every=LOG_EVERY, evaluate_every=10**6
        )
        train(recipe, options)


def trainkit_held(job: Job) -> None:
    """With images read by the batch, as a recipe for small images has them."""
    trainkit(job, held=True)


def trainkit_ready(job: Job) -> None:
    """With batches handed over ready-made, in the place of its own loader."""
    from trainkit.engine.plan import TrainPlan

    def batches(self: TrainPlan, start: int, stop: int, *_: object) -> Iterable:
        for step in range(start, stop):
            images, labels = job.ready.batches[step % len(job.ready)]
            yield images, labels, []

    TrainPlan.loader = batches
    trainkit(job)


def ignite(job: Job) -> None:
    """Ignite's supervised trainer with its bar."""
    from ignite.contrib.handlers import ProgressBar
    from ignite.engine import Events, create_supervised_trainer

    optimizer = job.optimizer()
    schedule = job.schedule(optimizer)
    network = job.network.to(job.device).train()
    trainer = create_supervised_trainer(network, optimizer, F.cross_entropy, job.device)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: schedule.step())
    every = Events.ITERATION_COMPLETED(every=LOG_EVERY)
    bar = ProgressBar()
    bar.attach(trainer, output_transform=lambda loss: {"loss": loss}, event_name=every)
    epoch = len(job.data) // job.batch
    trainer.run(job.loader, max_epochs=math.ceil(job.steps / epoch), epoch_length=epoch)


def lightning(job: Job) -> None:
    """Lightning's Trainer, its bar on, without checkpoints."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = job.network

        def training_step(self, rows, _):
            loss = F.cross_entropy(self.network(rows[0]), rows[1])
            self.log("loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self):
            optimizer = job.optimizer()
            schedule = {"scheduler": job.schedule(optimizer), "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": schedule}

    with tempfile.TemporaryDirectory() as folder:
        lightning.Trainer(
            max_steps=job.steps, accelerator="cpu" if job.device.type == "cpu" else "gpu",
            devices=1, default_root_dir=folder, log_every_n_steps=LOG_EVERY,
            enable_checkpointing=False,
        ).fit(Module(), job.loader)  # fmt: skip


def hf_trainer(job: Job) -> None:
    """Hugging Face's Trainer, its bar on, without checkpoints."""
    from transformers import Trainer, TrainingArguments

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = job.network

        def forward(self, images, labels):
            logits = self.network(images)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    class Rows(Dataset):
        def __len__(self):
            return len(job.data)

        def __getitem__(self, index):
            image, label = job.data[index]
            return {"images": image, "labels": label}

    class ReadyMade(Trainer):
        def get_train_dataloader(self):
            return Ready([{"images": images, "labels": labels} for images, labels in job.ready])

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=job.batch, max_steps=job.steps,
            logging_steps=LOG_EVERY, save_strategy="no", report_to=[],
            use_cpu=job.device.type == "cpu", learning_rate=0.01, lr_scheduler_type="cosine",
            optim="sgd", optim_args="momentum=0.9", dataloader_drop_last=True,
            remove_unused_columns=False,
        )  # fmt: skip
        kind = Trainer if job.ready is None else ReadyMade
        kind(Model(), arguments, train_dataset=Rows()).train()


def pytorch_accelerated(job: Job) -> None:
    """pytorch-accelerated's Trainer with its usual callbacks."""
    from pytorch_accelerated import Trainer

    Trainer(job.network, nn.CrossEntropyLoss(), job.optimizer()).train(
        job.data, num_epochs=math.ceil(job.steps / (len(job.data) // job.batch)),
        per_device_batch_size=job.batch,
        train_dataloader_kwargs={"num_workers": 0, "drop_last": True},
        create_scheduler_fn=job.schedule,
    )  # fmt: skip


LOOPS = {
    loop.__name__: loop
    for loop in (
        bare,
        accelerate,
        trainkit,
        trainkit_held,
        trainkit_ready,
        ignite,
        lightning,
        hf_trainer,
        pytorch_accelerated,
    )
}
NEEDS = {
    "ignite": "ignite",
    "lightning": "lightning",
    "hf_trainer": "transformers",
    "pytorch_accelerated": "pytorch_accelerated",
}


def installed_loops() -> list[str]:
    return [name for name in LOOPS if name not in NEEDS or find_spec(NEEDS[name])]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", choices=WORKS, required=True)
    parser.add_argument("--loop", choices=LOOPS, required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--ready", action="store_true")
    parser.add_argument("--seeded", action="store_true", help="images may draw random numbers")
    parser.add_argument("--stamps", type=Path, required=True)
    asked = parser.parse_args()
    work = WORKS[asked.work]
    if work.threads is not None:
        torch.set_num_threads(work.threads)
    torch.manual_seed(0)
    network = Timed(work.network(), Stamps(asked.stamps))
    data = Images(work.epoch * asked.batch, work.size, draws_nothing=not asked.seeded)
    ready = Ready(list(DataLoader(data, asked.batch))) if asked.ready else None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    job = Job(network, data, asked.batch, asked.steps, device, ready, work.threads == 1)
    LOOPS[asked.loop](job)


if __name__ == "__main__":
    main()
