"""Lists of images in CSV and JSON lines."""

import json
from collections import Counter

import pytest

from helpers.image_files import mask, picture
from trainkit.data.datasets.held_out import SplitSettings
from trainkit.data.datasets.lists import read_list
from trainkit.data.datasets.open import class_images, label_maps
from trainkit.errors import MissingFileError, UserError

SHARE = SplitSettings(0.25)


@pytest.fixture
def folder(tmp_path):
    """Eight images in pictures/, of two classes by their number, and masks of that label."""
    for place in range(8):
        picture(tmp_path / "pictures" / f"{place}.png", 4, 4, place)
        mask(tmp_path / "marks" / f"m{place}.png", 4, 4, [(place % 2, 16)])
    return tmp_path


def rows(**columns):
    return [
        {"path": f"pictures/{i}.png", "label": ("odd", "even")[i % 2 == 0]}
        | {name: value(i) for name, value in columns.items()}
        for i in range(8)
    ]


def write(file, content, delimiter=","):
    if file.suffix == ".jsonl":
        text = "\n".join(map(json.dumps, content)) + "\n"
    else:
        lines = [list(content[0]), *(row.values() for row in content)]
        text = "\n".join(delimiter.join(map(str, line)) for line in lines)
    file.write_text(text)
    return file


def found(data):
    return {int(data.name_of(i).stem): data.classes[data[i][1]] for i in range(len(data))}


@pytest.mark.parametrize(
    "name, delimiter", [("a.csv", ","), ("b.csv", ";"), ("c.tsv", "\t"), ("d.jsonl", "")]
)
def test_path_and_label(folder, name, delimiter):
    file = write(folder / name, rows(), delimiter)
    train, val = (class_images(file, split, held_out=SHARE) for split in ("train", "val"))
    assert train.classes == val.classes == ["even", "odd"]
    assert (len(train), len(val)) == (6, 2) and Counter(found(val).values()) == {
        "even": 1,
        "odd": 1,
    }
    both = found(train) | found(val)
    assert both == {i: ("even", "odd")[i % 2] for i in range(8)}


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_path_and_mask(folder, name):
    content = [{"path": row["path"], "mask": f"marks/m{i}.png"} for i, row in enumerate(rows())]
    file = write(folder / name, content)
    sides = [label_maps(file, split, 2, held_out=SHARE) for split in ("train", "val")]
    assert [len(data) for data in sides] == [6, 2]
    for data in sides:
        for index in range(len(data)):
            assert int(data[index][1].max()) == int(data.name_of(index).stem) % 2


def test_the_same_division_in_any_order_and_of_a_windows_list(folder):
    content = rows()
    there = class_images(write(folder / "a.csv", content), "val", held_out=SHARE)
    turned = class_images(write(folder / "b.csv", content[::-1]), "val", held_out=SHARE)
    windows = [row | {"path": row["path"].replace("/", "\\")} for row in content]
    other = class_images(write(folder / "c.csv", windows), "val", held_out=SHARE)
    assert found(there) == found(turned) == found(other)
    assert there.fingerprint == turned.fingerprint == other.fingerprint
    relabelled = write(folder / "d.csv", [content[0] | {"label": "odd"}, *content[1:]])
    assert class_images(relabelled, "val", held_out=SHARE).fingerprint != there.fingerprint


def test_a_column_of_groups(folder):
    file = write(folder / "a.csv", rows(patient=lambda i: f"p{i // 2}"))
    settings = SplitSettings(fold="1/4", group_by="patient")
    val = class_images(file, "val", held_out=settings)
    train = class_images(file, "train", held_out=settings)
    patients = [{i // 2 for i in found(data)} for data in (train, val)]
    assert len(patients[1]) == 1 and not patients[0] & patients[1]
    with pytest.raises(UserError, match="no column scene; its first line names 'path', 'label'"):
        class_images(file, "val", held_out=SplitSettings(0.2, group_by="scene"))


def test_a_column_of_splits(folder):
    words = ["train"] * 4 + ["valid"] * 2 + ["test"] * 2
    file = write(folder / "a.csv", rows(split=lambda i: words[i]))
    assert sorted(found(class_images(file, "train"))) == [0, 1, 2, 3]
    assert sorted(found(class_images(file, "val"))) == [4, 5], "test is val where there is no val"
    with pytest.raises(UserError, match="has a column split: leave --val-share 0.25"):
        class_images(file, "train", held_out=SHARE)
    file = write(folder / "b.csv", rows(split=lambda i: words[i].replace("valid", "train")))
    assert sorted(found(class_images(file, "val"))) == [6, 7]
    file = write(folder / "c.csv", rows(split=lambda i: "other"))
    with pytest.raises(UserError, match="c.csv, line 2: split is 'other'; it is one of train"):
        class_images(file, "val")


def test_lists_of_splits_in_a_folder(folder):
    content = rows()
    write(folder / "train.jsonl", content[:5])
    write(folder / "val.csv", content[5:])
    train, val = (class_images(folder, split) for split in ("train", "val"))
    assert sorted(found(train)) == [0, 1, 2, 3, 4] and sorted(found(val)) == [5, 6, 7]
    assert train.lists["val.csv"].count(b"\n") == 4 and train.fingerprint == val.fingerprint
    with pytest.raises(UserError, match="train.jsonl, val.csv, lists of its splits: leave"):
        class_images(folder, "val", held_out=SHARE)
    (folder / "train.jsonl").unlink()
    alone = class_images(folder, "val", classes=["odd", "even"])  # as an evaluation reads it
    assert found(alone) == found(val) and alone.classes == ["odd", "even"]
    with pytest.raises(UserError, match="of classes odd, which are not among those"):
        class_images(folder, "val", classes=["even", "else"])


def test_class_ids(folder):
    file = write(folder / "a.csv", rows(label=lambda i: 10 if i % 2 else 9))
    assert class_images(file, "val", held_out=SHARE).classes == ["9", "10"], "by number"
    file = write(folder / "b.jsonl", rows(label=lambda i: i % 2))
    val = class_images(file, "val", held_out=SHARE, classes=["even", "odd"])
    assert all(name == ("even", "odd")[i % 2] for i, name in found(val).items())


def test_columns_by_name(folder):
    renamed = [{"photo": row["path"], "what": row["label"], "label": "x"} for row in rows()]
    file = write(folder / "a.csv", renamed)
    names = {"image_column": "photo", "label_column": "what"}
    assert class_images(file, "val", held_out=SHARE, **names).classes == ["even", "odd"]
    with pytest.raises(UserError, match="no column path or image or .*--image-column"):
        class_images(file, "val", held_out=SHARE)


@pytest.mark.parametrize(
    "text, words",
    [
        ("path,label\n", "names no images"),
        ("", "names no images"),
        ("path,label\npictures/0.png,a,b\n", "line 2: 3 values, .* names 2 columns"),
        ("path,label\npictures/0.png,\n", "line 2: nothing in the column label"),
        ("path,label\npictures/0.png,a\npictures/0.png,b\n", "is a in line 2 and b in line 3"),
        ("path,path\npictures/0.png,a\n", "the column 'path' twice"),
        ('path,label\n"pictures/0.png,a\n', "unexpected end of data"),
        ("pictures/0.png,a\npictures/1.png,b\n", "its first line names 'pictures/0.png', 'a'"),
    ],
)
def test_damaged_csv(folder, text, words):
    (folder / "a.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        class_images(folder / "a.csv", "val", held_out=SHARE)


def test_damaged_json_lines(folder):
    (folder / "a.jsonl").write_text('{"path": "x"}\n\n{"path": \n')
    with pytest.raises(UserError, match="a.jsonl, line 3 is no JSON"):
        read_list(folder / "a.jsonl")
    (folder / "a.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match="line 1 is no JSON object"):
        read_list(folder / "a.jsonl")


def test_files_that_are_not_there(folder):
    file = write(folder / "a.csv", rows(path=lambda i: f"pictures/{i + 3}.png"))
    with pytest.raises(MissingFileError, match=r"3 of 8 files .* pictures/8.png, pictures/9.png"):
        class_images(file, "val", held_out=SHARE)
    with pytest.raises(MissingFileError, match="no list .*none.csv"):
        class_images(folder / "none.csv", "val", held_out=SHARE)
    with pytest.raises(UserError, match="has no column split .* --val-share 0.2"):
        class_images(write(folder / "b.csv", rows()), "val")
