"""Classes counted, balanced by weights and by draws."""

import json
import os

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Features, Value
from datasets import Dataset as Table
from datasets import Image as ImageFeature
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight
from torch.utils.data import Dataset, Subset

from helpers.interruptions import checkpoint_of, kill_all, resume, start, wait_for
from helpers.logs import assert_bit_equal, assert_same_training
from helpers.processes import ROOT
from helpers.toy_recipes import CLASSES, Images, recognition
from trainkit import Options, train
from trainkit.cli import main
from trainkit.commands.recipe_file import load_recipe
from trainkit.data.class_counts import class_ids, count_classes
from trainkit.data.datasets import synthetic
from trainkit.data.datasets.class_source import ClassSource
from trainkit.data.datasets.folder import MaskFolder
from trainkit.data.datasets.repeated import Repeated
from trainkit.data.on_device import Flip, OnDevice, PadCrop
from trainkit.data.sampler import Balanced, TrainOrder
from trainkit.data.seeding import Seeded
from trainkit.errors import DataError, UserError
from trainkit.losses.class_weights import resolved_weights
from trainkit.storage.run_changes import compare_settings
from trainkit.tasks.recognition import Recognition

IDS = [0, 0, 0, 0, 0, 0, 2, 2, 2, -1, 3]


class Labelled(Dataset):
    """No image, and these class ids."""

    def __init__(self, targets=IDS):
        self.targets = torch.tensor(targets)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return torch.rand(()), self.targets[index]


class Unlabelled(Dataset):
    def __len__(self):
        return 3


def order(num_images=11, seed=3, **changes):
    counts = count_classes(Labelled(), 4)
    balanced = Balanced(counts.images, counts.members)
    return TrainOrder(num_images, 4, seed, balanced=balanced, **changes)


def test_class_ids_are_counted():
    counts = count_classes(Labelled(), 4)
    assert counts.targets.tolist() == counts.members.tolist() == [6, 0, 3, 1]
    assert counts.images.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10]
    part = count_classes(Subset(Labelled(), [10, 0, 9, 6]), 4)
    assert part.members.tolist() == [1, 0, 1, 1]
    assert part.images.tolist() == [1, 3, 0]  # as they are numbered in the part
    again = count_classes(Subset(Labelled(), [10, 0, 9, 6]), 4)
    assert counts.digest != part.digest == again.digest
    with pytest.raises(UserError, match="the classes of Unlabelled are not at hand"):
        count_classes(Unlabelled(), 4)


def test_an_epoch_is_a_function_of_seed_and_epoch_and_all_classes_are_alike():
    """Frequencies of 400 epochs against the probabilities, by five standard deviations."""
    mine = order()
    assert torch.equal(mine.epoch(7), order().epoch(7))
    assert not torch.equal(mine.epoch(7), mine.epoch(8))
    assert not torch.equal(mine.epoch(7), order(seed=4).epoch(7))
    drawn = torch.stack([mine.epoch(epoch) for epoch in range(400)]) % 11
    frequency = drawn.flatten().bincount(minlength=11) / drawn.numel()
    expected = torch.tensor([1 / 18] * 6 + [1 / 9] * 3 + [0, 1 / 3])
    spread = (expected * (1 - expected) / drawn.numel()).sqrt()
    assert ((frequency - expected).abs() <= 5 * spread).all()
    places = (drawn == 10).double().mean(0)  # the one image of class 3, at each place of the epoch
    assert (places - 1 / 3).abs().max() < 5 * (2 / 9 / 400) ** 0.5


def test_a_draw_again_is_another_one_of_the_same_image():
    mine = order()
    for epoch in range(50):
        drawn = mine.epoch(epoch)
        assert len(set(drawn.tolist())) == len(drawn) == 11
        for image in range(11):
            again = [int(index) // 11 for index in drawn if int(index) % 11 == image]
            assert again == list(range(len(again)))
    seeded = Seeded(Labelled(), 3)
    (first, label), (second, same) = seeded[2, 6], seeded[2, 17]
    assert label == same == 2 and first != second and first == seeded[2, 6][0]
    whole = [key for step in range(6) for key in mine.keys(step)]
    parts = [order(num_processes=2), order(num_processes=2)]
    shared = [
        key
        for step in range(6)
        for process, part in enumerate(parts)
        for key in list(part.batches(step, step + 1, process))[0][: sum(part.passes(step, process))]
    ]
    assert shared == whole
    assert mine.replacement(0, int(mine.epoch(0)[3])) == int(mine.epoch(0)[4])


def test_images_on_a_device_are_augmented_anew():
    data = Images(5, augment=False)
    data.classes = [str(number) for number in range(CLASSES)]
    held = OnDevice(data, [PadCrop(4), Flip()])
    once, again = held.read(1, 0, [3])[0], held.read(1, 0, [3 + 5])[0]
    assert not torch.equal(once, again) and held.read(1, 0, [8])[1] == held.targets[3]


@pytest.mark.nightly
def test_a_killed_run_is_resumed_bit_for_bit(tmp_path):
    resume(tmp_path / "whole", "balanced", others=["balanced-plain"])
    process = start(tmp_path / "cut", "balanced", sleep=0.02)
    wait_for(tmp_path / "cut" / "balanced", checkpoint_of(4), process)
    kill_all(process)
    assert "resuming from step-" in resume(tmp_path / "cut", "balanced", workers=1)
    assert_bit_equal(tmp_path / "whole" / "balanced", tmp_path / "cut" / "balanced")
    resume(tmp_path / "two", "balanced-plain", processes=2)
    assert_same_training(tmp_path / "whole" / "balanced-plain", tmp_path / "two" / "balanced-plain")


def test_a_resume_with_other_labels_is_refused(tmp_path):
    options = Options(out=tmp_path / "run", workers=0)
    train(recognition(epochs=0.75, sampler="balanced"), options)
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(UserError, match="sampler was 'balanced, classes .*' and is None"):
        train(recognition(epochs=0.75), options)
    other = Images(27)
    other.targets = other.targets.flip(0)
    with pytest.raises(UserError, match="sampler was 'balanced, classes .*' and is 'balanced, "):
        train(recognition(epochs=0.75, sampler="balanced", train_data=other), options)


def test_what_cannot_be_balanced_is_refused(tmp_path):
    options = Options(out=tmp_path / "run", workers=0)
    repeated = recognition(sampler="balanced", train_data=Repeated(Images(27), 2))
    with pytest.raises(UserError, match="the training images are repeated, in an order"):
        train(repeated, options)
    with pytest.raises(UserError, match="sampler is 'balance'; it is 'shuffle' or 'balanced'"):
        recognition(sampler="balance")


def test_weights_that_balance_images():
    weights = resolved_weights("auto", Labelled([0] * 6 + [1] * 3 + [2]), 3)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=[0] * 6 + [1] * 3 + [2])
    assert weights == pytest.approx(expected, rel=1e-5)
    assert resolved_weights((1.0, 2.0), None, 2) == (1.0, 2.0)
    assert resolved_weights(None, None, 2) is None
    task = Recognition(3, 0.1, class_weights=weights)
    logits, targets = torch.randn(8, 3), torch.tensor([0, 1, 2, 2, 0, 1, 1, 0])
    mine = task.losses(logits, targets).sum() / task.counts(targets).sum()
    loss = torch.nn.CrossEntropyLoss(torch.tensor(weights), label_smoothing=0.1)
    torch.testing.assert_close(mine, loss(logits, targets))
    with pytest.raises(UserError, match="3 weights.*for 4 classes"):
        Recognition(4, class_weights=weights)


def test_masks_are_counted_pixel_by_pixel(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, num_classes = synthetic.mask_folder()
    data = MaskFolder(f"{source}/images/train", f"{source}/annotations/train", num_classes)
    masks = [data[at][1].flatten().long() for at in range(len(data))]
    table = torch.stack([mask.bincount(minlength=256)[:num_classes] for mask in masks])
    counts = count_classes(data, num_classes)
    assert torch.equal(counts.targets, table.sum(0))
    assert torch.equal(counts.members, (table > 0).sum(0))
    images = [at for label in range(num_classes) for at in range(len(data)) if table[at, label]]
    assert counts.images.tolist() == images
    weights = torch.tensor(resolved_weights("auto", lambda: data, num_classes, dense=True))
    share = table.sum(0).double()
    present = share > 0
    assert (weights * share).sum() / share.sum() == pytest.approx(1, rel=1e-4)
    scaled = (weights * share.sqrt())[present]
    assert (scaled / scaled[0]).tolist() == pytest.approx([1] * int(present.sum()), rel=1e-4)


def test_masks_are_read_once_and_again_where_one_changed(tmp_path, monkeypatch):
    """Counts are kept in the cache, by the files and by what their labels mean."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in range(3):
        image = np.full((4, 5, 3), 40 * number, dtype=np.uint8)
        for kind, pixels in (("i", image), ("m", image[..., 0] // 40)):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / kind / f"{number}.png")

    def counts(kind=MaskFolder, **settings):
        return count_classes(kind(tmp_path / "i", tmp_path / "m", 3, **settings), 3)

    def swapped(labels):
        return labels.to(torch.int32) ^ 1

    class Swapped(MaskFolder):
        def labels_of(self, index):
            return super().labels_of(index) ^ 1

    first = counts()
    assert first.targets.tolist() == [20, 20, 20]
    assert counts(ignore=(1,)).targets.tolist() == [20, 0, 20]
    assert counts(mask_values=(2, 1, 0)).images.tolist() == [2, 1, 0]

    mask = tmp_path / "m" / "2.png"
    content, then = mask.read_bytes(), mask.stat()
    mask.write_bytes(bytes(len(content)))
    os.utime(mask, ns=(then.st_atime_ns, then.st_mtime_ns))  # nobody can tell
    again = counts()
    assert torch.equal(again.targets, first.targets)
    assert torch.equal(again.images, first.images) and torch.equal(again.members, first.members)
    for own in ({"kind": Swapped}, {"to_train_ids": swapped}):  # whose code may change
        with pytest.raises(DataError, match=r"2\.png"):
            counts(**own)
    Image.fromarray(np.ones((4, 5), dtype=np.uint8)).save(mask, compress_level=0)
    assert counts().targets.tolist() == [20, 40, 0]
    for own in ({"kind": Swapped}, {"to_train_ids": swapped}):
        assert counts(**own).targets.tolist() == [40, 20, 0]


@pytest.mark.parametrize(
    "labels, kind",
    [
        ([2, 0, 2, 1, 2], ClassLabel(names=["cat", "dog", "owl"])),
        ([2, 0, 2, 1, 2], Value("int64")),
        (["owl", "cat", "owl", "dog", "owl"], Value("string")),
    ],
)
def test_parquet_files_are_balanced(tmp_path, monkeypatch, labels, kind):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    images = [Image.new("RGB", (8, 8), (9 * at, 0, 0)) for at in range(5)]
    features = Features({"image": ImageFeature(), "label": kind})
    table = Table.from_dict({"image": images, "label": labels}, features)
    table.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    data = ClassSource(tmp_path).open("train")
    found = count_classes(data, 3)
    assert found.targets.tolist() == [1, 1, 3] and found.images.tolist() == [1, 3, 0, 2, 4]
    assert [int(data[at][1]) for at in range(5)] == [2, 0, 2, 1, 2]
    weights = resolved_weights("auto", data, 3)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=[2, 0, 2, 1, 2])
    assert weights == pytest.approx(expected, rel=1e-5)
    streamed = ClassSource(tmp_path, stream=2).open("train")
    with pytest.raises(UserError, match="leave --stream out"):
        count_classes(streamed, 3)


@pytest.mark.parametrize(
    "name",
    [
        "recog_folder",
        pytest.param("seg_folder", marks=pytest.mark.nightly),
        pytest.param("recog_cifar10", marks=pytest.mark.nightly),
    ],
)
def test_recipes_take_both_and_an_evaluation_counts_nothing(tmp_path, monkeypatch, capsys, name):
    """It takes the run's weights, also those that counting would not give."""
    monkeypatch.chdir(tmp_path)
    words = ["--sample", "--workers", "0", "--epochs", "0.1", "--warmup-epochs", "0"]
    words += ["--class-weights", "auto", "--sampler", "balanced", "--out", "run"]
    assert main([str(ROOT / "recipes" / f"{name}.py"), *words]) == 0
    recorded = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert recorded["settings"]["class_weights"] == "auto"
    assert recorded["sampler"].startswith("balanced, classes ")
    weights = recorded["input"]["class_weights"]
    classes = recorded["classes"]
    num_classes = classes if isinstance(classes, int) else len(classes)
    assert len(weights) == num_classes and min(weights) > 0
    assert main(["evaluate", "run", "--workers", "0"]) == 0
    recorded["input"]["class_weights"] = weights[:-1]
    (tmp_path / "run" / "settings.json").write_text(json.dumps(recorded))
    assert main(["evaluate", "run", "--workers", "0"]) == 2
    assert f"{num_classes - 1} weights" in " ".join(capsys.readouterr().err.split())
    recipe = load_recipe(ROOT / "recipes" / f"{name}.py")
    given = {**recipe.sample_settings(), "sample": True, "class_weights": tuple(weights)}
    assert recipe(**given).input.get("class_weights") is None


def test_class_ids_in_a_list_of_numpy_integers():
    data = Images(27)
    expected = class_ids(data)
    data.targets = [np.int64(each) for each in data.targets]
    assert torch.equal(class_ids(data), expected)


@pytest.mark.parametrize("before", [None, [1.0, 9.0]])
def test_a_resume_with_auto_weights_is_refused_where_there_were_none(tmp_path, before):
    """`auto` is written into "input", numbers and None are not: the setting says them."""
    recorded = {"settings": {"class_weights": before}, "input": {"mean": [0.5]}}
    now = {"input": {"mean": [0.5], "class_weights": [0.5, 4.5]}, "total_steps": 9}
    recorded["total_steps"] = 9
    with pytest.raises(UserError, match="class_weights was "):
        compare_settings(tmp_path, recorded, {"class_weights": "auto"}, now)


class LabelSets(Images):
    """Images of any number of classes each, as multi-hot rows; -1 where nothing is known."""

    def __init__(self):
        super().__init__(4)
        self.targets = torch.tensor([[1, 1, 0], [0, 1, -1], [0, 0, 0], [1, 0, -1]])


def test_label_sets_are_counted_and_drawn_by_their_classes():
    """An image of two classes is of both, one of none is not drawn; so are the images of a part."""
    counts = count_classes(LabelSets(), 3)
    assert counts.targets.tolist() == counts.members.tolist() == [2, 2, 0]
    assert counts.images.tolist() == [0, 3, 0, 1]
    assert count_classes(Subset(LabelSets(), [1, 0]), 3).images.tolist() == [1, 0, 1]
    drawn = Balanced(counts.images, counts.members).draw(100_000, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn % 100_000, minlength=4) / 100_000
    assert shares.tolist() == pytest.approx([0.5, 0.25, 0, 0.25], abs=0.01)
