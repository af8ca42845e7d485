"""Folders as a training leaves them, written by hand: for what reads runs and trains nothing."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RECIPE = '''"""A network on images."""

from trainkit.settings import OptimizerSettings, ScheduleSettings

SIZES = (32, 64)


def recipe(
    data: str = "images",
    model: str = "resnet18",
    optimizer: OptimizerSettings = OptimizerSettings(lr=0.1, optimizer="nesterov"),
    schedule: ScheduleSettings = ScheduleSettings(epochs=10),
    sizes: tuple[int, ...] = SIZES,
):
    return None
'''
SETTINGS = {"data": "images", "model": "resnet18", "lr": 0.05, "epochs": 10, "sizes": [32, 64]}
CLASSES = ["cat", "dog", "bird"]


def write_json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def step_row(step: int, **more: Any) -> dict[str, Any]:
    return {
        "event": "step",
        "step": step,
        "epoch": step / 10,
        "loss": 2.0 / (1 + step / 10),
        "lr": 0.05,
        "grad_norm": 1.0,
        "images_per_s": 100.0,
        **more,
    }


def evaluation_row(step: int, best: float, best_step: int, **metrics: Any) -> dict[str, Any]:
    return {
        "event": "evaluate",
        "step": step,
        "epoch": step / 10,
        "best": best,
        "best_step": best_step,
        "split": "val",
        "protocol": "as stored",
        "num_images": 60,
        **metrics,
    }


ROWS = [
    *(step_row(step) for step in range(10, 60, 10)),
    evaluation_row(50, 0.5, 50, top1=0.5, top5=0.9, val_loss=1.1),
    *(step_row(step) for step in range(60, 110, 10)),
    evaluation_row(100, 0.7, 100, top1=0.7, top5=1.0, val_loss=0.9),
]


def run_folder(
    folder: Path,
    rows: list[dict[str, Any]] | None = None,
    finished: bool = True,
    settings: dict[str, Any] | None = None,
    **recorded: Any,
) -> Path:
    """A run of 100 steps of recognition; `recorded` goes into settings.json."""
    folder.mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / "recipe.py").write_text(RECIPE)
    write_json(
        folder / "settings.json",
        {
            "settings": {**SETTINGS, **(settings or {})},
            "seed": 0,
            "recipe": "/somewhere/recog_images.py",
            "command": "trainkit recog_images --lr 0.05",
            "classes": CLASSES,
            "total_steps": 100,
            "options": {"log_every": 10, "on_nonfinite": "stop"},
            "versions": {"python": "3.12.0", "torch": "2.9.0"},
            "git_commit": "0123abcd",
            "git_changed": False,
            **recorded,
        },
    )
    lines = (json.dumps(row) + "\n" for row in (ROWS if rows is None else rows))
    (folder / "log.jsonl").write_text("".join(lines))
    if finished:
        write_json(
            folder / "summary.json",
            {
                "final": {"top1": 0.7},
                "best": {"top1": 0.7, "step": 100},
                "steps": 100,
                "images": 6400,
                "skipped_steps": 0,
                "bad_images": 0,
                "seconds": 7200.0,
                "images_per_s": 123.4,
                "peak_memory_gib": 1.5,
                "num_processes": 1,
                "warnings": [],
            },
        )
    return folder


def add_recognition(
    run: Path, name: str = "step-000000100", seed: int = 0, classes: int = 3, images: int = 60
) -> dict[str, np.ndarray]:
    """An evaluation, image by image, as it lies in evaluations/, 30 % wrong; returns its arrays."""
    draw = np.random.default_rng(seed)
    target = np.arange(images) % classes
    wrong = draw.permutation(images) < 0.3 * images
    predicted = np.where(wrong, (target + draw.integers(1, classes, images)) % classes, target)
    arrays = {
        "ids": np.arange(images),
        "names": np.array([f"val/{number}.jpg" for number in range(images)]),
        "target": target,
        "predicted": predicted,
        "top5_hit": np.ones(images, dtype=bool),
        "probability": draw.uniform(1 / classes, 1, images).astype(np.float32),
        "loss": draw.exponential(1, images).astype(np.float32),
    }
    names = CLASSES if classes == 3 else [f"class {number}" for number in range(classes)]
    _write(run, name, "recognition", "top1", names, None, arrays)
    return arrays


def add_segmentation(
    run: Path, name: str = "step-000000100", seed: int = 0, images: int = 12
) -> dict[str, np.ndarray]:
    """The same of segmentation, with a palette."""
    draw = np.random.default_rng(seed)
    matrices = draw.integers(0, 50, (images, 3, 3)) + 400 * np.eye(3, dtype=np.int64)
    arrays = {
        "ids": np.arange(images),
        "intersection": matrices.diagonal(axis1=1, axis2=2).astype(np.int32),
        "true_pixels": matrices.sum(2).astype(np.int32),
        "predicted_pixels": matrices.sum(1).astype(np.int32),
        "confusion": matrices.sum(0),
    }
    palette = [[31, 119, 180], [255, 127, 14], [44, 160, 44]]
    _write(run, name, "segmentation", "mIoU", CLASSES, palette, arrays)
    return arrays


def _write(
    run: Path,
    name: str,
    task: str,
    headline: str,
    classes: list[str],
    palette: Any,
    arrays: dict[str, np.ndarray],
) -> None:
    folder = run / "evaluations"
    folder.mkdir(exist_ok=True)
    np.savez(folder / f"{name}.npz", **arrays)
    step = int(name.removeprefix("step-")) if name.startswith("step-") else None
    write_json(
        folder / f"{name}.json",
        {
            "step": step,
            "task": task,
            "split": "val",
            "protocol": "as stored",
            "weights": "raw",
            "num_images": len(arrays["ids"]),
            "headline": headline,
            "classes": classes,
            "palette": palette,
            "ignore": None,
        },
    )


def add_previews(run: Path, steps: Iterable[int], segmentation: bool = False) -> None:
    """What --preview leaves, of three images, after each of these steps."""
    for step in steps:
        folder = run / "preview" / f"step-{step:09d}"
        folder.mkdir(parents=True)
        index = []
        for number in range(3):
            entry = {"index": number, "name": f"val/{number}.jpg", "kind": "preview"}
            if segmentation:
                entry |= {"iou": step / 100_000, "loss": 1.0}
            else:
                ranking = [["dog", 0.75], ["cat", 0.25]] if number else [["cat", 0.5], ["dog", 0.5]]
                entry |= {"target": "cat", "ranking": ranking}
            index.append(entry)
            for part in ("image", "target", "prediction") if segmentation else ("image",):
                color = (40 * number, step % 256, 120)
                Image.new("RGB", (96, 72), color).save(folder / f"{number}-{part}.webp")
        write_json(folder / "index.json", index)
        Image.new("RGB", (64, 48)).save(folder.with_suffix(".jpg"))


def add_pictures(run: Path, name: str = "step-000000100", segmentation: bool = False) -> None:
    """Thumbnails and the first batch, as they lie in shown/ and beside it."""
    batch = Image.new("RGB", (640, 320), (90, 130, 170))
    batch.paste((200, 40, 40), (0, 0, 320, 160))
    batch.save(run / "train_batch.jpg")
    folder = run / "shown" / name
    folder.mkdir(parents=True)
    parts = ("image", "target", "prediction", "error") if segmentation else ("image",)
    index = []
    for number, kind in enumerate(("worst", "worst", "median", "mistake")):
        for part in parts:
            Image.new("RGB", (64, 48), (40 * number, 90, 120)).save(
                folder / f"{number}-{part}.webp"
            )
        about = {"iou": 0.25, "loss": None} if segmentation else {"loss": 1.5, "probability": 0.9}
        label = {} if segmentation else {"target": "cat", "predicted": "dog"}
        index.append({"index": number, "name": f"val/{number}.jpg", "kind": kind, **about, **label})
    write_json(folder / "index.json", index)
