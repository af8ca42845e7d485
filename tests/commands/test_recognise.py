"""`trainkit doctor FOLDER`: the layout by name, a command that trains on it, class weights."""

import json
import shlex

import pytest
from PIL import Image

from helpers.image_files import mask, picture
from trainkit.cli import main
from trainkit.commands.recognise import recognise
from trainkit.data.datasets.class_source import ClassSource
from trainkit.data.datasets.held_out import SplitSettings
from trainkit.data.datasets.label_set_source import LabelSetSource
from trainkit.errors import UserError
from trainkit.losses.class_weights import balanced


def pictures(folder, number, first=0):
    for place in range(first, first + number):
        picture(folder / f"{place}.png", 8, 8, place)


def layout_of(source):
    found = recognise(source)
    return found.recipe, found.settings, found.what


@pytest.mark.parametrize(
    "folders, settings, what",
    [
        (["cat", "dog"], {"--val-share": "0.2"}, "folders of 2 classes (cat, dog), not divided"),
        (
            ["train/cat", "train/dog"],
            {"--val-share": "0.2"},
            "folders of 2 classes (cat, dog), in train/ alone",
        ),
        (
            ["training/cat", "training/dog", "valid/cat"],
            {},
            "folders of 2 classes (cat, dog), divided: training/ and valid/",
        ),
    ],
)
def test_class_folders(tmp_path, folders, settings, what):
    for number, folder in enumerate(folders):
        pictures(tmp_path / folder, 2, 2 * number)
    assert layout_of(tmp_path) == ("recog_folder", settings, what)
    assert not recognise(tmp_path).hints


def test_class_folders_that_share_images(tmp_path):
    for folder in ("cat", "dog"):
        pictures(tmp_path / folder, 2)  # the same under the same names
    what = "folders of 2 classes (cat, dog), not divided, which share images"
    assert layout_of(tmp_path) == ("recog_multilabel", {"--val-share": "0.2"}, what)


@pytest.mark.parametrize("name, text, what", [
    ("all.csv", "path,label\n0.png,cat;dog\n1.png,\n", "2 rows, any number of labels each"),
    ("all.csv", 'path,label\n0.png,"cat, dog"\n1.png,dog\n2.png,cat\n', "3 rows, any number"),
    ("all.csv", "path,tags\n0.png,cat\n1.png,dog\n", "2 rows, any number of labels each"),
    ("all.csv", "path,cat,dog,age\n0.png,1,0,3\n1.png,0,-1,4\n", "a column for each of 2 classes"),
    ("all.jsonl", '{"path": "0.png", "label": ["cat"]}\n{"path": "1.png", "label": []}\n',
        "2 rows, any number of labels each"),
])  # fmt: skip
def test_lists_of_any_number_of_labels(tmp_path, name, text, what):
    (tmp_path / name).write_text(text)
    recipe, settings, found = layout_of(tmp_path / name)
    assert (recipe, settings) == ("recog_multilabel", {"--val-share": "0.2"}) and what in found


def test_names_with_commas_are_no_two_labels(tmp_path):
    text = 'path,label\n0.png,"tench, Tinca tinca"\n1.png,"goldfish, Carassius auratus"\n'
    (tmp_path / "all.csv").write_text(text)
    assert layout_of(tmp_path / "all.csv")[0] == "recog_folder"


def test_doctor_examines_any_number_of_labels(tmp_path, capsys):
    """It says the command, counts images of each class, and takes no label for none."""
    pictures(tmp_path, 10)
    cells = ["cat;dog", "cat", "", "?dog;?cat", "dog"] * 2
    rows = "".join(f"{place}.png,{cell}\n" for place, cell in enumerate(cells))
    (tmp_path / "all.csv").write_text(f"path,label\n{rows}")
    out = tmp_path / "out"
    words = ["doctor", str(tmp_path / "all.csv"), "--workers", "0", "--out", str(out)]
    assert main(words) == 0
    command = f"trainkit recog_multilabel --data {tmp_path / 'all.csv'} --val-share 0.2"
    assert command in " ".join(capsys.readouterr().out.split())
    report = json.loads((out / "doctor.json").read_text())
    both = [report[side] for side in ("train", "val")]
    assert sum(len(part["unlabelled"]) for part in both) == 2
    images = [{row["name"]: row["images"] for row in part["classes"]} for part in both]
    assert sum(part.get("cat", 0) for part in images) == 4


@pytest.mark.parametrize("pairs, settings, what", [
    (["images", "depth"], {"--val-share": "0.2"}, "images with maps of numbers, not divided"),
    (["images/train", "height/train", "images/val", "height/val"], {},
        "images with maps of numbers, divided"),
    (["train/images", "train/depth"], {"--val-share": "0.2"},
        "images with maps of numbers, not divided"),
])  # fmt: skip
def test_images_with_maps(tmp_path, pairs, settings, what):
    for folder in pairs:
        pictures(tmp_path / folder, 2)
    assert layout_of(tmp_path) == ("depth_folder", settings, what)


@pytest.mark.parametrize("parts, settings, divided", [
    ([""], {"--val-share": "0.2"}, "not divided"), (["train", "val"], {}, "divided"),
])  # fmt: skip
def test_a_folder_of_masks_for_each_class(tmp_path, parts, settings, divided):
    for part in parts:
        for folder in ("images", "masks"):
            for label in ("liver", "tumour") if folder == "masks" else ("",):
                pictures(tmp_path / folder / part / label, 2)
    what = f"images with masks of 2 classes (liver, tumour), {divided}"
    assert layout_of(tmp_path) == ("seg_multilabel", settings, what)


def test_folders_of_masks_that_images_have_too_are_of_no_class(tmp_path):
    for folder in ("images", "masks"):
        for scene in ("one", "two"):
            (tmp_path / folder / scene).mkdir(parents=True)
            for place in range(2):
                Image.new("L", (9, 8)).save(tmp_path / folder / scene / f"{place}.png")
    assert layout_of(tmp_path)[0] == "seg_folder"


def test_a_dataset_among_the_folders(tmp_path):
    for folder in ("photographs", "pets/cat", "pets/dog", "ships/one"):
        pictures(tmp_path / folder, 2)
    (hint,) = recognise(tmp_path).hints
    assert hint.startswith(f"{tmp_path / 'pets'} holds folders") and "trainkit doctor" in hint


@pytest.mark.parametrize(
    "pairs, share, what",
    [
        ([("images", "masks")], True, "not divided: images/ with masks/"),
        ([("train/images", "train/labels")], True, "not divided: train/images/ with train/labels/"),
        (
            [("images/train", "annotations/train"), ("images/val", "annotations/val")],
            False,
            "divided: images/train/ with annotations/train/, images/val/ with annotations/val/",
        ),
    ],
)
@pytest.mark.parametrize(
    "values, classes",
    [
        ([0, 1, 2, 255], {"--classes": "3"}),
        ([0, 255], {"--classes": "background,object", "--mask-values": "0,255"}),
        ([7, 20, 30], {"--classes": "3", "--mask-values": "7,20,30"}),
    ],
)
def test_masks(tmp_path, pairs, share, what, values, classes):
    for images, masks in pairs:
        pictures(tmp_path / images, 2)
        for place in range(2):
            runs = [(value, 1) for value in values]
            mask(tmp_path / masks / f"{place}.png", 8, 8, [*runs, (values[0], 64 - len(runs))])
    settings = classes | ({"--val-share": "0.2"} if share else {})
    assert layout_of(tmp_path) == ("seg_folder", settings, f"images with masks, {what}")


def test_polygons(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for place, label in enumerate(("dog", "cat", "__ignore__")):
        picture(tmp_path / "a" / f"{place}.png", 8, 8, place)
        shape = {"label": label, "points": [[0, 0], [5, 0], [5, 5]], "shape_type": "polygon"}
        content = {"imageWidth": 8, "imageHeight": 8, "shapes": [shape]}
        (tmp_path / "a" / f"{place}.json").write_text(json.dumps(content))
    settings = {"--classes": "background,cat,dog", "--val-share": "0.2"}
    assert layout_of(tmp_path / "a")[:2] == ("seg_folder", settings)
    content = {"categories": [{"id": 4, "name": "dog"}, {"id": 7, "name": "cat"}], "images": []}
    for name in ("train", "valid"):
        picture(tmp_path / "b" / name / "0.png", 8, 8, 0)
        (tmp_path / "b" / name / "_annotations.coco.json").write_text(json.dumps(content))
    found = layout_of(tmp_path / "b")
    assert found[:2] == ("seg_folder", {"--classes": "background,dog,cat"})


def test_lists(tmp_path):
    pictures(tmp_path, 3)
    (tmp_path / "a.csv").write_text("path,label,Patient\n0.png,x,1\n1.png,y,1\n2.png,x,2\n")
    settings = {"--val-share": "0.2", "--group-by": "Patient"}
    assert layout_of(tmp_path / "a.csv") == (
        "recog_folder",
        settings,
        "a list of 3 images with labels",
    )
    mask(tmp_path / "m.png", 8, 8, [(0, 32), (1, 32)])
    (tmp_path / "b.jsonl").write_text('{"path": "0.png", "mask": "m.png", "split": "train"}\n')
    assert layout_of(tmp_path / "b.jsonl")[:2] == ("seg_folder", {"--classes": "2"})
    for name in ("train", "val"):
        (tmp_path / f"{name}.csv").write_text("path,label\n0.png,x\n")
    assert layout_of(tmp_path) == ("recog_folder", {}, "lists of images: train.csv, val.csv")


def test_what_is_no_layout(tmp_path):
    with pytest.raises(UserError, match="it is empty"):
        recognise(tmp_path)
    pictures(tmp_path, 3)
    with pytest.raises(UserError, match="3 images lie in it without classes or masks"):
        recognise(tmp_path)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "0.txt").write_text("0 0.5 0.5 1 1")
    with pytest.raises(UserError, match="boxes of YOLO"):
        recognise(tmp_path)


def test_a_folder_and_the_command_for_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for place in range(30):
        picture(
            tmp_path / "my" / ("rare" if place % 5 == 0 else "usual") / f"{place}.png", 8, 8, place
        )
    assert main(["doctor", "my", "--workers", "0"]) == 0
    shown = capsys.readouterr().out
    assert "my: folders of 2 classes (rare, usual), not divided\n" in shown
    assert "to train on it: trainkit recog_folder --data my --val-share 0.2 --size 8\n" in shown
    report = json.loads((tmp_path / "runs" / "recog_folder-doctor" / "doctor.json").read_text())
    counts = [row["images"] for row in report["train"]["classes"]]
    assert counts == [5, 19] and report["val"]["num_images"] == 6
    want = [24 / (2 * 5), 24 / (2 * 19)]  # as scikit-learn's "balanced"
    assert report["class_weights"] == pytest.approx(want, abs=1e-3)
    assert "the largest class has 4 times the images of the smallest" in shown

    # the command that was proposed
    line = next(line for line in shown.splitlines() if line.startswith("to train on it: trainkit "))
    words = shlex.split(line.partition("trainkit ")[2])
    tiny = [
        "--model",
        "small",
        "--no-pretrained",
        "--size",
        "16",
        "--epochs",
        "0.5",
        "--warmup-epochs",
        "0",
        "--out",
        "run",
    ]
    assert main([*words, *tiny, "--workers", "0", "--batch-size", "12"]) == 0

    capsys.readouterr()
    assert main(["doctor", "my", "--workers", "0", "--fold", "1/3"]) == 0
    assert "recog_folder --data my --fold 1/3 --size 8\n" in capsys.readouterr().out


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("divided", [False, True])
def test_an_empty_folder_is_named_once_and_classes_are_as_in_training(
    divided, shared, tmp_path, capsys
):
    """It is a class where a split says so, of images of one class; else it is named as none."""
    data = tmp_path / "my"
    for split in ("train", "val") if divided else ("",):
        for name in ("cat", "dog"):
            pictures(data / split / name, 4, first=0 if shared else len(list(data.rglob("*.png"))))
    empty = data / "train" / "owl" if divided else data / "owl"
    empty.mkdir()
    layout = recognise(data)
    assert layout.recipe == ("recog_multilabel" if shared else "recog_folder")
    source = (LabelSetSource if shared else ClassSource)(
        data, held_out=SplitSettings() if divided else SplitSettings(0.25)
    )
    is_class = divided and not shared
    assert source.open("train").classes == (["cat", "dog", "owl"] if is_class else ["cat", "dog"])
    assert layout.what.startswith(f"folders of {2 + is_class} classes")
    assert main(["doctor", str(data), "--workers", "0", "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    reported = (
        f"warning: train: 1 of 3 classes has no image in {data / 'train'}: owl"
        if is_class
        else f"warning: train: {empty} has no image, and is no class"
    )
    assert shown.count(reported) == 1 and shown.count("has no image") == 1 + is_class
    last = shown.splitlines()[-1]
    assert last.startswith(f"to train on it: trainkit {layout.recipe} --data {data}")


def test_no_command_where_a_fault_stops_it(tmp_path, capsys):
    pictures(tmp_path / "my" / "cat", 4)
    pictures(tmp_path / "my" / "dog", 4, first=4)
    (tmp_path / "my" / "dog" / "6.png").write_bytes(b"torn")
    assert main(["doctor", str(tmp_path / "my"), "--workers", "0", "--out", str(tmp_path)]) == 2
    shown = capsys.readouterr().out
    assert "error: cannot read" in shown and "to train on it" not in shown


def test_masks_and_their_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for place in range(5):
        picture(tmp_path / "my" / "images" / f"{place}.png", 8, 8, place)
        mask(tmp_path / "my" / "masks" / f"{place}.png", 8, 8, [(0, 60), (1, 4)])
    assert main(["doctor", "my", "--workers", "0"]) == 0
    # 240 and 16 pixels: in proportion to the roots, 1 to 15**0.5, their mean over all pixels 1
    low = 256 / (240 + 16 * 15**0.5)
    want = f"--class-weights auto, which is {round(low, 3):g} {round(low * 15**0.5, 3):g}"
    assert want in " ".join(capsys.readouterr().out.split())


def test_colours_are_to_be_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for kind in ("images", "masks"):
        (tmp_path / "my" / kind).mkdir(parents=True)
        Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "my" / kind / "0.png")
    assert main(["doctor", "my"]) == 2
    message = "".join(capsys.readouterr())
    assert "seg_folder --data my --classes ... --val-share 0.2" in message
    assert "Colours of classes are given by --mask-colors FILE" in message


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_balanced_weights(power):
    counts = [100, 10, 0, 1]
    weights = balanced(counts, power)
    assert weights[2] == 1
    assert sum(c * w for c, w in zip(counts, weights)) == pytest.approx(111)
    assert weights[1] / weights[0] == pytest.approx(10**power)
    assert weights[3] / weights[0] == pytest.approx(100**power)
