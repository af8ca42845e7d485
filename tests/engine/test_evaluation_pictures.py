"""Pictures in the run's folder: a planted fault jumps to the eye, and no training changes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.logs import assert_bit_equal, rows
from helpers.processes import TOYS, torchrun
from helpers.toy_recipes import CLASSES, Images, Maps, everything, recognition, run, segmentation
from trainkit import Options, evaluate, train
from trainkit.data.mixup import Cutmix, Mixup
from trainkit.data.palette import class_colours
from trainkit.engine.evaluation_pictures import NAMES
from trainkit.engine.shown_images import chosen, worst_by
from trainkit.inference import Inference
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.segmentation import Segmentation

TOP, SIDE = 61, 216  # of the first tile of a sheet of 12 x 12 images, magnified 18 times


def first_tile(file: Path, place: int = 0) -> np.ndarray:
    """The first image of a sheet: (12, 12, 3), the mean of each magnified pixel's middle."""
    page = np.asarray(Image.open(file).convert("RGB")).astype(float)
    left = 8 + place * (SIDE + 2)
    tile = page[TOP : TOP + SIDE, left : left + SIDE]
    cells = tile.reshape(12, 18, 12, 18, 3)[:, 5:13, :, 5:13]
    return cells.mean((1, 3))


class Plain(Images):
    """Smooth images, whose pictures as JPEG are those that the dataset gives, nearly."""

    def __init__(self, num_images: int, fault: str = ""):
        super().__init__(num_images, augment=False)
        rows, columns = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
        shape = torch.stack([rows * 18, columns * 18, 200 - rows * 9])
        self.images = (shape + torch.arange(num_images).view(-1, 1, 1, 1)).to(torch.uint8)
        self.fault = fault

    def __getitem__(self, index: int):
        image, target = self.images[index], self.targets[index]
        if self.fault == "channels":
            image = image.flip(0)
        if self.fault == "crop":
            image = image.roll(4, -1)
        if self.fault == "labels":
            target = (target + 1) % CLASSES
        return image, target


def drawn(tmp_path: Path, fault: str) -> Path:
    options = Options(out=tmp_path / (fault or "right"), workers=0, report=False)
    task = Recognition([f"class number {number}" for number in range(CLASSES)])
    data = {"train_data": Plain(27, fault), "val_data": Plain(13, fault)}
    torch.manual_seed(0)
    train(recognition(task=task, epochs=0.5, **data), options)
    return options.out


def test_the_first_batch_is_as_the_dataset_gives_it(tmp_path):
    """And a wrong channel order, crop or label shows in the picture."""
    right = drawn(tmp_path, "")
    seen = first_tile(right / "train_batch.jpg")
    given = [Plain(27).images[index].permute(1, 2, 0).double().numpy() for index in range(27)]
    assert min(np.abs(seen - image).mean() for image in given) < 3
    page = np.asarray(Image.open(right / "train_batch.jpg")).astype(int)
    for fault in ("channels", "crop", "labels"):
        wrong = drawn(tmp_path, fault)
        other = np.asarray(Image.open(wrong / "train_batch.jpg")).astype(int)
        differs = np.abs(first_tile(wrong / "train_batch.jpg") - seen).mean()
        if fault == "labels":  # the same image, and another name below it
            assert differs < 3
            below = (slice(TOP + SIDE, TOP + SIDE + 25), slice(8, 8 + SIDE))
            assert (np.abs(page[below] - other[below]) > 60).sum() > 20
        else:
            assert differs > 20, fault


def test_masks_lie_over_the_image_they_are_of(tmp_path):
    """True beside predicted, in the colours of the classes; void is hatched; a shift shows."""

    class Halves(Plain):
        def __getitem__(self, index):
            image, _ = super().__getitem__(index)
            mask = torch.zeros(12, 12, dtype=torch.uint8)
            mask[:, 6:] = 1
            mask[10:] = 255
            if self.fault == "labels":
                mask = torch.where(mask == 255, mask, mask + 1)
            return image, mask

    colours = class_colours(CLASSES).astype(float)
    for fault, labels in (("", (0, 1)), ("labels", (1, 2))):
        data = {"train_data": Halves(27, fault), "val_data": Halves(13, fault)}
        out = tmp_path / (fault or "right")
        train(segmentation(**data, epochs=0.5), Options(out=out, workers=0, report=False))
        batch = [first_tile(out / "train_batch.jpg", place) for place in range(2)]
        laid = first_tile(out / "val_predictions.jpg")
        image = Halves(13).images[0].permute(1, 2, 0).numpy()
        for columns, label in ((slice(0, 6), labels[0]), (slice(6, 12), labels[1])):
            expected = 0.45 * image[:10, columns] + 0.55 * colours[label]
            assert np.abs(laid[:10, columns] - expected).mean() < 6
            over = 0.45 * batch[0][:10, columns] + 0.55 * colours[label]
            assert np.abs(batch[1][:10, columns] - over).mean() < 6
        void = np.asarray(Image.open(out / "val_predictions.jpg").convert("L")).astype(int)
        void = void[TOP + 185 : TOP + SIDE - 4, 12 : 8 + SIDE - 4]
        assert void.std() > 40, "stripes"
        assert (out / "classes.jpg").exists() and (out / "worst.jpg").exists()


@pytest.mark.parametrize("mix", [Mixup(1.0, CLASSES), Cutmix(1.0, CLASSES)])
def test_what_is_mixed_is_what_the_first_step_gets(tmp_path, mix):
    recipe = recognition(mix=mix, epochs=0.5, train_data=Plain(27))
    seen = []
    recipe.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    train(recipe, Options(out=tmp_path, workers=0, report=False))
    shown = first_tile(tmp_path / "train_batch.jpg")
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (recipe.mean, recipe.std))
    given = ((seen[0][0] * std + mean) * 255).permute(1, 2, 0).numpy()
    assert np.abs(shown - given).mean() < 4


@pytest.mark.parametrize("name", ["all", "all-dense", "batch-norm-windows"])
def test_pictures_change_no_training(tmp_path, name):
    for number, pictures in enumerate((True, False)):
        run(name, tmp_path / str(number) / name, pictures=pictures, report=False)
    one, other = (tmp_path / str(number) / name for number in range(2))
    assert_bit_equal(one, other)
    assert rows(one, "evaluate") == rows(other, "evaluate")
    assert (one / "train_batch.jpg").exists() and (one / "shown").exists()
    assert not [path for path in other.iterdir() if path.name in (*NAMES, "shown")]


def test_two_processes_show_what_one_would(tmp_path):
    """The main process reads what the rows of all say, images of the other one's share too."""
    torchrun(2, TOYS, tmp_path, "all-dense", "recognition")
    for name in ("all-dense", "recognition"):
        index = sorted((tmp_path / name).glob("shown/*/index.json"))[-1]
        entries = json.loads(index.read_text())
        stem = index.parent.name
        with np.load(tmp_path / name / "evaluations" / f"{stem}.npz") as content:
            arrays = {key: content[key] for key in content.files}
        expected = chosen(arrays, 16)
        pairs = [
            (kind, number)
            for kind in ("worst", "median", "mistake")
            for number in expected.get(kind, ())
        ]
        assert [(entry["kind"], entry["index"]) for entry in entries] == pairs
        assert max(entry["index"] for entry in entries) > 6
        parts = ("image", "target", "prediction", "error") if name == "all-dense" else ("image",)
        names = {f"{entry['index']}-{part}.webp" for entry in entries for part in parts}
        assert names | {"index.json"} == {path.name for path in index.parent.iterdir()}


def test_thumbnails_for_a_report(tmp_path):
    recipe = replace(segmentation(epochs=0.5), inference=Inference(window=8, stride=4))
    train(recipe, Options(out=tmp_path, workers=0))
    (folder,) = (tmp_path / "shown").iterdir()
    entries = json.loads((folder / "index.json").read_text())
    worst = [entry for entry in entries if entry["kind"] == "worst"]
    ious = [entry["iou"] for entry in worst]
    assert len(worst) == 12 and ious == sorted(ious), "one image is ignored throughout"
    for entry in entries:
        for part in ("image", "target", "prediction", "error"):
            with Image.open(folder / f"{entry['index']}-{part}.webp") as thumbnail:
                assert max(thumbnail.size) <= 256
    files = {path.name for path in folder.iterdir()}
    assert len(files) == 1 + 4 * len({entry["index"] for entry in entries})


def test_which_images_are_shown():
    losses = np.array([3, 1, np.nan, 5, 4, 2], dtype=np.float32)
    arrays = {
        "loss": losses,
        "target": np.array([0, 0, -1, 0, 0, 1]),
        "predicted": np.array([1, 1, 0, 1, 1, 1]),
        "probability": np.array([0.9, 0.2, 0.99, 0.8, 0.7, 0.95]),
    }
    found = chosen(arrays, 2)
    assert found == {"worst": [3, 4], "median": [0], "mistake": [0, 3]}
    assert chosen(arrays, 16)["mistake"] == [0, 3, 4], "three of a class, ignored ones none"
    assert chosen({"ids": np.arange(3)}, 4) == {}
    assert worst_by(arrays) == "the highest loss"


def test_of_several_labels_the_most_wrong_come_first():
    """By the thresholds of the evaluation; of as many wrong ones the highest loss comes first."""
    odds = np.log(np.array([[3, 1 / 3, 3], [1 / 3, 3, 3], [3, 3, 1 / 3], [3, 3, 3], [3, 3, 3]]))
    arrays = {
        "score": odds.astype(np.float32),  # probabilities of 0.75 and 0.25
        "target": np.array([[1, 0, 1], [1, 0, 1], [1, 0, -1], [1, 0, 1], [0, -1, 1]], np.int8),
        "loss": np.array([9, 1, 0.5, 0.7, 0.6], dtype=np.float32),
    }
    assert chosen(arrays, 5)["worst"] == [1, 3, 4, 2, 0], "2, 1, 1, 1 and no wrong labels"
    assert worst_by(arrays) == "the most wrong labels"
    stricter = {**arrays, "thresholds": np.array([0.8, 0.8, 0.5])}
    assert chosen(stricter, 5)["worst"] == [0, 1, 3, 2, 4], "1, 1, 1, 1 and 0"
    masks = {name: np.ones((1, 2), np.int32) for name in ("intersection", "true_pixels")}
    assert worst_by(masks) == "the lowest IoU"


def test_a_picture_that_cannot_be_drawn_ends_nothing(tmp_path, capsys):
    """The dataset gives each validation image once, and then fails."""

    class Once(Images):
        def __init__(self):
            super().__init__(13, augment=False)
            self.given = set()

        def __getitem__(self, index):
            if index in self.given:
                raise KeyError(f"{index} was read before")
            self.given.add(index)
            return super().__getitem__(index)

    train(recognition(epochs=1, val_data=Once()), Options(out=tmp_path, workers=0))
    out = capsys.readouterr().out
    assert out.count("warning: pictures cannot be drawn: KeyError") == 1
    assert (tmp_path / "summary.json").exists() and (tmp_path / "train_batch.jpg").exists()
    assert not (tmp_path / "worst.jpg").exists()


class Strange(Images):
    """Images of other channels, or floats."""

    def __init__(self, number, kind):
        super().__init__(number, augment=False)
        self.kind = kind

    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        if self.kind == "grey":
            image = image[:1]
        elif self.kind == "five":
            image = torch.cat([image, image[:2]])
        elif self.kind == "16 bits":
            image = (image.to(torch.int32) * 257).to(torch.uint16)
        elif self.kind == "floats":
            image = image.float() / 255
        return image, target


@pytest.mark.parametrize("kind", ["grey", "five", "16 bits", "floats"])
def test_images_of_any_kind(tmp_path, kind):
    number = {"grey": 1, "five": 5}.get(kind, 3)
    recipe = recognition(epochs=0.5, train_data=Strange(27, kind), val_data=Strange(13, kind))
    recipe.model.backbone[0] = torch.nn.Conv2d(number, 8, 3, padding=1)
    optimizer = torch.optim.SGD(recipe.model.parameters(), lr=0.1)
    look = {"mean": (0.5,) * number, "std": (0.25,) * number}
    recipe = replace(recipe, optimizer=optimizer, **look)
    train(recipe, Options(out=tmp_path, workers=0, report=False))
    seen = first_tile(tmp_path / "val_predictions.jpg")
    image = Images(13, augment=False).images[0].permute(1, 2, 0).numpy().astype(float)
    image = image[..., :1].repeat(3, 2) if kind == "grey" else image
    assert np.abs(seen - image).mean() < 25 and (kind != "grey" or np.ptp(seen, 2).max() < 4)


def test_evaluate_leaves_them_where_its_results_go(tmp_path):
    recipe = everything()
    train(recipe, Options(out=tmp_path / "run", workers=0, pictures=False))
    (tmp_path / "out").mkdir()
    evaluate(everything(), tmp_path / "run", workers=0, out=tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"evaluations", "shown", "val_predictions.jpg", "worst.jpg"}
    folder = tmp_path / "out/shown/evaluate"
    assert (folder / "index.json").exists()
    (folder / "99-image.webp").write_bytes(b"of an earlier evaluation")
    (folder / "mine.txt").write_text("mine")
    evaluate(everything(), tmp_path / "run", workers=0, out=tmp_path / "out")
    entries = json.loads((folder / "index.json").read_text())
    shown = {f"{entry['index']}-image.webp" for entry in entries}
    assert {path.name for path in folder.iterdir()} == {*shown, "index.json", "mine.txt"}


def test_a_mask_of_another_size_and_an_ignored_label_of_ones_own(tmp_path):
    class Large(Maps):
        def __getitem__(self, index):
            image, target = super().__getitem__(index)
            target = torch.where(target == 255, 9, target.long())
            return image, target.repeat_interleave(2, 0).repeat_interleave(2, 1)

    recipe = segmentation(
        epochs=0.25, task=Segmentation(CLASSES, ignore=9), train_data=Large(27),
        val_data=Large(13, augment=False),
    )  # fmt: skip
    train(recipe, Options(out=tmp_path, workers=0))
    assert {path.name for path in tmp_path.iterdir()} >= set(NAMES)
