"""Folders and lists as people have them: any name, extension, link and encoding.

What is left out is said.
"""

import os
import pickle
import random
import tempfile
import unicodedata
from collections import Counter
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.image_files import photo
from trainkit.data import file_names
from trainkit.data.datasets.class_names import read_class_names, read_classes
from trainkit.data.datasets.folder import (
    ClassFolder,
    FileList,
    MaskFolder,
)
from trainkit.data.datasets.inventory import Inventory, used, used_warnings
from trainkit.data.datasets.listing import ListingCache, image_files
from trainkit.data.datasets.source_files import read_names, require_files
from trainkit.data.seeding import Seeded
from trainkit.data.text_files import read_lines

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def picture(path, kind="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS).save(path, kind)


SAVED = sorted(
    (suffix, kind) for suffix, kind in Image.registered_extensions().items()
    if suffix in file_names.image_extensions() and kind in Image.SAVE and kind not in ("MSP", "XBM",
        "BLP")
)  # fmt: skip


@pytest.mark.parametrize(("suffix", "kind"), SAVED)
def test_every_extension_that_is_taken_can_be_read(tmp_path, suffix, kind):
    """Pillow writes each kind; the reader tells it by its content.

    MSP and XBM hold two colours, BLP a palette.
    """
    picture(tmp_path / f"a/x{suffix.upper()}", kind)
    data = ClassFolder(tmp_path)
    assert data.used.startswith(f"1 image of 1 class (1 {suffix[1:]})") and data.used_warnings == []
    assert data[0][0].shape == (3, 12, 16) and str(data.files[0]).endswith(suffix.upper())


def test_what_is_taken_and_what_is_not():
    assert len(SAVED) > 25 and {suffix for suffix, _ in SAVED} >= {
        ".jfif",
        ".jpe",
        ".jp2",
        ".tga",
        ".dib",
        ".pnm",
    }
    for suffix in (
        ".txt",
        ".json",
        ".csv",
        ".xml",
        ".pdf",
        ".eps",
        ".h5",
        ".mpg",
        ".ico",
        ".pfm",
        ".heic",
        ".mp4",
        "",
    ):
        assert not file_names.is_image(suffix), suffix


LEFT_BEHIND = [
    *(
        "__MACOSX",
        "@eaDir",
        "#recycle",
        "lost+found",
        "$RECYCLE.BIN",
        "@Recycle",
        "System Volume Information",
    ),
    *(".ipynb_checkpoints", ".Trash-1000", "._a", ".git"),
]


@pytest.mark.parametrize("name", LEFT_BEHIND)
def test_what_systems_leave_behind_is_no_class_and_no_image(tmp_path, name):
    for split in ("a", "b", name, f"a/{name}", f"b/deep/{name}"):
        picture(tmp_path / split / "x.png")
    data = ClassFolder(tmp_path)
    assert data.classes == ["a", "b"] and len(data) == 2
    kind = "3 hidden" if name == ".git" else "3 leftovers"
    assert f"left out: {kind}" in data.used


def test_files_that_systems_leave_behind(tmp_path):
    picture(tmp_path / "a/x.png")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._x.png", "Icon\r"):
        (tmp_path / "a" / name).write_bytes(b"\0")
        (tmp_path / name).write_bytes(b"\0")
    for name in ("notes.txt", "list.TXT", "README"):
        (tmp_path / "a" / name).touch()
    data = ClassFolder(tmp_path)
    assert (
        data.classes == ["a"]
        and data.used
        == "1 image of 1 class (1 png); left out: 3 files (2 .txt, 1 without extension), "
        "10 leftovers (2 .DS_Store, 2 ._*, 2 Icon, 2 Thumbs.db, 2 desktop.ini)"
    )


def test_classes_without_images_and_images_without_a_decoder_are_reported(tmp_path):
    for number in range(3):
        picture(tmp_path / f"cat/{number}.jfif", "JPEG")
        (tmp_path / f"dog/{number}.heic").parent.mkdir(exist_ok=True)
        (tmp_path / f"dog/{number}.heic").touch()
    picture(tmp_path / "loose.png")
    data = ClassFolder(tmp_path)
    assert (
        data.used
        == "3 images of 2 classes (3 jfif); left out: 3 files (.heic), 1 image outside of the class"
        " folders"
    )
    assert data.used_warnings == [
        f"1 of 2 classes has no image in {tmp_path}: dog",
        (
            "3 images were left out (3 .heic): no decoder for them is installed here; convert them,"
            " such as to PNG"
        ),
    ]


def reference(folder, above=()):
    """Images below a folder in its own words.

    Each path by itself, links followed but for those that lead back up.
    """
    real = Path(folder).resolve()
    found = []
    for path in sorted(Path(folder).iterdir()) if real not in above else ():
        if path.name.startswith(".") or path.name in ("@eaDir", "__MACOSX", "Thumbs.db"):
            continue
        if path.is_dir():
            found += reference(path, (*above, real))
        elif path.suffix.lower() in (".png", ".jpg", ".jfif", ".avif") and (
            path.is_file() or not path.exists()
        ):
            found.append(path)
    return found


LETTERS = ["a", "B", "é", unicodedata.normalize("NFD", "é"), "猫", "😀", *"\n '%\\[\t{", "\udce9"]
ENDINGS = [".png", ".JPG", ".jfif", ".avif", ".txt", "", ".json", ".png.txt", ".tar.gz"]


@pytest.mark.parametrize("seed", range(40))
def test_random_folders(tmp_path, seed):
    """Any names, depths and links.

    The files of an independent walk, all counted, by a first and a cached listing.
    """
    cache = ListingCache(tmp_path / "cache", min_images=1, settle_s=-1)
    draw = random.Random(seed)
    root = tmp_path / "data"
    folders, files = [root], 0
    root.mkdir()

    def name():
        return "".join(draw.choices(LETTERS, k=draw.randint(1, 6)))

    for _ in range(draw.randint(3, 12)):
        folder = draw.choice(folders[:1] * 2 + folders) / draw.choice(
            [name(), name(), "@eaDir", ".hidden", "__MACOSX"]
        )
        folder.mkdir(exist_ok=True)
        folders.append(folder)
    for _ in range(draw.randint(5, 40)):
        file = draw.choice(folders) / (name() + draw.choice(ENDINGS))
        if not os.path.lexists(file):
            file.touch()
            files += 1
    for _ in range(draw.randint(0, 5)):
        link = draw.choice(folders) / (name() + draw.choice(["", ".png"]))
        if not os.path.lexists(link):
            link.symlink_to(
                draw.choice([*folders, tmp_path / "nowhere", draw.choice(folders) / name(), link])
            )
    if draw.random() < 0.3:
        os.mkfifo(draw.choice(folders) / "pipe.png")
    classes = sorted(
        path.name
        for path in root.iterdir()
        if path.is_dir()
        and reference(path, (root.resolve(),)) is not None
        and not path.name.startswith(".")
        and path.name not in ("@eaDir", "__MACOSX")
    )
    forms = Counter(unicodedata.normalize("NFC", each) for each in classes)
    expected = [path for each in classes for path in reference(root / each, (root.resolve(),))]
    if not expected or max(forms.values()) > 1:
        with pytest.raises(
            (FileNotFoundError, ValueError), match="no subfolders|no images|is there twice"
        ):
            ClassFolder(root, cache=cache)
        return
    for _ in range(2):
        data = ClassFolder(root, cache=cache)
        found = [data.files[index] for index in range(len(data))]
        assert sorted(found) == sorted(expected) and data.classes == classes
        assert [data.classes[target] for target in data.targets] == [
            p.relative_to(root).parts[0] for p in found
        ]
        assert data.used.startswith(f"{len(expected)} image")
    assert sum(used(data).count(word) for word in ("left out",)) <= 1
    assert sorted(image_files(root / classes[0])) == sorted(
        str(path.relative_to(root / classes[0])) for path in reference(root / classes[0])
    )


def test_links(tmp_path):
    """A class elsewhere, a file elsewhere, a link to itself, one back up and a broken one, which
    reading names."""
    picture(tmp_path / "elsewhere/deep/x.png")
    (tmp_path / "data/a").mkdir(parents=True)
    for link, target in {
        "data/b": tmp_path / "elsewhere",
        "data/a/file.png": tmp_path / "elsewhere/deep/x.png",
        "data/a/self": tmp_path / "data/a/self",
        "data/a/up": tmp_path / "data",
        "data/a/gone.png": tmp_path / "gone.png",
        "data/a/folder": tmp_path / "elsewhere",
        "data/up": tmp_path / "data",
    }.items():
        (tmp_path / link).symlink_to(target)
    data = ClassFolder(tmp_path / "data")
    names = [str(data.files[index].relative_to(tmp_path / "data")) for index in range(len(data))]
    assert names == ["a/file.png", "a/folder/deep/x.png", "a/gone.png", "b/deep/x.png"]
    assert data.classes == ["a", "b", "up"] and "2 links to folders that they lie in" in data.used
    assert data.used_warnings == [f"1 of 3 classes has no image in {tmp_path / 'data'}: up"]
    with pytest.raises(ValueError, match="cannot read .*gone.png"):
        data[2]


@pytest.mark.parametrize("word", ["é", "Ångström", "각", "ｱﾞ", "n̈", "Käfer 猫"])
def test_names_in_two_forms_are_one(tmp_path, word):
    """Composed and decomposed, as a Mac and others write them: classes, images and masks."""
    nfc, nfd = (unicodedata.normalize(form, word) for form in ("NFC", "NFD"))
    for split, name in (("train", nfd), ("val", nfc)):
        picture(tmp_path / split / name / "x.png")
        picture(tmp_path / split / "z" / "x.png")
    train = ClassFolder(tmp_path / "train")
    val = ClassFolder(tmp_path / "val", classes=train.classes)
    assert val.classes == train.classes
    for index in (0, 1):
        folder = unicodedata.normalize("NFC", val.files[index].parent.name)
        assert folder == unicodedata.normalize("NFC", train.classes[val[index][1]])
    if nfc != nfd:
        picture(tmp_path / "val" / nfd / "x.png")
        with pytest.raises(ValueError, match="is there twice, in two spellings"):
            ClassFolder(tmp_path / "val", classes=train.classes)
    picture(tmp_path / "images" / f"{nfd}.jpg", "JPEG")
    (tmp_path / "masks").mkdir()
    Image.fromarray(PIXELS[..., 0] % 2).save(tmp_path / "masks" / f"{nfc}.png")
    pair = MaskFolder(tmp_path / "images", tmp_path / "masks", 2)
    assert pair[0][1].tolist() == (PIXELS[..., 0] % 2).tolist()
    assert require_files([f"{nfd}.png"], tmp_path / "masks", "the list") == [f"{nfc}.png"]


def test_masks_of_one_name_and_without_an_image(tmp_path):
    for name in ("images/a.png", "masks/a.png", "masks/b.png"):
        picture(tmp_path / name)
    (tmp_path / "images/a.xml").touch()
    data = MaskFolder(tmp_path / "images", tmp_path / "masks", 2)
    assert (
        data.used
        == "1 image of 2 classes (1 png); left out: 1 file (.xml), 1 mask without an image"
    )
    picture(tmp_path / "masks/a.tif", "TIFF")
    with pytest.raises(ValueError, match="has two masks of one name, a"):
        MaskFolder(tmp_path / "images", tmp_path / "masks", 2)


@pytest.mark.parametrize("other", ["a.png", "a.JPG", "a.tiff"])
def test_two_images_of_one_name_have_no_mask(tmp_path, other):
    """Which of them the mask belongs to cannot be known."""
    for name in ("images/a.jpg", "images/b.jpg", f"images/{other}", "images/deep/a.jpg"):
        picture(tmp_path / name, "JPEG")
    for name in ("masks/a.png", "masks/b.png", "masks/deep/a.png"):
        picture(tmp_path / name)
    first, second = sorted(["a.jpg", other])
    with pytest.raises(
        ValueError,
        match=f"two images of one name, {first} and {second}, and .*for both, a.png: .*Rem",
    ):
        MaskFolder(tmp_path / "images", tmp_path / "masks", 2)
    picture(tmp_path / "images/b.webp", "WEBP")
    with pytest.raises(
        ValueError,
        match=f"{first} and {second} .1 more such pairs., and .* one mask for both, a.png",
    ):
        MaskFolder(tmp_path / "images", tmp_path / "masks", 2)
    for name in (f"images/{other}", "images/b.webp"):
        (tmp_path / name).unlink()
    assert len(MaskFolder(tmp_path / "images", tmp_path / "masks", 2)) == 3


def test_photographs_without_a_decoder_beside_masks(tmp_path):
    for name in ("images/a.png", "masks/a.png", "masks/b.png", "masks/c.png"):
        picture(tmp_path / name)
    for name in ("images/b.heic", "images/c.HEIC"):
        (tmp_path / name).write_bytes(b"no decoder for it")
    data = MaskFolder(tmp_path / "images", tmp_path / "masks", 2)
    assert (
        data.used
        == "1 image of 2 classes (1 png); left out: 2 files (.heic), 2 masks without an image"
    )
    assert data.used_warnings == [
        "2 images were left out (2 .heic): no decoder for them is installed here; convert them,"
        " such as to PNG"
    ]


NAMES = st.lists(st.text("abé猫😀_-", min_size=1, max_size=8), min_size=1, max_size=6, unique=True)
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


@settings(max_examples=150, deadline=None)
@given(
    NAMES,
    st.sampled_from(ENCODINGS),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["", " ", "\t "]),
    st.booleans(),
    st.booleans(),
)
def test_lists_as_any_editor_writes_them(names, encoding, end, blanks, last, empty):
    """UTF-16 without its mark is told by its zeros, which a text of ASCII letters alone is sure to
    have."""
    if encoding in ("utf-16-le", "utf-16-be"):
        names = [f"a{name}" for name in names]
    text = end.join(f"{name}{blanks}" + (end if empty else "") for name in names) + (
        end if last else ""
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "list.txt"
        file.write_bytes(text.encode(encoding))
        assert (
            read_lines(file) == names
            and read_names(file) == names
            and read_classes(str(file)) == names
        )


def test_lists_that_are_none(tmp_path):
    latin = tmp_path / "latin.txt"
    latin.write_bytes("Käfer\nHund\n".encode("latin-1"))
    # as of a file
    assert [os.fsencode(name) for name in read_lines(latin)] == ["Käfer".encode("latin-1"), b"Hund"]
    with pytest.raises(ValueError, match="latin.txt are not all UTF-8: save it as UTF-8"):
        read_classes(str(latin))
    (tmp_path / "binary.txt").write_bytes(b"a\0\0\0b\xff\0\xd8")
    with pytest.raises(ValueError, match="binary.txt is no text"):
        read_lines(tmp_path / "binary.txt")
    with pytest.raises(ValueError, match="classes names 'b' more than once"):
        read_classes("a,b,c,b")
    with pytest.raises(ValueError, match="classes is empty: give the names"):
        read_class_names(())
    assert read_class_names(("a", "b")) == read_class_names(("a,b",)) == ["a", "b"]
    (tmp_path / "classes.names").write_text("a b\nc,d\n")
    assert read_classes(str(tmp_path / "classes.names")) == ["a b", "c,d"]


def test_counts_go_round():
    inventory = Inventory()
    inventory.taken.update({".png": 3, "": 1})
    inventory.left_out.update({("file", ".a\udce9"): 2, ("leftover", "@eaDir"): 1})
    same = Inventory.of_array(inventory.to_array())
    assert same.taken == inventory.taken and same.left_out == inventory.left_out
    assert used_warnings(object()) == []


def test_names_as_another_locale_reads_them():
    """Of the same bytes: by UTF-8, and by a locale of ASCII, which keeps each byte as it is."""
    for name in ("Käfer", "猫", "a", "caf\udce9", unicodedata.normalize("NFD", "é")):
        read = os.fsencode(name).decode("ascii", "surrogateescape")
        assert (
            file_names.composed(read)
            == file_names.composed(name)
            == unicodedata.normalize("NFC", name)
        )
    assert file_names.composed("\ud83d") == "\ud83d"


def test_a_path_is_the_same_as_a_string(tmp_path):
    """Below a folder, where files are named from elsewhere, and in names of any bytes."""
    names = ["a/1.png", "b c/ä.png", os.fsdecode(b"\xff/2.png"), "/elsewhere/3.png"]
    for root in (tmp_path, Path(), Path("here"), Path("../there/.")):
        files = FileList(root, names)
        for each in (files, pickle.loads(pickle.dumps(files))):
            assert [each.path(index) for index in range(4)] == [str(path) for path in each]
        with pytest.raises(IndexError):
            files.path(4)


def test_images_that_nothing_changes_are_not_seeded(tmp_path):
    """They are equal either way; a transform, or a class that reads otherwise, is seeded."""
    for number in range(3):
        picture(tmp_path / f"{'ab'[number % 2]}/{number}.png")

    class Otherwise(ClassFolder):
        def __getitem__(self, index):
            image, target = super().__getitem__(index)
            return image, target + int(torch.randint(1, (1,)))

    data = ClassFolder(tmp_path)
    assert data.draws_nothing and not Otherwise(tmp_path).draws_nothing
    assert not ClassFolder(tmp_path, lambda image: image).draws_nothing
    plain, seeded = Seeded(data, 3, unless_declared=True), Seeded(data, 3)
    for index in range(3):
        before = torch.get_rng_state()
        image, target = plain[1, index]
        assert torch.equal(torch.get_rng_state(), before) and type(target) is int
        assert torch.equal(image, seeded[1, index][0]) and target == seeded[1, index][1]
        assert not torch.equal(torch.get_rng_state(), before)
    data.targets = 1 - data.targets
    assert [data[index][1] for index in range(3)] == data.targets.tolist() == [1, 1, 0]


def test_classes_are_kept_when_a_spawned_worker_gets_the_data(tmp_path):
    """What starts it moves tensors into memory that is shared, and frees their own."""
    for number in range(30):
        photo(tmp_path / "train" / f"{number % 3}" / f"{number}.jpg")
    data = ClassFolder(tmp_path / "train")
    expected = [data[index][1] for index in range(30)]
    sent = pickle.loads(ForkingPickler.dumps(data))
    assert [sent[index][1] for index in range(30)] == expected
    assert [data[index][1] for index in range(30)] == expected
    data.targets[4] = 2
    assert data[4][1] == 2
