"""A recipe with a fault to choose, for the tests of trainkit audit.

The faults are those that people meet: each breaks another promise, and shows elsewhere first.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import get_worker_info

from helpers import toy_recipes
from helpers.toy_recipes import CLASSES, Images, Net
from trainkit import Recipe
from trainkit.tasks.recognition import Recognition

BAD = 5  # index of the image that a faulty dataset changes


class Noisy(Images):
    """Adds noise of a generator that nobody seeds to one image."""

    def __getitem__(self, index: int):
        image, target = super().__getitem__(index)
        if index == BAD:
            image = image.clone()
            image[1, 2, 3] = int(np.random.default_rng().integers(199))
        return image, target


class OfTheWorker(Images):
    """Makes its images brighter by the number of the worker that reads them."""

    def __getitem__(self, index: int):
        image, target = super().__getitem__(index)
        worker = get_worker_info()
        return image + (0 if worker is None else worker.id), target


class OfTheOrder(Images):
    """Labels an image by the target of the one that was read before."""

    before = 0

    def __getitem__(self, index: int):
        image, target = super().__getitem__(index)
        self.before, given = int(target), self.before
        return image, torch.tensor(given)


class OwnDropout(nn.Module):
    """Draws from a generator of its own, whose state no checkpoint has."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, maps: Tensor) -> Tensor:
        return maps * (torch.rand(maps.shape, generator=self.generator) > 0.1)


class Forgetful(torch.optim.SGD):
    """Keeps its momentum in an attribute, which state_dict() does not have."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.velocity: dict[int, Tensor] = {}

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for number, weight in enumerate(group["params"]):
                moved = 0.9 * self.velocity.get(number, torch.zeros_like(weight)) + weight.grad
                self.velocity[number] = moved
                weight -= group["lr"] * moved


class OfItsShare(Recognition):
    """Divides by the images that this process has of a batch."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().losses(outputs, targets) * 8 / len(targets)


def recipe(fault: str = "none", dense: bool = False) -> Recipe:
    """A few steps on random images.

    Args:
        fault: what is wrong.
        dense: segmentation.
    """
    if dense:
        return toy_recipes.segmentation(num_images=27, epochs=4)
    net = Net(dense=False)
    changes = {}
    datasets = {"noise": Noisy, "worker": OfTheWorker, "order": OfTheOrder}
    if fault in datasets:
        changes["train_data"] = datasets[fault](27)
    if fault == "dropout":
        net.backbone[3] = OwnDropout()
    if fault == "norm":
        net.backbone[1] = nn.BatchNorm2d(8)
    if fault == "drop":
        net.backbone[3] = nn.Dropout(0.3)
    if fault == "set":  # strings are hashed otherwise in each interpreter
        for name in {"first", "second", "third", "fourth", "fifth"}:
            net.head.bias.data += torch.randn(CLASSES) * len(name)
    if fault == "share":
        changes["task"] = OfItsShare(CLASSES)
    kind = Forgetful if fault == "optimizer" else torch.optim.SGD
    momentum = {} if fault == "optimizer" else {"momentum": 0.9}
    changes["optimizer"] = kind(net.parameters(), lr=0.1, **momentum)
    return toy_recipes.recognition(**{"epochs": 4, "model": net, **changes})
