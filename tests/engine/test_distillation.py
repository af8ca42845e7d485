"""A student learns from a teacher: the loss by hand, what a resume keeps, what is refused."""

import json
import shutil

import pytest
import torch
from torch.nn import functional as F

from helpers.logs import assert_bit_equal, rows, timeless_row, weights
from helpers.processes import TESTS, TOYS, torchrun
from helpers.teachers import write_teacher
from helpers.toy_recipes import (
    CLASSES,
    Images,
    Maps,
    depths,
    labels,
    overlapping,
    recognition,
    run,
    segmentation,
)
from trainkit import Options, train
from trainkit.cli import main
from trainkit.data.bands import PixelSettings
from trainkit.data.mixup import Mixup
from trainkit.data.to_device import MEAN, STD, ToDevice
from trainkit.engine.distillation import Distillation
from trainkit.engine.task_module import TaskModule
from trainkit.errors import MissingFileError, UserError
from trainkit.tasks.mask_classification import MaskClassification
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.segmentation import Segmentation

OTHER = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}  # than the student's
NAMES = [f"class{number}" for number in range(CLASSES)]


def batch(data, indices):
    images, targets = zip(*[data[index] for index in indices])
    return torch.stack(images), torch.stack(targets)


def in_training(recipe, folder, **options):
    """Distillation and module, as a training has them."""
    distillation = Distillation(recipe, Options(teacher=folder, **options))
    read, _ = batch(recipe.train_data, [0])
    images, _ = ToDevice(torch.device("cpu"), recipe.mean, recipe.std)(read, torch.empty(1))
    distillation.begin(torch.device("cpu"), read, images)
    return distillation, TaskModule(recipe.model, recipe.task, distillation).train()


def teacher_logits(distillation, read, mean=MEAN, std=STD):
    images, _ = ToDevice(torch.device("cpu"), mean, std)(read, torch.empty(len(read)))
    with torch.no_grad():
        return distillation.teacher(images)


def divergence(outputs, teacher, temperature):
    ours, theirs = (outputs / temperature).log_softmax(1), (teacher / temperature).softmax(1)
    return temperature**2 * F.kl_div(ours, theirs, reduction="none").sum(1)


@pytest.mark.parametrize("norm", [{}, OTHER], ids=["same mean and std", "others"])
def test_recognition_by_hand(norm, tmp_path):
    recipe = recognition(train_data=Images(27, augment=False))
    folder = write_teacher(tmp_path / "teacher", **norm)
    distillation, module = in_training(recipe, folder, distill=0.3, temperature=4.0)
    read, targets = batch(recipe.train_data, range(8))
    targets[2] = -1
    images, _ = ToDevice(torch.device("cpu"), MEAN, STD)(read, targets)
    losses = module(images, targets)

    outputs, valid = recipe.model(images), targets >= 0
    teacher = teacher_logits(distillation, read, **norm)
    own = F.cross_entropy(outputs, targets, ignore_index=-1, reduction="sum", label_smoothing=0.1)
    distance = divergence(outputs, teacher, 4.0)[valid].sum()
    expected = torch.stack([0.7 * own, 0.3 * distance])
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    assert distillation.counts(targets).tolist() == [7, 7]
    assert distillation.terms == ("cross_entropy", "distillation")

    # the same mixed images, and mixed targets that an ignored image has a part in
    mixed, soft = Mixup(1.0, CLASSES)(images, targets, seed=3)
    losses = module(mixed, soft)
    back = mixed * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    mean, std = (norm.get(name, usual) for name, usual in (("mean", MEAN), ("std", STD)))
    with torch.no_grad():
        seen = (back - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        teacher = distillation.teacher(seen)
    shares = soft.sum(1)
    distance = (divergence(recipe.model(mixed), teacher, 4.0) * shares).sum()
    assert losses[1].item() == pytest.approx(0.3 * distance.item(), rel=1e-4)
    assert distillation.counts(soft)[1].item() == pytest.approx(shares.sum().item())
    assert 0 < shares.min() < 1


def test_segmentation_by_hand_at_an_odd_size(tmp_path):
    recipe = segmentation(train_data=Maps(27, augment=False, size=13), task=Segmentation(CLASSES))
    folder = write_teacher(tmp_path / "teacher", dense=True)
    distillation, module = in_training(recipe, folder)
    read, targets = batch(recipe.train_data, range(4))
    images, _ = ToDevice(torch.device("cpu"), MEAN, STD)(read, targets)
    losses = module(images, targets)
    teacher = teacher_logits(distillation, read)
    teacher = teacher["out"] if isinstance(teacher, dict) else teacher
    teacher = F.interpolate(teacher, (13, 13), mode="bilinear", align_corners=False)
    valid = targets != 255
    distance = divergence(recipe.model(images), teacher, 2.0)[valid].sum()
    assert losses[1].item() == pytest.approx(0.5 * distance.item(), rel=1e-5)
    assert distillation.counts(targets).tolist() == [valid.sum(), valid.sum()]


def test_classes_in_another_order_are_mapped_by_name(tmp_path):
    recipe = recognition(task=Recognition(NAMES))
    folder = write_teacher(tmp_path / "teacher", classes=NAMES[::-1])
    distillation, module = in_training(recipe, folder, distill=1.0)
    read, targets = batch(recipe.train_data, range(4))
    images, _ = ToDevice(torch.device("cpu"), MEAN, STD)(read, targets)
    teacher = teacher_logits(distillation, read).flip(1)
    distance = divergence(recipe.model(images), teacher, 2.0).sum()
    assert module(images, targets)[1].item() == pytest.approx(distance.item(), rel=1e-5)


@pytest.mark.parametrize("dense", [False, True])
def test_of_any_number_of_classes_by_hand(dense, tmp_path):
    """Each class's probability of its own, of what is known alone."""
    recipe, classes = (overlapping(), 3) if dense else (labels(), CLASSES)
    folder = write_teacher(tmp_path / "teacher", dense, classes=classes, any_number=True, **OTHER)
    distillation, module = in_training(recipe, folder, distill=0.3, temperature=2.0)
    read, targets = batch(recipe.train_data, range(8))
    images, _ = ToDevice(torch.device("cpu"), recipe.mean, recipe.std)(read, targets)
    teacher = teacher_logits(distillation, read, *OTHER.values())
    teacher = teacher["out"] if dense else teacher
    found = module(images, targets).detach()
    with torch.no_grad():
        student = recipe.model(images)
        own = recipe.task.losses(student, targets)
    p, q = (teacher / 2).double().sigmoid(), (student / 2).double().sigmoid()
    each = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    wanted = 4 * each[targets >= 0].sum().item()
    assert found[-1].item() == pytest.approx(0.3 * wanted, rel=1e-4)
    torch.testing.assert_close(found[:-1], 0.7 * own)
    counts = distillation.counts(targets)
    assert counts[-1].item() == (targets >= 0).sum() and len(counts) == len(found)


def test_the_teacher_is_no_part_of_what_is_trained(tmp_path):
    recipe = recognition()
    alone = TaskModule(recipe.model, recipe.task)
    distillation, module = in_training(recipe, write_teacher(tmp_path / "teacher"))
    assert module.state_dict().keys() == alone.state_dict().keys()
    assert len(list(module.modules())) == len(list(alone.modules()))
    before = {name: value.clone() for name, value in distillation.teacher.state_dict().items()}
    read, targets = batch(recipe.train_data, range(8))
    module(*ToDevice(torch.device("cpu"), MEAN, STD)(read, targets)).sum().backward()
    assert not any(each.training for each in distillation.teacher.modules())
    assert all(each.grad is None for each in distillation.teacher.parameters())
    after = distillation.teacher.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def assert_one_curve(one, other):
    for name in ("loss", "loss_cross_entropy", "loss_distillation"):
        expected = [row[name] for row in rows(one)]
        assert [row[name] for row in rows(other)] == pytest.approx(expected, rel=1e-5)
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(other)[name], value, rtol=1e-4, atol=1e-6)


def test_processes_and_micro_batches_change_nothing(tmp_path, monkeypatch):
    folder = write_teacher(tmp_path / "teacher", **OTHER)
    monkeypatch.setenv("TOY_TEACHER", str(folder))
    run("recognition-mixup", tmp_path / "one")
    torchrun(2, TOYS, tmp_path / "two", "recognition-mixup-2", TOY_TEACHER=str(folder))
    assert_one_curve(tmp_path / "one", tmp_path / "two" / "recognition-mixup-2")


def test_resumed_bit_equal_and_only_with_the_same_teacher(tmp_path):
    folder = write_teacher(tmp_path / "teacher")
    given = {"teacher": folder, "distill": 0.4}
    run("all", tmp_path / "unstopped", **given)
    stopped = tmp_path / "stopped"
    shutil.copytree(tmp_path / "unstopped", stopped)
    # as a kill between steps 10 and 12 leaves it
    shutil.rmtree(stopped / "checkpoints" / "step-000000012")
    (stopped / "summary.json").unlink()

    def refused(message, **changes):
        with pytest.raises(UserError, match=message):
            run("all", stopped, **{**given, **changes})

    other = write_teacher(tmp_path / "other", seed=2)
    refused("teacher was '[0-9a-f]{64}' and is '[0-9a-f]{64}'", teacher=other)
    refused("distill was 0.4 and is 0.5", distill=None)
    recorded = json.loads((stopped / "settings.json").read_text())
    assert recorded["teacher_classes"] == CLASSES
    refused("temperature was 2.0 and is 3.0", temperature=3.0)
    refused("teacher was '[0-9a-f]{64}' and is None", teacher=None, distill=None)
    folder.rename(tmp_path / "moved")  # the same one in another place
    run("all", stopped, **{**given, "teacher": tmp_path / "moved"})
    assert_bit_equal(tmp_path / "unstopped", stopped)


def test_a_weight_of_0_is_a_run_without_a_teacher(tmp_path):
    folder = write_teacher(tmp_path / "teacher")
    run("recognition-mixup", tmp_path / "without")
    run("recognition-mixup", tmp_path / "of_0", teacher=folder, distill=0.0)
    assert_bit_equal(tmp_path / "without", tmp_path / "of_0")
    first, second = (rows(tmp_path / name) for name in ("without", "of_0"))
    assert [timeless_row(row) for row in first] == [timeless_row(row) for row in second]


def test_what_does_not_fit_is_refused_by_name(tmp_path):
    def refused(recipe, message, teacher, kind=UserError, **options):
        with pytest.raises(kind, match=message):
            train(recipe, Options(teacher=teacher, out=tmp_path / "run", workers=0, **options))
        assert not (tmp_path / "run").exists(), "refused before the first step"

    good = write_teacher(tmp_path / "good")
    refused(labels(), f"teacher {good} is of task Recognition, and this is MultiLabel", good)
    refused(overlapping(), f"teacher {good} is of task Recognition, and this is MultiL", good)
    refused(depths(), "--teacher does not work with task DenseRegression", good)
    masks = MaskClassification(CLASSES, num_queries=4)
    refused(segmentation(task=masks), "--teacher does not work with task MaskClassification", good)
    refused(segmentation(), f"teacher {good} is of task Recognition, and this is Segm", good)
    few = write_teacher(tmp_path / "few", classes=4)
    refused(recognition(), f"teacher {few} has 4 classes without names, and the student 7", few)
    named = write_teacher(tmp_path / "named", classes=["cat", *NAMES[1:]])
    refused(
        recognition(task=Recognition(NAMES)),
        "other classes than the student: it lacks class0, and has cat that",
        named,
    )
    refused(recognition(), "has 7 classes by name, and the student 7 classes without", named)
    refused(recognition(), "no checkpoint at .*nowhere", tmp_path / "nowhere", MissingFileError)
    others = write_teacher(tmp_path / "others", **OTHER)
    floats = [(image.float() / 255, target) for image, target in zip(*batch(Images(8), range(8)))]
    refused(recognition(train_data=floats), "with another mean and std than the student", others)
    bands = Images(8)
    bands.pixels = PixelSettings(channels=4)
    refused(recognition(train_data=bands), "takes images of 3 channels, and the student's", good)
    bands.images = bands.images[:, :1]
    bands.pixels = PixelSettings()
    refused(
        recognition(train_data=bands, mean=(0.5,), std=(0.2,)),
        r"teacher .* does not take the student's images, of shape \(1, 12, 12\)",
        write_teacher(tmp_path / "grey", mean=(0.5,), std=(0.2,)),
    )


def test_options_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="distill is 0.3 and teacher is None"):
        Options(distill=0.3)
    with pytest.raises(UserError, match="temperature is 2 and teacher is None"):
        Options(temperature=2)
    with pytest.raises(UserError, match="distill is 1.5; it must be from 0"):
        Options(teacher="runs/x", distill=1.5)
    with pytest.raises(UserError, match="temperature is 0; it must be above 0"):
        Options(teacher="runs/x", temperature=0)


RECIPE = """
import sys
sys.path.insert(0, {tests!r})
from helpers.nonfinite import Planted
from helpers.toy_recipes import recognition
from trainkit.recipe import Recipe


def recipe(num_images: int = 27, planted: int = 11) -> Recipe:
    return recognition(train_data=Planted(num_images, planted))
"""


@pytest.mark.nightly
def test_a_failed_step_is_replayed_with_its_teacher(tmp_path, capsys):
    recipe, run_folder = tmp_path / "planted.py", tmp_path / "run"
    recipe.write_text(RECIPE.format(tests=str(TESTS)))
    teacher = write_teacher(tmp_path / "teacher")
    words = ["--out", run_folder, "--workers", 0, "--teacher", teacher, "--distill", 0.25]
    assert main([str(recipe), *map(str, words)]) == 2
    (report,) = run_folder.glob("failures/*/report.json")
    losses = json.loads(report.read_text())["losses"]
    assert losses.keys() == {"cross_entropy", "distillation"}
    shown = " ".join(capsys.readouterr().err.split())
    assert main(["replay", str(run_folder), "--workers", "0"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"fails again: loss {sum(map(float, losses.values()))}" in shown
    write_teacher(teacher, seed=3)
    assert main(["replay", str(run_folder), "--workers", "0"]) == 2
    assert "teacher in" in (said := capsys.readouterr().err) and "changed since" in said
