"""Maps of numbers: PNG of 16 bits, TIFF, npy; layouts, lists, and what is refused by name."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.image_files import picture
from trainkit.data.datasets.held_out import SplitSettings
from trainkit.data.datasets.value_maps import ValueMapSource, read_values
from trainkit.data.transforms.dense_regression import train_transform
from trainkit.errors import DataError, MissingFileError, UserError

STORED = np.array([[0, 1000, 2500], [40000, 65000, 7]], dtype=np.uint16)


def test_files(tmp_path):
    expected = np.where(STORED == 0, np.nan, STORED * 0.001).astype(np.float32)
    Image.fromarray(STORED).save(tmp_path / "a.png")
    Image.fromarray(STORED).save(tmp_path / "b.tif")
    np.save(tmp_path / "c.npy", STORED)
    for name in ("a.png", "b.tif", "c.npy"):
        found = read_values(tmp_path / name, 0.001).numpy()
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == np.float32
    metres = np.array([[1.5, math.nan], [math.inf, -2.0]], dtype=np.float32)
    Image.fromarray(metres).save(tmp_path / "d.tiff")
    np.save(tmp_path / "e.npy", metres.astype(np.float64))
    for name in ("d.tiff", "e.npy"):
        found = read_values(tmp_path / name, invalid=-2.0).numpy()
        np.testing.assert_array_equal(found, [[1.5, np.nan], [np.nan, np.nan]])
    assert read_values(tmp_path / "a.png", invalid=None)[0, 0] == 0


def test_files_that_are_refused(tmp_path):
    picture(tmp_path / "a.png", 4, 4, 0)
    np.save(tmp_path / "b.npy", np.zeros((2, 2, 3)))
    np.save(tmp_path / "c.npy", np.array([["x"]], dtype=object), allow_pickle=True)
    (tmp_path / "d.tif").write_bytes(b"no image")
    for name, message in (("a.png", "mode RGB: a map has one number"), ("b.npy", r"\(2, 2, 3\)"),
                          ("c.npy", "c.npy"), ("d.tif", "d.tif")):  # fmt: skip
        with pytest.raises(DataError, match=message):
            read_values(tmp_path / name)


def fill(root, images, maps, names):
    for number, name in enumerate(names):
        picture(root / images / f"{name}.jpg", 3, 2, number)
        (root / maps).mkdir(parents=True, exist_ok=True)
        Image.fromarray(STORED + number).save(root / maps / f"{name}.png")


@pytest.mark.parametrize("layout", ["{kind}/{split}", "{split}/{kind}"])
def test_divided_folders(tmp_path, layout):
    for split, names in (("train", "abc"), ("val", "de")):
        fill(tmp_path, layout.format(kind="images", split=split),
             layout.format(kind="depth", split=split), names)  # fmt: skip
    source = ValueMapSource(tmp_path, scale=0.5)
    train, val = source.open("train"), source.open("val")
    assert (len(train), len(val)) == (3, 2) and val.split == "val"
    image, values = train[1]
    assert image.shape == (3, 2, 3) and image.dtype == torch.uint8
    assert values.tolist() == (0.5 * (STORED + 1)).tolist()
    assert val.used == "2 images with maps (2 jpg)"


def test_undivided_folders_and_lists(tmp_path):
    fill(tmp_path, "images", "height", "abcdefgh")
    held_out = SplitSettings(0.25)
    divided = ValueMapSource(tmp_path, held_out=held_out)
    names = {split: [divided.open(split).name_of(i).stem for i in range(len(divided.open(split)))]
             for split in ("train", "val")}  # fmt: skip
    assert len(names["val"]) == 2 and sorted(names["train"] + names["val"]) == list("abcdefgh")
    lines = [f"images/{name}.jpg,height/{name}.png" for name in "abcdefgh"]
    (tmp_path / "all.csv").write_text("\n".join(["path,height", *lines]))
    listed = ValueMapSource(tmp_path / "all.csv", held_out=held_out)
    assert [listed.open("val").name_of(i).stem for i in range(2)] == names["val"]
    assert listed.open("val")[0][1].isnan().sum() == divided.open("val")[0][1].isnan().sum()


def test_layouts_that_are_refused(tmp_path):
    with pytest.raises(MissingFileError, match="no folder or list .*none"):
        ValueMapSource(tmp_path / "none").open("val")
    with pytest.raises(MissingFileError, match="no images with maps in .*looked for images/train"):
        ValueMapSource(tmp_path).open("val")
    fill(tmp_path, "images", "depth", "ab")
    with pytest.raises(MissingFileError, match="without train/ and val/: hold out a part"):
        ValueMapSource(tmp_path).open("val")
    (tmp_path / "maps").mkdir()
    with pytest.raises(MissingFileError, match="has depth and maps: remove all but one"):
        ValueMapSource(tmp_path, held_out=SplitSettings(0.5)).open("val")
    (tmp_path / "maps").rmdir()
    (tmp_path / "depth" / "a.png").rename(tmp_path / "depth" / "b.npy")
    with pytest.raises(UserError, match="two maps of one name, b.npy and b.png"):
        ValueMapSource(tmp_path, held_out=SplitSettings(0.5)).open("val")
    (tmp_path / "depth" / "b.npy").unlink()
    with pytest.raises(MissingFileError, match="1 of 2 images in .* have no map in .*: a.jpg"):
        ValueMapSource(tmp_path, held_out=SplitSettings(0.5)).open("val")


def test_another_size_is_refused_by_an_index(tmp_path):
    fill(tmp_path, "images/val", "depth/val", "a")
    picture(tmp_path / "images" / "val" / "a.jpg", 9, 9, 0)
    data = ValueMapSource(tmp_path).open("val")
    with pytest.raises(DataError, match="a.jpg is 9x9 and its map .*a.png is 3x2"):
        data[0]


def test_crops_make_up_no_value(tmp_path):
    fill(tmp_path, "images/train", "depth/train", "a")
    data = ValueMapSource(tmp_path).open("train", train_transform(6, 8))
    torch.manual_seed(0)
    for _ in range(20):
        image, values = data[0]
        assert image.shape == (3, 8, 8) and values.shape == (8, 8)
        assert set(values[values.isfinite()].tolist()) <= set(STORED.ravel().astype(float))
        assert values.isnan().any()  # 0 in the file, and what lies beyond the image
