"""Images held on the device: each as its own seed makes it, whatever batch it is in."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.data import Subset
from torchvision.transforms import v2

from helpers.device_images import AUGMENT, Pictures, held
from helpers.logs import assert_bit_equal, rows
from helpers.toy_recipes import CLASSES, recognition
from trainkit import Options, train
from trainkit.commands.dataset_check import untransformed
from trainkit.data.bands import PixelSettings
from trainkit.data.datasets.repeated import Repeated
from trainkit.data.datasets.staged import Stages
from trainkit.data.loader import make_loader
from trainkit.data.on_device import Cutout, Flip, OnDevice, PadCrop, same_device
from trainkit.data.reader import Reader
from trainkit.data.seeding import DRAW, fold, uniform
from trainkit.data.transforms.ops import EvalTransform
from trainkit.prediction.eval_transform import transform_of
from trainkit.tasks.recognition import Recognition

CPU = torch.device("cpu")


@given(
    st.integers(0, 2**63),
    st.integers(-1, 300),
    st.lists(st.integers(0, 2**40), min_size=1, max_size=4),
)
def test_draws_are_those_of_fold(seed, epoch, indices):
    found = uniform(seed, epoch, indices, 3)
    expected = [
        [(fold(seed, DRAW, epoch, index, k) >> 40) * 2**-24 for k in range(3)] for index in indices
    ]
    assert found.tolist() == expected and found.dtype == "float32"


def test_draws_are_uniform():
    draws = torch.from_numpy(uniform(1, 2, range(20_000), 5)).double()
    assert draws.mean(0) == pytest.approx([0.5] * 5, abs=0.01) and draws.var(0) == pytest.approx(
        [1 / 12] * 5, abs=0.01
    )
    assert (torch.corrcoef(draws.T) - torch.eye(5)).abs().max() < 0.03


def test_each_change_by_hand():
    images = torch.randint(1, 256, (3, 3, 6, 8), dtype=torch.uint8)
    padded = F.pad(images, [2] * 4)
    # tops 0, 2, 3 and lefts 4, 0, 2 of 5 each
    draws = torch.tensor([[0.0, 0.99], [0.41, 0.0], [0.6, 0.5]])
    expected = [
        padded[i, :, top : top + 6, left : left + 8]
        for i, (top, left) in enumerate([(0, 4), (2, 0), (3, 2)])
    ]
    assert torch.equal(PadCrop(2)(images, draws), torch.stack(expected))

    flipped = Flip()(images, torch.tensor([[0.49], [0.5], [0.1]]))
    assert torch.equal(flipped, torch.stack([images[0].flip(-1), images[1], images[2].flip(-1)]))

    cut = images.clone()  # centres (0, 7), (2, 0), (3, 4), squares of 3
    cut[0, :, :2, 6:], cut[1, :, 1:4, :2], cut[2, :, 2:5, 3:6] = 0, 0, 0
    assert torch.equal(Cutout(3)(images, draws), cut)


def test_an_image_does_not_depend_on_its_batch():
    """Read with others, alone, and from a loader; another epoch or seed makes another."""
    data = held()
    images, targets = data.read(5, 3, [4, 9, 2])
    for place, index in enumerate([4, 9, 2]):
        alone, target = data.read(5, 3, [index])
        assert (
            torch.equal(alone[0], images[place])
            and target == targets[place] == Pictures().targets[index]
        )
        assert torch.equal(Reader(data, 5)[3, index][0], images[place])
    ((loaded, _, faults),) = make_loader(data, 5, [[(3, 4), (3, 9), (3, 2)]], 2, CPU)
    assert torch.equal(loaded, images) and faults == []
    assert not torch.equal(data.read(5, 4, [4, 9, 2])[0], images)
    assert not torch.equal(data.read(6, 3, [4, 9, 2])[0], images)


def test_a_subset_is_augmented_too():
    torch.manual_seed(0)
    parts = [Subset(held(), range(10))[3][0] for _ in range(20)]
    assert len({part.numpy().tobytes() for part in parts}) > 10
    assert torch.equal(Subset(held(()), range(10))[3][0], Pictures().images[3])


def test_what_reads_one_image_at_a_time_is_refused():
    """It would be left out of the batches without a word."""
    message = (
        "in which {0} has no part; give OnDevice's `augment` what is to change, or give {0} the"
        " dataset itself"
    )
    with pytest.raises(ValueError, match=message.format("Stages")):
        Stages(held(), {0: None})
    with pytest.raises(ValueError, match=message.format("Repeated")):
        Repeated(held(), 2)


class Halved(Pictures):
    """With a transform."""

    def __init__(self, transform=None):
        super().__init__()
        self.transform = transform

    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return (image if self.transform is None else self.transform(image)), target


def test_how_images_were_read_is_known():
    """What a doctor looks at, what other images go through, and what an evaluation is called."""
    look = EvalTransform([v2.Resize(6)], "halved")
    data = OnDevice(Halved(look), AUGMENT)
    bare, reason = untransformed(data)
    assert (
        reason is None
        and torch.equal(bare[3][0], Pictures().images[3])
        and data.images.shape == (20, 3, 6, 6)
    )
    assert transform_of(data) is transform_of(Subset(data, [1])) is look
    assert recognition(val_data=OnDevice(Halved(look))).protocol == "halved"
    assert recognition(val_data=OnDevice(Halved())).protocol == "as stored"
    assert recognition(val_data=data).protocol == "as the validation data gives them"


@pytest.mark.parametrize("channels, bits", [(4, 8), (5, 16), (1, 8)])
def test_a_transform_is_tried_with_the_pixels_of_its_data(channels, bits):
    class Bands(Halved):
        pixels = PixelSettings(channels, bits)

    seen = []

    def look(image):
        seen.append((image.dtype, tuple(image.shape)))
        return v2.functional.normalize(image.float(), [0.5] * channels, [0.25] * channels)

    assert transform_of(Bands(look)) is look
    assert seen == [(torch.uint8 if bits == 8 else torch.float32, (channels, 64, 64))]


def test_images_of_one_size():
    class Odd(Pictures):
        def __getitem__(self, index):
            image, target = super().__getitem__(index)
            return (image[:, :5] if index == 4 else image), target

    with pytest.raises(
        ValueError,
        match=r"image 4 is \(3, 5, 12\) and image 0 \(3, 12, 12\): images held in memory",
    ):
        OnDevice(Odd())


def test_labels_outside_the_classes_are_reported():
    data = held()
    data.targets[3] = 9
    with pytest.raises(
        ValueError, match=r"label 9 is outside the 7 classes 0 to 6: 1 images have it"
    ):
        make_loader(data, 0, [[(0, 0)]], 0, CPU, Recognition(CLASSES).check)


def test_a_training_resumes_bit_equal(tmp_path):
    """Stopped in the middle of an epoch, and with passes of another size within a tolerance."""

    def made():
        torch.manual_seed(3)
        return recognition(train_data=held(), val_data=OnDevice(Pictures(13)))

    def options(name, **more):
        return Options(out=tmp_path / name, seed=5, log_every=1, checkpoint_every=1, **more)

    train(made(), options("whole"))
    train(made(), options("small", micro_batch=2))
    losses = [[row["loss"] for row in rows(tmp_path / name)] for name in ("whole", "small")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)

    class Enough(Exception):
        pass

    stopping = made()
    forward, steps = stopping.model.forward, []

    def forward_three(*inputs):
        steps.append(1)
        if len(steps) == 4:
            raise Enough
        return forward(*inputs)

    stopping.model.forward = forward_three
    with pytest.raises(Enough):
        train(stopping, options("cut"))
    train(made(), options("cut"))
    assert_bit_equal(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(
    "held, asked, same",
    [("cuda:0", "cuda", True), ("cuda:0", "cuda:0", True), ("cuda:0", "cuda:1", False),
        ("cpu", "cuda", False),
     ("cpu", "cpu", True), ("mps:0", "mps", True), ("cuda:1", "cuda", True)],
)  # fmt: skip
def test_a_device_by_its_two_names(held, asked, same):
    """What lies on cuda:0 is not sent to "cuda" again."""
    assert same_device(torch.device(held), torch.device(asked)) == same


def test_a_part_of_a_dataset_has_its_classes():
    part = OnDevice(Subset(Pictures(), [4, 2]))
    assert part.classes == Pictures.classes
    assert torch.equal(part.images[1], Pictures().images[2])
