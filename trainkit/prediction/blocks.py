"""Masks of images too large to hold the scores of: block by block, each from the windows over it.

A block of pixels gets the same mean over the same windows as in an evaluation, flipped ones too;
windows over a border of two blocks are run for both.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainkit.data.to_device import ToDevice
from trainkit.inference import Inference
from trainkit.prediction.results import mask_type

SCORES_AT_ONCE = 1 << 26  # 256 MiB


@dataclass(frozen=True)
class Blocks:
    """Runs a model over an image in windows, without scores of the whole image at any time."""

    inference: Inference
    """with a window, and one scale"""
    task_module: nn.Module
    """gives probabilities (N, C, h, w) where it gets no targets"""
    to_device: ToDevice
    num_classes: int
    scores_at_once: int = SCORES_AT_ONCE
    """of a block, over all classes"""

    def are_needed(self, size: tuple[int, int]) -> bool:
        """Whether the scores of an image of this height and width are more than one block's."""
        scores = self.num_classes * size[0] * size[1]
        fits = all(length >= side for length, side in zip(size, self.window))
        return fits and scores > self.scores_at_once

    @property
    def window(self) -> tuple[int, int]:
        """Height and width of the windows."""
        assert self.inference.sides is not None
        return self.inference.sides

    @torch.inference_mode()
    def mask(self, image: Tensor) -> Tensor:
        """The class of each pixel, of their `mask_type`, (H, W), on the CPU.

        image: uint8 (3, H, W).
        """
        height, width = image.shape[-2:]
        kind = mask_type(self.num_classes)
        found = torch.empty(height, width, dtype=kind)
        side = self._side()
        for top in range(0, height, side):
            for left in range(0, width, side):
                bottom, right = min(top + side, height), min(left + side, width)
                scores = self._scores(image, top, bottom, left, right)
                found[top:bottom, left:right] = scores.argmax(0).to(kind).cpu()
        return found

    def _side(self) -> int:
        """Of a block, at least a window's, as a smaller one would run most windows many times."""
        return max(*self.window, int((self.scores_at_once / self.num_classes) ** 0.5))

    def _scores(self, image: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
        """Sums over the windows that see a block, (C, height, width).

        Their mean has its largest class where the sum has.
        """
        shape = self.num_classes, bottom - top, right - left
        sums = torch.zeros(shape, device=self.to_device.device)
        places = self._places(image.shape[-2:], top, bottom, left, right)
        most = self.inference.window_batch
        for first in range(0, len(places), most):
            batch = places[first : first + most]
            for (row, column), scores in zip(batch, self._forward(image, batch)):
                _add(sums, scores, row - top, column - left)
        return sums

    def _places(
        self, size: torch.Size, top: int, bottom: int, left: int, right: int
    ) -> list[tuple[int, int]]:
        """Where the windows begin that see a block."""
        height, width = self.window
        down, across = self.inference.starts(size)
        rows = [row for row in down if top - height < row < bottom]
        columns = [each for each in across if left - width < each < right]
        return [(row, column) for row in rows for column in columns]

    def _forward(self, image: Tensor, places: list[tuple[int, int]]) -> Iterator[Tensor]:
        """Scores (C, h, w) of the windows at these places, added up with the flipped ones."""
        height, width = self.window
        cut = [image[:, row : row + height, column : column + width] for row, column in places]
        pixels, _ = self.to_device(torch.stack(cut), torch.empty(len(cut)))
        scores = self.task_module(pixels, None)
        if self.inference.flip:
            scores = scores + self.task_module(pixels.flip(-1), None).flip(-1)
        return iter(scores)


def _add(sums: Tensor, scores: Tensor, row: int, column: int) -> None:
    """Add what lies within `sums` (C, H, W) of scores (C, h, w) that begin at (row, column)."""
    height, width = scores.shape[-2:]
    top, left = max(row, 0), max(column, 0)
    bottom, right = min(row + height, sums.shape[1]), min(column + width, sums.shape[2])
    part = scores[:, top - row : bottom - row, left - column : right - column]
    sums[:, top:bottom, left:right] += part
