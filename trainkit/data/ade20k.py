"""ADE20K for scene parsing: 150 classes, 20,210 training and 2,000 validation images (Zhou et al., 2017).

Files, as in ADEChallengeData2016.zip: images/{training,validation}/*.jpg and
annotations/{training,validation}/*.png. Labels in the files are 1 to 150, and 0 where nothing is labelled;
train ids are 0 to 149, and 0 becomes the ignored 255.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainkit.data.folder import IGNORED, MaskFolder

SOURCE = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"

_NAMES = """
    wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person,
    earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror,
    rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column,
    signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path,
    stairs, runway, case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind,
    coffee table, toilet, flower, book, hill, bench, countertop, stove, palm, kitchen island, computer,
    swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning,
    streetlight, booth, television, airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman,
    bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything, swimming pool,
    stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name,
    microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase,
    traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass,
    clock, flag
"""
CLASSES = tuple(name.strip() for name in _NAMES.split(","))


def to_train_ids(labels: Tensor) -> Tensor:
    """1..150 -> 0..149; 0 -> 255. uint8 in and out."""
    return torch.where(labels == 0, IGNORED, labels - 1)


class ADE20K(MaskFolder):
    """One split of it: index -> (uint8 image (3, H, W), train ids, uint8 (H, W))."""

    classes = CLASSES

    def __init__(self, root: Path, split: str, transform: Callable[..., Any] | None = None):
        if split not in ("training", "validation"):
            raise ValueError(f"ADE20K: split is {split!r}; it is 'training' or 'validation'")
        images, annotations = Path(root) / "images" / split, Path(root) / "annotations" / split
        if not images.is_dir() or not annotations.is_dir():
            raise FileNotFoundError(
                f"no ADE20K at {Path(root).resolve()} (looked for images/{split} and annotations/{split}). "
                f"Get {SOURCE}, unpack it, and pass its folder with --data; "
                "or try the recipe on generated data with --sample"
            )
        super().__init__(images, annotations, len(CLASSES), transform, to_train_ids)
