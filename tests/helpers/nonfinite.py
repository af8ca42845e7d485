"""Images of which one has a NaN pixel."""

import math

from helpers.toy_recipes import Images
from trainkit.data.sampler import TrainOrder


class Planted(Images):
    """One image of float pixels is no number."""

    def __init__(self, num_images: int, planted: int, value: float = math.nan):
        super().__init__(num_images, augment=False)
        self.images = self.images.float() / 64 - 1
        self.images[planted, 1, 2, 3] = value

    def name_of(self, index):
        return f"planted/{index}.png"


def step_of(index: int, seed: int = 0) -> int:
    """The step of epoch 1 (counted from 1) that trains on the image."""
    order = TrainOrder(27, 8, seed).epoch(0).tolist()
    return order.index(index) // 8 + 1
