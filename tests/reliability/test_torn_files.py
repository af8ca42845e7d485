"""Validation images whose file ends too early are named before the first step."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.image_files import labels_png, picture
from helpers.toy_recipes import recognition, segmentation
from trainkit import train
from trainkit.data.datasets.folder import ClassFolder, MaskFolder
from trainkit.data.image_headers import may_be_cut_short
from trainkit.engine.torn_files import HEAD, NUM_IMAGES, TAIL, refuse_torn
from trainkit.errors import DataError
from trainkit.options import Options


def looks_cut(data: bytes) -> bool:
    return may_be_cut_short(data[:HEAD], data[-TAIL:], len(data))


def cut(file, share=0.5):
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WebP", "BMP", "GIF"])
@pytest.mark.parametrize("size", [(1, 1), (31, 17), (64, 80)])
def test_every_cut_shows(name, size, tmp_path):
    """Of JPEGs and GIFs all but those where the picture itself holds the bytes of an end."""
    file = picture(tmp_path / f"a.{name.lower()}", *size, seed=0, format=name)
    data = file.read_bytes()
    assert not looks_cut(data)
    ends = {"JPEG": b"\xff\xd9", "GIF": b";"}.get(name)
    hidden = 0
    for length in range(len(data)):
        if not looks_cut(data[:length]):
            kept = data[:length].rstrip(b"\0") if name == "JPEG" else data[:length]
            assert ends is not None and kept.endswith(ends)
            hidden += 1
    assert hidden <= len(data) // 100


def test_what_is_no_sign_of_a_cut(tmp_path):
    tiff = picture(tmp_path / "a.tiff", 9, 9, seed=0).read_bytes()
    jpeg = picture(tmp_path / "a.jpg", 9, 9, seed=0).read_bytes()
    assert not looks_cut(tiff) and not looks_cut(tiff[:200]), "its end says nothing"
    assert not looks_cut(jpeg + b"\0" * 20), "padding"
    assert looks_cut(b"") and looks_cut(b"<html>no image</html>")


def folders(root, suffix):
    for split in ("train", "val"):
        for number in range(12):
            picture(root / split / f"c{number % 2}" / f"{number:02d}.{suffix}", 8, 8, number)
    return [ClassFolder(root / split, transform=floats) for split in ("train", "val")]


def floats(image):
    return image.float() / 255


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp"])
def test_a_torn_image_ends_a_training_before_its_first_step(tmp_path, suffix):
    """Also where bad images are skipped, which an evaluation does not do."""
    train_data, val_data = folders(tmp_path, suffix)
    torn = tmp_path / "val" / "c1" / f"07.{suffix}"
    cut(torn)
    for policy in ("stop", "skip"):
        recipe = recognition(train_data=train_data, val_data=val_data)
        how = Options(out=tmp_path / "run", workers=0, on_bad_image=policy)
        with pytest.raises(DataError, match=f"{torn}.*An evaluation skips no image"):
            train(recipe, how)
        assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_torn_mask_is_found(tmp_path):
    for number in range(6):
        picture(tmp_path / "images" / f"{number}.jpg", 8, 8, number)
        labels_png(tmp_path / "masks" / f"{number}.png", np.eye(8) * (number % 3))
    data = MaskFolder(tmp_path / "images", tmp_path / "masks", 3)
    refuse_torn(data, 0)
    cut(tmp_path / "masks" / "4.png", 0.8)
    with pytest.raises(DataError, match="4.png"):
        refuse_torn(data, 0)
    with pytest.raises(DataError, match="4.png"):
        train(segmentation(val_data=data), Options(out=tmp_path / "run", workers=0))


def test_a_whole_image_with_an_appendix_is_none(tmp_path):
    """Such as a phone's video behind its photograph; what is drawn later stays the same."""
    _, val_data = folders(tmp_path, "jpg")
    file = tmp_path / "val" / "c0" / "00.jpg"
    file.write_bytes(file.read_bytes() + b"a video")
    torch.manual_seed(0)
    random.seed(0)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    refuse_torn(val_data, 0)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_at_most_1024_files_are_opened(tmp_path):
    """Spread over the set: the first is one of them, the second of 2,048 is not."""

    class Listed:
        """2,048 names of files, of which one is torn."""

        def __init__(self, torn):
            self.torn = torn

        def __len__(self):
            return 2 * NUM_IMAGES

        def name_of(self, index):
            return str(tmp_path / ("torn.png" if index == self.torn else "whole.png"))

        def __getitem__(self, index):
            with Image.open(self.name_of(index)) as image:
                return image.load(), 0

    cut(picture(tmp_path / "torn.png", 8, 8, 1))
    picture(tmp_path / "whole.png", 8, 8, 0)
    refuse_torn(Listed(1), 0)
    with pytest.raises(DataError, match="torn.png"):
        refuse_torn(Listed(0), 0)
