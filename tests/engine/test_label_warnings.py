"""Classes that nothing is labelled with.

Told before a training, by its log, by its evaluations and in its summary.
"""

import json
import shutil
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from torch.utils.data import Subset

from helpers.toy_recipes import CLASSES, Images, Maps, Net, recognition, segmentation
from trainkit import Options, train
from trainkit.commands.check import check
from trainkit.commands.doctor import examine
from trainkit.data.datasets.folder import ClassFolder, MaskFolder
from trainkit.data.datasets.repeated import Repeated
from trainkit.engine.evaluation import evaluate
from trainkit.engine.label_warnings import (
    NUM_MASKS,
    WITHOUT,
    evaluation_warnings,
    training_warnings,
)
from trainkit.engine.one_class import refuse_one_class
from trainkit.engine.plan import TrainPlan
from trainkit.errors import UserError
from trainkit.metrics.recognition import TopK
from trainkit.metrics.segmentation import MeanIoU
from trainkit.optim import param_groups
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.segmentation import Segmentation

NAMES = ("bg", "fg")


class Two(Maps):
    """Masks of the two classes that `values` say, in halves; 255 is ignored."""

    def __init__(self, num_images: int, values=(0, 1)):
        super().__init__(num_images, augment=False)
        self.values = values

    def __getitem__(self, index: int):
        mask = torch.full((12, 12), self.values[0], dtype=torch.uint8)
        mask[:, 6:] = self.values[1]
        return self.images[index], mask


class Labelled(Images):
    """The class ids that `labels` say, in turn."""

    def __init__(self, num_images: int, labels):
        super().__init__(num_images, augment=False)
        self.targets = torch.tensor(labels).repeat(num_images)[:num_images]


def test_a_class_folder_without_images_is_reported_once(tmp_path, capsys):
    """And kept: with the line about it, and with what the run was trained on."""
    for number in range(CLASSES):
        (tmp_path / "data" / f"class-{number}").mkdir(parents=True)
    for index in range(16):
        pixels = np.full((12, 12, 3), 10 * index, dtype=np.uint8)
        Image.fromarray(pixels).save(
            tmp_path / "data" / f"class-{index % (CLASSES - 1)}" / f"{index}.png"
        )
    data = ClassFolder(tmp_path / "data")
    message = f"1 of {CLASSES} classes has no image in {tmp_path / 'data'}: class-{CLASSES - 1}"
    task = Recognition(data.classes)
    summary, _ = run(recognition(task=task, train_data=data, epochs=1), tmp_path / "run")
    out = " ".join(capsys.readouterr().out.split())
    assert (
        f"warning: train: {message}" in out
        and out.count("no image in") == 1
        and "no training image" not in out
    )
    assert summary["warnings"][0] == message
    assert summary["data"] == {
        "train": f"16 images of {CLASSES} classes (16 png)",
        "val": "13 images",
    }
    assert (
        check(recognition(task=task, train_data=data, epochs=1), Options(workers=0))[
            "warnings"
        ].count(message)
        == 1
    )
    assert capsys.readouterr().out.count("no image in") == 1
    half = Subset(data, [0, 6, 12, 1])  # lacks others too
    assert "4 of 7 classes (class-1" in training_warnings(half, task)[0]


def two_classes(train_values=(0, 1), val_values=(0, 1), **changes):
    model = Net(dense=True)
    model.head = torch.nn.Conv2d(8, 2, 1)
    optimizer = torch.optim.SGD(param_groups(model, 0.1, 1e-3), lr=0.1)
    data = {"train_data": Two(16, train_values), "val_data": Two(5, val_values)}
    return segmentation(
        task=Segmentation(NAMES), model=model, optimizer=optimizer, epochs=1, **{**data, **changes}
    )


def run(recipe, folder, **options) -> tuple[dict, list[dict]]:
    summary = train(recipe, Options(out=folder, workers=0, log_every=1, **options))
    assert json.loads((folder / "summary.json").read_text())["warnings"] == summary["warnings"]
    return summary, [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def folder_of_masks(root, masks) -> MaskFolder:
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for number, mask in enumerate(masks):
        Image.fromarray(mask).save(root / "masks" / f"{number:03d}.png")
        Image.new("RGB", mask.shape[::-1]).save(root / "images" / f"{number:03d}.png")
    return MaskFolder(root / "images", root / "masks", 2)


def test_a_metric_of_one_class_alone_chooses_no_best(tmp_path, capsys):
    """As masks of 0 and 255 give with two classes: 100 % on nothing."""
    summary, rows = run(two_classes(val_values=(0, 255)), tmp_path)
    (row,) = [row for row in rows if row["event"] == "evaluate"]
    assert row[WITHOUT] == ["fg"] and row["mIoU"] is not None
    assert row["best"] is None and summary["best"] == {"mIoU": None, "step": None}
    message = (
        "class fg has no label in the validation data: mIoU is of one class alone, "
        "and no checkpoint is called best by"
    )
    assert (
        summary["warnings"] == [f"{message} it"]
        and f"warning: {message}" in capsys.readouterr().out
    )
    sound, rows = run(two_classes(), tmp_path / "sound")
    assert (
        sound["warnings"] == []
        and sound["best"]["step"] == 2
        and not any(WITHOUT in row for row in rows)
    )


def test_a_validation_split_without_any_label(tmp_path, capsys):
    message = (
        "no validation image has a label: there is nothing to measure, and no checkpoint is called"
        " best"
    )
    summary, rows = run(two_classes(val_values=(255, 255)), tmp_path / "masks")
    assert summary["warnings"] == [message] and summary["best"]["step"] is None
    assert next(row["mIoU"] for row in rows if row["event"] == "evaluate") is None
    recipe = recognition(val_data=Labelled(13, [-1]), epochs=1)
    summary, _ = run(recipe, tmp_path / "ids")
    assert summary["warnings"][-1] == message and summary["best"]["step"] is None
    assert capsys.readouterr().out.count(f"warning: {message}") == 2
    results = evaluate(recipe, tmp_path / "ids", workers=0)
    assert (
        results["top1"] is None
        and "top1_95" not in results
        and results[WITHOUT] == [str(i) for i in range(7)]
    )
    assert f"warning: {message}" in capsys.readouterr().out


def test_classes_that_an_evaluation_lacks_beside_others(tmp_path):
    """Counted over averaged weights once, and of the exact targets."""
    summary, rows = run(recognition(val_data=Labelled(13, [0, 2, 5]), epochs=1, ema=0.9), tmp_path)
    row = next(row for row in rows if row["event"] == "evaluate")
    assert (
        row[WITHOUT] == ["1", "3", "4", "6"]
        and f"ema_{WITHOUT}" not in row
        and row["best"] is not None
    )
    message = summary["warnings"][-1]
    assert (
        message
        == "4 of 7 classes (1, 3, 4, 6) have no label in the validation data: nothing measures them"
    )
    many = Recognition([f"c{number}" for number in range(40)])
    (message,) = evaluation_warnings({WITHOUT: [f"c{number}" for number in range(9)]}, many)
    assert message.startswith("9 of 40 classes (c0, c1, c2, c3, c4 and 4 more) have no label")


def test_intervals_without_a_valid_target_are_counted(tmp_path, capsys):
    recipe = two_classes(train_values=(255, 255))
    summary, rows = run(recipe, tmp_path / "whole")
    assert (
        "warning: no target was valid in steps 1 to 1, which learnt nothing"
        in capsys.readouterr().out
    )
    assert [row["intervals_without_targets"] for row in rows if row["event"] == "step"] == [1, 2]
    assert summary["warnings"][0].startswith(
        "2 log intervals had no valid target: their steps learnt nothing"
    )


class Half(Two):
    """Labelled in the first of two batches alone."""

    def __init__(self, num_images: int, first: set[int]):
        super().__init__(num_images)
        self.first = first

    def __getitem__(self, index: int):
        image, mask = super().__getitem__(index)
        return image, mask if index in self.first else torch.full_like(mask, 255)


def test_an_interval_with_labels_in_its_first_step_alone_is_none_without_them(tmp_path):
    options = Options(out=tmp_path / "run", workers=0, log_every=2, checkpoint_every=1)
    plan = TrainPlan(two_classes(), options, 1)
    first = {index for _, index in plan.order.keys(0)}
    assert len(first) == 8 and plan.total_steps == 2
    assert train(two_classes(train_data=Half(16, first)), options)["warnings"] == []
    # as if it had been killed between the two
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000000002")
    (tmp_path / "run" / "summary.json").unlink()
    assert train(two_classes(train_data=Half(16, first)), options)["warnings"] == []
    other = set(range(16)) - first
    (message,) = train(
        two_classes(train_data=Half(16, other)),
        replace(options, out=tmp_path / "other", log_every=1),
    )["warnings"]
    assert message.startswith("1 log intervals had no valid target")


@pytest.mark.parametrize("number", [3, 2 * NUM_MASKS])
def test_masks_of_0_and_255_are_reported_before_the_training(number, tmp_path, capsys):
    mask = np.zeros((4, 6), np.uint8)
    mask[:2, :3] = 255
    data = folder_of_masks(tmp_path, [mask] * number)
    (message,) = training_warnings(data, Segmentation(NAMES))
    which = (
        "no training mask"
        if number == 3
        else f"none of {NUM_MASKS} sampled training masks ({number} there are)"
    )
    assert (
        message
        == f"class fg has {which}, and label 255, which is ignored, stands on 25.0 % of the pixels."
        " Where it is a class, say which label each class has (seg_folder: --mask-values), or"
        " what is ignored (--ignore)"
    )
    assert training_warnings(Subset(data, [0, 1]), Segmentation(NAMES))[0].startswith(
        "class fg has no training mask"
    )
    assert training_warnings(Repeated(data, 3), Segmentation(NAMES)) == [message]


@pytest.mark.parametrize(
    ("label", "number", "found", "both"),
    [
        (0, 3, "labels 0 and 255 alone (3 of 3 were read)", "0,255"),
        (1, 2, "labels 1 and 255 alone (2 of 2 were read)", "1,255"),
        (255, 3, "label 255 alone (3 of 3 were read)", "0,255"),
        (0, 257, "labels 0 and 255 alone (256 of 257 were read)", "0,255"),
    ],
)
def test_masks_with_one_class_beside_255_are_refused(label, number, found, both, tmp_path, capsys):
    mask = np.full((4, 6), label, np.uint8)
    mask[:2, :3] = 255
    data = folder_of_masks(tmp_path / "data", [mask] * number)
    recipe = two_classes(train_data=data)
    with pytest.raises(UserError) as refused:
        train(recipe, Options(out=tmp_path / "run", workers=0))
    assert f"the training masks hold {found}, and 255 counts nowhere unless" in str(refused.value)
    assert f"--classes background,object --mask-values {both}. Where it" in str(refused.value)
    assert "to be ignored: --mask-values 0,1." in str(refused.value)
    assert not (tmp_path / "run").exists()
    report = examine(recipe, 0, tmp_path / "doctor")
    assert report["num_errors"] == 1 and report["refusal"] == str(refused.value)
    assert f"error: {refused.value}" in " ".join(capsys.readouterr().out.split())


def test_one_class_beside_255_where_it_is_asked_for(tmp_path):
    """By mask_values, or by ignored labels of one's own; a second class anywhere is enough."""
    mask = np.zeros((4, 6), np.uint8)
    mask[:2, :3] = 255
    refuse_one_class(folder_of_masks(tmp_path / "none", [mask * 0]))  # 255 is nowhere
    folder = tmp_path / "some"
    lonely = mask.copy()
    lonely[3, 3] = 1
    refuse_one_class(folder_of_masks(folder, [mask, mask, lonely]))
    (folder / "masks" / "002.png").unlink()
    (folder / "images" / "002.png").unlink()
    files = folder / "images", folder / "masks", 2
    with pytest.raises(UserError, match="hold labels 0 and 255 alone"):
        refuse_one_class(MaskFolder(*files))
    for said in ({"mask_values": (0, 255)}, {"mask_values": (0, 1)}, {"ignore": (255, 7)}):
        refuse_one_class(MaskFolder(*files, **said))


def test_a_mask_that_a_decoder_stumbles_over_is_left_to_the_training(tmp_path):
    """Whatever Pillow raises in a dataset of one's own; a bug of the dataset is reported."""
    folder_of_masks(tmp_path, [np.full((4, 4), value, np.uint8) for value in (1, 0, 1)])

    class Own(MaskFolder):
        def read_labels(self, file):
            if file.name == "001.png":
                PngImagePlugin.PngStream(BytesIO(b"\0\0")).read()  # struct.error
            return super().read_labels(file)

    class Mistaken(MaskFolder):
        def read_labels(self, file):
            return super().read_labels(file, None)

    (message,) = training_warnings(
        Own(tmp_path / "images", tmp_path / "masks", 2), Segmentation(NAMES)
    )
    assert message.startswith("class bg has none of 2 sampled training masks (3 there are)")
    with pytest.raises(TypeError):
        training_warnings(Mistaken(tmp_path / "images", tmp_path / "masks", 2), Segmentation(NAMES))


def test_what_the_other_masks_hold(tmp_path):
    mask = np.zeros((4, 6), np.uint8)
    lonely = mask.copy()
    lonely[0, 0] = 1
    task = Segmentation(NAMES)
    assert training_warnings(folder_of_masks(tmp_path / "all", [mask, mask, lonely]), task) == []
    assert training_warnings(folder_of_masks(tmp_path / "none", [mask, mask]), task) == [
        "class fg has no training mask"
    ]
    data = folder_of_masks(tmp_path / "torn", [mask, mask, mask])
    (tmp_path / "torn" / "masks" / "001.png").write_bytes(b"torn")
    Image.fromarray(mask + 9).save(tmp_path / "torn" / "masks" / "002.png")  # none of the classes
    assert training_warnings(data, task) == [
        "class fg has none of 1 sampled training masks (3 there are); trainkit doctor reads all"
    ]
    # not of trainkit.data: nothing of it is read
    assert training_warnings(Two(3, (0, 255)), task) == []


@pytest.mark.parametrize("kind", [lambda ids: ids, list, np.asarray])
def test_class_ids_at_hand_are_all_counted(kind):
    data = Labelled(90, [0, 1, 2, 4, 6, -1])
    data.targets = kind(data.targets.tolist() if kind is list else data.targets)
    (message,) = training_warnings(data, Recognition(CLASSES))
    assert message == "2 of 7 classes (3, 5) have no training image"
    assert training_warnings(Subset(data, [0, 1]), Recognition(CLASSES))[0].startswith(
        "5 of 7 classes (2, 3, 4, 5, 6)"
    )
    assert training_warnings(Images(90), Recognition(CLASSES)) == []


def test_the_training_tells_and_keeps_it(tmp_path, capsys):
    summary, _ = run(recognition(train_data=Labelled(27, [0, 1, 2, 3, 4, 5]), epochs=1), tmp_path)
    message = "class 6 has no training image"
    assert message in summary["warnings"] and f"warning: {message}" in capsys.readouterr().out


def test_the_doctor_says_how_much_is_ignored(tmp_path):
    mask = np.zeros((4, 6), np.uint8)
    mask[:2, :3] = 255
    data = folder_of_masks(tmp_path, [mask] * 2)
    report = examine(two_classes(train_data=data, val_data=data), 0, tmp_path / "doctor")
    message = "; ".join(report["warnings"])
    assert (
        "1 of 2 classes are in no train image: fg; 25.0 % of the train pixels are ignored"
        in message
    )


def test_counts_of_each_class_follow_the_references():
    generator = torch.Generator().manual_seed(0)
    references = torch.randint(-2, 5, (200,), generator=generator)
    wanted = [int((references == label).sum()) for label in range(5)]
    metric = TopK((1, 2), 5)
    for part in references.split(37):
        metric.add_batch(
            predictions=torch.randn(len(part), 5, generator=generator), references=part
        )
    assert metric.class_counts().tolist() == wanted
    assert set(metric.compute()) == {"top1", "top2"} and metric.class_counts().tolist() == [0] * 5
    dense = MeanIoU(5, ignore=-1)
    maps = references.clamp(min=-1).view(2, 10, 10)
    dense.add_batch(predictions=torch.randint(5, maps.shape, generator=generator), references=maps)
    assert dense.class_counts().tolist() == wanted
