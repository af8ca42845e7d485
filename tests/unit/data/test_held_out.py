"""What is held out for validation, against an independent computation, in any order."""

import csv
import hashlib
import json
import os
import random
import signal
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from helpers.image_files import mask, picture
from trainkit.data.datasets.class_source import ClassSource
from trainkit.data.datasets.divided import Whole
from trainkit.data.datasets.held_out import SplitSettings, held_out
from trainkit.data.datasets.layouts import class_folders, has_mask_folders
from trainkit.data.datasets.mask_source import MaskSource
from trainkit.errors import UserError
from trainkit.storage.run_settings import check_not_trained_on

NAMES = [
    f"{name}/{i:03d}.jpg" for name, n in (("ant", 31), ("bee", 12), ("cow", 7)) for i in range(n)
]
CLASSES = [name.split("/")[0] for name in NAMES]


def rank(seed, key):
    return hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).hexdigest(), key


def share_by_hand(names, classes, seed, share):
    chosen = set()
    for name in set(classes):
        own = sorted((n for n, c in zip(names, classes) if c == name), key=lambda n: rank(seed, n))
        chosen |= set(own[: int(share * len(own) + 0.5)])
    return chosen


def chosen(names, classes, settings, groups=None):
    return {name for name, held in zip(names, held_out(names, classes, settings, groups)) if held}


@pytest.mark.parametrize("seed", [0, 1, 12345])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_a_share_of_each_class(seed, share):
    got = chosen(NAMES, CLASSES, SplitSettings(share, seed))
    assert got == share_by_hand(NAMES, CLASSES, seed, share)
    counts = Counter(name.split("/")[0] for name in got)
    assert counts == {
        name: int(share * n + 0.5) for name, n in Counter(CLASSES).items() if int(share * n + 0.5)
    }


def test_the_split_seed_decides():
    sides = {frozenset(chosen(NAMES, CLASSES, SplitSettings(0.2, seed))) for seed in range(5)}
    assert len(sides) == 5


@pytest.mark.parametrize(
    "settings",
    [SplitSettings(0.2), SplitSettings(fold="2/3"), SplitSettings(0.3, group_by="folder")],
)
def test_any_order_of_listing(settings):
    groups = [name[:-5] for name in NAMES] if settings.group_by else NAMES
    want = chosen(NAMES, CLASSES, settings, groups)
    for seed in range(3):
        places = list(range(len(NAMES)))
        random.Random(seed).shuffle(places)
        shuffled = [[each[place] for place in places] for each in (NAMES, CLASSES, groups)]
        assert chosen(shuffled[0], shuffled[1], settings, shuffled[2]) == want


def test_any_machines_spelling():
    """Backslashes of Windows and the decomposed letters of a Mac."""
    names = [f"größe/bär{i}.jpg" for i in range(40)]
    windows = [name.replace("/", "\\") for name in names]
    mac = [unicodedata.normalize("NFD", name) for name in names]
    assert mac != names
    want = held_out(names, ["a"] * 40, SplitSettings(0.25))
    assert want.sum() == 10
    for other in (windows, mac):
        assert np.array_equal(held_out(other, ["a"] * 40, SplitSettings(0.25)), want)


@pytest.mark.parametrize(
    "settings", [SplitSettings(0.25), *(SplitSettings(fold=f"{part}/3") for part in (1, 2, 3))]
)
def test_any_form_of_a_classs_letters(settings):
    """ "zebra" is before "ä" composed, and "a" with its dots before "zebra"."""
    names = [f"{i}.jpg" for i in range(41)]
    classes = [("zebra", "\u00e4ffin")[i % 2] for i in range(41)]
    apart = [unicodedata.normalize("NFD", name) for name in classes]
    assert sorted({*classes})[0] == "zebra" and sorted({*apart})[0] != "zebra"
    want = held_out(names, classes, settings)
    assert want.sum() in (10, 13, 14)
    assert np.array_equal(held_out(names, apart, settings), want)
    both = [pair[i % 4 < 2] for i, pair in enumerate(zip(classes, apart))]
    assert np.array_equal(held_out(names, both, settings), want)


def test_a_groups_class_in_any_form_of_its_letters():
    """Of a tie "zebra", as of all other groups, and of four images in two forms all four."""
    groups = [f"g{i // 4}" for i in range(80)]
    classes = ["\u00e4ffin" if i % 8 < 2 else "zebra" for i in range(80)]
    settings = SplitSettings(0.5, group_by="patient")
    want = held_out([""] * 80, classes, settings, groups)
    apart = [unicodedata.normalize("NFD", name) for name in classes]
    assert want.sum() == 40 and apart != classes
    assert np.array_equal(held_out([""] * 80, apart, settings, groups), want)
    groups = [f"g{i // 7}" for i in range(140)]
    classes = [("zebra", "\u00e4ffin")[i % 7 < 4 and i % 14 > 6] for i in range(140)]
    both = [unicodedata.normalize(("NFC", "NFD")[i % 2], name) for i, name in enumerate(classes)]
    want = held_out([""] * 140, classes, settings, groups)
    assert want.sum() == 70
    assert np.array_equal(held_out([""] * 140, both, settings, groups), want)


def test_absolute_paths_under_any_mount_point():
    below = [f"p{i // 4}/{i:02d}.png" for i in range(40)]
    sides = []
    for mount in ("/data/scans", "/mnt/disk 3/scans", "/"):
        names = [os.path.join(mount, name) for name in below]
        by_image = held_out(names, ["a"] * 40, SplitSettings(0.25))
        groups = [os.path.dirname(name) for name in names]
        by_folder = held_out(names, ["a"] * 40, SplitSettings(0.3, group_by="folder"), groups)
        assert (by_image.sum(), by_folder.sum()) == (10, 12)
        sides.append((by_image.tolist(), by_folder.tolist()))
    assert sides[0] == sides[1] == sides[2]
    mixed = [*names[:20], *below[:20]]
    assert len(chosen(mixed, ["a"] * 40, SplitSettings(fold="1/40"))) == 1, "two files"


@pytest.mark.parametrize("kind", ["label", "mask"])
def test_data_that_were_moved_are_the_same(kind):
    """The fingerprint of a list with absolute paths; and it is another one of other files."""

    def fingerprint(mount, below=("a/1.png", "b/2.png", "b/3.png", "c/4.png"), own=()):
        names = [*own, *(os.path.join(mount, "images", name) for name in below)]
        masks = [name.replace("images", "masks") for name in names]
        targets = masks if kind == "mask" else ["cat"] * len(names)
        sides = np.array(["train", "val"] * len(names))[: len(names)]
        whole = Whole(
            Path("/list"), names, targets, ("path", kind), ["x"] * len(names), None, sides
        )
        return whole.divided(SplitSettings()).fingerprint

    first = fingerprint("/data/scans")
    assert fingerprint("/mnt/disk 3/x/scans") == first
    assert fingerprint("/data/scans", ("a/1.png", "b/2.png", "b/5.png", "c/4.png")) != first
    own = ("images/9.png", "images/8.png")
    assert fingerprint("/data", own=own) == fingerprint("/mnt/data", own=own) != first


def test_groups_are_on_one_side():
    draw = random.Random(7)
    groups = [f"patient{draw.randrange(60)}" for _ in range(500)]
    classes = [draw.choice("ab") for _ in groups]
    names = [f"{i}.png" for i in range(500)]
    is_val = held_out(names, classes, SplitSettings(0.2, group_by="patient"), groups)
    val = {group for group, held in zip(groups, is_val) if held}
    train = {group for group, held in zip(groups, is_val) if not held}
    assert not val & train and val | train == set(groups)
    of = {}  # a group's class is the one that most of its images have
    for group in set(groups):
        count = Counter(c for g, c in zip(groups, classes) if g == group)
        of[group] = "a" if count["a"] >= count["b"] else "b"
    assert val == share_by_hand(list(of), list(of.values()), 0, 0.2)


@pytest.mark.parametrize("grouped", [False, True])
def test_folds_are_disjoint_and_complete(grouped):
    groups = [name[:-5] for name in NAMES] if grouped else NAMES
    by = "folder" if grouped else None
    folds = [
        held_out(NAMES, CLASSES, SplitSettings(fold=f"{k}/4", group_by=by), groups)
        for k in (1, 2, 3, 4)
    ]
    assert np.array_equal(np.sum(folds, 0), np.ones(len(NAMES)))
    if grouped:
        assert all(len({f[i] for i, g in enumerate(groups) if g == "ant/01"}) == 1 for f in folds)
    else:
        assert sorted(fold.sum() for fold in folds) == [12, 12, 13, 13]
        for name in set(CLASSES):
            inside = [sum(fold[i] for i, c in enumerate(CLASSES) if c == name) for fold in folds]
            assert max(inside) - min(inside) <= 1


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"val_share": 0.0}, "val_share is 0.0"),
        ({"val_share": 1.5}, "val_share is 1.5"),
        ({"fold": "6/5"}, "fold is '6/5'"),
        ({"fold": "2"}, "such as 2/5"),
        ({"fold": "1/1"}, "fold is '1/1'"),
        ({"fold": "1/2", "val_share": 0.5}, "drop --val-share"),
        ({"group_by": "folder"}, "give --val-share or --fold"),
    ],
)
def test_refused_settings(settings, words):
    with pytest.raises(UserError, match=words):
        SplitSettings(**settings)


def test_a_side_without_images_is_refused():
    with pytest.raises(UserError, match="holds out none of 3 images in 1 class"):
        held_out(["a", "b", "c"], ["x"] * 3, SplitSettings(0.1))
    with pytest.raises(UserError, match="holds out all of 1 groups by folder"):
        held_out(["a", "b"], ["x"] * 2, SplitSettings(0.6, group_by="folder"), ["g", "g"])
    with pytest.raises(UserError, match="there are 3 images: give fewer folds"):
        held_out(["a", "b", "c"], ["x"] * 3, SplitSettings(fold="1/4"))
    assert held_out(["a"], ["x"], SplitSettings(1.0)).all(), "an evaluation of all of them"


@pytest.fixture
def animals(tmp_path):
    """cat/ and dog/, with the folders of three patients each."""
    for place in range(24):
        folder = tmp_path / "my" / ("cat", "dog")[place % 2] / f"p{place % 3}"
        picture(folder / f"{place}.png", 8, 8, place)
    return tmp_path / "my"


def files(data):
    return {os.path.relpath(data.name_of(i), data.files.root) for i in range(len(data))}


def test_class_folders_without_a_split(animals):
    settings = SplitSettings(0.25, 3)
    sides = {
        split: ClassSource(animals, held_out=settings).open(split) for split in ("train", "val")
    }
    assert [len(sides[split]) for split in sides] == [18, 6]
    names = sorted(str(path.relative_to(animals)) for path in animals.rglob("*.png"))
    want = share_by_hand(names, [name.split(os.sep)[0] for name in names], 3, 0.25)
    assert files(sides["val"]) == want and files(sides["train"]) == set(names) - want
    for data in sides.values():
        assert data.classes == ["cat", "dog"] and data.fingerprint == sides["val"].fingerprint
        for index in range(len(data)):
            assert data.classes[data[index][1]] in str(data.name_of(index))
    rows = list(csv.reader(sides["train"].lists["val.csv"].decode().splitlines()))
    assert rows == [["path", "label"], *([n, n.split("/")[0]] for n in sorted(want))]
    assert sides["val"].used.startswith("6 of 24 images of 2 classes by --val-share 0.25")

    settings = SplitSettings(fold="1/3", group_by="folder")
    val = ClassSource(animals, held_out=settings).open("val")
    train = ClassSource(animals, held_out=settings).open("train")
    patients = [{name.split("/")[1] for name in files(data)} for data in (train, val)]
    assert len(patients[1]) == 1 and not patients[0] & patients[1], "of both classes"


def test_what_cannot_be_divided_is_refused(animals):
    settings = SplitSettings(0.25)
    with pytest.raises(UserError, match="hold out a part of them for validation with --val-share"):
        ClassSource(animals).open("train")
    (animals / "train").mkdir()
    for name in ("cat", "dog"):
        (animals / name).rename(animals / "train" / name)
    with pytest.raises(UserError, match="It has images of train: hold out"):
        ClassSource(animals).open("val")
    assert len(ClassSource(animals, held_out=settings).open("val")) == 6, "of train/"
    picture(animals / "val" / "cat" / "x.png", 8, 8, 0)
    with pytest.raises(UserError, match="divided already, it has train and val"):
        ClassSource(animals, held_out=settings).open("train")
    with pytest.raises(UserError, match="group_by is patient, a column of a list"):
        ClassSource(animals / "train", held_out=SplitSettings(0.2, group_by="patient")).open("val")
    picture(animals / "train" / "cat" / "loose.png", 8, 8, 0)
    with pytest.raises(UserError, match="1 of 25 images of .* lie in no folder of their group"):
        ClassSource(animals / "train", held_out=SplitSettings(0.2, group_by="folder")).open("val")


def test_what_is_there_in_place_of_classes_or_masks_is_reported(animals):
    asked = {"held_out": SplitSettings(0.25)}
    for path, message in (
        (animals.parent / f"{animals.name}s", f"no folder or list .*did you mean {animals}"),
        (animals.parent / "else" / "where", "no folder or list .*where. --val-share"),
        (
            animals / "cat" / "p0",
            "/cat/p0 has 4 images and no labels: give (a folder for each class|images/ and)"
            ".*`trainkit predict` takes images without labels$",
        ),
    ):
        with pytest.raises(UserError, match=message):
            ClassSource(path, **asked).open("val")
        with pytest.raises(UserError, match=message):
            MaskSource(path, 2, **asked).open("val")
    with pytest.raises(UserError, match="its folders are cat, dog.*take recog_folder"):
        MaskSource(animals, 2, **asked).open("val")


@pytest.mark.parametrize("masks", ["masks", "labels", "annotations"])
def test_masks_are_not_taken_for_a_class(tmp_path, masks):
    for kind in ("images", masks):
        for number in range(4):
            picture(tmp_path / kind / f"{number}.png", 8, 8, number)
    with pytest.raises(UserError, match=f"images/ and {masks}/, .*: seg_folder trains on them"):
        ClassSource(tmp_path, held_out=SplitSettings(0.25)).open("val")
    (tmp_path / "images").rename(tmp_path / "photographs")
    assert len(ClassSource(tmp_path, held_out=SplitSettings(0.25)).open("val")) == 2, "two classes"


@pytest.fixture
def alarm():
    """Fails a test that takes more than 20 seconds."""

    def ring(*_):
        raise AssertionError("it takes for ever")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarm")
def test_links_to_a_folder_above(animals):
    """Two of them were followed through 2^40 paths."""
    (animals / "notes").mkdir()
    (animals / "notes" / "a.txt").write_text("no image")
    for name in ("again", "once more"):
        (animals / "notes" / name).symlink_to(animals / "notes", target_is_directory=True)
    assert class_folders(animals) == ["cat", "dog"] and not has_mask_folders(animals)
    (animals / "notes" / "masks").symlink_to(animals / "notes", target_is_directory=True)
    assert not has_mask_folders(animals / "notes")
    (animals / "linked").symlink_to(animals / "cat", target_is_directory=True)
    assert class_folders(animals) == ["cat", "dog", "linked"], "other links are followed"
    val = ClassSource(animals, held_out=SplitSettings(0.25)).open("val")
    assert len(val) == 9 and val.classes == ["cat", "dog", "linked"]


@pytest.mark.parametrize("masks", ["masks", "labels", "annotations"])
@pytest.mark.parametrize("layout", ["{kind}", "{kind}/{split}", "{split}/{kind}"])
def test_images_with_masks(tmp_path, masks, layout):
    for place in range(8):
        split = ("train", "val")[place // 6]
        for kind, write in (("images", picture), (masks, mask)):
            file = (
                tmp_path / layout.format(kind=kind, split=split) / f"s{place % 4}" / f"{place}.png"
            )
            write(file, 4, 4, place if write is picture else [(place, 16)])
    flat = layout == "{kind}"
    settings = SplitSettings(0.25, group_by="folder") if flat else SplitSettings()
    train, val = (
        MaskSource(tmp_path, 8, held_out=settings).open(split) for split in ("train", "val")
    )
    assert (len(train), len(val)) == (6, 2)
    for data in (train, val):
        for index in range(len(data)):
            assert int(data[index][1][0, 0]) == int(data.name_of(index).stem), "its own mask"
    if flat:
        assert len({val.name_of(index).parent.name for index in (0, 1)}) == 1
        assert train.lists["val.csv"].startswith(b"path,mask\nimages/s")
        with pytest.raises(UserError, match="It has images/: hold out"):
            MaskSource(tmp_path, 8).open("train")


def test_several_folders_of_masks(tmp_path):
    picture(tmp_path / "images" / "train" / "a.png", 4, 4, 0)
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 1 1")  # boxes
    mask(tmp_path / "masks" / "train" / "a.png", 4, 4, [(1, 16)])
    assert len(MaskSource(tmp_path, 2).open("train")) == 1
    mask(tmp_path / "annotations" / "train" / "a.png", 4, 4, [(0, 16)])
    with pytest.raises(UserError, match="annotations/train and masks/train: nothing says which"):
        MaskSource(tmp_path, 2).open("train")


@pytest.mark.parametrize("kind", ["class folders", "absolute paths"])
def test_moved_images_are_those_that_were_trained_on(tmp_path, animals, kind):
    """What an evaluation is refused for, as DatasetInfo and the run's own files say it."""

    def source(folder):
        if kind == "class folders":
            return folder
        rows = [f"{path},{path.parts[-3]}" for path in sorted(folder.rglob("*.png"))]
        file = tmp_path / "lists of" / f"{folder.name}.csv"
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(["path,label", *rows]))
        return file

    data = source(animals)
    trained = ClassSource(data, held_out=SplitSettings(0.25, 3)).open("train")
    run = tmp_path / "run"
    run.mkdir()
    for name, content in trained.lists.items():
        (run / name).write_bytes(content)
    recorded = {"seed": 0, "recipe": None, "settings": {"data": str(data)}}
    recorded["train_data"] = trained.fingerprint
    (run / "settings.json").write_text(json.dumps(recorded))

    def check(place, seed):
        held_out = SplitSettings(0.25, seed)
        val = ClassSource(place, held_out=held_out).open("val")
        check_not_trained_on(run, {"data": str(place)}, val)

    check(data, 3)
    with pytest.raises(UserError, match="of the 6 images held out now are among those that"):
        check(data, 4)
    moved = tmp_path / "another" / "disk"
    moved.parent.mkdir()
    animals.rename(moved)
    place = source(moved)
    check(place, 3)
    with pytest.raises(UserError, match="of the 6 images held out now are among those that"):
        check(place, 4)
    if kind == "absolute paths":  # the list itself where it was
        place = place.rename(data)
        check(place, 3)
        with pytest.raises(UserError, match="of the 6 images held out now are among those that"):
            check(place, 4)
    picture(moved / "dog" / "p1" / "new.png", 8, 8, 77)
    check(source(moved), 4)  # other data, some of whose names are the same
