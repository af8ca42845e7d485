"""Masks drawn from polygons, of LabelMe's and COCO's files, against other rasterisers."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_tools

from helpers.image_files import mask, picture
from trainkit.data.datasets.coco_style import categories_of
from trainkit.data.datasets.held_out import SplitSettings
from trainkit.data.datasets.labelme import labelme_labels
from trainkit.data.datasets.mask_source import MaskSource
from trainkit.data.datasets.rle import polygon_to_mask, to_grid
from trainkit.data.image_io import LabelError
from trainkit.errors import DataError, MissingFileError, UserError

CLASSES = ["background", "cat", "dog"]
SHARE = SplitSettings(0.25)
# of its decoder, with NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def random_polygon(random, width, height):
    corners = int(random.integers(3, 9))
    angles = np.sort(random.uniform(0, 2 * np.pi, corners))
    radii = random.uniform(0.2, 0.6, corners) * min(width, height)
    middle = random.uniform(0.2, 0.8, 2) * (width, height)
    return middle + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)


def labelme(file, shapes, width=40, height=30):
    content = {"imageWidth": width, "imageHeight": height, "imagePath": "x.png", "shapes": [
        {"label": label, "points": np.asarray(points).tolist(), "shape_type": kind}
        for label, kind, points in shapes
    ]}  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def distances(corners, width, height):
    """Of each pixel's middle from the outline, negative inside (by the even-odd rule)."""
    y, x = np.mgrid[:height, :width]
    points = np.stack([x, y], -1).reshape(-1, 1, 2).astype(float)
    begin, end = corners, np.roll(corners, -1, 0)
    along = end - begin
    share = ((points - begin) * along).sum(-1) / (along**2).sum(-1)
    nearest = begin + share.clip(0, 1)[..., None] * along
    distance = np.linalg.norm(points - nearest, axis=-1).min(1)
    between = (begin[:, 1] > points[..., 1]) != (end[:, 1] > points[..., 1])
    with np.errstate(divide="ignore", invalid="ignore"):
        at = begin[:, 0] + (points[..., 1] - begin[:, 1]) / along[:, 1] * along[:, 0]
    inside = ((between & (points[..., 0] < at)).sum(1) % 2).astype(bool)
    return np.where(inside, -distance, distance).reshape(height, width)


def test_labelmes_polygons(tmp_path):
    random, inside = np.random.default_rng(0), 0
    for _ in range(20):
        corners = random_polygon(random, 40, 30)
        file = labelme(tmp_path / "a.json", [("dog", "polygon", corners)])
        labels = labelme_labels(file, CLASSES).numpy()
        assert labels.shape == (30, 40) and set(np.unique(labels)) <= {0, 2}
        apart = distances(corners, 40, 30)
        # Pillow draws the outline, too
        assert (labels[apart < -1] == 2).all() and (labels[apart > 1.75] == 0).all()
        inside += int((apart < -1).sum())
    assert inside > 1000


@pytest.mark.parametrize(
    "change, words",
    [
        ({"shape_type": "circle", "points": [[1, 1], [2, 2], [3, 3]]}, "is a circle of 3 points"),
        ({"shape_type": "rectangle", "points": []}, "is a rectangle of 0 points"),
        ({"points": [[1, 1, 0], [9, 1, 0], [9, 9, 0]]}, "points of other than two numbers"),
        ({"points": [[1, 1], [9, "x"], [9, 9]]}, "is no file of LabelMe: could not convert"),
        ({"points": [[1, 1], [9, float("nan")], [9, 9]]}, "has a point at infinity"),
        ({"points": [[1, 1], [9, float("inf")], [9, 9]]}, "has a point at infinity"),
        ({"points": None}, "is no file of LabelMe"),
        ({"label": ["dog"]}, "has a shape of \"\\['dog'\\]\""),
        ({"imageWidth": -4}, "is of an image of -4 x 30 pixels"),
        ({"imageHeight": "x"}, "is no file of LabelMe: invalid literal"),
        ({"imageHeight": float("inf")}, "is no file of LabelMe: cannot convert float infinity"),
    ],
)
def test_a_damaged_file_of_labelme_is_named(tmp_path, change, words):
    file = labelme(tmp_path / "one.json", [("dog", "polygon", [(1, 1), (9, 1), (9, 9)])])
    assert (labelme_labels(file, CLASSES) == 2).sum() == 45
    content = json.loads(file.read_text())
    content["shapes"][0] |= {k: v for k, v in change.items() if not k.startswith("image")}
    file.write_text(json.dumps(content | {k: v for k, v in change.items() if k[:5] == "image"}))
    with pytest.raises(UserError, match=f"one.json.*{words}"):
        labelme_labels(file, CLASSES)


def test_labelmes_other_shapes(tmp_path):
    shapes = [
        ("cat", "rectangle", [(30, 20), (10, 5)]),  # drawn from its lower right corner
        ("dog", "circle", [(20, 12), (20, 15)]),
        ("__ignore__", "rectangle", [(0, 0), (3, 2)]),
    ]
    labels = labelme_labels(labelme(tmp_path / "a.json", shapes), CLASSES).numpy()
    y, x = np.mgrid[:30, :40]
    apart = np.hypot(x - 20, y - 12)
    inside = (x >= 10) & (x <= 30) & (y >= 5) & (y <= 20)
    assert (labels[apart < 2.5] == 2).all() and (labels[inside & (apart > 3.5)] == 1).all()
    assert (labels[:3, :4] == 255).all() and labels[3, 3] == 0
    assert (labels[~inside] == np.where((y < 3) & (x < 4), 255, 0)[~inside]).all()
    without = labelme_labels(tmp_path / "a.json", ["cat", "dog"]).numpy()
    assert without[29, 39] == 255 and without[6, 11] == 0, "no class is called background"


@pytest.mark.parametrize(
    "shape, error, words",
    [
        (("cat", "line", [(0, 0), (5, 5)]), DataError, "'cat' is a line of 2 points"),
        (("cat", "polygon", [(0, 0), (5, 5)]), DataError, "is a polygon of 2 points"),
        (("cow", "polygon", [(0, 0), (5, 5), (5, 0)]), LabelError, "has a shape of 'cow'"),
    ],
)
def test_what_labelme_cannot_mean(tmp_path, shape, error, words):
    with pytest.raises(error, match=words):
        labelme_labels(labelme(tmp_path / "a.json", [shape]), CLASSES)
    (tmp_path / "b.json").write_text('{"shapes": []}')
    with pytest.raises(DataError, match="b.json is no file of LabelMe: no 'imageWidth'"):
        labelme_labels(tmp_path / "b.json", CLASSES)


@pytest.mark.parametrize(
    "layout", ["{split}", "images/{split}|annotations/{split}", "|", "images|labels"]
)
def test_folders_of_labelme(tmp_path, layout):
    images, _, masks = layout.partition("|")
    for place in range(8):
        split = ("train", "val")[place // 6]
        name = images.format(split=split), (masks if "|" in layout else images).format(split=split)
        picture(tmp_path / "my" / name[0] / f"{place}.png", 40, 30, place)
        points = [(0, 0), (place + 1, 0), (place + 1, 29), (0, 29)]
        labelme(tmp_path / "my" / name[1] / f"{place}.json", [("cat", "polygon", points)])
    settings = SplitSettings() if "split" in layout else SHARE
    train, val = (
        MaskSource(tmp_path / "my", CLASSES, held_out=settings).open(s) for s in ("train", "val")
    )
    assert (len(train), len(val)) == (6, 2)
    for data in (train, val):
        for index in range(len(data)):
            labels = data[index][1].numpy()
            assert (labels == 1).sum() == 30 * (int(data.name_of(index).stem) + 2)
        assert "json" not in data.used


def coco_file(file, images):
    """images: of each, objects of (category, polygons or run lengths)."""
    categories = {3: "cat", 8: "dog", 9: "cow"}
    content = {
        "categories": [{"id": i, "name": n} for i, n in categories.items()],
        "images": [
            {"id": 10 + place, "file_name": name, "width": 40, "height": 30}
            for place, name in enumerate(images)
        ],
        "annotations": [
            {"id": 100 * place + number, "image_id": 10 + place, "category_id": category,
             "iscrowd": int(isinstance(shape, dict)), "segmentation": shape}
            for place, objects in enumerate(images.values())
            for number, (category, shape) in enumerate(objects)
        ],
    }  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def test_polygons_are_those_of_pycocotools():
    random = np.random.default_rng(1)
    for _ in range(200):
        width, height = random.integers(5, 60, 2).tolist()
        polygon = random_polygon(random, width, height).flatten() + random.uniform(-9, 9)
        polygon = polygon.round(int(random.integers(0, 3))).tolist()
        (want,) = coco_tools.frPyObjects([polygon], height, width)
        assert np.array_equal(
            polygon_to_mask(to_grid(polygon), height, width), coco_tools.decode(want).astype(bool)
        )


def test_coco_style_masks_are_those_of_pycocotools(tmp_path):
    random = np.random.default_rng(2)
    images = {}
    for place in range(4):
        objects = []
        for category in (8, 3, 9, 8):
            parts = [random_polygon(random, 40, 30).flatten().round(2).tolist() for _ in range(2)]
            objects.append((category, parts))
        noise = np.asfortranarray(random.random((30, 40)) < 0.2, dtype=np.uint8)
        runs = coco_tools.encode(noise)
        objects.append((3, {"size": [30, 40], "counts": runs["counts"].decode()}))
        images[f"{place}.png"] = objects
        picture(tmp_path / "my" / "images" / f"{place}.png", 40, 30, place)
    coco_file(tmp_path / "my" / "annotations" / "instances_default.json", images)
    sides = [MaskSource(tmp_path / "my", CLASSES, held_out=SHARE).open(s) for s in ("train", "val")]
    assert [len(data) for data in sides] == [3, 1]
    ids = {3: 1, 8: 2, 9: 255}  # cow is none of the classes
    for data in sides:
        for index in range(len(data)):
            want, taken = np.zeros((30, 40), np.uint8), np.zeros((30, 40), bool)
            for category, shape in images[data.name_of(index).name]:
                runs = shape
                if isinstance(shape, list):
                    runs = coco_tools.merge(coco_tools.frPyObjects(shape, 30, 40))
                drawn = coco_tools.decode(runs).astype(bool)
                want[drawn & ~taken] = ids[category]
                taken |= drawn
            assert np.array_equal(data[index][1].numpy(), want) and len(np.unique(want)) == 4
    assert categories_of(tmp_path / "my" / "annotations" / "instances_default.json")[8] == "dog"


@pytest.mark.parametrize(
    "layout",
    [
        "{0}/_annotations.coco.json {0}",
        "annotations/instances_{0}.json images/{0}",
        "{0}.json images",
    ],
)
def test_folders_of_coco_style(tmp_path, layout):
    square = [(3, [[0, 0, 9, 0, 9, 9, 0, 9]])]
    for split, places in (("train", (0, 1, 2)), ("valid", (3, 4))):
        file, folder = layout.format(split).split()
        for place in places:
            picture(tmp_path / "my" / folder / f"{place}.png", 40, 30, place)
        coco_file(tmp_path / "my" / file, {f"{place}.png": square for place in places})
    train, val = (MaskSource(tmp_path / "my", CLASSES).open(split) for split in ("train", "val"))
    assert [(len(data), int((data[0][1] == 1).sum())) for data in (train, val)] == [
        (3, 81),
        (2, 81),
    ]
    assert {val.name_of(index).name for index in (0, 1)} == {"3.png", "4.png"}
    with pytest.raises(UserError, match="is divided already"):
        MaskSource(tmp_path / "my", CLASSES, held_out=SHARE).open("train")
    with pytest.raises(UserError, match="no category cta; it has cat, dog, cow: correct --classes"):
        MaskSource(tmp_path / "my", ["background", "cta"]).open("train")[0]
    with pytest.raises(UserError, match="has classes by their names: name them in --classes"):
        MaskSource(tmp_path / "my", 3).open("train")
    with pytest.raises(UserError, match="leave --mask-values"):
        MaskSource(tmp_path / "my", CLASSES, mask_values=[0, 1, 2]).open("train")
    assert (
        "count nowhere" in MaskSource(tmp_path / "my", ["cat", "dog"]).open("val").used_warnings[0]
    )


def test_one_image_in_two_files_of_coco_style(tmp_path):
    square = [(3, [[0, 0, 9, 0, 9, 9, 0, 9]])]
    for place in range(5):
        picture(tmp_path / "images" / f"{place}.png", 40, 30, place)
    for split, places in (("train", (0, 1, 2)), ("val", (2, 3, 4))):
        coco_file(tmp_path / f"{split}.json", {f"{place}.png": square for place in places})
    with pytest.raises(UserError, match="2.png in .*train.json, and .*2.png in .*val.json; remove"):
        MaskSource(tmp_path, CLASSES).open("train")


def test_faulty_coco_style(tmp_path):
    file = coco_file(tmp_path / "my" / "annotations.json", {"a.png": [(3, [])]})
    with pytest.raises(UserError, match="1 of 1 objects in .* have no outline"):
        MaskSource(tmp_path / "my", CLASSES, held_out=SHARE).open("val")
    file = coco_file(tmp_path / "other" / "all.json", {"a.png": [(3, [[0, 0, 9, 0, 9, 9]])]})
    with pytest.raises(MissingFileError, match=r"a.png of .*all.json is in none of"):
        MaskSource(file, CLASSES, held_out=SHARE).open("val")
    picture(tmp_path / "other" / "a.png", 40, 30, 0)
    with pytest.raises(UserError, match="has all images: hold out a part"):
        MaskSource(file, CLASSES).open("val")
    assert len(MaskSource(file, CLASSES, held_out=SplitSettings(1.0)).open("val")) == 1
    file.write_text('{"images": []}')
    with pytest.raises(UserError, match="has no categories"):
        MaskSource(file, CLASSES, held_out=SHARE).open("val")


def test_more_than_255_categories(tmp_path):
    """As in LVIS; class ids are those of --classes."""
    squares = {1: 1, 255: 3, 256: 5, 257: 7, 300: 9}  # category and side
    content = {
        "categories": [{"id": id_, "name": f"c{id_}"} for id_ in range(1, 301)],
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
        "annotations": [
            {"id": id_, "image_id": 1, "category_id": id_, "segmentation": [
                [10 * place, 0, 10 * place + side, 0, 10 * place + side, side, 10 * place, side]
            ]}
            for place, (id_, side) in enumerate(list(squares.items())[1:])
        ],
    }  # fmt: skip
    (tmp_path / "all.json").write_text(json.dumps(content))
    picture(tmp_path / "a.png", 40, 30, 0)
    names = ["background", "c300", "c257", "c256", "c255"]
    data = MaskSource(tmp_path / "all.json", names, held_out=SplitSettings(1.0)).open("val")
    labels = data[0][1].numpy()
    assert [int((labels == label).sum()) for label in (1, 2, 3, 4)] == [81, 49, 25, 9]


def test_run_lengths_of_another_size(tmp_path):
    """Of a turned image as many pixels, which would be drawn scrambled."""
    runs = {"size": [40, 30], "counts": [0, 60, 1140]}
    file = coco_file(tmp_path / "all.json", {"a.png": [(3, runs)]})
    picture(tmp_path / "a.png", 40, 30, 0)
    message = (
        r"all.json .*a.png has a height and width of \[30, 40\], and run lengths of \[40, 30\]"
    )
    with pytest.raises(UserError, match=message):
        MaskSource(file, CLASSES, held_out=SplitSettings(1.0)).open("val")
    coco_file(tmp_path / "all.json", {"a.png": [(3, {**runs, "size": [30, 40]})]})
    data = MaskSource(file, CLASSES, held_out=SplitSettings(1.0)).open("val")
    labels = data[0][1].numpy()
    assert (labels[:, :2] == 1).all() and labels.sum() == 60


def test_masks_go_before_annotations(tmp_path):
    """As in COCO's panoptic sets, or where one was made of the other."""
    picture(tmp_path / "my" / "images" / "train" / "a.png", 40, 30, 0)
    mask(tmp_path / "my" / "masks" / "train" / "a.png", 40, 30, [(1, 1200)])
    coco_file(tmp_path / "my" / "annotations" / "train.json", {"a.png": []})
    assert int(MaskSource(tmp_path / "my", CLASSES).open("train")[0][1].sum()) == 1200


@pytest.mark.parametrize("layout", ["{kind}/{split}", "{split}/{kind}", "{kind}"])
def test_labels_of_yolo_are_refused_in_one_message(tmp_path, layout):
    for split in ("train", "val"):
        images, labels = (tmp_path / layout.format(kind=kind, split=split)
                          for kind in ("images", "labels"))  # fmt: skip
        for folder in (images, labels):
            folder.mkdir(parents=True, exist_ok=True)
        picture(images / f"{split}.jpg", 8, 8, 0)
        (labels / f"{split}.txt").write_text("0 0.5 0.5 0.1 0.2 0.3 0.4\n")
    settings = SplitSettings(0.5) if layout == "{kind}" else SplitSettings()
    with pytest.raises(UserError, match="as YOLO's boxes and polygons are written, which trainkit"):
        MaskSource(tmp_path, 2, held_out=settings).open("train")
