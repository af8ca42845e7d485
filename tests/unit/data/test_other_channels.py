"""Datasets of one's own whose images have other channels than the recipe says."""

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from helpers.toy_recipes import CLASSES, recognition
from trainkit import Options, train
from trainkit.data.to_device import ToDevice
from trainkit.errors import UserError


class Bands(Dataset):
    """Images of four channels, as somebody wrote it: without an attribute `pixels`."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.full((4, 6, 6), index, dtype=torch.uint8), torch.tensor(index % CLASSES)


def network():
    return nn.Sequential(
        nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)
    )


def of_four(**more):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = {"train_data": Bands(), "val_data": Bands()}
    return recognition(model=model, optimizer=optimizer, epochs=1, batch_size=4, **data, **more)


def test_mean_of_three_values_is_one_message_before_the_first_step(tmp_path):
    with pytest.raises(UserError, match="images have 4 channels, and mean has 3 values: give the"):
        train(of_four(), Options(out=tmp_path / "run", workers=0))
    log = tmp_path / "run" / "log.jsonl"
    assert not log.exists() or '"event": "step"' not in log.read_text()


def test_four_values_are_taken(tmp_path):
    of_each = {"mean": (0.5, 0.4, 0.3, 0.2), "std": (0.2, 0.2, 0.2, 0.2)}
    train(of_four(**of_each), Options(out=tmp_path / "run", workers=0))
    assert (tmp_path / "run" / "summary.json").is_file()


@pytest.mark.parametrize("kind", [torch.uint8, torch.uint16])
def test_one_value_is_of_all_channels(kind):
    images = torch.ones(2, 5, 3, 3, dtype=torch.uint8).to(kind)
    found, _ = ToDevice(torch.device("cpu"), (0.5,), (0.25,))(images, torch.zeros(2))
    white = 255 if kind == torch.uint8 else 65535
    assert torch.allclose(found, torch.tensor((1 / white - 0.5) / 0.25).expand(2, 5, 3, 3))
