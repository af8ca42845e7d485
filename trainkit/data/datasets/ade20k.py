"""ADE20K for scene parsing: 150 classes, 20,210 training and 2,000 validation images.

Files, as in ADEChallengeData2016.zip: images/{training,validation}/*.jpg and
annotations/{training,validation}/*.png. Labels in the files are 1 to 150, and 0 where nothing is
labelled; train ids are 0 to 149, and 0 becomes the ignored 255.

Source:
    Zhou et al., 2017, Scene Parsing through ADE20K Dataset.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from trainkit.data.datasets.folder import MaskFolder
from trainkit.data.datasets.label_tables import label_table, look_up
from trainkit.errors import MissingFileError, UserError

SOURCE = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"

_NAMES = """
    wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk,
    person, earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf,
    house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub,
    railing, cushion, base, box, column, signboard, chest of drawers, counter, sand, sink,
    skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table,
    pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower,
    book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar,
    arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth,
    television, airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle,
    buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything,
    swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food,
    step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket,
    sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate,
    monitor, bulletin board, shower, radiator, glass, clock, flag
"""
CLASSES = tuple(name.strip() for name in _NAMES.split(","))

# The benchmark's colours (color150.mat), two hexadecimal digits for each of R, G, B.
_COLOURS = """
    787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07
    e005ff ebff07 96053d 787846 08ff33 ff0652 8fff8c ccff04 ff3307 cc4603
    0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff
    08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207
    ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff 8c8c8c fa0a0f
    14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff
    0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00
    008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99 ff5c00 ff00ff
    ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2
    00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000
    8fff00 5200ff a3ff00 ffeb00 08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff
    00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3
    ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00
    00ccff 1400ff ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff
    4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
"""
PALETTE = np.frombuffer(bytes.fromhex(_COLOURS), dtype=np.uint8).reshape(-1, 3)
RAW_IDS = np.arange(1, 151, dtype=np.uint8)  # train id -> label in the files
_TABLE = label_table(RAW_IDS, [0])


def to_train_ids(labels: Tensor) -> Tensor:
    """Map labels 1..150 to 0..149 and 0 to 255, uint8."""
    return look_up(labels, _TABLE)


class ADE20K(MaskFolder):
    """One split of ADE20K: index -> (uint8 image (3, H, W), train ids, uint8 (H, W)).

    Args:
        root: the folder with images/ and annotations/.
        split: "training" or "validation".
        transform: of image and mask.

    Raises:
        MissingFileError: a folder is missing.
        UserError: the split is unknown.
    """

    classes, palette, raw_ids = CLASSES, PALETTE, RAW_IDS
    upright = False  # masks lie on the images as stored
    expects = "ADE20K's labels are 0 to 150"

    def __init__(self, root: Path, split: str, transform: Callable[..., Any] | None = None):
        if split not in ("training", "validation"):
            raise UserError(f"ADE20K: split is {split!r}; it is 'training' or 'validation'")
        images, annotations = Path(root) / "images" / split, Path(root) / "annotations" / split
        if not images.is_dir() or not annotations.is_dir():
            raise MissingFileError(
                f"no ADE20K at {Path(root).resolve()} (looked for images/{split} and"
                f" annotations/{split}). Get {SOURCE}, unpack it, and pass its folder with --data;"
                " or try the recipe on generated data with --sample"
            )
        super().__init__(images, annotations, len(CLASSES), transform, to_train_ids)
