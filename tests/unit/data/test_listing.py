"""Class folders are listed once, and anew where one has changed.

Counted by the interpreter's own audit events.
"""

import os
import pickle
import shutil
import sys
import time

import numpy as np
import pytest

from helpers.slow import slow_disk
from trainkit.data.datasets.cache import cached
from trainkit.data.datasets.folder import ClassFolder
from trainkit.data.datasets.listing import ListingCache, Names, image_files

SCANNED: list[str] = []
sys.addaudithook(
    lambda event, words: SCANNED.append(str(words[0])) if event == "os.scandir" else None
)
NAMES = [
    "ant/1.png",
    "ant/2.JPG",
    "ant/deep/er/3.jpeg",
    "ant/deep/4.png",
    "bee/train.png",
    "cat/ä.png",
]


def settle(root, seconds=60):
    """As if no file had come or gone for so long."""
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        os.utime(folder, ns=(time.time_ns(), time.time_ns() - seconds * 10**9))


@pytest.fixture
def root(tmp_path):
    hidden = "ant/.hidden.png", ".git/x.png", "ant/.ipynb_checkpoints/1-checkpoint.png"
    for name in (*NAMES, *hidden, "ant/notes.txt", "loose.png", "empty/readme"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).touch()
    settle(tmp_path / "data")
    return tmp_path / "data"


def kept_at(root, min_images=3, settle_s=-1):
    """A cache beside the root: of small folders too, and at once, as no test waits."""
    return ListingCache(root.parent / "cache", min_images, settle_s)


def listed(root, classes=None, **rules):
    """Files relative to the root, their classes' names, and how many folders were listed for it."""
    SCANNED.clear()
    data = ClassFolder(root, classes=classes, cache=kept_at(root, **rules))
    scanned = [each for each in SCANNED if each.startswith(str(root))]
    files = [str(data.files[index].relative_to(root)) for index in range(len(data))]
    return files, [data.classes[target] for target in data.targets], len(scanned)


CLASSES_OF_NAMES = [name.split("/")[0] for name in NAMES]


def test_a_second_start_lists_nothing(root):
    names = sorted(NAMES[:4]) + NAMES[4:]
    assert listed(root) == (names, CLASSES_OF_NAMES, 7)  # root, four classes, two folders deeper
    for _ in range(2):
        assert listed(root) == (names, CLASSES_OF_NAMES, 0)
    data = ClassFolder(root, cache=kept_at(root))
    assert data.classes == ["ant", "bee", "cat", "empty"] and isinstance(
        data.files.names.characters, np.memmap
    )
    copy = pickle.loads(pickle.dumps(data))  # what a worker process gets
    assert [copy.name_of(index) for index in range(6)] == [
        data.name_of(index) for index in range(6)
    ]
    assert len(list((root.parent / "cache").iterdir())) == 1


@pytest.mark.parametrize(
    "change", ["file", "deep file", "removed", "renamed", "class", "gone class", "folder"]
)
def test_what_has_changed_is_listed_anew(root, change):
    expected = set(listed(root)[0])
    if change == "file":
        (root / "bee/new.png").touch()
        expected |= {"bee/new.png"}
    elif change == "deep file":
        (root / "ant/deep/er/new.png").touch()
        expected |= {"ant/deep/er/new.png"}
    elif change == "removed":
        (root / "ant/deep/4.png").unlink()
        expected -= {"ant/deep/4.png"}
    elif change == "renamed":
        (root / "cat/ä.png").rename(root / "cat/b.png")
        expected ^= {"cat/ä.png", "cat/b.png"}
    elif change == "class":
        (root / "dog").mkdir()
    elif change == "gone class":
        shutil.rmtree(root / "ant")
        expected = {"bee/train.png", "cat/ä.png"}
    else:
        (root / "bee/in").mkdir()
        (root / "bee/in/x.png").touch()
        expected |= {"bee/in/x.png"}
    # changed a moment ago: another change might be in the same tick of the clock, so it is not kept
    for _ in range(2):
        files, _, scanned = listed(root, settle_s=60)
        assert set(files) == expected and len(files) == len(expected) and scanned >= 4
    data = ClassFolder(root, cache=kept_at(root, settle_s=60))
    assert "dog" in data.classes or change != "class"
    kept = len(expected) >= 3
    assert set(listed(root)[0]) == expected and bool(listed(root)[2]) != kept
    assert len(list((root.parent / "cache").iterdir())) == 1, "the one before is gone"


@pytest.mark.parametrize("change", ["come", "gone"])
def test_a_folder_with_its_time_put_back(root, change):
    """As rsync -a, cp -a and tar leave one whose files have changed."""
    before, then = listed(root)[0], os.stat(root / "bee")
    time.sleep(0.05)  # more than a tick of the clock
    (root / "bee/new.png").touch() if change == "come" else (root / "bee/train.png").unlink()
    os.utime(root / "bee", ns=(then.st_atime_ns, then.st_mtime_ns))
    assert set(listed(root)[0]) == set(before) ^ {
        "bee/new.png" if change == "come" else "bee/train.png"
    }


@pytest.mark.parametrize("damage", ["empty", "cut", "missing", "garbled", "cut names", "no names"])
def test_a_damaged_listing_is_made_anew(root, damage):
    whole = listed(root)
    (kept,) = (root.parent / "cache").iterdir()
    spoil(kept / "names.npy", damage)
    assert listed(root) == whole and whole[2] == 7
    assert listed(root)[2] == 0 and list((root.parent / "cache").iterdir()) == [kept]


@pytest.mark.parametrize("damage", ["empty", "cut", "missing", "garbled", "cut names", "no names"])
def test_damaged_arrays_are_made_anew(tmp_path, damage):
    (tmp_path / "source").touch()
    made = []

    def build():
        made.append(1)
        return {"names": np.arange(1000), "none": np.zeros(0)}

    def ask():
        return cached("numbers-v1", [tmp_path / "source"], build, tmp_path / "cache")

    assert ask()["names"].sum() == ask()["names"].sum() == 499_500 and len(made) == 1
    (kept,) = (tmp_path / "cache").glob("numbers-*")
    spoil(kept / "names.npy", damage)
    for arrays in (ask(), ask()):
        assert (
            list(arrays) == ["names", "none"]
            and arrays["names"].sum() == 499_500
            and len(made) == 2
        )
    assert list((tmp_path / "cache").glob("numbers-*")) == [kept]


def spoil(file, damage):
    """One file of a kept folder, as a full disk, a failing power supply or an older version leaves
    it."""
    what, _, names = damage.partition(" ")
    file = file.with_name("names.json") if names else file
    whole = file.read_bytes()
    if what in ("missing", "no"):
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "cut": whole[:-1], "garbled": bytes(len(whole))}[what])


def test_files_are_on_the_disk_before_their_folder_has_its_name(tmp_path, monkeypatch):
    flushed, flush = [], os.fsync

    def noted(descriptor):
        flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    arrays = cached("numbers-v1", [], lambda: {"a": np.arange(3), "b": np.arange(4)}, tmp_path)
    assert sorted(map(os.path.basename, flushed)) == ["a.npy", "b.npy", "names.json"]
    assert all(f"{tmp_path}/.writing-" in path for path in flushed) and arrays["b"].sum() == 6


def test_a_folder_elsewhere_and_a_small_one(root):
    listed(root)
    shutil.copytree(root, root.parent / "copy")
    settle(root.parent / "copy")
    copy = ClassFolder(root.parent / "copy", cache=kept_at(root))
    assert copy.files.root == root.parent / "copy"
    assert len(list((root.parent / "cache").iterdir())) == 2
    shutil.rmtree(root.parent / "cache")
    for _ in range(2):
        assert listed(root, min_images=7)[2] == 7
    assert not (root.parent / "cache").exists()


def test_ids_are_those_of_the_training_folder(root):
    classes = ["zebra", "cat", "bee", "empty", "ant"]
    for _ in range(2):
        files, names, _ = listed(root, classes=classes)
        assert names == CLASSES_OF_NAMES and len(files) == 6
    with pytest.raises(
        ValueError, match="has classes .'ant', 'cat', 'empty'. that the training folder has not"
    ):
        listed(root, classes=["bee"])


def test_a_long_listing_is_shown(root, monkeypatch, capsys):
    """As a bar on a terminal, once it takes more than 0.2 s; what is cached is shown nowhere."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    monkeypatch.setenv("COLUMNS", "400")
    with slow_disk("os.scandir", str(root / "empty"), 0.3):
        listed(root)
    printed = capsys.readouterr().out
    assert f"listing {root}, classes" in printed and "4/4" in printed
    with slow_disk("os.scandir", str(root / "empty"), 0.3):
        listed(root)
    assert capsys.readouterr().out == ""


@pytest.mark.nightly
def test_a_long_listing_has_lines_in_a_file(root, capsys):
    """One after ten seconds."""
    with slow_disk("os.scandir", str(root / "cat"), 10.1):
        listed(root)
    assert capsys.readouterr().out == f"listing {root}, classes: 3 of 4\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_a_closed_folder_is_named(root):
    (root / "bee").chmod(0)
    with pytest.raises(OSError, match="cannot list .*bee: Permission denied"):
        listed(root)


def test_names_of_any_bytes():
    names = ["", "a", os.fsdecode(b"\xff.png"), "ä" * 300]
    assert list(Names.of(names)) == names and list(Names.of([])) == []


def test_no_circle_of_links_is_followed(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/x.png").touch()
    (tmp_path / "a/b/up").symlink_to(tmp_path / "a")
    assert image_files(tmp_path / "a") == [os.path.join("b", "x.png")]
