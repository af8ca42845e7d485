"""Parquet files as people have them.

Which are a split's, and which columns are images, masks and labels.
"""

import random
import string

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Features
from datasets import Dataset as Table
from datasets import Image as ImageFeature
from torchvision.io import encode_png

from trainkit.data.datasets.class_source import ClassSource
from trainkit.data.datasets.hub import HubImages, HubMasks
from trainkit.data.datasets.inventory import used, used_warnings
from trainkit.data.datasets.mask_source import MaskSource
from trainkit.data.datasets.split_files import parquet_files

SPLITS = ("train", "training", "val", "validation", "valid", "test")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))


def png(value, channels=3):
    return encode_png(torch.full((channels, 4, 4), value, dtype=torch.uint8)).numpy().tobytes()


def write(file, labels, label_type=None, image=None):
    """A row for each label; the image is as grey as the number of the row."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = image or (lambda value: {"bytes": png(value), "path": f"{value}.png"})
    table = pa.table(
        {"image": [image(row) for row in range(len(labels))], "label": pa.array(labels, label_type)}
    )
    pq.write_table(table, file)


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["train.parquet"], 1),
        (["train-00000-of-00001.parquet"], 1),
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], 2),
        (["train-00000-of-00001-0123456789abcdef.parquet"], 1),
        (["train_0.parquet", "train_1.parquet", "train_10.parquet", "train_2.parquet"], 4),
        (["train-part-0.parquet", "train-part-1.parquet"], 2),
        (["train/0000.parquet", "train/0001.parquet"], 2),
        (["train/any.parquet", "train/_metadata.parquet", "train/.hidden.parquet"], 1),
        (["data/train-00000-of-00001.parquet"], 1),
        (["data/train/0000.parquet"], 1),
        (["default/train/0000.parquet"], 1),
    ],
)
@pytest.mark.parametrize(
    "others", [[], ["trainval", "train_hard", "train-clean", "training", "pretrain"]]
)
def test_layouts(tmp_path, names, taken, others):
    for name in names:
        write(tmp_path / name, [0, 1])
    for other in others:
        write((tmp_path / names[0]).parent / f"{other}-00000-of-00001.parquet", [0] * 5)
    if others and names[0].count("/") and names[0].split("/")[-2] == "train":
        return  # all in train/ is of it
    found = parquet_files(tmp_path, "train")
    assert len(found.files) == taken and {
        str(path.relative_to(tmp_path)) for path in found.files
    } <= set(names)
    assert {path.name.split("-00000")[0] for path in found.left_out} == {
        each for each in others if each != "pretrain"
    }
    for stream in (None, 2):
        data = ClassSource(tmp_path, stream=stream).open("train")
        assert len(data) == 2 * taken and data.classes == ["0", "1"]
        assert used(data).startswith(f"{2 * taken} images of 2 classes ({names[0]}")
        assert ("left out: 4 parquet files" in used(data)) == bool(others)


def test_files_are_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 2, 0, 1):
        write(tmp_path / f"train_{number}.parquet", [number])
    data = HubImages(tmp_path, "train")
    assert [int(data[index][1]) for index in range(4)] == [0, 1, 2, 10]


@pytest.mark.parametrize("seed", range(50))
def test_random_names_are_of_one_split_at_most(tmp_path, seed):
    """By the first name in the file's own words.

    Letters up to what is no letter, or numbers, are the split.
    """
    draw = random.Random(seed)
    expected = dict.fromkeys(SPLITS, 0)
    for number in range(draw.randint(1, 12)):
        split = draw.choice(SPLITS)
        more = draw.choice(
            [
                "",
                "",
                "val",
                "_hard",
                "s",
                "-" + "".join(draw.choices(string.ascii_lowercase[7:], k=4)),
            ]
        )
        name = f"{split}{more}-{number:05d}-of-00099.parquet"
        if not more or split + more in SPLITS:
            expected[split + more] += 1
        (tmp_path / name).touch()
    for split, count in expected.items():
        found = parquet_files(tmp_path, split)
        assert len(found.files) == count, (split, found)
        assert bool(found.warnings) == bool(count)  # of 99 some are missing
        files = set(found.files) | set(found.left_out)
        assert files == {path for path in tmp_path.iterdir() if path.name.startswith(split)}


@pytest.mark.parametrize(
    "names",
    [
        ["train.parquet", "train-00000-of-00001.parquet"],
        ["train.parquet", "data/train.parquet"],
        ["train.parquet", "train/0000.parquet"],
        ["train-00000-of-00001.parquet", "train-00000-of-00002.parquet"],
        ["train-0.parquet", "train_0.parquet"],
        [
            "train-00000-of-00001-0123456789abcdef.parquet",
            "train-00000-of-00001-fedcba9876543210.parquet",
        ],
        ["train.parquet", "train2.parquet"],
    ],
)
def test_sets_that_might_repeat_one_another_are_refused(tmp_path, names):
    for name in names:
        write(tmp_path / name, [0, 1])
    with pytest.raises(ValueError, match="might repeat the other. Move"):
        HubImages(tmp_path, "train")


def test_missing_files_are_reported(tmp_path):
    for number in (0, 2):
        write(tmp_path / f"train-0000{number}-of-00004.parquet", [0, 1])
    message = f"2 of 4 parquet files of train are not in {tmp_path}: number 1, 3"
    assert used_warnings(HubImages(tmp_path, "train")) == [message]


@pytest.mark.parametrize("stream", [None, 2])
def test_files_that_are_damaged_or_have_no_rows(tmp_path, stream):
    """Named where they are damaged; passed over where they are empty, and refused where all are."""
    write(tmp_path / "train-0.parquet", [], pa.int64())
    with pytest.raises(
        ValueError, match=r"train-0.parquet: there are no rows in these parquet files"
    ):
        HubImages(tmp_path, "train", stream=stream)
    write(tmp_path / "train-1.parquet", [1, 0, 1])
    pq.write_table(pq.read_table(tmp_path / "train-0.parquet",
                                 schema=pq.read_schema(tmp_path / "train-1.parquet")),
                   tmp_path / "train-0.parquet")  # fmt: skip
    data = HubImages(tmp_path, "train", stream=stream)
    assert [int(target) for _, target in (data[i] for i in range(len(data)))] == [1, 0, 1]
    (tmp_path / "train-2.parquet").write_bytes((tmp_path / "train-1.parquet").read_bytes()[:-6])
    with pytest.raises(ValueError, match=r"train-2.parquet is not a parquet file, or is cut short"):
        HubImages(tmp_path, "train", stream=stream)


def test_folders_of_images_with_parquet_files_beside_them(tmp_path):
    """Folders win where they hold an image, and the parquet files left out are reported."""
    for name in ("train/meta.parquet", "val/any.parquet"):
        write(tmp_path / name, [0, 1])
    (tmp_path / "val" / "notes").mkdir()
    (tmp_path / "train" / "cat").mkdir()
    (tmp_path / "train" / "cat" / "a.png").write_bytes(png(3))
    data = ClassSource(tmp_path).open("train")
    assert data.classes == ["cat"] and "left out: 1 file (.parquet)" in used(data)
    message = (
        f"{tmp_path} has both folders of images and parquet files of train; the folders are taken,"
        " and not "
    )
    assert used_warnings(data) == [message + "train/meta.parquet"]
    assert len(ClassSource(tmp_path).open("val")) == 2
    for kind in ("images", "annotations"):
        (tmp_path / kind / "train").mkdir(parents=True)
        (tmp_path / kind / "train" / "a.png").write_bytes(png(1, 1))
    maps = MaskSource(tmp_path, 2).open("train")
    assert len(maps) == 1 and used_warnings(maps) == [message + "train/meta.parquet"]


def test_a_folder_whose_name_is_a_pattern(tmp_path):
    folder = tmp_path / "set [1]*?"
    write(folder / "train.parquet", [0, 1])
    assert len(HubImages(folder, "train")) == 2


IMAGES = {
    "struct": (lambda value: {"bytes": png(value), "path": None}, None),
    "struct of bytes": (lambda value: {"bytes": png(value)}, None),
    "bytes": (png, None),
    "large": (lambda value: {"bytes": png(value), "path": "x"},
              pa.struct({"bytes": pa.large_binary(), "path": pa.large_string()})),
    "large bytes": (png, pa.large_binary()),
}  # fmt: skip


@pytest.mark.parametrize("stream", [None, 2])
@pytest.mark.parametrize("kind", IMAGES)
def test_images_without_the_hubs_types(tmp_path, kind, stream):
    make, arrow = IMAGES[kind]
    columns = {
        "image": pa.array([make(value) for value in (10, 20, 30)], arrow),
        "mask": pa.array([{"bytes": png(value, 1), "path": None} for value in (0, 1, 2)]),
        "label": pa.array([2, 0, 1]),
        "caption": pa.array(["a", "b", "c"]),
    }
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    data = HubImages(tmp_path, "train", image_column="image", stream=stream)
    read = [data[index] for index in range(3)]
    read = [(int(image.unique()), int(target)) for image, target in read]
    assert read == [(10, 2), (20, 0), (30, 1)]
    pair = {"image_column": "image", "mask_column": "mask"} if kind.split()[-1] == "bytes" else {}
    maps = MaskSource(tmp_path, 3, stream=stream, **pair).open("train")
    read = [maps[index] for index in range(3)]
    read = [(int(image.unique()), int(mask.unique())) for image, mask in read]
    assert read == [(10, 0), (20, 1), (30, 2)]
    with pytest.raises(
        ValueError, match=r"no column 'picture'; its columns: image .*, caption .string."
    ):
        HubMasks(tmp_path, "train", 3, image_column="picture", stream=stream)
    with pytest.raises(
        ValueError, match=r"no images in its column 'caption'; its columns: image .*, mask "
    ):
        HubImages(tmp_path, "train", image_column="caption", stream=stream)


NAMES = ["dog", "cat", "Käfer", "猫", "", "10", "9", "a\nb", "e\u0301"]


@pytest.mark.parametrize("stream", [None, 2])
@pytest.mark.parametrize("kind", [None, pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_string_labels(tmp_path, kind, stream):
    """Names become classes in sorted order of the training split.

    Others in the validation split are refused.
    """
    draw = random.Random(0)
    train, val = [draw.choice(NAMES) for _ in range(60)], [*NAMES[:4], None]
    write(tmp_path / "train.parquet", train, kind)
    write(tmp_path / "val.parquet", val, kind)
    data = ClassSource(tmp_path, stream=stream).open("train")
    assert data.classes == sorted(set(train)) and len(data.classes) == len(NAMES)
    assert [data.classes[data[index][1]] for index in range(60)] == train
    assert not data.used_warnings
    other = ClassSource(tmp_path, stream=stream).open("val", classes=data.classes)
    assert other.classes == data.classes
    assert [other.classes[other[index][1]] for index in range(4)] == val[:4]
    with pytest.raises(ValueError, match="is null in the column 'label'"):
        other[4]
    assert (
        len(other.used_warnings) == 1
        and "5 of 9 classes have no image in" in other.used_warnings[0]
    )
    write(tmp_path / "test.parquet", ["cat", "wolf"], kind)
    with pytest.raises(ValueError, match="has classes .'wolf'. that the training data has not"):
        HubImages(tmp_path, "test", classes=data.classes, stream=stream)


@pytest.mark.parametrize("stream", [None, 2])
@pytest.mark.parametrize(
    ("labels", "kind"),
    [([0.0, 1.0], None), ([-1, 1], None), ([[0], [1]], None), ([None, None], pa.string())],
)
def test_labels_that_are_no_ids_and_no_names(tmp_path, labels, kind, stream):
    write(tmp_path / "train.parquet", labels, kind)
    words = (
        "class ids must be integers from 0, or names: make strings or integers|no labels in its"
        " column 'label'"
    )
    with pytest.raises(ValueError, match=words):
        HubImages(tmp_path, "train", label_column="label", stream=stream)


def test_files_whose_columns_differ_in_type(tmp_path):
    """A path that is null in all of a file has no type.

    Rows are read as they lie where they are streamed.
    """
    write(
        tmp_path / "train-0.parquet",
        [0, 1],
        image=lambda value: {"bytes": png(value), "path": None},
    )
    write(tmp_path / "train-1.parquet", [1, 0])
    with pytest.raises(
        ValueError, match="2 parquet files in .* do not make one table .*same type.*--stream 16"
    ):
        HubImages(tmp_path, "train")
    assert [int(label) for _, label in HubImages(tmp_path, "train", stream=2)] == [0, 1, 1, 0]


def test_declared_classes_without_images_are_reported(tmp_path):
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog", "eel"])})
    rows = {"image": [{"bytes": png(0), "path": None}] * 2, "label": [2, 0]}
    Table.from_dict(rows, features).to_parquet(tmp_path / "train.parquet")
    data = HubImages(tmp_path, "train")
    assert data.used_warnings == [f"1 of 3 classes has no image in {tmp_path} (train): dog"]
    assert np.array_equal([int(data[index][1]) for index in range(2)], [2, 0])
