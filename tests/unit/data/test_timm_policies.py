"""timm's augmentation policies as transforms of uint8 images; erasing with noise."""

import pickle
import sys

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from trainkit.data.seeding import seed_host
from trainkit.data.to_device import MEAN, STD
from trainkit.data.transforms.ops import NoiseErasing
from trainkit.data.transforms.recognition import train_transform
from trainkit.data.transforms.timm_policies import TimmPolicy
from trainkit.errors import MissingPackageError, UserError

pytest.importorskip("timm")
from timm.data import create_transform

BICUBIC = InterpolationMode.BICUBIC


def image(side=40):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return torch.from_numpy(np.kron(pixels, np.ones((side // 5, side // 5, 1), np.uint8))).permute(
        2, 0, 1
    )


@pytest.mark.parametrize("policy", ["rand-m7-mstd0.5-inc1", "rand-m9-n3-mstd0.5", "3a", "v0r"])
def test_it_is_what_timm_makes_of_the_name(policy):
    """The same pixels as timm's own transform of training, which has it after crop and flip."""
    theirs = create_transform(
        32, is_training=True, auto_augment=policy, interpolation="bicubic", re_prob=0.0
    )
    ours = TimmPolicy(policy, 32, BICUBIC)
    (step,) = [
        each for each in theirs.transforms if type(each).__module__ == "timm.data.auto_augment"
    ]
    changed = 0
    for seed in range(12):
        seed_host(seed)
        found = ours(image())
        seed_host(seed)
        expected = pil_to_tensor(step(to_pil_image(image())))
        assert torch.equal(found, expected)
        changed += not torch.equal(found, image())
    assert changed >= 6


def test_it_stands_between_flip_and_jitter():
    whole = train_transform(32, (0.08, 1.0), BICUBIC, auto_augment="3a", jitter=(0.3, 0.3, 0.3))
    kinds = [type(each).__name__ for each in whole.transforms]
    assert kinds == ["RandomResizedCrop", "RandomHorizontalFlip", "TimmPolicy", "ColorJitter"]
    seed_host(1)
    found = whole(image(80))
    seed_host(1)
    assert torch.equal(found, pickle.loads(pickle.dumps(whole))(image(80)))  # as a worker has it
    assert found.shape == (3, 32, 32) and found.dtype == torch.uint8


def test_three_augment_is_one_of_three():
    """Grayscale, solarization at 128 or a blur, of an image of a step between two colours."""
    pixels = torch.zeros(3, 8, 8, dtype=torch.uint8)
    pixels[0], pixels[:, :, 4:] = 200, torch.tensor([10, 90, 160], dtype=torch.uint8)[:, None, None]
    policy, kinds = TimmPolicy("3a", 8), set()
    gray = v2.functional.rgb_to_grayscale(pixels, 3).float()
    solarized = torch.where(pixels >= 128, 255 - pixels, pixels)
    for seed in range(24):
        seed_host(seed)
        found = policy(pixels)
        if torch.equal(found, solarized):
            kinds.add("solarized")
        elif (found.float() - gray).abs().max() <= 1:
            kinds.add("gray")
        else:  # far from the step as it was
            assert torch.equal(found[:, :, 0], pixels[:, :, 0]) or kinds
            kinds.add("blurred")
    assert kinds == {"solarized", "gray", "blurred"}


def test_erasing_with_noise():
    """Noise of ImageNet's mean and deviation in a rectangle, and nothing else changed."""
    gray = torch.full((3, 200, 200), 7, dtype=torch.uint8)
    seed_host(2)
    found = NoiseErasing(1.0)(gray)
    changed = (found != gray).any(0)
    rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
    erased = found[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].float()
    assert found.dtype == torch.uint8
    assert 0.018 <= changed.float().mean() <= 0.34
    mean, std = 255 * torch.tensor(MEAN), 255 * torch.tensor(STD)
    cut = (mean[:, None] + std[:, None] * torch.randn(3, 10**6)).clamp(0, 255)
    torch.testing.assert_close(erased.mean((1, 2)), cut.mean(1), atol=3, rtol=0)
    torch.testing.assert_close(erased.std((1, 2)), cut.std(1), atol=3, rtol=0)
    assert not torch.equal(erased[0], erased[1])


def test_user_errors(monkeypatch):
    with pytest.raises(UserError, match="'rand-x3', which timm does not take"):
        TimmPolicy("rand-x3", 32)
    with pytest.raises(UserError, match="or one of timm's, such as rand-m9-mstd0.5-inc1 or 3a"):
        train_transform(8, auto_augment="mnist")
    with pytest.raises(UserError, match="of 4 channels: timm's policies are of 8 bits"):
        TimmPolicy("3a", 8)(torch.zeros(4, 8, 8, dtype=torch.uint8))
    with pytest.raises(UserError, match="erase_with is 'white'; it must be mean or noise"):
        train_transform(8, erase=0.5, erase_with="white")
    monkeypatch.setitem(sys.modules, "timm.data", None)
    with pytest.raises(MissingPackageError, match="needs timm: pip install"):
        TimmPolicy("3a", 8)
