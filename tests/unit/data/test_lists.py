"""Lists of images in CSV and JSON lines."""

import json
import os
import unicodedata
from collections import Counter

import pytest

from helpers.image_files import mask, picture
from trainkit.data.datasets.class_source import ClassSource
from trainkit.data.datasets.held_out import SplitSettings
from trainkit.data.datasets.lists import read_list
from trainkit.data.datasets.mask_source import MaskSource
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
    train, val = (ClassSource(file, held_out=SHARE).open(split) for split in ("train", "val"))
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
    sides = [MaskSource(file, 2, held_out=SHARE).open(split) for split in ("train", "val")]
    assert [len(data) for data in sides] == [6, 2]
    for data in sides:
        for index in range(len(data)):
            assert int(data[index][1].max()) == int(data.name_of(index).stem) % 2


def test_the_same_division_in_any_order_and_of_a_windows_list(folder):
    content = rows()
    there = ClassSource(write(folder / "a.csv", content), held_out=SHARE).open("val")
    turned = ClassSource(write(folder / "b.csv", content[::-1]), held_out=SHARE).open("val")
    windows = [row | {"path": row["path"].replace("/", "\\")} for row in content]
    other = ClassSource(write(folder / "c.csv", windows), held_out=SHARE).open("val")
    assert found(there) == found(turned) == found(other)
    assert there.fingerprint == turned.fingerprint == other.fingerprint
    relabelled = write(folder / "d.csv", [content[0] | {"label": "odd"}, *content[1:]])
    assert ClassSource(relabelled, held_out=SHARE).open("val").fingerprint != there.fingerprint


def test_a_column_of_groups(folder):
    file = write(folder / "a.csv", rows(patient=lambda i: f"p{i // 2}"))
    settings = SplitSettings(fold="1/4", group_by="patient")
    val = ClassSource(file, held_out=settings).open("val")
    train = ClassSource(file, held_out=settings).open("train")
    patients = [{i // 2 for i in found(data)} for data in (train, val)]
    assert len(patients[1]) == 1 and not patients[0] & patients[1]
    with pytest.raises(UserError, match="no column scene; its first line names 'path', 'label'"):
        ClassSource(file, held_out=SplitSettings(0.2, group_by="scene")).open("val")


def test_a_column_of_splits(folder):
    words = ["train"] * 4 + ["valid"] * 2 + ["test"] * 2
    file = write(folder / "a.csv", rows(split=lambda i: words[i]))
    assert sorted(found(ClassSource(file).open("train"))) == [0, 1, 2, 3]
    assert sorted(found(ClassSource(file).open("val"))) == [4, 5], (
        "test is val where there is no val"
    )
    with pytest.raises(UserError, match="has a column split: leave --val-share 0.25"):
        ClassSource(file, held_out=SHARE).open("train")
    file = write(folder / "b.csv", rows(split=lambda i: words[i].replace("valid", "train")))
    assert sorted(found(ClassSource(file).open("val"))) == [6, 7]
    file = write(folder / "c.csv", rows(split=lambda i: "other"))
    with pytest.raises(UserError, match="c.csv, line 2: split is 'other'; it is one of train"):
        ClassSource(file).open("val")


def test_lists_of_splits_in_a_folder(folder):
    content = rows()
    write(folder / "train.jsonl", content[:5])
    write(folder / "val.csv", content[5:])
    train, val = (ClassSource(folder).open(split) for split in ("train", "val"))
    assert sorted(found(train)) == [0, 1, 2, 3, 4] and sorted(found(val)) == [5, 6, 7]
    assert train.lists["val.csv"].count(b"\n") == 4 and train.fingerprint == val.fingerprint
    with pytest.raises(UserError, match="train.jsonl, val.csv, lists of its splits: leave"):
        ClassSource(folder, held_out=SHARE).open("val")
    (folder / "train.jsonl").unlink()
    alone = ClassSource(folder).open("val", classes=["odd", "even"])  # as an evaluation reads it
    assert found(alone) == found(val) and alone.classes == ["odd", "even"]
    with pytest.raises(UserError, match="of classes odd, which are not among those"):
        ClassSource(folder).open("val", classes=["even", "else"])


def test_class_ids(folder):
    file = write(folder / "a.csv", rows(label=lambda i: 10 if i % 2 else 9))
    assert ClassSource(file, held_out=SHARE).open("val").classes == ["9", "10"], "by number"
    file = write(folder / "b.jsonl", rows(label=lambda i: i % 2))
    val = ClassSource(file, held_out=SHARE).open("val", classes=["even", "odd"])
    assert all(name == ("even", "odd")[i % 2] for i, name in found(val).items())


@pytest.mark.parametrize("labels", [(0, 1), (0,), (1, 2, 9)])
def test_class_names_that_are_numbers_are_no_ids(folder, labels):
    """Labels 0 and 1 were ids 0 and 1 of the classes 1, 2 and 3."""
    file = write(folder / "a.csv", rows(label=lambda i: labels[i % len(labels)]))
    with pytest.raises(UserError, match="images .* are of classes (0|9), which are not among"):
        for split in ("train", "val"):
            ClassSource(file, held_out=SHARE).open(split, classes=["1", "2", "3"])
    file = write(folder / "b.csv", rows(label=lambda i: i % 2 + 1))
    val = ClassSource(file, held_out=SHARE).open("val", classes=["1", "2", "3"])
    assert all(name == str(i % 2 + 1) for i, name in found(val).items())


def test_labels_are_ids_on_both_sides_or_on_none(folder):
    content = rows(label=lambda i: "even" if i < 4 else i % 2, split=lambda i: "tv"[i >= 4])
    content = [row | {"split": {"t": "train", "v": "val"}[row["split"]]} for row in content]
    with pytest.raises(UserError, match="val images .* are of classes 0, 1, which are not among"):
        ClassSource(write(folder / "a.csv", content)).open("val", classes=["even", "odd"])


SPELLINGS = ["{}", "./{}", "pictures/../{}", "pictures//{name}", "{root}/{}", "{root}/./{}"]


def spelt(how, root, name):
    path = f"pictures/{name}"
    return how.replace("{}", path).format(root=root, name=f"./{name}")


@pytest.mark.parametrize("how", SPELLINGS)
def test_a_path_in_any_spelling(folder, how):
    want = ClassSource(write(folder / "a.csv", rows()), held_out=SHARE).open("val")
    other = rows(path=lambda i: spelt(how, folder, f"{i}.png"))
    got = ClassSource(write(folder / "b.csv", other), held_out=SHARE).open("val")
    assert found(got) == found(want) and len(got) == 2
    assert got.fingerprint == want.fingerprint and got.lists == want.lists
    # one image in two spellings is on one side, and has one label
    twice = write(folder / "c.csv", [*rows(), *other])
    sides = [ClassSource(twice, held_out=SHARE).open(split) for split in ("train", "val")]
    assert [len(data) for data in sides] == [12, 4]
    assert not found(sides[0]).keys() & found(sides[1]).keys()
    one = [{**rows()[0], "label": "even"}, {**other[0], "label": "odd"}]
    with pytest.raises(UserError, match="0.png is even in line 2 and odd in line 3"):
        ClassSource(write(folder / "d.csv", one), held_out=SHARE).open("val")


def test_two_dots_behind_a_link(folder):
    """They lead back from where it leads to."""
    picture(folder / "else" / "b" / "0.png", 4, 4, 3)
    (folder / "else" / "a").mkdir()
    (folder / "link").symlink_to(folder / "else" / "a", target_is_directory=True)
    paths = read_list(write(folder / "a.csv", rows())).files(["link/../b/0.png", "else/b/0.png"])
    assert paths == ["else/b/0.png"] * 2
    (folder / "b").mkdir()
    picture(folder / "b" / "0.png", 4, 4, 4)  # which reads like it
    assert read_list(folder / "a.csv").files(["link/../b/0.png"]) == ["else/b/0.png"]
    (folder / "in").symlink_to(folder / "else" / "b", target_is_directory=True)
    assert read_list(folder / "a.csv").files(["in/0.png"]) == ["in/0.png"], "links stay"


def test_paths_outside_of_the_lists_folder(folder):
    (folder / "lists" / "deep").mkdir(parents=True)
    file = write(folder / "lists" / "deep" / "a.csv", rows())
    paths = [
        "../../pictures/0.png",
        "../deep/../../pictures/0.png",
        f"{folder}/marks/../marks/m0.png",
    ]
    assert read_list(file).files(paths) == ["../../pictures/0.png"] * 2 + [f"{folder}/marks/m0.png"]
    (folder / "linked").symlink_to(folder / "lists" / "deep", target_is_directory=True)
    linked = read_list(folder / "linked" / "a.csv")
    for path in linked.files(paths):
        assert os.path.isfile(os.path.join(linked.root, path))
    picture(folder / "lists" / "deep" / "0.png", 4, 4, 0)
    assert linked.files([f"{folder}/lists/deep/0.png"]) == ["0.png"]


def test_a_mask_in_two_spellings_is_one(folder):
    content = [{"path": f"pictures/{i}.png", "mask": f"marks/m{i}.png"} for i in range(8)]
    more = {"path": "./pictures/0.png", "mask": "marks/./m0.png"}
    data = MaskSource(write(folder / "a.csv", [*content, more]), 2, held_out=SHARE).open("train")
    assert len(data) + len(MaskSource(folder / "a.csv", 2, held_out=SHARE).open("val")) == 9
    other = write(folder / "b.csv", [*content, {**more, "mask": "marks/m1.png"}])
    with pytest.raises(UserError, match="m0.png in line 2 and marks/m1.png in line 10"):
        MaskSource(other, 2, held_out=SHARE).open("train")


@pytest.mark.parametrize("how", SPELLINGS)
def test_one_image_on_both_sides_is_refused(folder, how):
    content = rows()
    write(folder / "train.csv", content[:5])
    more = {"path": spelt(how, folder, "3.png"), "label": "odd"}
    write(folder / "val.csv", [*content[5:], more])
    words = "pictures/3.png in .*train.csv, line 5, and .*3.png in .*val.csv, line 5; remove one"
    for split in ("train", "val"):
        with pytest.raises(UserError, match=words):
            ClassSource(folder).open(split)
    write(folder / "val.csv", content[5:])
    assert len(ClassSource(folder).open("val")) == 3


def test_one_image_on_both_sides_of_a_column(folder):
    words = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    content = rows(split=lambda i: words[i])
    more = {**content[1], "path": "./pictures/1.png", "split": "val"}
    file = write(folder / "a.csv", [*content, more])
    with pytest.raises(UserError, match="line 3, and ./pictures/1.png in .*a.csv, line 10; remove"):
        ClassSource(file).open("train")
    more["split"] = "test"  # which nothing is evaluated on
    assert len(ClassSource(write(folder / "b.csv", [*content, more])).open("val")) == 2


def test_the_lists_are_the_same_in_any_form_of_the_letters(folder):
    content = rows(label=lambda i: ("\u00e4ffin", "zebra")[i % 2])
    apart = [{k: unicodedata.normalize("NFD", v) for k, v in row.items()} for row in content]
    assert apart != content
    for settings in (SHARE, SplitSettings(fold="2/3")):
        here, there = (
            ClassSource(write(folder / name, each), held_out=settings).open("val")
            for name, each in (("a.csv", content), ("b.csv", apart))
        )
        assert found(here) == found(there) and here.classes == there.classes
        assert here.fingerprint == there.fingerprint and here.lists == there.lists


def test_columns_by_name(folder):
    renamed = [{"photo": row["path"], "what": row["label"], "label": "x"} for row in rows()]
    file = write(folder / "a.csv", renamed)
    names = {"image_column": "photo", "label_column": "what"}
    assert ClassSource(file, held_out=SHARE, **names).open("val").classes == ["even", "odd"]
    with pytest.raises(UserError, match="no column path or image or .*--image-column"):
        ClassSource(file, held_out=SHARE).open("val")


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
        ClassSource(folder / "a.csv", held_out=SHARE).open("val")


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
        ClassSource(file, held_out=SHARE).open("val")
    with pytest.raises(MissingFileError, match="no list .*none.csv"):
        ClassSource(folder / "none.csv", held_out=SHARE).open("val")
    with pytest.raises(UserError, match="has no column split .* --val-share 0.2"):
        ClassSource(write(folder / "b.csv", rows())).open("val")
