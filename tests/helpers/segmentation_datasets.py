"""Segmentation datasets in their true layouts, of a few images."""

import json

import numpy as np
import scipy.io
from PIL import Image

from helpers.image_files import blocks, labels_png, photo
from trainkit.data.palette import colour_map


def voc_files(root, lists, **photos):
    """VOC's folders with a photo and a mask of 0, 15, 20 and a border for every name."""
    for split, names in lists.items():
        file = root / "VOCdevkit/VOC2012/ImageSets/Segmentation" / f"{split}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{name}\n" for name in names))
        for name in names:
            photo(root / f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg", **photos)
            labels = blocks(0, 15, 20, 255)
            labels_png(
                root / f"VOCdevkit/VOC2012/SegmentationClass/{name}.png", labels, colour_map(256)
            )


def sbd_files(root, train, val):
    """SBD's folders: MATLAB structs whose masks are 7 everywhere."""
    dataset = root / "benchmark_RELEASE/dataset"
    (dataset / "cls").mkdir(parents=True)
    for split, names in (("train", train), ("val", val)):
        (dataset / f"{split}.txt").write_text("\n".join(names))
        for name in names:
            photo(dataset / f"img/{name}.jpg")
            truth = {
                "Boundaries": np.zeros((20, 1)),
                "Segmentation": np.full((16, 20), 7, dtype=np.uint8),
            }
            scipy.io.savemat(dataset / f"cls/{name}.mat", {"GTcls": truth}, do_compression=True)


def city_files(root, split, kind, city, labels):
    for number in range(2):
        name = f"{city}_{number:06d}_000019"
        file = root / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (number, 0, 0)).save(file)
        labels_png(root / f"{kind}/{split}/{city}/{name}_{kind}_labelIds.png", labels)
        labels_png(
            root / f"{kind}/{split}/{city}/{name}_{kind}_instanceIds.png",
            blocks(26001),
            dtype=np.uint16,
        )


def runs_of(mask):
    """Run lengths down the columns, beginning with zeros."""
    flat = np.concatenate([[0], mask.T.flatten()]).astype(int)
    edges = np.flatnonzero(np.diff(flat)) if len(flat) else []
    return np.diff([0, *edges, mask.size]).tolist()


def string_of(runs):
    """COCO's string form, written from its description and not from the decoder."""
    text = ""
    for place, run in enumerate(runs):
        value = run - runs[place - 2] if place > 2 else run
        while True:
            group, value = value & 31, value >> 5
            done = (value == 0 and not group & 16) or (value == -1 and group & 16)
            text += chr(48 + group + (0 if done else 32))
            if done:
                break
    return text


def box(x, y, width, height):
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def coco_files(root, **changes):
    """Four photos of 80x60.

    A boat behind a person, a crowd, too little of a cat, and only a class that VOC lacks.
    """
    crowd = np.zeros((60, 80), dtype=bool)
    crowd[10:40, 20:70] = True
    hidden = np.zeros((60, 80), dtype=bool)
    hidden[30:60, :] = True
    objects = [  # image, category, segmentation, crowd
        (9, 9, [box(0, 20, 40, 20), box(50, 20, 30, 20)], 0),  # a boat in two parts, 1400 pixels
        (9, 1, [box(30, 0, 30, 60)], 0),  # a person behind it
        (25, 1, {"counts": runs_of(crowd), "size": [60, 80]}, 1),
        # a dog, as tools write it
        (25, 18, {"counts": string_of(runs_of(hidden)), "size": [60, 80]}, 0),
        (30, 17, [box(0, 0, 30, 30)], 0),  # a cat of 900 pixels
        (34, 13, [box(0, 0, 80, 60)], 0),  # a stop sign
    ]
    areas = {0: 1400, 1: 1800, 2: 1500, 3: 2400, 4: 900, 5: 4800}
    written = {
        "info": {"year": 2017, "description": "a {brace} and a [bracket]"},
        "licenses": [],
        "images": [
            {"license": 3, "file_name": f"{i:012d}.jpg", "height": 60, "width": 80,
                "id": i} for i in (34, 30, 25, 9)
        ],
        "annotations": [
            {"segmentation": shape, "area": areas[n], "iscrowd": many, "image_id": image,
                "category_id": category,
             "id": n}
            for n, (image, category, shape, many) in enumerate(objects)
        ],
        "categories": [{"supercategory": "person", "id": 1, "name": "person"}],
    } | changes  # fmt: skip
    for image in (9, 25, 30, 34):
        photo(root / f"val2017/{image:012d}.jpg", 80, 60, mode="CMYK" if image == 25 else "RGB")
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations/instances_val2017.json").write_text(
        json.dumps(written, indent=changes.get("indent"))
    )
