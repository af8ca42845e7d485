"""Predictions of images in files and folders, against the model run by hand on the same pixels."""

import csv
import json
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import v2

from helpers.image_files import mask, picture
from helpers.predictions import (
    NAMES,
    PALETTE,
    RAW,
    RECIPE,
    filled_by_hand,
    odd_sized,
    photos,
    weights_of,
    with_classes,
    with_masks,
)
from helpers.processes import ROOT
from helpers.toy_recipes import CLASSES, Images, Net, recognition
from trainkit.cli import main
from trainkit.commands.predict import predict
from trainkit.commands.recipe_file import build, load_recipe
from trainkit.data.datasets.ade20k import ADE20K, to_train_ids
from trainkit.data.datasets.coco import COCO
from trainkit.data.datasets.listing import image_files
from trainkit.data.datasets.pcontext import PascalContext
from trainkit.data.datasets.voc import VOC, VOCAug
from trainkit.data.image_io import read_image
from trainkit.data.palette import colour_map
from trainkit.data.transforms.recognition import eval_transform as crop
from trainkit.data.transforms.segmentation import eval_transform as long_side
from trainkit.inference import Inference
from trainkit.options import PredictOptions
from trainkit.prediction.results import predicted_mask
from trainkit.tasks.segmentation import Segmentation


def by_hand(recipe, file, transform):
    """Logits of one image in float64 arithmetic before the model: (1, C, ...)."""
    return logits_of(recipe, transform(read_image(file)))


def logits_of(recipe, image):
    image = image.as_subclass(torch.Tensor).double() / 255
    mean, std = (
        torch.tensor(each, dtype=torch.float64).view(3, 1, 1) for each in (recipe.mean, recipe.std)
    )
    with torch.no_grad():
        return recipe.model.eval()(((image - mean) / std).float()[None])


def asked(*paths, out, **more):
    return PredictOptions(paths=paths, out=out, **{"workers": 0, **more})


@pytest.mark.parametrize("workers", [0, 2])
def test_classes_with_probabilities(tmp_path, workers):
    recipe = with_classes(tmp_path)
    folder, out = tmp_path / "data" / NAMES[0], tmp_path / "out"
    given = (folder / "f.webp", folder, folder / "d.png")
    predict(recipe, weights_of(recipe, tmp_path), asked(*given, out=out, top_k=3, workers=workers))
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [row["file"] for row in rows] == [
        str(folder / name) for name in ("f.webp", "a.jpg", "b.jpg", "d.png", "e.gif", "in/c.JPEG")
    ]
    table = list(csv.reader((out / "predictions.csv").read_text().splitlines()))
    assert table[0] == ["file"] + [
        f"{what}_{rank}" for rank in (1, 2, 3) for what in ("class", "probability")
    ]
    for row, cells in zip(rows, table[1:], strict=True):
        expected, ids = by_hand(recipe, Path(row["file"]), crop(16))[0].double().softmax(0).topk(3)
        assert [each["class"] for each in row["top"]] == ids.tolist()
        assert [each["name"] for each in row["top"]] == [NAMES[i] for i in ids]
        assert [each["probability"] for each in row["top"]] == pytest.approx(
            expected.tolist(), abs=1e-5
        )
        assert cells[0] == row["file"] and cells[1::2] == [NAMES[i] for i in ids]
        assert [float(cell) for cell in cells[2::2]] == pytest.approx(expected.tolist(), abs=1e-5)
    assert len({row["top"][0]["class"] for row in rows}) > 1


@pytest.mark.parametrize("raw_ids", [RAW, [0, 9, 8, 7, 6, 5, 4], None])
def test_segmentation_masks(tmp_path, raw_ids):
    recipe = with_masks(tmp_path, task=Segmentation(CLASSES, palette=PALETTE, raw_ids=raw_ids))
    out = tmp_path / "out"
    predict(recipe, weights_of(recipe, tmp_path), asked(tmp_path / "images", out=out, overlay=True))
    seen = set()
    for name in image_files(tmp_path / "images"):
        own = read_image(tmp_path / "images" / name)
        logits = by_hand(recipe, tmp_path / "images" / name, long_side(24))
        labels = (
            F.interpolate(logits, own.shape[-2:], mode="bilinear", align_corners=False)[0]
            .argmax(0)
            .numpy()
        )
        stem = name.rsplit(".", 1)[0]
        with Image.open(out / "colour" / f"{stem}.png") as image:
            assert image.mode == "P" and np.array_equal(np.array(image), labels)
            assert np.array_equal(np.array(image.convert("RGB")), np.array(PALETTE)[labels])
        with Image.open(out / "raw" / f"{stem}.png") as image:
            assert image.mode == ("I;16" if raw_ids is RAW else "L")
            assert np.array_equal(np.array(image), np.array(raw_ids or range(CLASSES))[labels])
        with Image.open(out / "overlay" / f"{stem}.jpg") as image:
            half = (own.permute(1, 2, 0).numpy().astype(int) + np.array(PALETTE)[labels]) // 2
            Image.fromarray(half.astype(np.uint8)).save(tmp_path / "half.jpg", quality=90)
            assert np.array_equal(np.array(image), np.array(Image.open(tmp_path / "half.jpg")))
        seen |= set(labels.flatten().tolist())
    assert len(seen) > 2
    assert read_image(tmp_path / "images" / "b.jpg").shape == (3, 35, 32), "as it is seen upright"
    legend = [line.split(",") for line in (out / "classes.csv").read_text().splitlines()]
    assert legend[0] == ["class", "name", "raw", "colour", "overlay"]
    for label, row in enumerate(legend[1:]):
        colour = f"#{bytes(PALETTE[label]).hex()}"
        raw = (raw_ids or range(CLASSES))[label]
        assert row == [str(label), str(label), str(raw), colour, colour]
    assert len(legend) == 1 + CLASSES


def test_images_lie_as_the_datasets_do(tmp_path):
    """Masks of ADE20K, VOC and others are of images as stored.

    So are predictions for their servers.
    """
    recipe = with_masks(tmp_path)
    weights = weights_of(recipe, tmp_path)
    # width and height of b.jpg, stored on its side
    for upright, size in ((True, (32, 35)), (False, (35, 32))):
        recipe.val_data.upright = upright
        predict(
            recipe,
            weights,
            asked(tmp_path / "images" / "b.jpg", out=tmp_path / "out", overlay=True),
        )
        for kind in ("raw/b.png", "colour/b.png", "overlay/b.jpg"):
            with Image.open(tmp_path / "out" / kind) as image:
                assert image.size == size
    assert not any(data.upright for data in (ADE20K, VOC, VOCAug, PascalContext, COCO))


def test_images_are_transformed_as_in_the_recipes_evaluations(tmp_path):
    """In windows of 16 every 8 of images with a long side of 24, flipped too, against a loop over
    them."""
    recipe = with_masks(tmp_path, inference=Inference(window=16, stride=8, flip=True))
    predict(recipe, weights_of(recipe, tmp_path), asked(tmp_path / "images", out=tmp_path / "out"))
    differs = 0
    for name in image_files(tmp_path / "images"):
        pixels = long_side(24)(read_image(tmp_path / "images" / name))
        height, width = pixels.shape[-2:]
        padded = F.pad(pixels, (0, max(0, 16 - width), 0, max(0, 16 - height)))
        sums, seen = (
            torch.zeros(CLASSES, *padded.shape[-2:], dtype=torch.float64),
            torch.zeros(padded.shape[-2:]),
        )
        for top in {0, max(0, height - 16)}:
            for left in {0, max(0, width - 16)}:
                part = padded[:, top : top + 16, left : left + 16]
                for flipped in (False, True):
                    given = part.flip(-1) if flipped else part
                    scores = logits_of(recipe, given)[0].double().softmax(0)
                    sums[:, top : top + 16, left : left + 16] += (
                        scores.flip(-1) if flipped else scores
                    )
                    seen[top : top + 16, left : left + 16] += 1
        mean = (sums / seen)[None, :, :height, :width]
        size = read_image(tmp_path / "images" / name).shape[-2:]
        expected = F.interpolate(mean, size, mode="bilinear", align_corners=False)[0]
        labels = torch.from_numpy(
            np.array(Image.open((tmp_path / "out/colour" / name).with_suffix(".png")))
        ).long()
        lost = expected.amax(0) - expected.gather(0, labels[None])[0]
        assert lost.max() < 1e-5, "up to rounding the most probable"
        whole = predicted_mask(by_hand(recipe, tmp_path / "images" / name, long_side(24))[0], size)
        differs += int((whole != labels).sum())
    assert differs > 0, "an image seen whole is another matter"


@pytest.mark.parametrize("looks", [None, Inference(flip=True)])
def test_images_that_a_network_takes_filled_up_alone(tmp_path, looks):
    """Of a network with a `size_divisor`.

    Label maps and scores as of images that are filled and cut by hand.
    """
    recipe = replace(odd_sized(tmp_path), inference=looks)
    torch.save(recipe.model.state_dict(), tmp_path / "w.pth")
    given = []
    recipe.model.register_forward_pre_hook(
        lambda _, inputs: given.append(tuple(inputs[0].shape[-2:]))
    )
    predict(recipe, tmp_path / "w.pth", asked(tmp_path / "images", out=tmp_path / "out"))
    assert set(given) == {(128, 96), (96, 128)}
    for i in range(2):
        file = tmp_path / "images" / f"{i}.png"
        scores = filled_by_hand(recipe, file).softmax(1)
        if looks is not None:
            Image.open(file).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(
                tmp_path / "flipped.png"
            )
            scores = (
                scores + filled_by_hand(recipe, tmp_path / "flipped.png").softmax(1).flip(-1)
            ) / 2
        labels = torch.from_numpy(
            np.array(Image.open(tmp_path / "out" / "colour" / f"{i}.png"))
        ).long()
        lost = scores[0].amax(0) - scores[0].gather(0, labels[None])[0]
        assert lost.max() < 1e-5, "up to rounding the most probable"
        assert len(labels.unique()) > 2


@pytest.mark.parametrize("shift", [-1, 0])
def test_segmentation_masks_of_ones_own_images(tmp_path, shift):
    """seg_folder writes them as the masks have them."""
    for split in ("train", "val"):
        for i in range(2):
            picture(tmp_path / "images" / split / f"{i}.png", 40, 30, i)
            mask(tmp_path / "annotations" / split / f"{i}.png", 40, 30, [(1, 600), (2, 600)])
    settings = {
        "data": str(tmp_path),
        "classes": "3",
        "label_shift": shift,
        "model": "lraspp",
        "backbone": "small",
    }
    recipe = build(
        load_recipe(ROOT / "recipes" / "seg_folder.py"),
        {**settings, "pretrained": False, "long_side": 64},
    )
    torch.save(recipe.model.state_dict(), tmp_path / "w.pth")
    predict(recipe, tmp_path / "w.pth", asked(tmp_path / "images" / "val", out=tmp_path / "out"))
    for name in ("0.png", "1.png"):
        with (
            Image.open(tmp_path / "out/raw" / name) as raw,
            Image.open(tmp_path / "out/colour" / name) as colour,
        ):
            assert np.array_equal(np.array(raw), np.array(colour).astype(int) - shift)


@pytest.mark.parametrize("at_once", [1, 700, 1 << 25])
def test_the_most_probable_class_in_parts(at_once):
    logits = torch.randn(23, 5, 6, generator=torch.Generator().manual_seed(0))
    logits[11] = logits[3]  # ties go to the first
    whole = Segmentation(23).predict(logits[None], torch.empty(1, 17, 13))[0]
    assert torch.equal(predicted_mask(logits, (17, 13), at_once), whole.to(torch.uint8))
    assert torch.equal(predicted_mask(logits, (5, 6), at_once), logits.argmax(0).to(torch.uint8))
    many = torch.randn(700, 5, 6, generator=torch.Generator().manual_seed(0))
    mask = predicted_mask(many, (5, 6), at_once)
    assert torch.equal(mask.long(), many.argmax(0)) and mask.max() > 255


def test_palettes():
    assert colour_map(256)[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    # as in the VOC kit
    assert colour_map(256)[[20, 255]].tolist() == [[0, 64, 128], [224, 224, 192]]
    assert len(set(map(tuple, colour_map(256).tolist()))) == 256
    assert ADE20K.palette.shape == (150, 3) and ADE20K.palette.sum(1).min() > 0
    raw = torch.from_numpy(ADE20K.raw_ids.copy())
    assert to_train_ids(raw).tolist() == list(range(150)), "raw ids are read back as train ids"
    for values, message in (
        ({"raw_ids": [1]}, "raw_ids has 1 entries for 2 classes"),
        ({"raw_ids": [1, -1]}, "raw_ids holds -1"),
        ({"palette": [(0, 0, 0), (0, 0, 256)]}, r"palette holds \(0, 0, 256\)"),
        ({"palette": [(0, 0, 0), (0, 0)]}, r"palette holds \(0, 0\); each entry is three numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            Segmentation(2, **values)


class Watched:
    """A transform that knows how many of the images it gave are still held anywhere."""

    def __init__(self):
        self.alive = self.most = self.given = 0

    def __call__(self, image):
        array = np.zeros((3, 12, 12), dtype=np.uint8)
        array[:] = image.numpy()[:, :12, :12]
        weakref.finalize(array, self.gone)
        self.alive += 1
        self.given += 1
        self.most = max(self.most, self.alive)
        return torch.from_numpy(array)  # holds the array as long as the tensor is held

    def gone(self):
        self.alive -= 1


def test_a_large_folder_is_not_held_in_memory(tmp_path):
    (tmp_path / "many").mkdir()
    for i in range(1000):
        Image.new("RGB", (12, 12), (i % 256, 0, 0)).save(tmp_path / "many" / f"{i:04d}.bmp")
    recipe = recognition(eval_batch_size=8)
    recipe.val_data.transform = watched = Watched()
    predict(recipe, weights_of(recipe, tmp_path), asked(tmp_path / "many", out=tmp_path / "out"))
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 1000
    # The one the transform is tried on, a batch being read and the one before it.
    assert watched.given == 1001 and watched.most <= 17


def test_oom_in_a_prediction_is_reported(tmp_path):
    """A window of more than a process can address."""
    recipe = with_masks(tmp_path, inference=Inference(window=10_000_000))
    with pytest.raises(
        MemoryError, match="out of memory in the prediction: .*smaller scales, a smaller window"
    ):
        predict(
            recipe, weights_of(recipe, tmp_path), asked(tmp_path / "images", out=tmp_path / "out")
        )


def test_unreadable_files_are_reported_at_the_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(RECIPE)
    recipe = with_classes(tmp_path / "x")
    weights = weights_of(recipe, tmp_path)
    folder = photos(tmp_path / "photos")
    for i in range(12):
        (folder / f"bad-{i:02d}.jpg").write_bytes((folder / "b.jpg").read_bytes()[:60])
    (folder / "notes.txt").write_text("no image")
    words = [
        "predict",
        "mine.py",
        "--data",
        "y",
        "--weights",
        str(weights),
        "photos",
        "--workers",
        "0",
    ]
    assert main([*words, "--out", "photos/out"]) == 2
    message = capsys.readouterr()
    assert "12 of the files could not be read, the rest is done" in message.err
    assert (
        message.err.count("cannot read photos/bad-") == 10
        and "and 2 more in photos/out/unreadable.txt" in message.err
    )
    assert "18 images (14 jpg, 1 gif, 1 jpeg, 1 png, 1 webp" in message.out
    assert "left out: 1 file (.txt)" in message.out
    written = "photos/out: predictions of 6 images: predictions.csv, predictions.jsonl"
    assert written in message.out and "earlier call" not in message.out
    assert len((folder / "out" / "predictions.jsonl").read_text().splitlines()) == 6
    assert len((folder / "out" / "unreadable.txt").read_text().splitlines()) == 12

    for path in folder.glob("bad-*"):
        path.unlink()
    # what lies in the output is no input
    Image.new("RGB", (20, 20)).save(folder / "out" / "own.png")
    (folder / "a.heic").write_bytes(b"no decoder for it")
    words[3] = "z"
    assert main([*words[:2], "--data", "z", *words[4:], "--out", "photos/out"]) == 0
    message = " ".join(capsys.readouterr().out.split())
    assert "left out: 2 files (1 .heic, 1 .txt)" in message, "and nothing of the output"
    assert (
        "photos/out has predictions of an earlier call: predictions.jsonl and predictions.csv will"
        " be replaced" in message
    )
    assert (
        "warning: 1 image was left out (1 .heic): no decoder for them is installed here" in message
    )
    assert len((folder / "out" / "predictions.jsonl").read_text().splitlines()) == 6
    assert not (folder / "out" / "unreadable.txt").exists()


@pytest.mark.parametrize("name", ["predictions.csv", "predictions.jsonl", "probabilities.npz"])
def test_last_lines_that_find_no_room_are_an_error(tmp_path, monkeypatch, capsys, name):
    """Nothing is written before the files are closed; /dev/full says what a full disk says."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(RECIPE)
    weights = weights_of(with_classes(tmp_path / "x"), tmp_path)
    folder = photos(tmp_path / "photos")
    (tmp_path / "out").mkdir()
    full = f".{name}.partial.writing" if name.endswith(".npz") else f"{name}.partial"
    (tmp_path / "out" / full).symlink_to("/dev/full")
    words = ["predict", "mine.py", "--data", "y", "--weights", str(weights), str(folder)]
    assert main([*words, "--workers", "0", "--probabilities", "--out", "out"]) == 1
    message = " ".join(capsys.readouterr().err.split())
    assert "predictions cannot be written to out: No space left on device" in message
    assert not (tmp_path / "out" / name).exists()


def test_user_errors(tmp_path):
    recipe = with_masks(tmp_path)
    weights, images, out = weights_of(recipe, tmp_path), tmp_path / "images", tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.md").touch()
    Image.new("RGB", (9, 9)).save(images / "a.png")
    for paths, kind, message in (
        ((), ValueError, "nothing to predict"),
        ((tmp_path / "nowhere.jpg",), FileNotFoundError, "no file or folder .*nowhere.jpg"),
        (
            (tmp_path / "empty",),
            FileNotFoundError,
            r"no images in .*empty; left out: 1 file \(.md\)",
        ),
        ((images,), ValueError, r"a.jpg and .*a.png would both be written as a.png: rename one"),
    ):
        with pytest.raises(kind, match=message):
            predict(recipe, weights, asked(*paths, out=out))
    with pytest.raises(
        ValueError, match="val_data is of type Images, without an attribute `transform`"
    ):
        predict(recognition(), weights, asked(images, out=out))
    bare = recognition(val_data=Images(3))
    bare.val_data.transform = lambda image, mask: (image, mask)
    with pytest.raises(ValueError, match="transform does not take an image alone"):
        predict(bare, weights, asked(images, out=out))
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match="file/out, which cannot hold results: Not a directory; choose .* --out"
    ):
        predict(recipe, weights, asked(images / "b.jpg", out=tmp_path / "file" / "out"))
    with pytest.raises(ValueError, match="top_k is 0"):
        asked(images, out=out, top_k=0)


def test_models_with_several_outputs_and_other_tasks(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net(True)

        def forward(self, x):
            return {"out": self.net(x), "aux": None}

    recipe = with_masks(tmp_path, model=Two())
    torch.save(recipe.model.state_dict(), tmp_path / "w.pth")
    file = tmp_path / "images" / "a.jpg"
    predict(recipe, tmp_path / "w.pth", asked(file, out=tmp_path / "out"))
    labels = predicted_mask(
        by_hand(recipe, file, long_side(24))["out"][0], read_image(file).shape[-2:]
    )
    assert np.array_equal(
        np.array(Image.open(tmp_path / "out" / "colour" / "a.png")), labels.numpy()
    )

    class Other:
        terms, headline, higher_is_better = ("x",), "x", True
        counts = losses = metrics = labels = predict = None

    other = recognition(task=Other())
    other.val_data.transform = v2.Identity()
    torch.save(other.model.state_dict(), tmp_path / "o.pth")
    with pytest.raises(
        ValueError, match="task Other: predictions are written for Recognition, MultiLabel and"
    ):
        predict(other, tmp_path / "o.pth", asked(file, out=tmp_path / "out"))


@pytest.mark.parametrize("make, name, network", [
    (with_classes, "Recognition",
        lambda: nn.Sequential(nn.Conv2d(3, 9, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())),
    (with_masks, "Segmentation", lambda: nn.Conv2d(3, 9, 1)),
])  # fmt: skip
def test_a_network_with_more_outputs_than_classes_predicts_nothing(make, name, network, tmp_path):
    recipe = replace(make(tmp_path), model=network())
    torch.save(recipe.model.state_dict(), tmp_path / "w.pth")
    asked = PredictOptions(paths=(tmp_path,), out=tmp_path / "out", workers=0)
    with pytest.raises(
        ValueError, match=f"the network has 9 outputs, and {name} has {CLASSES} classes"
    ):
        predict(recipe, tmp_path / "w.pth", asked)
    assert not list((tmp_path / "out").rglob("*.png"))
