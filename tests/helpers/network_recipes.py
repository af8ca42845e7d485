"""Recipes with networks that a test is about.

Residual blocks, linear layers, sliding windows, any optimizer.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from helpers.optimizers import Builder
from helpers.toy_recipes import CLASSES, recognition, segmentation
from trainkit import Options, Recipe, train
from trainkit.data.seeding import seed_host
from trainkit.inference import Inference
from trainkit.models.small import Block
from trainkit.optim import param_groups
from trainkit.schedules import constant


class Noisy(Block):
    """A residual block with dropout."""

    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.3, self.training)


def residual(**changes) -> Recipe:
    """Blocks with batch norm, in which random numbers are drawn."""
    model = nn.Sequential(
        Noisy(3, 8), Noisy(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)
    )
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = 0.01  # statistics that are far behind
    optimizer = torch.optim.SGD(param_groups(model, 0.1, 1e-3), lr=0.1, momentum=0.9)
    return recognition(model=model, optimizer=optimizer, epochs=1.5, ema=0.9, **changes)


def trained(folder: Path, **options) -> Path:
    seed_host(5)
    train(residual(), Options(out=folder, seed=5, workers=0, log_every=1, micro_batch=3, **options))
    return folder


def in_windows() -> Recipe:
    return replace(
        segmentation(), inference=Inference(scales=(1.0, 1.5), flip=True, window=10, window_batch=4)
    )


def with_layers() -> Recipe:
    """Linear layers, of which fp8 takes all but the first and the last."""
    seed_host(0)
    layers = [nn.Flatten(), nn.Linear(432, 64)]
    for _ in range(2):
        layers += [nn.ReLU(), nn.Linear(64, 64)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Linear(64, CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return recognition(num_images=64, model=model, batch_size=16, optimizer=optimizer, ema=0.9)


class Small(nn.Module):
    """A convolution, a norm and a matrix, so that every kind of parameter is there."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, CLASSES)
        self.seen: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x).mean((2, 3)))


def small(build: Builder, **changes) -> Recipe:
    seed_host(5)
    model = Small()
    return recognition(
        model=model, optimizer=build(model), epochs=2, schedule=constant(), **changes
    )
