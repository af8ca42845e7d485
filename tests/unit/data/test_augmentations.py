"""Augmentations, repeated images, ten crops, and torchvision's regularisers in a recipe."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from helpers.logs import rows
from helpers.toy_recipes import CLASSES, Images, Net, recognition
from trainkit import Options, train
from trainkit.commands.prediction_writers import ClassWriter, keep_tables
from trainkit.data.datasets.repeated import Repeated
from trainkit.data.mixup import Mixup
from trainkit.data.reader import name_of
from trainkit.data.sampler import TrainOrder
from trainkit.data.seeding import Seeded, seed_host
from trainkit.data.transforms.ops import Lighting, RandomScaleCrop
from trainkit.data.transforms.recognition import eval_transform as eval_images
from trainkit.data.transforms.recognition import train_transform as train_images
from trainkit.data.transforms.segmentation import eval_transform as eval_maps
from trainkit.data.transforms.segmentation import train_transform as train_maps
from trainkit.models.recognition import classifier
from trainkit.options import PredictOptions
from trainkit.prediction.images import Picture
from trainkit.prediction.model_info import ModelInfo
from trainkit.tasks.recognition import Recognition


def picture(height: int = 40, width: int = 60) -> tv_tensors.Image:
    generator = torch.Generator().manual_seed(0)
    return tv_tensors.Image(
        torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)
    )


AUGMENTATIONS = {
    "rand_augment": (2, 9),
    "trivial_augment": True,
    "jitter": (0.4, 0.4, 0.4, 0.1),
    "lighting": 0.5,
    "erase": 1.0,
}


@pytest.mark.parametrize("name", [*AUGMENTATIONS, "together"])
def test_augmentations_of_images(name):
    """Each changes pixels, keeps type and size, and depends on the seeded generators alone."""
    settings = (
        {name: AUGMENTATIONS[name]}
        if name in AUGMENTATIONS
        else {**AUGMENTATIONS, "rand_augment": None}
    )
    transform, plain = train_images(24, **settings), train_images(24)
    changed = 0
    for seed in range(5):
        first, second, without = (
            (seed_host(seed), each(picture()))[1] for each in (transform, transform, plain)
        )
        assert (
            first.shape == (3, 24, 24) and first.dtype == torch.uint8 and torch.equal(first, second)
        )
        changed += not torch.equal(first, without)
    assert changed >= 4


def test_erased_pixels_have_the_means_colour():
    seed_host(0)
    image = tv_tensors.Image(torch.zeros(3, 32, 32, dtype=torch.uint8))
    erased = train_images(32, erase=1.0)(image)
    colours = erased.flatten(1).T.unique(dim=0)
    assert colours.tolist() == [[0, 0, 0], [124, 116, 104]]
    normalised = (colours[1] / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    assert normalised.abs().max() < 0.02


def test_lighting_is_alexnets():
    """Its covariance is V diag(std lambda)^2 V^T, and V is a basis."""
    values, vectors = Lighting.values.double(), Lighting.vectors.double()
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(3).double(), rtol=0, atol=2e-3)
    torch.manual_seed(0)
    transform = Lighting(0.1)
    grey = tv_tensors.Image(torch.full((3, 1, 1), 0.5))
    shifts = torch.stack([transform(grey).flatten() - 0.5 for _ in range(4000)]).double()
    expected = vectors @ torch.diag((0.1 * values) ** 2) @ vectors.T
    torch.testing.assert_close(shifts.T.cov(), expected, rtol=0.1, atol=1e-7)
    assert shifts.mean(0).abs().max() < 1e-3

    torch.manual_seed(1)
    of_floats = transform(tv_tensors.Image(picture().as_subclass(torch.Tensor) / 255))
    torch.manual_seed(1)
    of_bytes = transform(picture())
    assert of_bytes.dtype == torch.uint8 and isinstance(of_bytes, tv_tensors.Image)
    assert (of_bytes / 255 - of_floats).abs().max() <= 0.5 / 255 + 1e-6


def test_photometric_distortion_leaves_the_mask():
    mask = tv_tensors.Mask(torch.arange(40 * 60).view(40, 60).remainder(5).to(torch.uint8))
    for seed in range(4):
        seed_host(seed)
        plain = train_maps(60, 32, scale=(1.0, 1.0))(picture(), mask)
        seed_host(seed)
        distorted = train_maps(60, 32, scale=(1.0, 1.0), photometric=True)(picture(), mask)
        assert torch.equal(plain[1], distorted[1]) and distorted[0].dtype == torch.uint8
        assert not torch.equal(plain[0], distorted[0])


def test_balanced_crops():
    """A small corner of another class is in the crop as often as tries allow."""
    mask = torch.zeros(64, 64, dtype=torch.uint8)
    mask[:20, :20], mask[40:] = 1, 255
    pair = tv_tensors.Image(mask.expand(3, -1, -1).clone()), tv_tensors.Mask(mask)

    def share_of_good(crop) -> float:
        torch.manual_seed(0)
        good = 0
        for _ in range(200):
            image, labels = crop(*pair)
            assert labels.shape == (20, 20) and torch.equal(image[0], labels)
            counts = np.bincount(labels[labels != 255].numpy(), minlength=1)
            good += counts.max() <= 0.75 * counts.sum() and counts.sum() > 0
        return good / 200

    def whole_size(cat_max_ratio):
        return RandomScaleCrop(64, 20, (1.0, 1.0), 255, cat_max_ratio)

    once = share_of_good(v2.RandomCrop(20))
    assert 0.05 < once < 0.15 and share_of_good(whole_size(None)) == pytest.approx(once, abs=0.05)
    assert share_of_good(whole_size(0.75)) == pytest.approx(1 - (1 - once) ** 11, abs=0.12)
    assert share_of_good(train_maps(64, 20, (1.0, 1.0), cat_max_ratio=0.75)) > 4 * once
    with pytest.raises(ValueError, match="cat_max_ratio is 1.5; it must be between 0 and 1"):
        train_maps(64, 20, cat_max_ratio=1.5)


def test_a_crop_of_one_class_is_kept_in_the_end():
    mask = tv_tensors.Mask(torch.full((8, 8), 3, dtype=torch.uint8))
    image, cropped = RandomScaleCrop(8, 12, (1.0, 1.0), 255, 0.75)(picture(8, 8), mask)
    assert image.shape == (3, 12, 12) and set(cropped.unique().tolist()) == {3, 255}


def test_ten_crops_are_averaged(tmp_path):
    """An evaluation by the loop gives the classes of the mean probabilities of torchvision's ten
    crops."""
    transform = eval_images(8, crop_fraction=0.8, ten_crop=True)
    crops = transform(picture(20, 14))
    resized = functional.resize(picture(20, 14), 10, antialias=True)
    assert torch.equal(crops, torch.stack(functional.ten_crop(resized, 8))) and crops.shape == (
        10,
        3,
        8,
        8,
    )

    class TenCrops(Images):
        def __getitem__(self, index):
            image, target = super().__getitem__(index)
            return transform(tv_tensors.Image(image)).as_subclass(torch.Tensor), target

    data, model = TenCrops(13, augment=False), Net(dense=False)
    recipe = recognition(
        model=model, val_data=data, epochs=1, optimizer=torch.optim.SGD(model.parameters(), lr=0.0)
    )
    train(recipe, Options(out=tmp_path / "run", workers=0))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (recipe.mean, recipe.std))
    model.eval()
    with torch.no_grad():
        most_similar = [
            model((data[i][0] / 255 - mean) / std).softmax(1).mean(0).argmax().item()
            for i in range(13)
        ]
    hits = sum(a == int(b) for a, b in zip(most_similar, data.targets))
    assert rows(tmp_path / "run", "evaluate")[-1]["top1"] == pytest.approx(hits / 13)


def test_predictions_of_several_outputs():
    outputs = torch.tensor([[4.0, 0, 0], [0, 2, 0], [0, 2, 0], [0, 0, 1.0], [0, 0, 1], [0, 0, 1]])
    task = Recognition(3)
    found = task.predict(outputs, torch.tensor([0, 2]))
    mean = outputs.double().softmax(1).view(2, 3, 3).mean(1)
    torch.testing.assert_close(found.softmax(1), mean.float())
    assert task.labels(found).tolist() == [1, 2] and outputs.view(2, 3, 3).mean(1)[0].argmax() == 0


def test_labels_are_those_that_top1_takes():
    """Also where bfloat16 makes several classes as likely."""
    task = Recognition(40)
    logits = (
        torch.randn(200, 40, generator=torch.Generator().manual_seed(0))
        .mul(0.01)
        .bfloat16()
        .round(decimals=2)
    )
    assert ((logits == logits.amax(1, keepdim=True)).sum(1) > 1).sum() > 20
    metric, *_ = task.metrics()
    assert metric.compute(predictions=logits, references=task.labels(logits))["top1"] == 1.0


def test_predictions_of_ten_crops_are_written(tmp_path):
    outputs = torch.tensor([[4.0, 0, 0], [0, 2, 0], [0, 2, 0], [0, 0, 1.0], [0, 0, 1], [0, 0, 1]])
    info = ModelInfo(model=nn.Identity(), task=Recognition(3), transform=None)
    assert "Identity" not in repr(info) and "Recognition" in repr(info)
    writer = ClassWriter(info, PredictOptions(paths=(), out=tmp_path, top_k=1))
    writer.add([Picture(Path(name), Path(name)) for name in "ab"], outputs)
    writer.close()
    keep_tables(tmp_path, writer.written)
    lines = [
        json.loads(line)["top"][0]
        for line in (tmp_path / "predictions.jsonl").read_text().splitlines()
    ]
    mean = outputs.view(2, 3, 3).softmax(2).mean(1)
    assert [line["class"] for line in lines] == [1, 2]
    assert [line["probability"] for line in lines] == pytest.approx(
        [mean[0, 1].item(), mean[1, 2].item()]
    )


def test_centre_crops_of_image_and_mask():
    """64 x 100 needs no resizing.

    The short side of 32 x 50 is doubled first, and no new label appears.
    """
    image, mask = picture(64, 100), tv_tensors.Mask(torch.randint(5, (64, 100), dtype=torch.uint8))
    look = eval_maps(520, crop=64)
    seen, target = look(image, mask)
    assert (
        torch.equal(seen, image[:, :, 18:82])
        and torch.equal(target, mask[:, 18:82])
        and not look.whole
    )
    small = tv_tensors.Mask(torch.randint(5, (32, 50), dtype=torch.uint8))
    seen, target = look(picture(32, 50), small)
    doubled = small.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert seen.shape == (3, 64, 64) and torch.equal(target, doubled[:, 18:82])


class Noisy(Images):
    """Draws that say which generators an image met."""

    def __getitem__(self, index: int):
        return index, (torch.rand(()).item(), random.random(), np.random.rand())


def test_repeated_images_are_in_one_batch_and_differ():
    data = Repeated(Noisy(10), 3)
    assert len(data) == 30 and data[23][0] == 3 and name_of(data, 23) == "number 3 of Noisy"
    order = TrainOrder(len(data), 12, 5, repeats=data.repeats)
    seen = []
    for step in range(order.steps_per_epoch):
        keys = order.keys(step)
        images, draws = zip(*(Seeded(data, 1)[key] for key in keys))
        distinct = len(keys) // 3
        assert len(set(images)) == distinct == (4 if step < 2 else 2)
        assert images[:distinct] == images[distinct : 2 * distinct] == images[2 * distinct :]
        assert len(set(draws)) == len(keys)
        seen += images
    assert sorted(seen) == sorted(3 * list(range(10)))
    assert sorted(order.epoch(1).tolist()) == list(range(30)) and not torch.equal(
        order.epoch(0), order.epoch(1)
    )
    shared = TrainOrder(30, 12, 5, num_processes=3, repeats=3)
    parts = [next(shared.batches(1, 2, process)) for process in range(3)]
    assert sum(parts, []) == order.keys(1)
    with pytest.raises(IndexError):
        data[30]


def test_training_on_repeated_images(tmp_path):
    """The loop sees to the order.

    Each step has every image three times, and mixing pairs different ones.
    """
    recipe = recognition(
        train_data=Repeated(Images(12), 3),
        batch_size=12,
        epochs=1,
        mix=Mixup(0.2, CLASSES),
        drop_last=True,
    )
    summary = train(recipe, Options(out=tmp_path / "run", workers=0, log_every=1))
    assert summary["steps"] == 3 and summary["images"] == 36
    assert len(set(recipe.model.seen)) == 36
    with pytest.raises(ValueError, match="batch_size is 8, and each image is in a batch 3 times"):
        train(
            recognition(train_data=Repeated(Images(12), 3)),
            Options(out=tmp_path / "other", workers=0),
        )
    with pytest.raises(ValueError, match="times is 0"):
        Repeated(Images(12), 0)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: classifier("resnet18", 5, stochastic_depth=0.1),
            "resnet18 has none in torchvision",
        ),
        (lambda: classifier("small", 5, drop_block=0.1), "small is none of torchvision's ResNets"),
        (
            lambda: classifier("resnet18", 5, drop_block=1.0),
            r"drop_block is 1.0; it must be in \[0, 1\)",
        ),
        (lambda: eval_images(32, crop_fraction=0.0), "crop_fraction is 0.0; it must be above 0"),
        (lambda: train_images(8, rand_augment=(2, 9), trivial_augment=True), "choose one of them"),
        (lambda: train_images(8, lighting=0), "lighting is 0; it must be above 0"),
    ],
)
def test_user_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
