"""Vertical flips, turns by right angles, and AutoAugment: exact, seeded, off unless asked for."""

import inspect
import math
from collections import Counter

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import AutoAugmentPolicy, InterpolationMode, v2

from trainkit.data.seeding import seed_host
from trainkit.data.transforms.dense_regression import train_transform as train_depths
from trainkit.data.transforms.orientation import RandomRotate90, orientations
from trainkit.data.transforms.recognition import train_transform as train_images
from trainkit.data.transforms.segmentation import train_transform as train_masks
from trainkit.errors import UserError


def pair(height: int = 23, width: int = 31) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """An image whose first channel is its mask: they must be turned alike."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(251, (height, width), dtype=torch.uint8, generator=generator)
    return tv_tensors.Image(torch.stack([labels, 255 - labels, labels])), tv_tensors.Mask(labels)


def test_turns_are_numpys_and_masks_turn_with_images():
    image, mask = pair()
    seen: Counter[int] = Counter()
    for seed in range(60):
        seed_host(seed)
        turned, labels = RandomRotate90(0.75)(image, mask)
        assert isinstance(turned, tv_tensors.Image) and isinstance(labels, tv_tensors.Mask)
        assert torch.equal(turned[0].as_subclass(torch.Tensor), labels.as_subclass(torch.Tensor))
        (turns,) = [
            turns
            for turns in range(4)
            if np.array_equal(np.rot90(np.asarray(mask), turns), np.asarray(labels))
        ]
        seen[turns] += 1
        assert turned.is_contiguous() and labels.is_contiguous()
    assert min(seen[turns] for turns in range(4)) >= 6


def test_a_certain_flip_is_numpys():
    image, mask = pair()
    (flip,) = orientations(1.0, 0.0)
    flipped, labels = flip(image, mask)
    assert np.array_equal(np.asarray(flipped), np.flip(np.asarray(image), 1))
    assert np.array_equal(np.asarray(labels), np.flip(np.asarray(mask), 0))
    assert all(
        not np.array_equal(np.asarray(RandomRotate90(1.0)(mask)), np.asarray(mask))
        for _ in range(20)
    )


@pytest.mark.parametrize("train", [train_masks, train_depths])
def test_crops_are_turned_after_they_are_cut(train):
    """The crop without the settings, turned: its draws come first and stay the same."""
    image, mask = pair(40, 52)
    if train is train_depths:
        mask = tv_tensors.Mask(mask.float())
    for seed in range(8):
        seed_host(seed)
        plain, of_plain = train(44, 32)(image, mask)
        seed_host(seed)
        turned, labels = train(44, 32, vflip=1.0, rotate90=1.0)(image, mask)
        assert turned.shape == (3, 32, 32) and labels.dtype == of_plain.dtype
        found = [
            turns
            for turns in (1, 2, 3)
            if np.array_equal(np.rot90(plain.flip(-2), turns, (1, 2)), turned)
        ]
        assert len(found) == 1
        np.testing.assert_array_equal(np.rot90(of_plain.flip(0), found[0]), labels)


def test_what_is_not_asked_for_draws_nothing():
    """Probabilities of 0 add no transform; crops of images are those of before."""
    assert orientations(0.0, 0.0) == []
    image, _ = pair()
    drawn = []
    for changes in ({}, {"vflip": 0.0, "rotate90": 0.0, "auto_augment": None}):
        seed_host(3)
        drawn.append((train_images(16, **changes)(image), torch.rand(())))
    assert torch.equal(drawn[0][0], drawn[1][0]) and drawn[0][1] == drawn[1][1]
    assert len(train_images(16).transforms) == 2
    assert type(train_masks(16, 16)).__name__ == type(train_depths(16, 16)).__name__
    for train in (train_images, train_masks, train_depths):
        defaults = inspect.signature(train).parameters
        assert (defaults["vflip"].default, defaults["rotate90"].default) == (0.0, 0.0)


@pytest.mark.parametrize("policy", ["imagenet", "cifar10", "svhn"])
def test_auto_augment_is_torchvisions(policy):
    image, _ = pair()
    crop_and_flip = v2.Compose(train_images(16).transforms[:2])
    theirs = v2.AutoAugment(AutoAugmentPolicy(policy), interpolation=InterpolationMode.BILINEAR)
    changed = 0
    for seed in range(10):
        seed_host(seed)
        ours = train_images(16, auto_augment=policy)(image)
        seed_host(seed)
        cropped = crop_and_flip(image)
        assert torch.equal(ours, theirs(cropped))
        changed += not torch.equal(ours, cropped)
    assert changed >= 6


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: train_images(8, vflip=1.5), "vflip is 1.5; it is a probability, from 0 to 1"),
        (lambda: train_masks(8, 8, rotate90=-0.1), "rotate90 is -0.1; it is a probability"),
        (lambda: train_depths(8, 8, rotate90=math.nan), "rotate90 is nan; it is a probability"),
        (lambda: train_images(8, auto_augment="mnist"), "'mnist'; it is one of imagenet, cifar10"),
        (
            lambda: train_images(8, auto_augment="svhn", rand_augment=(2, 9)),
            r"rand_augment is \(2, 9\) and auto_augment is svhn; choose one of them",
        ),
    ],
)
def test_user_errors(call, message):
    with pytest.raises(UserError, match=message):
        call()
