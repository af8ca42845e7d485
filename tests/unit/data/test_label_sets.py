"""Images with any number of labels: lists, class folders that share images, multi-hot rows."""

import json
import re
import shutil

import pytest
import torch

from helpers.image_files import picture
from trainkit.data.datasets.class_source import ClassSource
from trainkit.data.datasets.held_out import SplitSettings
from trainkit.data.datasets.label_set_source import LabelSetSource
from trainkit.data.datasets.label_sets import decoded, encoded
from trainkit.data.datasets.multi_hot import MultiHot, multi_hot
from trainkit.data.mixup import Cutmix, Mixup
from trainkit.errors import MissingFileError, UserError
from trainkit.losses.class_weights import positive_weights
from trainkit.tasks.multilabel import MultiLabel
from trainkit.tasks.recognition import Recognition

ALL = SplitSettings(1.0)  # all images are val


@pytest.fixture
def folder(tmp_path):
    for place in range(4):
        picture(tmp_path / f"{place}.png", 4, 4, place)
    return tmp_path


def rows(source, **settings):
    """What each image's file is of: the row of numbers by its name, and the classes."""
    data = LabelSetSource(source, held_out=ALL, **settings).open("val")
    return {data.name_of(i).name: data[i][1].tolist() for i in range(len(data))}, data.classes


EXPECTED = {"0.png": [1, 1], "1.png": [0, 0], "2.png": [0, -1], "3.png": [1, 0]}
LISTS = {
    "semicolons.csv": "path,labels\n0.png,cat;dog\n1.png,\n2.png,?dog\n3.png,cat\n",
    "strokes.csv": "image,tags\n0.png,dog | cat\n1.png,\n2.png,?dog\n3.png,cat\n",
    "commas.csv": 'path,label\n0.png,"cat, dog"\n1.png,\n2.png,?dog\n3.png,cat\n',
    "semicolons as delimiter.csv": "path;label\n0.png;cat,dog\n1.png;\n2.png;?dog\n3.png;cat\n",
    "columns.csv": "path,cat,dog\n0.png,1,1\n1.png,0,0\n2.png,0,-1\n3.png,1.0,0\n",
    "truths.csv": "path,cat,dog\n0.png,True,true\n1.png,False,0\n2.png,0,-1.0\n3.png,1,0\n",
    "of pandas.csv": "path,labels\n0.png,\"['cat', 'dog']\"\n1.png,[]\n2.png,['?dog']\n3.png,cat\n",
    "rows.csv": "path,labels\n0.png,cat\n1.png,\n0.png,dog\n2.png,?dog\n3.png,cat\n3.png,cat\n",
    "certain.csv": (
        "path,LabelName,Confidence\n0.png,cat,1\n1.png,,1\n0.png,dog,1\n2.png,?dog,1\n3.png,cat,1\n"
    ),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists(folder, name):
    (folder / name).write_text(LISTS[name])
    assert rows(folder / name) == (EXPECTED, ["cat", "dog"])


def test_json_lines(folder):
    lists = {"0.png": ["cat", "dog"], "1.png": [], "2.png": ["?dog"], "3.png": "cat"}
    lines = [json.dumps({"path": path, "labels": each}) for path, each in lists.items()]
    (folder / "all.jsonl").write_text("\n".join(lines))
    assert rows(folder / "all.jsonl") == (EXPECTED, ["cat", "dog"])
    columns = [{"path": path, "cat": row[0], "dog": row[1]} for path, row in EXPECTED.items()]
    (folder / "columns.jsonl").write_text("\n".join(map(json.dumps, columns)))
    assert rows(folder / "columns.jsonl") == (EXPECTED, ["cat", "dog"])


def test_classes_that_are_given(folder):
    (folder / "all.csv").write_text("path,labels\n0.png,1;0\n1.png,\n2.png,?0\n3.png,1\n")
    found, classes = rows(folder / "all.csv", classes=["dog", "cat"])
    assert found == {name: row[::-1] for name, row in EXPECTED.items()}
    assert classes == ["dog", "cat"]
    (folder / "more.csv").write_text("path,cat,age,dog\n0.png,1,0,1\n1.png,0,1,0\n")
    found, classes = rows(folder / "more.csv", classes=["dog", "cat"])
    assert found == {"0.png": [1, 1], "1.png": [0, 0]}


def test_other_separators_and_columns(folder):
    (folder / "all.csv").write_text("photo,what\n0.png,dog cat\n1.png,\n2.png,?dog\n3.png,cat\n")
    settings = {"image_column": "photo", "label_column": "what", "separator": " "}
    assert rows(folder / "all.csv", **settings)[0] == EXPECTED


def test_columns_that_are_no_classes_are_named(folder):
    text = "path,cat,dog,weight,patient\n0.png,1,0,3.5,1\n1.png,0,1,2,0\n2.png,0,0,1,0\n"
    (folder / "all.csv").write_text(text)
    held_out = SplitSettings(0.5, group_by="patient")
    data = LabelSetSource(folder / "all.csv", held_out=held_out).open("val")
    assert data.classes == ["cat", "dog"]
    assert any("no classes, as they hold more than 1, 0 and -1: weight" in line
               for line in data.used_warnings)  # fmt: skip


def test_splits_of_lists(folder):
    (folder / "all.csv").write_text("path,labels,split\n0.png,cat;dog,train\n1.png,,val\n")
    source = LabelSetSource(folder / "all.csv")
    train, val = source.open("train"), source.open("val")
    assert train.targets.tolist() == [[1, 1]] and val.targets.tolist() == [[0, 0]]
    assert val.used == "1 image of 2 classes (1 png); 0 labels, 1 image without one"
    assert val.used_warnings == [f"2 of 2 classes have no image in val of {folder}: cat, dog"]
    (folder / "all.csv").unlink()
    (folder / "train.csv").write_text("path,cat,dog\n0.png,1,1\n")
    (folder / "val.csv").write_text("path,cat,dog\n3.png,1,0\n")
    source = LabelSetSource(folder)
    assert source.open("val").targets.tolist() == [[1, 0]]
    (folder / "val.csv").write_text("path,cat,bird\n3.png,1,0\n")
    with pytest.raises(UserError, match="has the classes cat, bird, and the list before it cat"):
        LabelSetSource(folder).open("val")


def test_what_is_written_can_be_read_again(folder):
    (folder / "all.csv").write_text(LISTS["rows.csv"])
    data = LabelSetSource(folder / "all.csv", held_out=SplitSettings(0.5)).open("train")
    for name in ("train.csv", "val.csv"):
        (folder / name).write_bytes(data.lists[name])
    again = LabelSetSource(folder).open("train")
    assert again.fingerprint == data.fingerprint
    assert again.targets.tolist() == data.targets.tolist()


@pytest.mark.parametrize("present, ignored", [
    ({"a", "b"}, {"c"}), (set(), set()), (set(), {"c"}), ({"a;b", "c"}, {"d"}), ({"[x"}, set()),
])  # fmt: skip
def test_texts_of_labels(present, ignored):
    assert decoded(encoded(present, ignored)) == (present, ignored)


def test_class_folders_share_images(folder):
    for side in ("train", "val"):
        for place in range(3):
            picture(folder / "my" / side / "cat" / "in" / f"{place}.png", 4, 4, place)
        (folder / "my" / side / "dog" / "in").mkdir(parents=True)
        shutil.copy(folder / "my" / side / "cat" / "in" / "1.png",
                    folder / "my" / side / "dog" / "in" / "1.png")  # fmt: skip
        picture(folder / "my" / side / "dog" / "9.png", 4, 4, 9)
    train = LabelSetSource(folder / "my").open("train")
    found = {str(train.name_of(i).relative_to(folder)): train[i][1].tolist() for i in range(4)}
    assert train.classes == ["cat", "dog"] and found == {
        "my/train/cat/in/0.png": [1, 0],
        "my/train/cat/in/1.png": [1, 1],
        "my/train/cat/in/2.png": [1, 0],
        "my/train/dog/9.png": [0, 1],
    }
    shutil.rmtree(folder / "my" / "train")  # an evaluation needs only val
    assert len(LabelSetSource(folder / "my", classes=["cat", "dog"]).open("val")) == 4
    undivided = LabelSetSource(folder / "my" / "val", held_out=SplitSettings(0.5))
    assert len(undivided.open("train")) == 2 and len(undivided.open("val")) == 2
    picture(folder / "my" / "val" / "dog" / "in" / "2.png", 4, 4, 77)
    with pytest.raises(UserError, match=r"2.png have one name and are two images: an image of"):
        LabelSetSource(folder / "my").open("val")


@pytest.mark.parametrize("text, message", [
    ("path,labels,confidence\n0.png,cat,1\n1.png,dog,0\n", "line 3: the column conf.* holds '0'"),
    ("path,labels\n0.png,[1.5]\n", "line 2: \\[1.5\\] is no list of labels"),
    ("path,labels\n0.png,[cat\n", "no list of labels"),
    ("path,what\n0.png,cat\n", "has no labels: no column labels or label, and none that holds 1"),
    ("path,labels\n0.png,?cat;??dog\n", "begins with \\?"),
    ("path,labels\n9.png,cat\n", "1 of 1 files that .* names are not there"),
])  # fmt: skip
def test_lists_that_are_refused(folder, text, message):
    (folder / "all.csv").write_text(text)
    with pytest.raises((UserError, MissingFileError), match=message):
        rows(folder / "all.csv")


def test_more_that_is_refused(folder):
    (folder / "all.jsonl").write_text('{"path": "0.png", "labels": null}\n')
    with pytest.raises(UserError, match=r"line 1: nothing as labels; \[\] says that"):
        rows(folder / "all.jsonl")
    (folder / "all.csv").write_text("path,cat,dog\n0.png,1,\n1.png,0,1\n")
    with pytest.raises(UserError, match="line 2: '' in the column dog; it is 1 for"):
        rows(folder / "all.csv", classes=["cat", "dog"])
    with pytest.raises(UserError, match="none called 'bird', as classes are"):
        rows(folder / "all.csv", classes=["cat", "bird"])
    (folder / "all.csv").write_text("path,labels\n0.png,cat\n1.png,bird\n")
    with pytest.raises(UserError, match="are of classes bird, which are not among"):
        rows(folder / "all.csv", classes=["cat", "dog"])
    with pytest.raises(UserError, match="has no column split"):
        LabelSetSource(folder / "all.csv").open("val")
    with pytest.raises(MissingFileError, match="no images with labels in"):
        LabelSetSource(folder).open("val")
    with pytest.raises(MissingFileError, match="no folder or list .*elsewhere"):
        LabelSetSource(folder / "elsewhere").open("val")
    (folder / "train.csv").write_text("path,labels\n0.png,cat\n1.png,bird\n")
    with pytest.raises(MissingFileError, match="no val images in .*: hold out a part"):
        LabelSetSource(folder).open("val")


@pytest.mark.parametrize(
    "text, what",
    [
        ("path,labels\n0.png,cat\n1.png,dog\n", "any number of labels each"),
        ("path,label\n0.png,cat;dog\n1.png,dog\n", "any number of labels each"),
        ("path,cat,dog\n0.png,1,0\n1.png,0,1\n", "a column for each of 2 classes"),
    ],
)
def test_lists_of_several_labels_for_one_class_each(folder, text, what):
    (folder / "all.csv").write_text(text)
    source = ClassSource(folder / "all.csv", held_out=SplitSettings(0.5))
    with pytest.raises(UserError, match=f"all.csv gives its images {what}: recog_multilabel"):
        source.open("val")


def test_one_column_of_a_list_of_several_labels(folder):
    """Named by --label-column, it holds one class each, whatever is in it."""
    (folder / "all.csv").write_text("path,label\n0.png,cat;dog\n1.png,dog\n2.png,dog\n")
    source = ClassSource(folder / "all.csv", None, "label", held_out=SplitSettings(0.5))
    assert source.open("train").classes == ["cat;dog", "dog"]


def test_multi_hot_rows():
    assert multi_hot([0, 2], 4, ignored=[3]).tolist() == [1, 0, 1, -1]
    assert multi_hot([], 2).tolist() == [0, 0]
    with pytest.raises(UserError, match="label 4 is outside the 4 classes 0 to 3"):
        multi_hot([4], 4)
    with pytest.raises(UserError, match="class 1 is both among the labels and ignored"):
        multi_hot([1], 4, ignored=[1])
    data = MultiHot([(torch.zeros(3, 4, 4), [0, 1]), (torch.zeros(3, 4, 4), [])], 3)
    assert [data[i][1].tolist() for i in range(2)] == [[1, 1, 0], [0, 0, 0]]


FOUR = MultiLabel(4)


@pytest.mark.parametrize("target", [
    torch.tensor([1, 0, -1, 0], dtype=torch.int8), torch.zeros(4), torch.tensor([0.3, 0, 1, -1.0]),
    torch.tensor([True, False, True, True]), torch.full((4,), -1),
])  # fmt: skip
def test_targets_that_are_taken(target):
    assert FOUR.check(target) is None


@pytest.mark.parametrize("target, message", [
    ([0, 2], r"target \[0, 2\] is no row of 4 numbers.*MultiHot\(data, 4\)"),
    (2, r"target of shape \(\) is no row of 4"),
    (torch.zeros(3), r"target of shape \(3,\) is no row of 4"),
    (torch.tensor([2, 0, 0, 0]), "target holds 2: a row has 1, 0, and -1"),
    (torch.tensor([0, float("nan"), 0, 0]), "target holds nan"),
])  # fmt: skip
def test_targets_that_are_refused(target, message):
    assert re.search(message, FOUR.check(target))


def test_recognition_names_the_task():
    assert "the task MultiLabel (trainkit.tasks.multilabel; trainkit recog_multilabel)" in (
        Recognition(4).check(torch.tensor([1.0, 1, 0, 0]))
    )


@pytest.mark.parametrize("kind", [Mixup, Cutmix])
def test_mixing_keeps_what_is_not_known(kind):
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 8, 8)
    targets = torch.tensor([[1, 0, -1], [1, 1, 0], [0, 1, -1]], dtype=torch.int8)
    mixed, found = kind(0.4, 3)(images, targets, 7)
    share = 1 - float(mixed[0].mean())  # of the first image in the first
    expected = [[1, 1 - share, -1], [1, share, -1], [0, 1, -1]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_weights_of_positives():
    targets = torch.tensor([[1, 0, 0], [0, 0, -1], [0, 0, -1], [0, 0, 1]])
    assert positive_weights(targets) == (3.0, 1.0, 1.0)


@pytest.mark.parametrize("make, message", [
    (lambda: MultiLabel(0), "MultiLabel: no classes"),
    (lambda: MultiLabel(3, pos_weight=[1.0, 2.0]), "2 numbers of pos_weight for 3 classes"),
    (lambda: MultiLabel(3, [], None), r"loss is \[\]"),
])  # fmt: skip
def test_tasks_that_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
