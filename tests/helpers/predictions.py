"""Images to predict, recipes to predict them with, and logits worked out by hand."""

import math

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from helpers.image_files import picture
from helpers.toy_recipes import CLASSES, Net, recognition, segmentation
from trainkit.data.datasets.folder import ClassFolder, MaskFolder
from trainkit.data.datasets.listing import image_files
from trainkit.data.image_io import read_image
from trainkit.data.transforms.recognition import eval_transform as crop
from trainkit.data.transforms.segmentation import eval_transform as long_side
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.segmentation import Segmentation

NAMES = [f"kind {letter}" for letter in "abcdefg"]
PALETTE = [(10 * i, 255 - i, i) for i in range(CLASSES)]
RAW = [7, 8, 11, 12, 13, 300, 33]


def photos(folder):
    """Images of every kind that folders hold, in two folders and by sizes of their own."""
    random = np.random.default_rng(0)
    (folder / "in").mkdir(parents=True)
    for i, (mode, name) in enumerate(
        [
            ("RGB", "b.jpg"),
            ("L", "a.jpg"),
            ("CMYK", "in/c.JPEG"),
            ("RGBA", "d.png"),
            ("P", "e.gif"),
            ("RGB", "f.webp"),
        ]
    ):
        pixels = np.kron(
            random.integers(0, 255, (4, 5, 3), dtype=np.uint8),
            np.ones((8 + i, 7, 1), dtype=np.uint8),
        )
        exif = Image.Exif()
        exif[0x0112] = 6 if name == "b.jpg" else 1  # turned by 90 degrees
        Image.fromarray(pixels).convert(mode).save(folder / name, exif=exif)
    return folder


def weights_of(recipe, folder):
    with torch.no_grad():
        recipe.model.head.weight *= 20  # unlike classes for unlike pixels
    torch.save(recipe.model.state_dict(), folder / "w.pth")
    return folder / "w.pth"


def with_classes(folder, **changes):
    photos(folder / "data" / NAMES[0])
    data = ClassFolder(folder / "data", crop(16), NAMES)
    torch.manual_seed(0)  # weights that do not call every image the same
    return recognition(val_data=data, task=Recognition(NAMES), eval_batch_size=4, **changes)


def with_masks(folder, **changes):
    images = photos(folder / "images")
    (folder / "masks" / "in").mkdir(parents=True)
    for path in image_files(images):
        _, height, width = read_image(images / path).shape
        Image.new("L", (width, height)).save((folder / "masks" / path).with_suffix(".png"))
    data = MaskFolder(images, folder / "masks", CLASSES, long_side(24))
    return segmentation(
        val_data=data, **{"task": Segmentation(CLASSES, palette=PALETTE, raw_ids=RAW), **changes}
    )


class Divisible(nn.Module):
    """Takes sides divisible by 32 alone, and each pixel of its logits sees the whole image."""

    size_divisor = 32

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, CLASSES, 8, stride=8)

    def forward(self, x):
        assert x.shape[-2] % 32 == 0 and x.shape[-1] % 32 == 0, x.shape
        return (
            self.head(x)
            + 50
            * self.head(x).mean((2, 3), keepdim=True)
            * torch.linspace(-1, 1, x.shape[-2] // 8)[:, None]
        )


def odd_sized(folder):
    """112 x 77 and 77 x 112, as stored: neither side of either is divisible by 32."""
    for split in ("images", "masks"):
        (folder / split).mkdir()
    for i, (height, width) in enumerate([(112, 77), (77, 112)]):
        picture(folder / "images" / f"{i}.png", width, height, i)
        Image.new("L", (width, height)).save(folder / "masks" / f"{i}.png")
    data = MaskFolder(folder / "images", folder / "masks", CLASSES, long_side(None))
    torch.manual_seed(0)
    return segmentation(
        val_data=data, task=Segmentation(CLASSES), model=Divisible(), eval_batch_size=2
    )


def filled_by_hand(recipe, file):
    """Logits (1, C, H, W) of an image put into the top left of one of the mean colour, resized to
    that and cut."""
    pixels = long_side(None)(read_image(file)).double() / 255
    mean, std = (
        torch.tensor(each, dtype=torch.float64).view(3, 1, 1) for each in (recipe.mean, recipe.std)
    )
    _, height, width = pixels.shape
    canvas = mean.expand(3, math.ceil(height / 32) * 32, math.ceil(width / 32) * 32).clone()
    canvas[:, :height, :width] = pixels
    with torch.no_grad():
        logits = recipe.model.eval()(((canvas - mean) / std).float()[None])
    return F.interpolate(logits, canvas.shape[-2:], mode="bilinear", align_corners=False)[
        ..., :height, :width
    ]


RECIPE = """
from pathlib import Path
from helpers.predictions import with_classes
def recipe(data: Path = Path(".")):
    return with_classes(data)
"""


class Hidden(Net):
    """A part of its weights is saved otherwise than it is."""

    def __init__(self):
        super().__init__(False)
        self.register_buffer("offset", torch.ones(CLASSES))

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}offset"] = destination[f"{prefix}offset"] + 1

    def forward(self, x):
        return super().forward(x) + self.offset
