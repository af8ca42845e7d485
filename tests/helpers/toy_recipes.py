"""Small recipes for tests.

Random images, real augmentation from all three generators, and no batch norm.

Run as a script it trains recipes of this file in the processes it is started in:

    python tests/helpers/toy_recipes.py OUT NAME [NAME ...]        (or under torchrun)
"""

import hashlib
import json
import os
import random
import resource
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import v2

from trainkit import Options, Recipe, freeze, train
from trainkit.data.datasets.staged import Stages
from trainkit.data.mixup import Mixup, MixupMasks
from trainkit.data.seeding import seed_host
from trainkit.inference import Inference
from trainkit.losses.boundary import Boundary
from trainkit.losses.dense_regression import L1, ScaleInvariantLog
from trainkit.losses.multilabel import AsymmetricLoss, BCEWithLogits
from trainkit.losses.pixelwise import CrossEntropy
from trainkit.optim import param_groups
from trainkit.schedules import cos, poly
from trainkit.storage.checkpoint import Snapshot, write
from trainkit.tasks.dense_regression import DenseRegression
from trainkit.tasks.multilabel import MultiLabel
from trainkit.tasks.multilabel_segmentation import MultiLabelSegmentation
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.segmentation import Segmentation

CLASSES = 7


class Images(Dataset):
    """Random images with a class, changed by random numbers of torch, Python and NumPy."""

    reads = 0

    def __init__(self, num_images: int, augment: bool = True, size: int = 12):
        generator = torch.Generator().manual_seed(num_images)
        self.targets = torch.randint(CLASSES, (num_images,), generator=generator)
        noise = torch.randint(0, 100, (num_images, 3, size, size), generator=generator)
        # (num_images, 3)
        tint = 24 * (self.targets.view(-1, 1) * torch.tensor([1, 2, 4]) % CLASSES)
        self.images = (noise + tint[:, :, None, None]).to(torch.uint8)
        self.augment = augment

    def __len__(self) -> int:
        return len(self.images)

    def change(self, image: Tensor) -> Tensor:
        if self.augment:
            image = image.roll(int(torch.randint(12, ())), -1)
            image = image.flip(-1) if random.random() < 0.5 else image
            image = (image + np.random.randint(0, 12)).to(torch.uint8)
        return image

    def __getitem__(self, index: int):
        pause()
        Images.reads += 1
        if Images.reads == 1 and "TOY_BEGUN" in os.environ:
            print("first image after", time.time() - float(os.environ["TOY_BEGUN"]), "s")
        if Images.reads == int(os.environ.get("TOY_READS", -1)):
            os.kill(os.getpid(), signal.SIGKILL)
        if Images.reads == int(os.environ.get("TOY_FULL", -1)):
            resource.setrlimit(resource.RLIMIT_FSIZE, (1200, 1200))
        return self.change(self.images[index]), self.targets[index]


def pause() -> None:
    """As an image on a slow disk; not at all where nothing is said, as 0 s may last long too."""
    if "TOY_SLEEP" in os.environ:
        time.sleep(float(os.environ["TOY_SLEEP"]))


class Maps(Images):
    """The same with a label map, of which a random part, up to nearly all, is ignored."""

    def __getitem__(self, index: int):
        pause()
        image = self.change(self.images[index])
        generator = torch.Generator().manual_seed(index)
        target = (image[0].long() // 37 % CLASSES).to(torch.uint8)
        share = float(torch.rand((), generator=generator)) ** 2
        target[torch.rand(target.shape, generator=generator) > share] = 255
        return image, target


class Labels(Images):
    """The same with a multi-hot row: the class, maybe the next one, or none; a part is unknown."""

    def __getitem__(self, index: int):
        image, target = super().__getitem__(index)
        generator = torch.Generator().manual_seed(index)
        row = torch.zeros(CLASSES, dtype=torch.int8)
        if index % 5:
            row[target] = 1
            row[(target + 1) % CLASSES] = int(torch.rand((), generator=generator) < 0.5)
        row[torch.rand(CLASSES, generator=generator) < 0.2] = -1
        return image, row


class Depths(Images):
    """The same with a map of numbers, of which a part is not known; of one image nothing is."""

    def __getitem__(self, index: int):
        image, _ = super().__getitem__(index)
        generator = torch.Generator().manual_seed(index)
        values = image.float().mean(0) / 50 + 0.2
        values[torch.rand(values.shape, generator=generator) < index % 4 / 4] = torch.nan
        return image, torch.full_like(values, torch.nan) if index == 5 else values


class Torn(Images):
    """One image in nine cannot be read."""

    def __getitem__(self, index: int):
        if index % 9 == 3:
            raise ValueError(f"cannot read image-{index}.jpg: it is torn")
        return super().__getitem__(index)


class Net(nn.Module):
    """Convolutions with group norm and dropout; keeps a digest of every image it is trained on."""

    def __init__(self, dense: bool, dropout: float = 0.0):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Dropout(dropout)
        )
        self.head = nn.Conv2d(8, CLASSES, 1)
        self.dense = dense
        self.seen: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += [
                hashlib.sha256(image.cpu().numpy().tobytes()).hexdigest()[:16] for image in x
            ]
        maps = self.head(self.backbone(x))
        return maps if self.dense else maps.mean((2, 3))


def recognition(
    num_images: int = 27, batch_size: int = 8, dropout: float = 0.0, **changes
) -> Recipe:
    net = Net(dense=False, dropout=dropout)
    values = {
        "task": Recognition(CLASSES, label_smoothing=0.1),
        "model": net,
        "train_data": Images(num_images),
        "val_data": Images(13, augment=False),
        "optimizer": torch.optim.SGD(param_groups(net, 0.1, 1e-3, 2.0), lr=0.1, momentum=0.9),
        "schedule": cos(warmup_epochs=0.5),
        "epochs": 2.5,
        "batch_size": batch_size,
        "eval_batch_size": 2,
    }
    return Recipe(**{**values, **changes})


def segmentation(num_images: int = 27, batch_size: int = 8, **changes) -> Recipe:
    net = Net(dense=True)
    values = {
        "task": Segmentation(CLASSES),
        "model": net,
        "train_data": Maps(num_images),
        "val_data": Maps(13, augment=False),
        "optimizer": torch.optim.SGD(param_groups(net, 0.1, 1e-3, 2.0), lr=0.1, momentum=0.9),
        "schedule": poly(),
        "epochs": 2.5,
        "batch_size": batch_size,
        "clip_norm": 0.5,
    }
    return Recipe(**{**values, **changes})


def labels(**changes) -> Recipe:
    """Any number of classes per image, with two losses, and averaged weights."""
    values = {
        "task": MultiLabel(CLASSES, [AsymmetricLoss(), BCEWithLogits(factor=0.5)]),
        "train_data": Labels(27),
        "val_data": Labels(13, augment=False),
        "ema": 0.9,
    }
    return recognition(**{**values, **changes})


def depths(inference: Inference | None = None, **changes) -> Recipe:
    """A number for each pixel, with two losses; the network gives its logarithm."""
    recipe = segmentation(
        task=DenseRegression([ScaleInvariantLog(), L1(factor=0.1)], "log", limits=(0.1, 9.0)),
        train_data=Depths(27),
        val_data=Depths(13, augment=False),
        inference=inference,
        **changes,
    )
    recipe.model.head = nn.Conv2d(8, 1, 1)
    groups = param_groups(recipe.model, 0.02, 1e-3)
    return replace(recipe, optimizer=torch.optim.AdamW(groups, lr=0.02))


class Overlaps(Maps):
    """A mask of each of three classes, where the image's channel of that number is light.

    Nothing is known of the last one in the first rows.
    """

    def __getitem__(self, index):
        image, _ = super().__getitem__(index)
        masks = (image > torch.tensor([90, 110, 130]).view(-1, 1, 1)).to(torch.int8)
        masks[2, : index % 4] = -1
        return image, masks


def overlapping(inference: Inference | None = None, **changes) -> Recipe:
    """Overlapping classes by binary cross-entropy and Dice."""
    recipe = segmentation(
        task=MultiLabelSegmentation(3),
        train_data=Overlaps(27),
        val_data=Overlaps(13, augment=False),
        inference=inference,
        **changes,
    )
    recipe.model.head = nn.Conv2d(8, 3, 1)
    groups = param_groups(recipe.model, 0.05, 1e-3)
    return replace(recipe, optimizer=torch.optim.AdamW(groups, lr=0.05))


class Cropped(Images):
    """With a transform that may change."""

    transform = None

    def __getitem__(self, index: int):
        image, target = super().__getitem__(index)
        return self.transform(image), target


def growing(**changes) -> Recipe:
    """Random crops of another size in each epoch."""
    crops = {0: v2.RandomCrop(6), 1: v2.RandomCrop(9), 2: v2.RandomCrop(12)}
    return recognition(train_data=Stages(Cropped(27), crops), **changes)


def with_batch_norm() -> Recipe:
    """Running statistics differ between processes while they train; an evaluation must not."""
    recipe = recognition(eval_batch_size=1)
    recipe.model.backbone[1] = nn.BatchNorm2d(8)
    groups = param_groups(recipe.model, 0.1, 1e-3)
    return replace(recipe, optimizer=torch.optim.SGD(groups, lr=0.1))


class FreezesNorm(Recognition):
    """Batch norm counts in the first step alone, and is in evaluation mode after it."""

    def at_step(self, model: nn.Module, step: int, total_steps: int) -> None:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train(model.training and step == 0)


def freezes_norm() -> Recipe:
    """Four steps that train with statistics, which must be the same in all processes."""
    return replace(with_batch_norm(), task=FreezesNorm(CLASSES), epochs=1)


def everything(**changes) -> Recipe:
    """Mixup, dropout, batch norm and averaged weights: all that could be random or remembered."""
    values = {"dropout": 0.3, "mix": Mixup(0.4, CLASSES), "epochs": 3, "ema": 0.9, **changes}
    recipe = recognition(**values)
    recipe.model.backbone[1] = nn.BatchNorm2d(8)
    return replace(
        recipe, optimizer=torch.optim.AdamW(param_groups(recipe.model, 0.01, 1e-3), lr=0.01)
    )


def frozen(build=everything, **changes) -> Recipe:
    """The backbone, batch norm and dropout in it, is trained from step 6, within epoch 2."""
    recipe = build(**{"epochs": 3, **changes})
    backbone = list(recipe.model.backbone.parameters())
    return replace(recipe, frozen=backbone, unfreeze_epoch=1.5)


def frozen_for_good() -> Recipe:
    """The same by trainkit.freeze, with an optimizer of the rest alone."""
    recipe = everything()
    freeze(recipe.model.backbone)
    return replace(
        recipe, optimizer=torch.optim.AdamW(param_groups(recipe.model, 0.01, 1e-3), lr=0.01)
    )


class Hungry(nn.Module):
    """A net whose forward pass needs 1 GiB an image, which it asks for and never touches."""

    def __init__(self, net: Net):
        super().__init__()
        self.net, self.seen = net, net.seen

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.net(x)  # batch norm has counted before memory runs out
        torch.empty(len(x) << 30, dtype=torch.uint8)
        return outputs


class HungryOnGPU(Hungry):
    """The same on a GPU, where memory that is not touched counts too."""

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.net(x)
        torch.empty(len(x) << 30, dtype=torch.uint8, device=x.device)
        return outputs


def hungry_on_gpu() -> Recipe:
    recipe = recognition()
    return replace(recipe, model=HungryOnGPU(recipe.model), eval_batch_size=1)


def hungry() -> Recipe:
    recipe = everything()
    return replace(recipe, model=Hungry(recipe.model), eval_batch_size=1)


def limit_memory() -> None:
    """Let this process allocate TOY_MEMORY_GIB more than it has.

    Where TOY_MEMORY_RANK is given, that one alone.
    """
    rank = os.environ.get("RANK")
    if "TOY_MEMORY_GIB" in os.environ and os.environ.get("TOY_MEMORY_RANK", rank) == rank:
        limit = psutil.Process().memory_info().vms + int(
            float(os.environ["TOY_MEMORY_GIB"]) * 2**30
        )
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def segmentation_with_norm() -> Recipe:
    recipe = segmentation(epochs=3)
    recipe.model.backbone[1] = nn.BatchNorm2d(8)
    return replace(
        recipe,
        optimizer=torch.optim.SGD(param_groups(recipe.model, 0.1, 1e-3), lr=0.1, momentum=0.9),
    )


def averaged_with_norm(inference: Inference | None = None) -> Recipe:
    return replace(segmentation_with_norm(), ema=0.9, inference=inference)


def write_parquet(folder: Path) -> Path:
    """The images of `recognition` in two files, in row groups of 4."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from torchvision.io import encode_png

    for split, number in (("train", 27), ("val", 13)):
        images = Images(number)
        encoded = [
            {"bytes": encode_png(image).numpy().tobytes(), "path": None} for image in images.images
        ]
        table = pa.table({"image": encoded, "label": images.targets.tolist()})
        pq.write_table(table.slice(0, 10), folder / f"{split}-0.parquet", row_group_size=4)
        pq.write_table(table.slice(10), folder / f"{split}-1.parquet", row_group_size=4)
    return folder


def streamed(**changes) -> Recipe:
    """The images of `recognition` in parquet files at TOY_PARQUET, two row groups interleaved."""
    from trainkit.data.datasets.hub import HubImages

    source, columns = os.environ["TOY_PARQUET"], ("image", "label", 2)
    data = {
        "train_data": HubImages(source, "train", Images(27).change, *columns),
        "val_data": HubImages(source, "val", None, *columns),
    }
    return recognition(**{**data, **changes})


def with_errors() -> Recipe:
    """A metric that counts, and one as `evaluate` knows them."""
    from helpers.evaluate_metric import Errors

    return recognition(
        task=Recognition(CLASSES, extra_metrics=[Errors(cache_dir=os.environ["ERRORS_CACHE"])])
    )


def with_named_metrics() -> Recipe:
    """Metrics of torchmetrics and of evaluate by name."""
    file = Path(__file__).with_name("macro_recall.py")
    names = ["torchmetrics:F1Score:average=macro", "torchmetrics:ConfusionMatrix"]
    names.append(f"evaluate:{file}:average=macro")
    return recognition(epochs=0.5, task=Recognition(CLASSES, extra_metrics=names))


def with_spare_weights() -> Recipe:
    """A part of the model has no part in the loss."""
    recipe = recognition()
    recipe.model.spare = nn.Linear(3, 3)
    return replace(recipe, optimizer=torch.optim.SGD(param_groups(recipe.model, 0.1, 0.0), lr=0.1))


class Normed(nn.Module):
    """A block that sees each image by itself."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def in_blocks() -> Recipe:
    model = nn.Sequential(
        Normed(3), Normed(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)
    )
    model.seen = []
    return recognition(
        model=model, optimizer=torch.optim.SGD(param_groups(model, 0.1, 1e-3), lr=0.1), ema=0.9
    )


def mixed_masks() -> Recipe:
    task = Segmentation(CLASSES, loss=[CrossEntropy(), Boundary()])
    return segmentation(mix=MixupMasks(0.4), task=task)


# Name -> recipe and options. A batch of 8 leaves a last one of 3 from 27 images, and of 1 from 25.
RUNS = {
    "recognition": (recognition, {}),
    "recognition-4": (recognition, {"micro_batch": 4}),
    "recognition-3": (recognition, {"micro_batch": 3}),
    "labels-mixup": (lambda: labels(mix=Mixup(0.4, CLASSES)), {"checkpoint_every": 2}),
    "labels-mixup-2": (lambda: labels(mix=Mixup(0.4, CLASSES)), {"micro_batch": 2}),
    "depths": (depths, {"checkpoint_every": 2}),
    "depths-3": (depths, {"micro_batch": 3}),
    "depths-windows": (lambda: depths(Inference((1.0,), flip=True, window=8, stride=4)), {}),
    "growing": (growing, {}),
    "recognition-mixup": (lambda: recognition(mix=Mixup(0.4, CLASSES)), {}),
    "recognition-mixup-2": (lambda: recognition(mix=Mixup(0.4, CLASSES)), {"micro_batch": 2}),
    "recognition-lonely": (lambda: recognition(num_images=25), {}),
    "segmentation": (segmentation, {}),
    "segmentation-4": (segmentation, {"micro_batch": 4}),
    "segmentation-3": (segmentation, {"micro_batch": 3}),
    "overlapping": (
        lambda: overlapping(Inference((1.0,), flip=True, window=8, stride=4)),
        {"checkpoint_every": 2},
    ),
    "overlapping-2": (
        lambda: overlapping(Inference((1.0,), flip=True, window=8, stride=4)),
        {"micro_batch": 2},
    ),
    "segmentation-mixup": (mixed_masks, {"checkpoint_every": 2}),
    "segmentation-mixup-2": (mixed_masks, {"micro_batch": 2}),
    "segmentation-lonely": (lambda: segmentation(num_images=25), {}),
    "batch-norm": (with_batch_norm, {}),
    "freezes-norm": (freezes_norm, {"checkpoint_every": 2}),
    "batch-norm-averaged": (averaged_with_norm, {}),
    "batch-norm-windows": (lambda: averaged_with_norm(Inference(window=8, stride=4)), {}),
    "errors": (with_errors, {}),
    "named-metrics": (with_named_metrics, {}),
    "streamed": (streamed, {}),
    "blocks": (in_blocks, {}),
    "blocks-helped": (
        in_blocks,
        {
            "micro_batch": 3,
            "activation_checkpointing": True,
            "channels_last": True,
            "static_graph": True,
        },
    ),
    "spare": (with_spare_weights, {"micro_batch": 2}),
    "spare-static": (with_spare_weights, {"micro_batch": 2, "static_graph": True}),
    "long": (
        lambda: recognition(epochs=int(os.environ["TOY_STEPS"]) / 4),
        {"log_every": 10, "checkpoint_every": 100, "evaluate_every": 10**6},
    ),
    "torn": (lambda: recognition(train_data=Torn(27)), {"on_bad_image": "skip"}),
    "dropout": (lambda: recognition(dropout=0.5), {}),
    "hungry": (hungry, {}),
    "hungry-gpu": (hungry_on_gpu, {}),
    "hungry-gpu-2": (hungry_on_gpu, {"micro_batch": 2}),
    "hungry-4": (hungry, {"micro_batch": 4}),
    "hungry-2": (hungry, {"micro_batch": 2}),
    "all": (everything, {"micro_batch": 4, "log_every": 3, "checkpoint_every": 2}),
    "patient": (
        lambda: everything(epochs=14),
        {"patience": 4, "log_every": 3, "checkpoint_every": 6},
    ),
    "tracked": (
        everything,
        {"log_every": 1, "track": tuple(os.environ.get("TOY_TRACK", "tensorboard").split())},
    ),
    "preview": (everything, {"preview": 5, "checkpoint_every": 2, "keep_checkpoints": 9}),
    "preview-windows": (
        lambda: averaged_with_norm(Inference(window=8, stride=4)),
        {"preview": 5, "checkpoint_every": 2},
    ),
    "frozen": (frozen, {"micro_batch": 4, "checkpoint_every": 2, "keep_checkpoints": 9}),
    "frozen-for-good": (
        frozen_for_good,
        {"micro_batch": 4, "checkpoint_every": 2, "keep_checkpoints": 9},
    ),
    "balanced-plain": (lambda: recognition(sampler="balanced"), {}),
    "balanced": (lambda: everything(sampler="balanced"), {"checkpoint_every": 2}),
    "frozen-plain": (lambda: frozen(recognition), {"checkpoint_every": 2}),
    "all-dense": (
        segmentation_with_norm,
        {"micro_batch": 4, "log_every": 3, "checkpoint_every": 2},
    ),
}


def write_checkpoint(folder: Path, step: int, model: dict, state: dict) -> Path:
    """The checkpoint of `step` in `folder`, as a training writes it."""
    return write(folder, step, Snapshot.of(model, state, copy=False))


def die_after_an_evaluation(log: Path, number: int) -> None:
    """SIGKILL this process once the row of its evaluation of this number is in the log.

    It dies at its next operation on a file, of which Python's audit events tell.
    """
    looking, left = False, number
    known = _num_evaluations(log)

    def look(event: str, arguments: tuple) -> None:
        nonlocal looking, left, known
        if looking or not (event == "open" or event.startswith("os.")):
            return
        looking = True  # which opens a file too
        found = _num_evaluations(log)
        left -= max(0, found - known)  # a resume drops rows of steps that were lost
        known = found
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        looking = False

    sys.addaudithook(look)


def _num_evaluations(log: Path) -> int:
    return log.read_text().count('"event": "evaluate"') if log.is_file() else 0


def run(name: str, out: Path, **changes) -> Net:
    """Train one of RUNS in `out`."""
    build, options = RUNS[name]
    torch.use_deterministic_algorithms("TOY_DETERMINISTIC" in os.environ)
    seed_host(5)
    recipe = build()
    limit_memory()
    if "TOY_TEACHER" in os.environ:
        changes["teacher"] = os.environ["TOY_TEACHER"]
    if "TOY_EVALUATIONS" in os.environ:
        die_after_an_evaluation(out / "log.jsonl", int(os.environ["TOY_EVALUATIONS"]))
    if "TOY_BEGUN" in os.environ:
        os.environ["TOY_BEGUN"] = str(time.time())
    train(
        recipe,
        Options(**{"out": out, "seed": 5, "workers": 0, "log_every": 1, **options, **changes}),
    )
    return recipe.model


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # for helpers
    folder, *names = sys.argv[1:]
    if "TOY_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["TOY_THREADS"]))
    changes = {"workers": int(os.environ.get("TOY_WORKERS", 0))}
    changes["checkpoint_format"] = os.environ.get("TOY_FORMAT", "full")
    changes["async_checkpoint"] = "TOY_ASYNC" in os.environ
    for each in names:
        net = run(each, Path(folder) / each, **changes)
        rank = os.environ.get("RANK", "0")
        (Path(folder) / each / f"seen-{rank}.json").write_text(json.dumps(net.seen))
