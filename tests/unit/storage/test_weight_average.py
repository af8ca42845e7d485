"""The mean of weights by hand, and which models have none."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.teachers import write_teacher
from trainkit.errors import UserError
from trainkit.storage.stored_model import StoredModel
from trainkit.storage.weight_average import average, require_alike


def models(*folders: Path):
    return [StoredModel.at(folder) for folder in folders]


def change(folder: Path, **changes) -> Path:
    """Put further tensors, or others, into a folder's weights; None takes one out."""
    weights = {**load_file(folder / "model.safetensors"), **changes}
    weights = {name: value for name, value in weights.items() if value is not None}
    save_file(weights, folder / "model.safetensors")
    return folder


def test_the_mean_is_taken_in_float64_and_rounded_once(tmp_path):
    folders = [write_teacher(tmp_path / str(seed), seed=seed) for seed in range(3)]
    generator = torch.Generator().manual_seed(0)
    for number, folder in enumerate(folders):
        change(
            folder,
            half=torch.randn(500, generator=generator).half(),
            bfloat=torch.randn(500, generator=generator).bfloat16(),
            # 1 is lost beside 2^24 in float32
            large=torch.tensor([2.0**24, 1.0, 1.0][number]),
            waves=torch.complex(torch.tensor(float(number)), torch.tensor(2.0)),
            ids=torch.arange(4),
            num_batches_tracked=torch.tensor(10 * number),
        )
    found = average(models(*folders))
    read = [load_file(folder / "model.safetensors") for folder in folders]
    assert found.keys() == read[0].keys()
    for name, value in found.items():
        assert value.dtype == read[0][name].dtype
        if value.is_floating_point():
            mean = torch.stack([each[name].double() for each in read]).mean(0)
            torch.testing.assert_close(value.double(), mean, rtol=2.0**-8, atol=1e-7)
            assert torch.equal(value, (sum(e[name].double() for e in read) / 3).to(value.dtype))
    assert found["large"].item() == torch.tensor((2.0**24 + 2) / 3).item()
    assert found["waves"].item() == 1 + 2j
    assert found["ids"].tolist() == [0, 1, 2, 3] and found["num_batches_tracked"] == 20


def test_weights_that_differ_are_refused_by_name(tmp_path):
    first = write_teacher(tmp_path / "first")

    def refused(message, **changes):
        second = change(write_teacher(tmp_path / "second", seed=2), **changes)
        with pytest.raises(UserError, match=message):
            average(models(first, second))

    weights = load_file(first / "model.safetensors")
    name = next(name for name, value in weights.items() if value.is_floating_point())
    refused("networks differ: the second one has beside them more", more=torch.zeros(1))
    refused(f"the second one lacks {name}", **{name: None})
    refused(rf"otherwise {name} \[2\] torch.float32 in place of", **{name: torch.zeros(2)})
    bad = torch.full_like(weights[name], torch.nan)
    refused(f"second contains NaN/Inf, in {name}", **{name: bad})
    change(first, ids=torch.arange(3))
    refused(r"differ in ids, which holds whole numbers \(torch.int64\)", ids=torch.ones(3).long())


def test_models_of_other_networks_classes_and_images_are_refused_by_name(tmp_path):
    first = write_teacher(tmp_path / "first", classes=["a", "b", "c"])

    def refused(message, folder, **changes):
        with pytest.raises(UserError, match=message):
            require_alike(models(first, write_teacher(tmp_path / folder, seed=2, **changes)))

    refused("and .*classes cannot be averaged: classes is", "classes", classes=["b", "a", "c"])
    refused("mean is .*0.485, .* and .0.5", "mean", classes=["a", "b", "c"], mean=(0.5, 0.4, 0.3))
    refused("network is ", "dense", classes=["a", "b", "c"], dense=True)
    again = write_teacher(tmp_path / "again", classes=["a", "b", "c"])
    with pytest.raises(UserError, match="first and .*again are the same weights"):
        require_alike(models(first, again))
    other = write_teacher(tmp_path / "other", classes=["a", "b", "c"], seed=5)
    require_alike(models(first, other))


def test_adapters_have_no_average(tmp_path):
    matrices = {f"0.lora_{which}.default.weight": torch.ones(2, 2) for which in "AB"}
    folders = [
        change(write_teacher(tmp_path / str(seed), seed=seed), **matrices) for seed in range(2)
    ]
    with pytest.raises(UserError, match="was trained with --lora, and the mean of adapters"):
        average(models(*folders))
