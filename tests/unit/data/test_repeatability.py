"""Randomness from outside.

Generators that transforms hold are seeded for each image, and others are reported.
"""

import functools
import random
import time

import albumentations
import numpy as np
import pytest
import torch
from kornia import augmentation
from torch.utils.data import Dataset, Subset
from torchvision import transforms as v1
from torchvision.transforms import v2

from trainkit.cli import main
from trainkit.data.generators import find_generators
from trainkit.data.loader import make_loader
from trainkit.data.repeatability import find_unrepeatable, require_drawing_nothing
from trainkit.data.seeding import Seeded, seed_host, seed_step
from trainkit.errors import DataError

NUM_IMAGES = 24


class Photos(Dataset):
    """Images of one colour each, handed to `transform` as what it takes.

    An array, a tensor or a Pillow image.
    """

    def __init__(self, transform, kind="tensor"):
        self.transform, self.kind = transform, kind
        self.samples = [(f"photo-{index}.png", index % 2) for index in range(NUM_IMAGES)]

    def __len__(self):
        return NUM_IMAGES

    def __getitem__(self, index):
        values = np.random.RandomState(index).randint(0, 256, (16, 16, 3)).astype(np.uint8)
        if self.kind == "array":
            return torch.from_numpy(self.transform(image=values)["image"].copy()), index % 2
        image = torch.from_numpy(values).permute(2, 0, 1)
        if self.kind == "pillow":
            image = v2.functional.to_pil_image(image)
        changed = self.transform(image)
        return changed if isinstance(changed, torch.Tensor) else v2.functional.pil_to_tensor(
            changed
        ), index % 2


class OwnGenerator:
    """A transform that draws from a generator of its own, as imgaug's and many a hand-written one
    do."""

    def __init__(self, generator):
        self.generator = generator

    def __call__(self, image):
        if isinstance(self.generator, torch.Generator):
            return image.roll(int(torch.randint(8, (), generator=self.generator)), -1)
        if isinstance(self.generator, random.Random):
            return image.roll(self.generator.randrange(8), -1)
        draw = getattr(self.generator, "integers", getattr(self.generator, "randint", None))
        return image.roll(int(draw(0, 8)), -1)


class Slotted:
    """One whose generator is in a slot, several objects deep."""

    __slots__ = ("inner",)

    def __init__(self, inner):
        self.inner = [{"first": inner}]

    def __call__(self, image):
        return self.inner[0]["first"](image)


def closure(generator):
    return lambda image: image.roll(generator.randrange(8), -1)


def roll_by(generator, image):
    return image.roll(int(generator.integers(8)), -1)


MODULE_GENERATOR = np.random.default_rng()


class UsesGlobal(Photos):
    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return roll_by(MODULE_GENERATOR, image), target


def kornia_transform():
    sequence = augmentation.AugmentationSequential(
        augmentation.RandomHorizontalFlip(p=0.5),
        augmentation.ColorJitter(0.3, 0.3, 0.3, 0.1, p=0.5),
        data_keys=["input"],
    )
    return lambda image: sequence(image[None] / 255)[0]


def albumentations_of(version):
    nested = albumentations.OneOf(
        [albumentations.RandomBrightnessContrast(p=1), albumentations.GaussNoise(p=1)], p=0.5
    )
    parts = [albumentations.HorizontalFlip(p=0.5), nested, albumentations.CoarseDropout(p=0.1)]
    return albumentations.Compose(parts, seed=version)


SEEDED = {
    "torchvision v2": lambda: Photos(
        v2.Compose([v2.RandomHorizontalFlip(), v2.RandomApply([v2.ColorJitter(0.4)])])
    ),
    "torchvision v1": lambda: Photos(
        v1.Compose([v1.RandomCrop(12), v1.TrivialAugmentWide()]), "pillow"
    ),
    "torchvision RandAugment": lambda: Photos(v2.RandAugment()),
    "albumentations": lambda: Photos(albumentations_of(None), "array"),
    "albumentations with a seed": lambda: Photos(albumentations_of(7), "array"),
    "kornia": lambda: Photos(kornia_transform()),
    "numpy Generator": lambda: Photos(OwnGenerator(np.random.default_rng())),
    "numpy Philox": lambda: Photos(OwnGenerator(np.random.Generator(np.random.Philox()))),
    "numpy RandomState": lambda: Photos(OwnGenerator(np.random.RandomState())),
    "torch Generator": lambda: Photos(OwnGenerator(torch.Generator())),
    "random.Random": lambda: Photos(OwnGenerator(random.Random())),
    "in a slot": lambda: Photos(Slotted(OwnGenerator(np.random.default_rng()))),
    "closure": lambda: Photos(closure(random.Random())),
    "partial": lambda: Photos(functools.partial(roll_by, np.random.default_rng())),
    "global of the module": lambda: UsesGlobal(v2.Identity()),
    "in a Subset": lambda: Subset(Photos(OwnGenerator(np.random.default_rng())), range(20)),
    "nested Compose": lambda: Photos(
        v2.Compose([v2.RandomApply([OwnGenerator(np.random.default_rng())], p=1)])
    ),
}


def read(data, order, workers=0, seed=3):
    keys = [[(1, index) for index in order[start : start + 4]] for start in range(0, len(order), 4)]
    loader = make_loader(data, seed, keys, workers, torch.device("cpu"))
    images = torch.cat([images for images, _, _ in loader])
    return images[torch.tensor(order).argsort()]


@pytest.mark.parametrize("name", SEEDED)
def test_images_depend_on_seed_epoch_and_index_alone(name):
    order = list(range(20))
    first = read(SEEDED[name](), order)  # a dataset built anew: as in another process
    data = SEEDED[name]()
    assert torch.equal(read(data, order[::-1]), first), "another order"
    assert torch.equal(read(data, order, workers=2), first), "workers"
    assert not torch.equal(read(data, order, seed=4), first), "nothing was random"
    assert find_unrepeatable(data, 0, workers=0) is None


def test_albumentations_draws_alike_in_no_two_workers():
    """Unseeded, all workers would draw the same numbers.

    The reference is a Compose seeded by hand for each image.
    """
    pipeline = albumentations_of(None)
    data = Photos(pipeline, "array")
    images = read(data, list(range(20)), workers=2)
    by_hand = []
    for index in range(20):
        seeded = Seeded(data, 3)
        by_hand.append(torch.as_tensor(seeded[1, index][0]))
    assert torch.equal(images, torch.stack(by_hand))
    assert len(find_generators(data)) == 1, "the pipeline seeds its parts"


class Clock:
    """Draws from what nobody can seed, in one of ten images."""

    def __call__(self, image):
        source = random.SystemRandom()
        return image.roll(1 + source.randrange(11), -1) if source.random() < 0.4 else image

    def __repr__(self):
        return "Clock()"


class Counter:
    """Changes with each read."""

    def __init__(self):
        self.reads = 0

    def __call__(self, image):
        self.reads += 1
        return (image + self.reads).to(torch.uint8)


@pytest.mark.parametrize("transform", [Clock, Counter])
@pytest.mark.parametrize(
    "how", [{"workers": 0}, {"workers": 1}, {"workers": 1, "in_process": True}]
)
def test_what_cannot_be_seeded_is_reported_by_dataset_and_transform(transform, how):
    message = find_unrepeatable(Photos(transform()), 0, **how)
    assert message is not None
    assert "dataset Photos" in message and transform.__name__ in message and "photo-" in message, (
        message
    )
    single = Subset(Photos(Counter()), [0])
    assert "1 of 1 training images" in find_unrepeatable(single, 0, **how)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64, torch.bool])
def test_images_of_any_type_can_be_compared(dtype):
    class Typed(Dataset):
        """Each as it is, and one that every read counts up."""

        reads = 0

        def __len__(self):
            return 4

        def __getitem__(self, index):
            self.reads += index == 2
            return torch.full((3, 2, 2), self.reads == 1 if index == 2 else 1).to(
                dtype
            ), torch.tensor(index)

    message = find_unrepeatable(Typed(), 0, workers=0)
    assert message is not None and "1 of 4 training images differ" in message


def test_trying_leaves_the_global_generators_and_stops_in_time():
    class Slow(Photos):
        def __getitem__(self, index):
            time.sleep(0.5)
            return super().__getitem__(index)

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    begun = time.monotonic()
    assert find_unrepeatable(Slow(Counter()), 0, workers=1) is not None
    assert time.monotonic() - begun < 8, "16 images would take 16 s"
    assert torch.equal(torch.rand(3), expected)


def test_global_generators_are_not_seeded_a_second_time():
    """`from random import randint` holds the global generator, whose seed is that of the image."""
    data = Photos(OwnGenerator(random._inst))
    assert find_generators(data) == []
    assert find_generators(Photos(OwnGenerator(np.random.mtrand._rand))) == []
    assert find_generators(Photos(OwnGenerator(torch.default_generator))) == []


UNREPEATABLE = """
import os
import torch
from torch import nn
from torch.utils.data import Dataset
from trainkit import Recipe
from trainkit.schedules import constant
from trainkit.tasks.recognition import Recognition


class FromTheSystem:
    def __call__(self, image):
        return image.roll(os.urandom(1)[0] % 8, -1)


class Photos(Dataset):
    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 16

    def __getitem__(self, index):
        image = (torch.arange(3 * 8 * 8) * (index + 1) % 251).to(torch.uint8).view(3, 8, 8)
        return (self.transform(image) if self.transform else image), index % 3


def recipe() -> Recipe:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))
    return Recipe(
        task=Recognition(3), model=model, train_data=Photos(FromTheSystem()),
        val_data=Photos(None), optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        schedule=constant(), epochs=1, batch_size=8,
    )
"""


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("command", ["train", "check", "doctor"])
def test_every_command_that_reads_tells_it(command, workers, tmp_path, monkeypatch, capsys):
    """By the dataset and the transform, before the first step."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(UNREPEATABLE)
    assert main([command, "mine.py", "--workers", workers, "--out", "out"]) == 0
    printed = " ".join("".join(capsys.readouterr()).split())
    assert "Photos" in printed and "FromTheSystem" in printed, printed
    if command == "train":
        assert printed.index("FromTheSystem") < printed.index("evaluation after epoch")
    if command == "check":
        assert "not bit-equal: images read again differ" in printed


def put_back(image):
    """Draw, and leave torch's generator as it was."""
    state = torch.get_rng_state()
    changed = image * torch.rand(())
    torch.set_rng_state(state)
    return changed


class Declared(Photos):
    draws_nothing = True


class Wrapped(Dataset):
    """Data of one's own around others: what these declare is not said of it."""

    def __init__(self, inner):
        self.inner = inner

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        image, target = self.inner[index]
        return image + torch.rand(()), target


@pytest.mark.parametrize(
    "draw",
    [
        put_back,
        lambda image: image * torch.rand(()),
        lambda image: image * np.random.rand(),
        lambda image: image * random.random(),
        OwnGenerator(np.random.default_rng(3)),
        v2.RandomHorizontalFlip(p=1e-6),  # which changes none of the 16
    ],
)
def test_data_that_declare_to_draw_nothing_are_held_to_it(draw):
    with pytest.raises(DataError, match="Declared declares draws_nothing = True, and 1. of 16"):
        require_drawing_nothing(Declared(draw), 5)
    require_drawing_nothing(Photos(draw), 5)  # which declare nothing
    require_drawing_nothing(Declared(torch.nn.Identity()), 5)


class Flipped(Declared):
    """Inherits the declaration, and adds a random transform."""

    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return (image.flip(-1) if random.random() < 1e-6 else image), target


def test_a_subclass_that_draws_now_and_then_is_held_to_what_it_inherits():
    with pytest.raises(DataError, match="Flipped declares draws_nothing = True, and 16 of 16"):
        require_drawing_nothing(Flipped(torch.nn.Identity()), 5)


def test_data_that_hold_a_generator_are_seeded_whatever_they_declare():
    def pixels(kind, seed):
        flip = albumentations.Compose([albumentations.HorizontalFlip(p=0.5)])
        keys = [[(0, index) for index in range(NUM_IMAGES)]]
        loader = make_loader(
            kind(flip, "array"), seed, keys, 0, torch.device("cpu"), unless_declared=True
        )
        ((images, *_),) = loader
        return images

    assert torch.equal(pixels(Declared, 5), pixels(Photos, 5))
    assert torch.equal(pixels(Declared, 5), pixels(Declared, 5))
    assert not torch.equal(pixels(Declared, 5), pixels(Declared, 6))


def test_nothing_is_seeded_for_data_that_declare_to_draw_nothing():
    def states(data, unless_declared=True):
        read = []
        seed_host(1)
        loader = make_loader(
            data, 5, [[(0, 1), (0, 2)]], 0, torch.device("cpu"), unless_declared=unless_declared
        )
        ((images, targets, _),) = loader
        for kept in (random.random(), np.random.rand(), float(torch.rand(()))):
            read.append(kept)
        return read, images, targets

    seed_host(1)
    unseeded = [random.random(), np.random.rand(), float(torch.rand(()))]
    plain, declared = Photos(torch.nn.Identity()), Declared(torch.nn.Identity())
    everywhere = list(range(NUM_IMAGES))
    read, images, targets = states(declared)
    assert read == unseeded == states(Subset(declared, everywhere))[0]
    assert targets.tolist() == [1, 0] and targets.dtype == torch.int64
    for seeded in (plain, Subset(plain, everywhere), Wrapped(declared)):
        assert states(seeded)[0] != unseeded
    again, same, _ = states(declared, unless_declared=False)
    assert again != unseeded and torch.equal(images, same)


def test_a_step_is_seeded_as_by_its_four_numbers():
    for stream in range(6):
        seed_step(7, 12, 3, stream)
        drawn = random.random(), np.random.rand(), float(torch.rand(()))
        seed_host(7, stream, 12, 3)
        assert drawn == (random.random(), np.random.rand(), float(torch.rand(())))
