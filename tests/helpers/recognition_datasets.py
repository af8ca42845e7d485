"""Recognition datasets in their true layouts, of a few images."""

import numpy as np
from PIL import Image

# Colour wedges without edges, which JPEG keeps within a few grey values.
Y, X = np.mgrid[:24, :32]
RGB = np.stack([4 * X + 60, 6 * Y + 40, 200 - 3 * X], -1).astype(np.uint8)  # (24, 32, 3)
GREY = RGB[..., 0]
CATEGORIES_TXT = """\
brick\ncarpet\nceramic\nfabric\nfoliage\nfood\nglass\nhair\nleather\nmetal\nmirror\nother\npainted\npaper\nplastic\n\
polishedstone\nskin\nsky\nstone\ntile\nwallpaper\nwater\nwood
"""
CATEGORIES = CATEGORIES_TXT.splitlines()


def minc_files(folder):
    """All 23 classes with an image each in train1 and test1.

    Wood has one more, and split 5 is another one.
    """
    root = folder / "minc-2500"
    (root / "labels").mkdir(parents=True)
    (root / "categories.txt").write_text(CATEGORIES_TXT)
    lists = {"train1": [], "validate1": [], "test1": [], "train5": []}
    for label, name in enumerate(CATEGORIES):
        (root / "images" / name).mkdir(parents=True)
        for number in range(2):
            path = f"images/{name}/{name}_{number:06d}.jpg"
            Image.new("RGB", (20, 20), (10 * label, 100 * number, 7)).save(root / path, quality=95)
            lists["test1" if number else "train1"].append(path)
            lists["train5"].append(path)
    Image.fromarray(GREY).save(root / "images" / "wood" / "wood_002499.jpg")
    lists["train1"].insert(3, "images/wood/wood_002499.jpg")  # the lists are shuffled
    lists["validate1"].append("images/other/other_000001.jpg")
    for name, paths in lists.items():
        (root / "labels" / f"{name}.txt").write_text("\n".join(paths) + "\n")
    return root
