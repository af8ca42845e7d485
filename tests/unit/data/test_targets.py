"""Targets of every type that datasets give, and those that a task cannot take: refused by name."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.toy_recipes import CLASSES, Images, Maps, recognition, segmentation
from trainkit import Options, train
from trainkit.commands.check import check
from trainkit.data.loader import make_loader
from trainkit.data.on_device import OnDevice
from trainkit.data.seeding import seed_host
from trainkit.data.targets import as_target
from trainkit.losses.functional import cross_entropies, num_valid
from trainkit.losses.pixelwise import OHEM, BinaryCrossEntropy, CrossEntropy, Focal
from trainkit.losses.region import Dice, Lovasz
from trainkit.metrics.recognition import TopK
from trainkit.metrics.segmentation import MeanIoU
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.segmentation import Segmentation

NUMPY = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
TORCH = (
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)
NUMBERS = {
    "python": int,
    **{f"numpy-{each.__name__}": each for each in NUMPY},
    "array": lambda label: np.array(label, dtype=np.int16),
    "big-endian": lambda label: np.array(label, dtype=">i4"),
    **{str(dtype): lambda label, dtype=dtype: torch.tensor(label, dtype=dtype) for dtype in TORCH},
}
ARRAYS = {
    **{
        f"numpy-{each.__name__}": lambda mask, each=each: mask.numpy().astype(each)
        for each in NUMPY[1:]
    },
    "big-endian": lambda mask: mask.numpy().astype(">u2"),
    "mirrored": lambda mask: np.ascontiguousarray(mask.numpy()[:, ::-1])[:, ::-1],
    "read-only": lambda mask: np.frombuffer(mask.numpy().tobytes(), np.uint8).reshape(mask.shape),
    **{str(dtype): lambda mask, dtype=dtype: mask.to(dtype) for dtype in TORCH[1:]},
}


class As(Images):
    """The toys' images, their class ids in another type."""

    def __init__(self, num_images: int, make, augment: bool = True):
        super().__init__(num_images, augment)
        self.make, self.classes = make, [str(number) for number in range(CLASSES)]

    def __getitem__(self, index: int):
        image, target = super().__getitem__(index)
        return image, self.make(int(target))


class MapsAs(Maps):
    def __init__(self, num_images: int, make, augment: bool = True):
        super().__init__(num_images, augment)
        self.make = make

    def __getitem__(self, index: int):
        image, target = super().__getitem__(index)
        return image, self.make(target)


def batches(data, task) -> list:
    """Targets of two batches as the loop gets them, and what the task makes of them."""
    loader = make_loader(
        data, 0, [[(0, index) for index in range(8)], [(0, 8)]], 0, torch.device("cpu"), task.check
    )
    return [(targets, task.counts(targets).tolist()) for _, targets, _ in loader]


@pytest.mark.parametrize("make", NUMBERS.values(), ids=NUMBERS)
def test_a_class_id_of_any_type_is_read_alike(make):
    task = Recognition(CLASSES)
    for (found, counts), (wanted, wanted_counts) in zip(
        batches(As(27, make), task), batches(Images(27), task)
    ):
        assert found.dtype == torch.int64 and torch.equal(found, wanted) and counts == wanted_counts
    held = OnDevice(As(13, make, augment=False))
    assert (
        held.targets.tolist() == Images(13).targets.tolist() and held.targets.dtype == torch.int64
    )


@pytest.mark.parametrize("make", ARRAYS.values(), ids=ARRAYS)
def test_a_mask_of_any_type_is_read_alike(make):
    task = Segmentation(CLASSES)
    logits = torch.randn(8, CLASSES, 12, 12, generator=torch.Generator().manual_seed(0))
    for (found, counts), (wanted, wanted_counts) in zip(
        batches(MapsAs(27, make), task), batches(Maps(27), task)
    ):
        assert torch.equal(found.long(), wanted.long()) and counts == wanted_counts
        scores = logits[: len(found)]
        assert torch.equal(task.losses(scores, found), task.losses(scores, wanted))
        measured = []
        for targets in (found, wanted):
            metric = MeanIoU(CLASSES)
            metric.add_batch(predictions=task.predict(scores, targets), references=targets)
            measured.append(metric.compute())
        assert measured[0] == measured[1]


def test_numbers_of_numpy_train_the_same(tmp_path):
    runs = []
    for name, make in (("tensor", torch.tensor), ("numpy", np.uint16)):
        seed_host(5)
        recipe = recognition(
            epochs=0.5, train_data=As(27, make), val_data=As(13, make, augment=False)
        )
        runs.append(
            (
                train(recipe, Options(out=tmp_path / name, workers=0))["final"],
                recipe.model.state_dict(),
            )
        )
    (results, weights), (other, others) = runs
    assert results == other and all(
        torch.equal(value, others[name]) for name, value in weights.items()
    )


def test_numbers_keep_their_value_and_floats_their_type():
    assert (
        as_target(np.uint16(65535)).item() == 65535
        and as_target(np.uint32(2**32 - 1)).item() == 2**32 - 1
    )
    assert as_target(np.array([0, 65535], np.uint16)).tolist() == [0, 65535]
    assert as_target(True).item() == 1 and as_target(np.array([[True, False]])).tolist() == [[1, 0]]
    assert as_target(2.5) == 2.5 and as_target(np.float32(2.5)).dtype == torch.float32
    image = object()
    assert as_target(image) is image
    with pytest.raises(ValueError, match=f"label {2**70} is no class id"):
        as_target(2**70)


FIVE = Recognition(5)


@pytest.mark.parametrize("target, message", [
    (np.int64(5), "label 5 is outside the 5 classes 0 to 4"),
    (torch.tensor(5, dtype=torch.uint8), "label 5 is outside"),
    (2.0, "target 2.0 is no class id: a whole number from 0 to 4"),
    (np.float32(2), "target 2.0 is no class id"),
    (torch.tensor([1.0, 1.0, 0, 0, 0]),
        r"a row of 5 numbers, 2 of them above 0 \(multi-hot\), and Recognition is"),
    (np.array([1, 0, 1, 0, 1], np.uint8), r"3 of them above 0 \(multi-hot\)"),
    (torch.tensor([0, 1, 0, 0, 0]), "multi-hot"),
    (torch.tensor([1.5, -0.5, 0, 0, 0]), r"holds -0.5: probabilities are not below 0"),
    (torch.tensor([float("nan"), 1, 0, 0, 0]), "holds nan"),
    (torch.zeros(4), r"target of shape \(4,\) is neither a class id nor a row of 5 probabilities"),
    (torch.tensor([3]), r"target of shape \(1,\) is neither"),
])  # fmt: skip
def test_what_recognition_cannot_take(target, message):
    assert re.search(message, FIVE.check(target))


@pytest.mark.parametrize("target", [
    0, 4, -1, -100, np.int8(-1), np.uint16(4), torch.tensor(3), torch.tensor([0.2] * 5),
    np.array([0, 0, 1, 0, 0.0]), torch.zeros(5),
    torch.tensor([0.3334, 0.3333, 0.3333, 0, 0]).half(),
])  # fmt: skip
def test_what_recognition_takes(target):
    assert FIVE.check(target) is None


class MultiHot(Images):
    def __getitem__(self, index: int):
        image, target = super().__getitem__(index)
        return (
            image,
            F.one_hot(target, CLASSES).float() + F.one_hot((target + 1) % CLASSES, CLASSES).float(),
        )


class OneHot(Images):
    def __getitem__(self, index: int):
        image, target = super().__getitem__(index)
        return image, F.one_hot(target, CLASSES).float()


def test_multi_hot_targets_are_refused_at_the_first_batch(tmp_path):
    task = Recognition(CLASSES, loss=BinaryCrossEntropy())
    with pytest.raises(ValueError, match=r"image \d+ \(number \d+ of MultiHot\): .*multi-hot"):
        train(
            recognition(task=task, train_data=MultiHot(27)),
            Options(out=tmp_path / "run", workers=0),
        )
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))
    # not yet a number
    with pytest.raises(ValueError, match=r"TopK: references are torch.float32 of shape \(2, 7\)"):
        train(
            recognition(task=task, val_data=OneHot(13), epochs=0.5),
            Options(out=tmp_path / "soft", workers=0),
        )
    data = MultiHot(4)
    data.classes = list(range(CLASSES))
    with pytest.raises(ValueError, match="the target of image 0 is tensor.*a class id each"):
        OnDevice(data)


@pytest.mark.parametrize("dtype, ignore", [
    (torch.uint8, -1), (torch.uint8, 256), (torch.int8, 255), (torch.int8, 200),
    (torch.int16, 65535),
])  # fmt: skip
def test_an_ignored_label_that_the_masks_type_cannot_hold(dtype, ignore, tmp_path):
    """torch compares the wrapped number: of a uint8 mask 255 == -1."""
    name = str(dtype).removeprefix("torch.")
    mask = torch.tensor([[0, 1], [2, 1]], dtype=dtype)
    assert f"ignore is {ignore}, and masks of {name} hold" in Segmentation(3, ignore=ignore).check(
        mask
    )
    stored = torch.tensor(ignore).to(dtype)  # what stands in the mask, and is no ignored one
    mask[1, 1] = stored
    assert num_valid(mask, ignore) == 4 and num_valid(mask.long(), int(stored)) < 4
    for criterion in (CrossEntropy(), Focal(), OHEM(keep=1.0), Lovasz(), Dice()):
        wide = criterion.count(mask[None, :1].long(), ignore, 3)
        assert criterion.count(mask[None, :1], ignore, 3) == wide > 0, criterion.name
    logits = torch.randn(1, 3, 1, 2)
    wanted = F.cross_entropy(logits, mask[None, :1].long(), reduction="none")
    assert torch.allclose(cross_entropies(logits, mask[None, :1], ignore), wanted)


def test_an_ignored_label_outside_the_masks_type_ends_a_training_before_its_first_step(tmp_path):
    recipe = segmentation(task=Segmentation(CLASSES, ignore=-1))
    with pytest.raises(ValueError, match="ignore is -1, and masks of uint8 hold 0 to 255"):
        train(recipe, Options(out=tmp_path, workers=0))
    assert not list((tmp_path / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("mask, message", [
    (np.zeros((4, 4), np.float32), r"mask is torch.float32 of shape \(4, 4\); it is whole numbers"),
    (torch.zeros(1, 4, 4, dtype=torch.uint8), r"mask is torch.uint8 of shape \(1, 4, 4\)"),
    (3, r"of shape \(\)"), (None, "mask is None"),
])  # fmt: skip
def test_what_is_no_mask(mask, message):
    assert re.search(message, Segmentation(3).check(mask))


def test_numpy_masks_are_checked():
    assert Segmentation(3).check(np.zeros((4, 4), np.uint8)) is None
    assert "label 7 on 1 pixels" in Segmentation(3).check(np.array([[0, 7], [255, 2]], np.uint16))


def head(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, outputs, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def dense(outputs: int) -> nn.Module:
    return nn.Conv2d(3, outputs, 1)


@pytest.mark.parametrize(
    "build, network, name",
    [(recognition, head, "Recognition"), (segmentation, dense, "Segmentation")],
)
@pytest.mark.parametrize("outputs", [CLASSES - 2, CLASSES + 1, 1000])
def test_a_network_with_other_outputs_than_classes_is_refused_at_the_first_batch(
    build, network, name, outputs, tmp_path
):
    model = network(outputs)
    recipe = build(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    message = f"the network has {outputs} outputs, and {name} has {CLASSES} classes"
    with pytest.raises(ValueError, match=message):
        train(recipe, Options(out=tmp_path / "run", workers=0))
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))
    with pytest.raises(ValueError, match=message):
        check(recipe, Options(workers=0))
    model.eval()
    images, targets = (
        torch.zeros(2, 3, 4, 4),
        torch.zeros((2, 4, 4) if build is segmentation else 2, dtype=torch.long),
    )
    with pytest.raises(ValueError, match=message):
        recipe.task.predict(model(images), targets)
    if build is segmentation:
        with pytest.raises(ValueError, match=message):
            recipe.task.scores(model(images), images)


def test_the_ways_of_counting_take_ids_alone():
    with pytest.raises(ValueError, match=r"give one class id for each image"):
        TopK((1,), 3).add_batch(predictions=torch.randn(4, 3), references=torch.rand(4, 3))
    metric = MeanIoU(3, ignore=-1)
    metric.add_batch(
        predictions=torch.zeros(1, 4), references=torch.tensor([[0, 0, 0, 255]], dtype=torch.uint8)
    )
    with pytest.raises(ValueError, match="1 references and 0 predictions are outside 0..2"):
        metric.compute()
