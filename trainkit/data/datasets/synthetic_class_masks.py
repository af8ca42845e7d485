"""Generated images with masks of overlapping classes, for `--sample`."""

from pathlib import Path

import numpy as np
from PIL import Image

from trainkit.data.datasets.synthetic import GROUND, THINGS, VERSION, made, scene, written

# of each class the ids in a scene's mask: a plant and a vehicle are objects too
CLASSES = {"ground": tuple(GROUND), "object": tuple(THINGS), "plant": (5,), "vehicle": (21, 77)}


def class_mask_folder(num_train: int = 120, num_val: int = 24) -> Path:
    """Generate images/{train,val} and masks/{train,val}/<class>, PNG of 0 and 255.

    A class that an image lacks has no file there.
    """

    def write(root: Path) -> None:
        for split, count in (("train", num_train), ("val", num_val)):
            images = made(root / "images" / split)
            folders = {name: made(root / "masks" / split / name) for name in CLASSES}
            for index in range(count):
                random = np.random.default_rng([VERSION, 23, len(split), index])
                image, mask = scene(random, (96, 120))
                image.save(images / f"{index:04d}.jpg", quality=90)
                for name, ids in CLASSES.items():
                    here = np.isin(np.asarray(mask), ids)
                    if here.any():
                        stored = Image.fromarray(here.astype(np.uint8) * 255)
                        stored.save(folders[name] / f"{index:04d}.png")

    return written("class_masks", f"{num_train}-{num_val}", write)
