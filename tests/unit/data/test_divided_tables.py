"""A part held out of parquet files of one split, against an independent computation."""

import csv
import hashlib
import io
import json
import random
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from helpers.hub_server import running
from helpers.processes import run
from trainkit.data.bands import PixelSettings
from trainkit.data.class_counts import count_classes
from trainkit.data.datasets.class_source import ClassSource
from trainkit.data.datasets.held_out import SplitSettings
from trainkit.data.datasets.mask_source import MaskSource
from trainkit.errors import UserError

NAMES = ("ant", "bee", "cow")
NUM_ROWS = 47
SHARE = SplitSettings(0.25, split_seed=3)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Where `datasets` keeps what it converts."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def png(number):
    """An image whose first pixel says which row it is of; few are of one size in bytes."""
    image = Image.new("RGB", (8, 8), (number, 2, 3))
    draw = random.Random(number)
    for place in range(1, 1 + draw.randrange(63)):
        image.putpixel((place % 8, place // 8), (draw.randrange(255), 7, 9))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def mask_png(number):
    """A mask of class `number` % 2."""
    file = io.BytesIO()
    Image.new("L", (8, 8), number % 2).save(file, "PNG")
    return file.getvalue()


def label_of(number):
    return NAMES[(0, 0, 1, 0, 2)[number % 5]]


def rows(paths=None):
    return {
        "image": [
            {"bytes": png(row), "path": None if paths is None else paths(row)}
            for row in range(NUM_ROWS)
        ],
        "label": [label_of(row) for row in range(NUM_ROWS)],
        "patient": [row // 3 for row in range(NUM_ROWS)],
    }


def write(folder, columns, sizes, name="train-{:05d}-of-{:05d}.parquet", order=None):
    """The rows in files of so many each."""
    table = pa.table(columns)
    if order is not None:
        table = table.take(order)
    assert sum(sizes) == len(table)
    start = 0
    folder.mkdir(parents=True, exist_ok=True)
    for number, size in enumerate(sizes):
        part = table.slice(start, size)
        pq.write_table(part, folder / name.format(number, len(sizes)), row_group_size=5)
        start += size
    return folder


def by_hand(keys, classes, seed, share):
    """Keys held out: of each class, the first of those ranked by a hash."""

    def rank(key):
        return hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).hexdigest(), key

    chosen = set()
    for name in {*classes}:
        own = sorted({key for key, each in zip(keys, classes) if each == name}, key=rank)
        chosen |= {*own[: int(share * len(own) + 0.5)]}
    return chosen


def numbers(data):
    """The rows of a dataset, by what their images show."""
    return [int(data[index][0][0, 0, 0]) for index in range(len(data))]


def listed(data, side):
    return list(csv.reader(data.lists[f"{side}.csv"].decode().splitlines()))


CLASSES = [label_of(row) for row in range(NUM_ROWS)]
HELD_OUT = {int(key) for key in by_hand([*map(str, range(NUM_ROWS))], CLASSES, 3, 0.25)}


@pytest.mark.parametrize(
    "sizes, name",
    [
        ([NUM_ROWS], "train.parquet"),
        ([10, 1, 36], "train-{:05d}-of-{:05d}.parquet"),
        ([20, 27], "training_{}.parquet"),
        ([46, 1], "photographs {}.parquet"),
        ([30, 17], "test-{}.parquet"),
    ],
)
def test_rows_by_number_however_they_are_spread_over_files(tmp_path, sizes, name):
    folder = write(tmp_path / "my", rows(), sizes, name)
    sides = {side: ClassSource(folder, held_out=SHARE).open(side) for side in ("train", "val")}
    val = numbers(sides["val"])
    assert val == sorted(HELD_OUT) and numbers(sides["train"]) == sorted(
        {*range(NUM_ROWS)} - HELD_OUT
    )
    for side, data in sides.items():
        assert data.split == side and data.classes == [*NAMES]
        assert [data.classes[data[i][1]] for i in range(len(data))] == [
            label_of(row) for row in numbers(data)
        ]
        assert data.targets.tolist() == [data[i][1] for i in range(len(data))]
        assert data.fingerprint == sides["val"].fingerprint
        counts = count_classes(data, 3).targets.tolist()
        assert counts == [sum(label_of(row) == each for row in numbers(data)) for each in NAMES]
    assert f"row {val[1]} of {folder}" in sides["val"].name_of(1)
    assert sides["val"].used.startswith(f"{len(val)} of 47 images of 3 classes (")
    assert sides["val"].used.endswith("by --val-share 0.25 --split-seed 3")
    header, *found = listed(sides["train"], "val")
    assert header == ["row", "label"]
    assert {int(row): label for row, label in found} == {row: label_of(row) for row in HELD_OUT}


def test_the_fingerprint_is_of_the_rows_and_not_of_the_files(tmp_path):
    def fingerprint(name, sizes, order=None, columns=None):
        folder = write(tmp_path / name, columns or rows(), sizes, order=order)
        return ClassSource(folder, held_out=SHARE).open("val").fingerprint

    first = fingerprint("a", [NUM_ROWS])
    assert fingerprint("b", [7, 40]) == first
    # in the same places two rows of one class, whose images are of other sizes
    bees = [row for row in range(NUM_ROWS) if label_of(row) == NAMES[1]][:2]
    assert len(png(bees[0])) != len(png(bees[1]))
    turned = list(range(NUM_ROWS))
    turned[bees[0]], turned[bees[1]] = bees[1], bees[0]
    assert fingerprint("c", [NUM_ROWS], turned) != first
    # where images have paths, their order does not matter
    named = rows(lambda row: f"{row % 5}/{row}.png")
    assert fingerprint("d", [NUM_ROWS], turned, named) == fingerprint("e", [7, 40], None, named)


@pytest.mark.parametrize("kind", ["paths", "one path twice", "one without"])
def test_rows_by_the_paths_of_their_images(tmp_path, kind):
    """The same images are held out in any order, where each row has a path of its own."""
    paths = {
        "paths": lambda row: f"{row % 5}/{row}.png",
        "one path twice": lambda row: f"{max(row, 1)}.png",
        "one without": lambda row: f"{row}.png" if row else None,
    }[kind]
    order = random.Random(1).sample(range(NUM_ROWS), NUM_ROWS)
    plain = write(tmp_path / "plain", rows(paths), [40, 7])
    turned = write(tmp_path / "turned", rows(paths), [3, 44], order=order)
    val, other = (ClassSource(each, held_out=SHARE).open("val") for each in (plain, turned))
    if kind == "paths":
        held_out = by_hand([paths(row) for row in range(NUM_ROWS)], CLASSES, 3, 0.25)
        assert {paths(row) for row in numbers(val)} == held_out
        assert {*numbers(other)} == {*numbers(val)} and numbers(other) != numbers(val)
        assert listed(val, "val")[0] == ["path", "label"]
        assert {path for path, _ in listed(val, "val")[1:]} == held_out
        assert other.fingerprint == val.fingerprint
    else:
        assert {*numbers(val)} == HELD_OUT != {*numbers(other)}
        assert listed(val, "val")[0] == ["row", "label"]
        assert other.fingerprint != val.fingerprint


def test_groups(tmp_path):
    folder = write(tmp_path / "my", rows(lambda row: f"scene{row // 4}/{row}.png"), [20, 27])
    groups = [str(row // 3) for row in range(NUM_ROWS)]
    of = {}  # a group's class is the one that most of its images have
    for group in {*groups}:
        own = [name for name, each in zip(CLASSES, groups) if each == group]
        of[group] = min({*own}, key=lambda name: (-own.count(name), name))
    held_out = by_hand([*of], [*of.values()], 0, 0.25)
    settings = SplitSettings(0.25, group_by="patient")
    train, val = (ClassSource(folder, held_out=settings).open(side) for side in ("train", "val"))
    assert {groups[row] for row in numbers(val)} == held_out
    assert {groups[row] for row in numbers(train)} == {*groups} - held_out
    settings = SplitSettings(0.25, group_by="folder")
    train, val = (ClassSource(folder, held_out=settings).open(side) for side in ("train", "val"))
    scenes = [{row // 4 for row in numbers(data)} for data in (train, val)]
    assert len(scenes[1]) == 3 and not scenes[0] & scenes[1], "of 12 folders"
    settings = SplitSettings(0.3, group_by="patient")
    masks = MaskSource(masks_in(tmp_path / "masks"), 2, held_out=settings)
    train, val = ({groups[row] for row in numbers(masks.open(side))} for side in ("train", "val"))
    assert val == by_hand({*groups}, [""] * 16, 0, 0.3) and not train & val


def masks_in(folder):
    columns = rows()
    masks = [{"bytes": mask_png(row), "path": f"{row}.png"} for row in range(NUM_ROWS)]
    return write(
        folder, {"image": columns["image"], "mask": masks, "patient": columns["patient"]}, [9, 38]
    )


@pytest.mark.parametrize("part", [1, 2, 3])
def test_folds_of_masks(tmp_path, part):
    source = MaskSource(
        masks_in(tmp_path / "my"), ["a", "b"], held_out=SplitSettings(fold=f"{part}/3")
    )
    train, val = source.open("train"), source.open("val")

    def rank(row):
        return hashlib.blake2b(f"0:{row}".encode(), digest_size=8).hexdigest()

    assert numbers(val) == sorted(sorted(range(NUM_ROWS), key=rank)[part - 1 :: 3])
    assert sorted(numbers(train) + numbers(val)) == list(range(NUM_ROWS))
    for data in (train, val):
        for index, row in enumerate(numbers(data)):
            assert data[index][1].unique().tolist() == [row % 2]
            assert data.labels_of(index).unique().tolist() == [row % 2]
            assert data.mask_name(index).startswith(f"mask of row {row} of ")
    assert listed(val, "val")[0] == ["row"]
    assert {row for (row,) in listed(val, "val")[1:]} == {*map(str, numbers(val))}
    assert count_classes(val, 2).members.tolist() == [
        sum(row % 2 == each for row in numbers(val)) for each in (0, 1)
    ]


def test_both_sides_have_the_ids_of_one_order(tmp_path):
    folder = write(tmp_path / "my", rows(), [NUM_ROWS])
    source = ClassSource(folder, held_out=SHARE)
    train = source.open("train", None, ["cow", "ant", "bee"])
    val = source.open("val", None, train.classes)
    for data in (train, val):
        assert data.classes == ["cow", "ant", "bee"]
        assert [data.classes[data[i][1]] for i in range(len(data))] == [
            label_of(row) for row in numbers(data)
        ]
    few = rows() | {"label": [NAMES[row == 5] for row in range(NUM_ROWS)]}
    held_out = SplitSettings(0.1)
    val = ClassSource(write(tmp_path / "few", few, [NUM_ROWS]), held_out=held_out).open("val")
    assert 5 not in numbers(val)
    assert f"has no image in val of {tmp_path / 'few'} (train): bee" in val.used_warnings[0]


def test_what_cannot_be_divided_is_refused(tmp_path):
    folder = write(tmp_path / "my", rows(), [NUM_ROWS])

    def refused(words, source=folder, settings=SHARE, **more):
        with pytest.raises(UserError, match=words):
            ClassSource(source, held_out=settings, **more).open("train")

    refused("stream is 4 and --val-share 0.25 --split-seed 3 is given", stream=4)
    refused("channels is 4", pixels=PixelSettings(4))
    refused(
        r"no column 'scene'; its columns: image \(.*patient",
        settings=SplitSettings(0.2, group_by="scene"),
    )
    refused("no groups in its column 'image'", settings=SplitSettings(0.2, group_by="image"))
    refused("images of .* have no paths", settings=SplitSettings(0.2, group_by="folder"))
    lacking = rows() | {"patient": [None if row == 9 else 1 for row in range(NUM_ROWS)]}
    refused(
        "row 9 of .* has nothing in the column 'patient'",
        write(tmp_path / "lacking", lacking, [NUM_ROWS]),
        SplitSettings(0.2, group_by="patient"),
    )
    write(folder, rows(), [NUM_ROWS], "validation.parquet")
    refused("my is divided already, it has train and validation: leave --val-share")
    with pytest.raises(UserError, match="is divided already, it has train and validation"):
        MaskSource(folder, 2, image_column="image", mask_column="image", held_out=SHARE).open("val")
    assert len(ClassSource(folder).open("train")) == NUM_ROWS
    (folder / "validation.parquet").unlink()
    with pytest.raises(UserError, match="It has parquet files of train: hold out a part"):
        ClassSource(folder).open("val")


ON_THE_HUB = """
import json
from trainkit.data.datasets.class_source import ClassSource
from trainkit.data.datasets.held_out import SplitSettings
from trainkit.errors import UserError

def shown(name, asked=SplitSettings(0.25, split_seed=3), **more):
    source = ClassSource(name, held_out=asked, **more)
    try:
        val, train = source.open("val"), source.open("train")
    except UserError as error:
        return str(error)
    numbers = [[int(data[i][0][0, 0, 0]) for i in range(len(data))] for data in (train, val)]
    return [*numbers, val.fingerprint, val.name_of(0)]

found = [shown("me/photos"), shown("me/tests"), shown("me/divided")]
found.append(shown("me/photos", stream=4))
found.append(shown("me/photos", SplitSettings()))
print(json.dumps(found))
"""


@pytest.mark.nightly
def test_datasets_on_the_hub(tmp_path):
    """Over HTTP, by the libraries' own code, in a process that takes the Hub for its server."""
    write(tmp_path / "photos", rows(), [20, 27])
    write(tmp_path / "tests", rows(), [NUM_ROWS], "test.parquet")
    for name in ("train", "validation"):
        write(tmp_path / "divided", rows(), [NUM_ROWS], f"{name}.parquet")
    here = ClassSource(tmp_path / "photos", held_out=SHARE).open("val").fingerprint
    with running() as hub:
        for name in ("photos", "tests", "divided"):
            hub.add(f"me/{name}", tmp_path / name)
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        done = run(sys.executable, "-c", ON_THE_HUB, cwd=tmp_path, **env)
    photos, tests, divided, streamed, plain = json.loads(done.stdout.splitlines()[-1])
    train = sorted({*range(NUM_ROWS)} - HELD_OUT)
    val = sorted(HELD_OUT)
    assert photos == [train, val, here, f"row {val[0]} of me/photos (train)"]
    assert tests == [train, val, here, f"row {val[0]} of me/tests (test)"]
    assert "me/divided is divided already, it has train and validation" in divided
    assert "so leave --stream out" in streamed
    assert "me/photos has none of the splits val, validation, valid, test; it has train" in plain
    assert "--val-share 0.2" in plain
