"""What `trainkit pack` writes, and that it is read as the files that it was made of."""

import io
import json
import os
import resource
import shutil
import signal
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from torchvision.transforms import v2

from helpers.image_files import labels_png, mask, photo, picture
from helpers.processes import TESTS, Script
from helpers.toy_recipes import recognition
from trainkit.cli import main
from trainkit.commands.pack import pack
from trainkit.commands.pack_options import PackOptions
from trainkit.commands.recipe_file import build, load_recipe
from trainkit.commands.recipe_names import find_recipe
from trainkit.data.dataset_info import DatasetInfo
from trainkit.data.datasets.class_source import ClassSource
from trainkit.data.datasets.hub import HubImages, HubMasks
from trainkit.data.datasets.mask_source import MaskSource
from trainkit.data.datasets.packed import PackedImages, PackedMasks
from trainkit.data.loader import make_loader
from trainkit.data.sampler import Batches, TrainOrder
from trainkit.data.transforms.recognition import train_transform
from trainkit.data.transforms.segmentation import train_transform as train_pairs
from trainkit.errors import UserError
from trainkit.storage.run_changes import compare_settings
from trainkit.tasks.multilabel import MultiLabel

LOSSLESS = ["original", "png", "webp", "raw"]
SMALL = {"model": "small", "pretrained": False}


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Photos of three classes, of all kinds that a folder may hold."""
    root = tmp_path_factory.mktemp("classes")
    for split, number in (("train", 7), ("val", 2)):
        for name in "abc":
            for seed in range(number):
                picture(root / split / name / f"{seed}.png", 30 + seed, 20, 10 * seed + ord(name))
    photo(root / "train/a/turned.jpg", orientation=6)
    photo(root / "train/b/grey.jpg", mode="L")
    photo(root / "train/b/inks.jpg", mode="CMYK")
    labels_png(root / "train/c/palette.png", np.arange(64).reshape(8, 8), np.arange(768) % 251)
    deep = np.random.default_rng(0).integers(0, 65535, (9, 11), dtype=np.uint16)
    Image.fromarray(deep).save(root / "train/c/deep.png")
    return root


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Images with masks of labels 1 to 3, and 0 where nothing is labelled."""
    root = tmp_path_factory.mktemp("scenes")
    for split, number in (("train", 6), ("val", 2)):
        for seed in range(number):
            width, height = 40 + seed, 24
            picture(root / "images" / split / f"{seed}.png", width, height, seed)
            runs = [(seed % 4, 300), (3, 200), (0, width * height - 500)]
            mask(root / "annotations" / split / f"{seed}.png", width, height, runs)
    return root


def recognised(root):
    return build(load_recipe(find_recipe("recog_folder")), {"data": str(root), "size": 16, **SMALL})


def segmented(root, **more):
    settings = {"data": str(root), "model": "lraspp", "backbone": "small", "pretrained": False}
    sizes = {"long_side": 40, "crop": 24, "batch_size": 2}
    return build(load_recipe(find_recipe("seg_folder")), {**settings, **sizes, **more})


def packed(recipe, out, **options):
    options = PackOptions(out=out, **{"workers": 0, **options})
    pack(recipe, options, "my_recipe")
    return out


def same(pair, other):
    return all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(pair, other))


@pytest.mark.parametrize("encoding", LOSSLESS)
def test_images_of_classes_are_those_of_the_files(classes, tmp_path, encoding):
    out = packed(recognised(classes), tmp_path / "out", encoding=encoding, shard_images=5)
    for split in ("train", "val"):
        files, found = (ClassSource(root).open(split) for root in (classes, out))
        assert isinstance(found, PackedImages) and found.classes == files.classes == list("abc")
        assert len(found) == len(files) and torch.equal(found.targets, files.targets)
        for index in np.random.default_rng(0).permutation(len(files)).tolist():
            assert same(found[index], files[index]), files.name_of(index)
            assert found[index][0].stride(0) == 1, "channels side by side, as of files"
        assert found.re_encoded is None and not found.used_warnings


@pytest.mark.parametrize("encoding", LOSSLESS)
def test_masks_hold_the_train_ids_of_the_files(scenes, tmp_path, encoding):
    settings = {"classes": "road,car,sky", "label_shift": -1}
    out = packed(segmented(scenes, **settings), tmp_path / "out", encoding=encoding)
    for split in ("train", "val"):
        files = MaskSource(scenes, ["road", "car", "sky"], label_shift=-1).open(split)
        found = MaskSource(out, ["road", "car", "sky"]).open(split)
        assert isinstance(found, PackedMasks) and len(found) == len(files)
        assert all(same(found[index], files[index]) for index in range(len(files)))
        assert found.raw_ids.tolist() == files.raw_ids.tolist() == [1, 2, 3]
    again = segmented(out)
    assert again.task.classes == ["road", "car", "sky"], "the folder says them"
    assert list(again.task.raw_ids) == [1, 2, 3]


def test_batches_are_equal_in_the_same_order(classes, scenes, tmp_path):
    """Also by workers, and with what is drawn for each image."""
    first = packed(recognised(classes), tmp_path / "first", encoding="raw", shard_images=4)
    second = packed(segmented(scenes, classes="4"), tmp_path / "second", shard_images=4)
    crops, pairs = train_transform(16), train_pairs(40, 24)
    for files, found in (
        (ClassSource(classes).open("train", crops), ClassSource(first).open("train", crops)),
        (MaskSource(scenes, 4).open("train", pairs), MaskSource(second, 4).open("train", pairs)),
    ):
        order = TrainOrder(num_images=len(files), batch_size=4, seed=3)
        batches = [
            list(make_loader(data, 3, Batches(order, 0, 4, 0), workers, torch.device("cpu")))
            for data, workers in ((files, 0), (found, 0), (found, 2))
        ]
        for batch in zip(*batches):
            assert len({len(each[0]) for each in batch}) == 1
            assert same(batch[0][:2], batch[1][:2]) and same(batch[0][:2], batch[2][:2])


@pytest.mark.parametrize("encoding", ["original", "raw"])
def test_streamed_row_groups_give_the_same_images(classes, scenes, tmp_path, encoding):
    out = packed(recognised(classes), tmp_path / "a", encoding=encoding, shard_images=5)
    masks = packed(segmented(scenes, classes="4"), tmp_path / "b", encoding=encoding)
    for where, mapped, streamed in (
        (out, ClassSource(out), ClassSource(out, stream=2)),
        (masks, MaskSource(masks, 4), MaskSource(masks, 4, stream=2)),
    ):
        found, other = mapped.open("train"), streamed.open("train")
        assert found.locality is None and sum(other.locality.lengths) == len(found), where
        assert all(same(found[index], other[index]) for index in range(len(found)))


def test_encoded_files_are_parquet_as_others_read_it(classes, scenes, tmp_path):
    """By `datasets`, which knows images and the names of classes."""
    out = packed(recognised(classes), tmp_path / "a", shard_images=5)
    found, other = ClassSource(out).open("train"), HubImages(out, "train")
    assert other.classes == list("abc") and len(other) == len(found)
    assert all(same(found[index], other[index]) for index in range(len(found)))
    masks = packed(segmented(scenes, classes="4"), tmp_path / "b", encoding="png")
    found, other = MaskSource(masks, 4).open("val"), HubMasks(masks, "val", 4)
    assert all(same(found[index], other[index]) for index in range(len(found)))


def test_smaller_and_blurred_images_by_pillow(classes, tmp_path):
    """JPEG is Pillow's own of the same pixels; nothing is made larger, and no side wrong."""
    recipe, files = recognised(classes), ClassSource(classes).open("train")
    jpeg = packed(recipe, tmp_path / "jpeg", encoding="jpeg", quality=70)
    found = ClassSource(jpeg).open("train")
    assert "JPEG of quality 70" in found.re_encoded
    assert "not the originals" in found.used_warnings[0]
    for index in (0, 5, len(files) - 1):
        kept = io.BytesIO()
        pixels = files[index][0].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(kept, "jpeg", quality=70)
        wanted = np.asarray(Image.open(kept).convert("RGB")).astype(int)
        gap = found[index][0].permute(1, 2, 0).numpy().astype(int) - wanted
        assert np.abs(gap).max() <= 3, "two decoders of one file"
    small = ClassSource(packed(recipe, tmp_path / "raw", encoding="raw", short_side=16))
    long = ClassSource(packed(recipe, tmp_path / "png", encoding="png", largest_side=25))
    for index, (image, _) in enumerate(files):
        height, width = image.shape[1:]
        for source, side in ((small, 16 / min(height, width)), (long, 25 / max(height, width))):
            stored = source.open("train")[index][0]
            size = [height, width] if side >= 1 else [round(height * side), round(width * side)]
            wanted = v2.functional.resize(image, size, antialias=True)
            assert torch.equal(stored, torch.as_tensor(wanted))


def test_masks_are_made_smaller_to_the_nearest_label(scenes, tmp_path):
    out = packed(segmented(scenes, classes="4"), tmp_path / "o", encoding="raw", short_side=12)
    found, files = MaskSource(out, 4).open("train"), MaskSource(scenes, 4).open("train")
    for index, (image, labels) in enumerate(files):
        size = (round(image.shape[2] / 2), 12)
        wanted = Image.fromarray(labels.numpy()).resize(size, Image.Resampling.NEAREST)
        assert np.array_equal(found[index][1].numpy(), np.asarray(wanted))
        assert found[index][0].shape[1:] == found[index][1].shape


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_packing_is_finished_by_the_same_command(classes, tmp_path):
    """What stands is kept; the end is that of a command that was never stopped, by any workers."""
    root = shutil.copytree(classes, tmp_path / "my")
    whole = packed(recognised(root), tmp_path / "whole", shard_images=5, workers=2)
    damaged = sorted((root / "train" / "b").iterdir())[0]
    sound = damaged.read_bytes()
    damaged.write_bytes(sound[: len(sound) // 2])
    out = tmp_path / "out"
    with pytest.raises(UserError, match=rf"{damaged.name}.*on-bad-image skip"):
        packed(recognised(root), out, shard_images=5)
    there = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert len(there) == 1, "files before that of the damaged image"
    with pytest.raises(UserError, match="is not packed to its end"):
        ClassSource(out).open("train")
    damaged.write_bytes(sound)
    packed(recognised(root), out, shard_images=5, workers=2)
    assert all((out / name).stat().st_mtime_ns == at for name, at in there.items())
    assert content(out) == content(whole)
    files = {path.name for path in out.iterdir()}
    packed(recognised(root), out, shard_images=5)
    assert files == {path.name for path in out.iterdir()} and content(out) == content(whole)


def test_a_file_that_changed_since_is_written_again(classes, tmp_path):
    """Each file that was there before a stop is compared with its hash."""
    whole = content(packed(recognised(classes), tmp_path / "out", shard_images=5))
    out, root = tmp_path / "again", shutil.copytree(classes, tmp_path / "my")
    torn = sorted((root / "train" / "c").iterdir())[0]
    sound = torn.read_bytes()
    torn.write_bytes(b"")
    with pytest.raises(UserError):
        packed(recognised(root), out, shard_images=5)
    torn.write_bytes(sound)
    first = out / "train-00000-of-00006.parquet"
    kept = bytearray(first.read_bytes())
    kept[100] ^= 1
    first.write_bytes(kept)
    packed(recognised(root), out, shard_images=5)
    assert first.read_bytes() == whole[first.name]


@pytest.mark.nightly
def test_killed_and_packed_again(classes, tmp_path):
    """Killed at once, and with more and more files written; the end is always the same."""
    words = ("recog_folder", "--data", classes, "--model", "small", "--shard-images", 1)
    assert main(["pack", *map(str, words), "--out", str(tmp_path / "whole")]) == 0
    wanted = content(tmp_path / "whole")
    out, command = tmp_path / "out", TESTS / "helpers" / "command.py"
    for written in (0, 1, 4, 9):
        script = Script(command, tmp_path, tmp_path / "errors", "pack", *words, "--out", out)
        while script.poll() is None and len(list(out.glob("*.parquet"))) < written:
            time.sleep(0.01)
        script.kill()
        script.communicate()
    assert main(["pack", *map(str, words), "--out", str(out)]) == 0
    names = [name for name in wanted if name.endswith((".parquet", ".npy"))]
    assert {name: content(out)[name] for name in names} == {name: wanted[name] for name in names}


def test_bad_images_are_left_out_where_that_is_asked_for(classes, tmp_path, capsys):
    root = shutil.copytree(classes, tmp_path / "my")
    torn = root / "train" / "a" / "3.png"
    torn.write_bytes(torn.read_bytes()[:100])
    out = packed(recognised(root), tmp_path / "out", on_bad_image="skip", shard_images=5)
    assert "left out" in capsys.readouterr().out
    files, found = ClassSource(root).open("train"), ClassSource(out).open("train")
    kept = [index for index in range(len(files)) if files.name_of(index) != torn]
    assert len(found) == len(files) - 1 and "1 images were left out" in found.used_warnings[0]
    assert all(same(found[at], files[index]) for at, index in enumerate(kept))
    (line,) = json.loads((out / "manifest.json").read_bytes())["splits"]["train"]["left_out"]
    assert str(torn) in line


def test_each_way_of_packing_has_a_fingerprint(classes, tmp_path):
    """So that no run is resumed across; the protocol says what was evaluated."""
    recipe = recognised(classes)
    ways = {"original": {}, "raw": {}, "jpeg": {}, "png": {"short_side": 10}}
    outs = {
        name: packed(recipe, tmp_path / name, encoding=name, **more) for name, more in ways.items()
    }
    found = {
        name: DatasetInfo.of(recognised(out).train_data).fingerprint for name, out in outs.items()
    }
    assert len(set(found.values())) == 4
    assert "JPEG of quality 90" in found["jpeg"] and "pixels of the originals" in found["raw"]
    other = packed(recipe, tmp_path / "other", encoding="raw", workers=1)
    assert DatasetInfo.of(recognised(other).train_data).fingerprint == found["raw"]
    assert recognised(outs["raw"]).protocol == recipe.protocol
    assert (
        recognised(outs["jpeg"]).protocol
        == f"{recipe.protocol}, images stored as JPEG of quality 90"
    )
    recorded = {"settings": {}, "input": {}, "train_data": None}
    now = {"input": {}, "train_data": found["raw"]}
    with pytest.raises(UserError, match="train_data was None and is 'packed, pixels of the orig"):
        compare_settings(tmp_path, recorded, {}, now, False)


def test_what_is_refused(classes, scenes, tmp_path, capsys):
    out, recipe = tmp_path / "out", recognised(classes)
    packed(recipe, out, shard_images=5)
    for settings, message in (
        (
            {"encoding": "raw"},
            "packed otherwise: kind was original and is raw. Give another folder",
        ),
        ({"shard_images": 6}, "shard_images was 5 and is 6"),
        ({"out": classes}, "which holds train, val and is no packed folder"),
        ({"out": classes / "train/a/0.png"}, "which cannot hold results"),
    ):
        with pytest.raises(UserError, match=message):
            packed(recipe, **{"out": out, "shard_images": 5, **settings})
    for settings, message in (
        ({"quality": 80}, "quality is 80 and encoding original"),
        ({"quality": 0, "encoding": "jpeg"}, "it must be 1 to 100"),
        ({"short_side": 256}, "encoding original, which keeps files as they are"),
        ({"short_side": 2, "largest_side": 3, "encoding": "png"}, "give one"),
        ({"shard_images": 0}, "it must be at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            PackOptions(out=out, **settings)
    words = ["--data", str(out), "--model", "small"]
    for more, message in (
        (["recog_folder", *words, "--val-share", "0.2"], "val_share is 0.2, and"),
        (["recog_folder", *words, "--channels", "4"], "channels is 4, and"),
        (
            ["recog_folder", *words, "--classes", "a", "b"],
            "with 3 classes (a, b, c, ...), and here",
        ),
        (["recog_folder", *words, "--classes", "a", "c", "b"], "or in another order"),
        (["seg_folder", "--data", str(out)], "was packed for recognition, by my_recipe"),
    ):
        assert main(more) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    with FileLock(out / ".lock"), pytest.raises(UserError, match="another command packs into"):
        packed(recipe, out, shard_images=5)
    masks = packed(segmented(scenes, classes="4"), tmp_path / "masks")
    for settings, message in (
        ({"mask_values": "0,1,2,3"}, "mask_values is"),
        ({"ignore": (3,)}, "ignore is"),
        ({"classes": "5"}, "with 4 classes, and here there are 5 classes"),
    ):
        with pytest.raises(UserError, match=message):
            segmented(masks, **{"classes": "4", **settings})


def test_other_tasks_and_transforms_are_not_packed(classes, tmp_path):
    several = replace(recognised(classes), task=MultiLabel(list("abc")))
    with pytest.raises(UserError, match="and the recipe's task is MultiLabel"):
        packed(several, tmp_path / "out")
    with pytest.raises(UserError, match="cannot be packed before its transform: it has no attr"):
        packed(recognition(), tmp_path / "out")


def test_damaged_folders_are_named(classes, tmp_path):
    whole = packed(recognised(classes), tmp_path / "whole", shard_images=5)
    for change, message in (
        (lambda out: (out / "train-00001-of-00006.parquet").unlink(), "00001.* is missing"),
        (lambda out: os.truncate(out / "val.index.npy", 30), "val.index.npy has 30 bytes"),
        (
            lambda out: (out / "manifest.json").write_text('{"format": "trainkit pack"'),
            "manifest.json is damaged",
        ),
        (
            lambda out: (out / "manifest.json").write_text(
                (out / "manifest.json").read_text().replace('"version": 1', '"version": 2')
            ),
            "newer trainkit",
        ),
    ):
        out = shutil.copytree(whole, tmp_path / "copy")
        change(out)
        with pytest.raises((UserError, FileNotFoundError), match=message):
            ClassSource(out).open("val")
        shutil.rmtree(out)


@contextmanager
def files_up_to(num_bytes):
    """Writing fails as on a full disk, after a part was written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_loses_nothing(classes, tmp_path):
    recipe, out = recognised(classes), tmp_path / "out"
    whole = content(packed(recipe, tmp_path / "whole", shard_images=5))
    with files_up_to(9000), pytest.raises(OSError):
        packed(recipe, out, shard_images=5)
    assert not list(out.glob(".*.writing")) and not (out / "manifest.json").exists()
    packed(recipe, out, shard_images=5)
    assert content(out) == whole


def test_doctor_says_what_a_packed_folder_is(scenes, tmp_path, capsys):
    out = packed(segmented(scenes, classes="4"), tmp_path / "o", encoding="jpeg")
    assert main(["doctor", str(out), "--workers", "0", "--out", str(tmp_path / "d")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "what trainkit pack wrote of the data of my_recipe, for segmentation" in text
    assert "images are not the originals, but stored as JPEG of quality 90" in text
    assert f"to train on it: trainkit seg_folder --data {out}" in text
    shard = out / "val-00000-of-00001.parquet"
    changed = bytearray(shard.read_bytes())
    changed[200] ^= 1
    shard.write_bytes(changed)
    assert main(["doctor", str(out), "--workers", "0", "--out", str(tmp_path / "d")]) == 2
    assert f"{shard.name} has another hash" in " ".join(capsys.readouterr().err.split())
