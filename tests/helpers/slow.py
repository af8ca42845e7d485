"""What really takes its time: images, a network, and the operations of a disk."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from helpers.toy_recipes import CLASSES, Images, recognition
from trainkit import Recipe

_WAITS: dict[str, tuple[str, float]] = {}


def _wait(event: str, arguments: tuple) -> None:
    part, seconds = _WAITS.get(event, ("", 0.0))
    if seconds and part in str(arguments[0]):
        time.sleep(seconds)


sys.addaudithook(_wait)  # for good: what it waits for is in _WAITS


@contextmanager
def slow_disk(event: str, part: str, seconds: float) -> Iterator[None]:
    """Context manager: a file operation of this process takes so long.

    Args:
        event: the operation by Python's audit events, such as "os.rename".
        part: of the path that is slow.
        seconds: that each operation takes longer.
    """
    _WAITS[event] = part, seconds
    try:
        yield
    finally:
        del _WAITS[event]


class SlowImages(Images):
    """Images of which each takes `seconds` to read."""

    def __init__(self, num_images: int, seconds: float, augment: bool = True):
        super().__init__(num_images, augment)
        self.seconds = seconds

    def __getitem__(self, index: int):
        time.sleep(self.seconds)
        return super().__getitem__(index)


class SlowNet(nn.Module):
    """A linear classifier of mean colours, whose forward pass in a training takes `seconds`."""

    def __init__(self, seconds: float):
        super().__init__()
        self.head = nn.Linear(3, CLASSES)
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            time.sleep(self.seconds)
        return self.head(x.mean((2, 3)))


def slow_recognition(data: Images, forward_s: float, **changes) -> Recipe:
    """A recognition by `SlowNet`, evaluated on few images."""
    model = SlowNet(forward_s)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    val_data = Images(4, augment=False)
    return recognition(
        train_data=data, val_data=val_data, model=model, optimizer=optimizer, **changes
    )
