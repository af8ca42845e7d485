"""Generated data for `--sample`, written to disk in the layout of the real dataset.

Scenes are sky or wall over ground with things standing on it, each class with colours and a texture
of its own, under changing light, with noise, in images of different sizes. Colours overlap between
classes, so that a constant or untrained prediction scores near nothing and a trained one has
something to learn. Everything follows from a seed; a folder is written aside and renamed, so
several processes may ask at once. It lies in `sample` in trainkit's cache, for all working
directories.
"""

import io
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from trainkit.data.datasets.cache import default_folder
from trainkit.data.datasets.folder import MaskFolder
from trainkit.errors import UserError

SKY = 3
VISIBLE = 60  # pixels of a thing that make it a label of the image
VERSION = 1  # of the scenes: a folder of another version is not taken for this one's


@dataclass(frozen=True)
class Appearance:
    """How a class looks: mean colour, amplitude and period in pixels of its stripes, direction."""

    colour: tuple[int, int, int]
    stripes: float
    period: float
    angle: float


# Id in the files of ADE20K (1-based) -> look. Sixteen of the 150, some alike in colour and unlike
# in texture.
BACK = {
    1: Appearance((196, 180, 160), 10, 9, 0.0),  # wall
    2: Appearance((150, 110, 95), 30, 8, 1.57),  # building
    3: Appearance((130, 175, 225), 0, 9, 0.0),  # sky
}
GROUND = {
    4: Appearance((150, 115, 80), 22, 7, 0.0),  # floor
    7: Appearance((95, 95, 100), 4, 9, 0.0),  # road
    10: Appearance((85, 145, 60), 16, 4, 0.8),  # grass
    47: Appearance((205, 185, 135), 8, 4, 1.2),  # sand
    22: Appearance((70, 120, 170), 26, 6, 1.57),  # water
}
THINGS = {
    5: Appearance((45, 100, 45), 24, 5, 0.4),  # tree
    13: Appearance((175, 60, 120), 8, 6, 1.57),  # person
    16: Appearance((120, 75, 40), 6, 5, 0.0),  # table
    20: Appearance((190, 120, 40), 30, 6, 0.0),  # chair
    21: Appearance((190, 40, 40), 6, 8, 1.57),  # car
    42: Appearance((225, 200, 60), 34, 5, 0.8),  # box
    77: Appearance((235, 235, 240), 6, 8, 0.0),  # boat
    115: Appearance((90, 60, 150), 22, 5, 2.3),  # tent
}
# As recognition classes: the things, by name.
THING_NAMES = dict(
    zip(THINGS, ("tree", "person", "table", "chair", "car", "box", "boat", "tent"), strict=True)
)


def ade20k(num_train: int = 160, num_val: int = 32) -> Path:
    """Generate ADE20K's folders: JPEG images, 1-based PNG masks, long sides of 96 to 144 pixels."""

    def write(root: Path) -> None:
        for split, count in (("training", num_train), ("validation", num_val)):
            images, masks = made(root / "images" / split), made(root / "annotations" / split)
            for index in range(count):
                name = f"ADE_{'train' if split == 'training' else 'val'}_{index + 1:08d}"
                image, mask = scene(np.random.default_rng([VERSION, len(split), index]), (96, 144))
                image.save(images / f"{name}.jpg", quality=90)
                mask.save(masks / f"{name}.png")

    return written("ade20k", f"{num_train}-{num_val}", write)


def mask_folder(num_train: int = 120, num_val: int = 24) -> tuple[Path, int]:
    """Generate images/{train,val} and annotations/{train,val} in train ids, 255 unlabelled.

    Returns:
        The folder and the number of classes.
    """
    ids = np.full(256, 255, dtype=np.uint8)
    for train_id, file_id in enumerate([*BACK, *GROUND, *THINGS]):
        ids[file_id] = train_id

    def write(root: Path) -> None:
        for split, count in (("train", num_train), ("val", num_val)):
            images, masks = made(root / "images" / split), made(root / "annotations" / split)
            for index in range(count):
                image, mask = scene(
                    np.random.default_rng([VERSION, 7, len(split), index]), (96, 120)
                )
                image.save(images / f"{index:04d}.jpg", quality=90)
                Image.fromarray(ids[np.asarray(mask)]).save(masks / f"{index:04d}.png")

    return written("mask_folder", f"{num_train}-{num_val}", write), len(BACK) + len(GROUND) + len(
        THINGS
    )


def masks(
    num_classes: int, train: Callable[..., Any], val: Callable[..., Any]
) -> tuple[MaskFolder, MaskFolder]:
    """Training and validation images of `mask_folder` with their transforms.

    16 of the `num_classes` classes occur.
    """
    root, _ = mask_folder()
    training, validation = (
        MaskFolder(root / "images" / split, root / "annotations" / split, num_classes, transform)
        for split, transform in (("train", train), ("val", val))
    )
    return training, validation


def class_folder(num_train: int = 60, num_val: int = 12, size: int = 64) -> Path:
    """Generate {train,val}/<class>/<image>.jpg, one thing before a scene in each.

    Args:
        num_train: images of each class for training.
        num_val: images of each class for validation.
        size: side in pixels.
    """

    def write(root: Path) -> None:
        for split, count in (("train", num_train), ("val", num_val)):
            for label, (thing, name) in enumerate(THING_NAMES.items()):
                folder = made(root / split / name)
                for index in range(count):
                    random = np.random.default_rng([VERSION, 11, len(split), label, index])
                    portrait(random, thing, size).save(folder / f"{index:04d}.jpg", quality=90)

    return written("class_folder", f"{num_train}-{num_val}-{size}", write)


def depth_folder(num_train: int = 120, num_val: int = 24) -> Path:
    """Generate images/{train,val} and depth/{train,val}, PNG of 16 bits in millimetres.

    The ground is nearer further down, a thing as far as its foot; of the sky nothing is known (0).
    """

    def write(root: Path) -> None:
        for split, count in (("train", num_train), ("val", num_val)):
            images, maps = made(root / "images" / split), made(root / "depth" / split)
            for index in range(count):
                random = np.random.default_rng([VERSION, 19, len(split), index])
                image, mask = scene(random, (96, 120))
                image.save(images / f"{index:04d}.jpg", quality=90)
                Image.fromarray(_depth(np.asarray(mask))).save(maps / f"{index:04d}.png")

    return written("depth_folder", f"{num_train}-{num_val}", write)


def _depth(mask: np.ndarray) -> np.ndarray:
    """Millimetres, uint16 (H, W), of a scene's mask; 0 where nothing is known."""
    rows = np.broadcast_to(np.arange(len(mask))[:, None], mask.shape)
    metres = 10 - 8 * rows / len(mask)
    for label in np.unique(mask).tolist():
        here = mask == label
        if label in THINGS:
            metres = np.where(here, 10 - 8 * rows[here].max() / len(mask), metres)
        elif label in BACK:
            metres = np.where(here, 10.0, metres)
    known = (mask > 0) & (mask != SKY)
    return np.where(known, 1000 * metres, 0).astype(np.uint16)


def label_list(num_train: int = 240, num_val: int = 60) -> Path:
    """Generate images/ and train.csv and val.csv of path and label: the things in each scene.

    One scene in eight has none, and its label is empty.
    """

    def write(root: Path) -> None:
        images = made(root / "images")
        for split, count in (("train", num_train), ("val", num_val)):
            lines = ["path,label"]
            for index in range(count):
                random = np.random.default_rng([VERSION, 17, len(split), index])
                image, mask = scene(random, (96, 120), things=0 if index % 8 == 7 else None)
                name = f"{split}_{index:04d}.jpg"
                image.save(images / name, quality=90)
                seen, pixels = np.unique(np.asarray(mask), return_counts=True)
                large = seen[pixels >= VISIBLE]
                labels = [name for thing, name in THING_NAMES.items() if thing in large]
                lines.append(f"images/{name},{';'.join(labels)}")
            (root / f"{split}.csv").write_text("\n".join(lines) + "\n")

    return written("label_list", f"{num_train}-{num_val}", write)


def parquet(num_train: int = 800, num_val: int = 160, size: int = 32) -> Path:
    """Generate train-*.parquet and test-*.parquet with image and label, as CIFAR-10 on the Hub."""

    def write(root: Path) -> None:
        from datasets import (
            ClassLabel,
            Dataset,
            Features,
            disable_progress_bars,
            enable_progress_bars,
        )
        from datasets import Image as ImageFeature

        disable_progress_bars()

        things = list(THING_NAMES)
        features = Features(
            {"image": ImageFeature(), "label": ClassLabel(names=list(THING_NAMES.values()))}
        )
        for split, count in (("train", num_train), ("test", num_val)):
            rows: dict[str, list] = {"image": [], "label": []}
            for index in range(count):
                random = np.random.default_rng([VERSION, 13, len(split), index])
                file = io.BytesIO()
                portrait(random, things[index % len(things)], size).save(file, "PNG")
                rows["image"].append({"bytes": file.getvalue(), "path": None})
                rows["label"].append(index % len(things))
            Dataset.from_dict(rows, features).to_parquet(
                made(root) / f"{split}-00000-of-00001.parquet"
            )
        enable_progress_bars()

    return written("parquet", f"{num_train}-{num_val}-{size}", write)


def scene(
    random: np.random.Generator, long_side: tuple[int, int], things: int | None = None
) -> tuple[Image.Image, Image.Image]:
    """Draw an image and its mask (mode L) in ADE20K's file ids; things: how many; None: 3 to 5."""
    long, short = int(random.integers(*long_side)), int(random.integers(64, 92))
    width, height = (long, short) if random.random() < 0.7 else (short, long)
    mask = Image.new("L", (width, height), int(random.choice(list(BACK))))
    draw = ImageDraw.Draw(mask)
    horizon, tilt = random.uniform(0.4, 0.65) * height, random.uniform(-0.08, 0.08) * height
    ground = [(0, horizon - tilt), (width, horizon + tilt), (width, height), (0, height)]
    draw.polygon(ground, fill=int(random.choice(list(GROUND))))
    for _ in range(int(random.integers(3, 6)) if things is None else things):
        side = random.uniform(0.4, 0.75) * short
        centre = random.uniform(0, width), random.uniform(0.35, 0.95) * height
        _draw_thing(draw, random, int(random.choice(list(THINGS))), centre, side)
    return _painted(random, np.asarray(mask)), _with_unlabelled_edges(mask)


def portrait(random: np.random.Generator, thing: int, size: int) -> Image.Image:
    """Draw one thing, large, before a generated background: RGB, size x size."""
    mask = Image.new("L", (size, size), int(random.choice(list(BACK))))
    draw = ImageDraw.Draw(mask)
    draw.rectangle(
        (0, random.uniform(0.4, 0.8) * size, size, size), fill=int(random.choice(list(GROUND)))
    )
    _draw_thing(
        draw,
        random,
        thing,
        tuple(random.uniform(0.35, 0.65, 2) * size),
        random.uniform(0.4, 0.7) * size,
    )
    return _painted(random, np.asarray(mask))


def _draw_thing(
    draw: ImageDraw.ImageDraw, random: np.random.Generator, thing: int, centre: tuple, side: float
) -> None:
    """Draw a polygon of 3 to 7 corners: the shape says nothing about the class."""
    corners = int(random.integers(3, 8))
    angles = np.sort(random.uniform(0, 2 * np.pi, corners)) + np.linspace(0, 2, corners)
    radii = random.uniform(0.35, 0.6, corners) * side
    draw.polygon(
        [(centre[0] + r * np.cos(a), centre[1] + r * np.sin(a)) for a, r in zip(angles, radii)],
        fill=thing,
    )


def _painted(random: np.random.Generator, mask: np.ndarray) -> Image.Image:
    """Paint colour and texture of each class, light, noise and blur."""
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
    image = np.zeros((*mask.shape, 3))
    for label, look in (BACK | GROUND | THINGS).items():
        where = mask == label
        if where.any():
            along = x * np.cos(look.angle) + y * np.sin(look.angle)
            wave = np.sin(2 * np.pi * along / look.period + random.uniform(0, 2 * np.pi))
            colour = np.asarray(look.colour) + random.normal(0, 14, 3)
            image[where] = (colour + (look.stripes * wave)[..., None])[where]
    light = random.uniform(0.65, 1.25) + random.uniform(-0.25, 0.25) * (x / mask.shape[1] - 0.5)
    image = image * light[..., None] * random.uniform(0.93, 1.07, 3) + random.normal(
        0, 12, image.shape
    )
    return Image.fromarray(image.clip(0, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(0.4)
    )


def _with_unlabelled_edges(mask: Image.Image) -> Image.Image:
    """Set 0 where labels meet, as annotators leave seams."""
    labels = np.array(mask)
    edge = np.asarray(mask.filter(ImageFilter.MaxFilter(3))) != np.asarray(
        mask.filter(ImageFilter.MinFilter(3))
    )
    labels[edge] = 0
    return Image.fromarray(labels)


def made(folder: Path) -> Path:
    """The folder, which is made where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def written(name: str, size: str, write: Callable[[Path], None]) -> Path:
    """name-version-size in the cache, written by `write` unless it is there."""
    folder = default_folder() / "sample"
    root = folder / f"{name}-v{VERSION}-{size}"
    if root.is_dir():
        return root
    try:
        aside = Path(tempfile.mkdtemp(prefix=".writing-", dir=made(folder)))
    except OSError as error:
        raise UserError(
            f"generated data cannot be written to {folder} ({error.strerror}): set XDG_CACHE_HOME"
            " to a folder that can be written"
        ) from error
    try:
        write(aside)
        os.chmod(aside, 0o755)
        os.rename(aside, root)
    except OSError:
        if not root.is_dir():  # another process may have been first with the same bytes
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return root
