"""Inference settings: whole images or sliding window, scales, and flip (TTA)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainkit.errors import UserError


@dataclass(frozen=True)
class Inference:
    """Inference settings of an evaluation: sliding window and test-time augmentation (TTA).

    Raises:
        UserError: a side, stride, scale or batch is out of range, or a stride comes without a
            window.
    """

    scales: tuple[float, ...] = (1.0,)
    """of the image as the validation data gives it"""
    flip: bool = False
    """also predict the horizontally flipped image (TTA)"""
    window: int | None = None
    """height of the windows, and width; None: whole images. Smaller images are padded with black"""
    stride: int | None = None
    """pixels from one window to the next; default: two thirds of the window"""
    window_batch: int = 8
    """windows per forward pass"""
    window_width: int | None = None
    """width of the windows; None: squares"""

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0:
            raise UserError(
                f"scales are {self.scales}; give one or more above 0, such as 0.75 1 1.25"
            )
        for name in ("window", "stride", "window_batch", "window_width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        for name in ("stride", "window_width"):
            if self.window is None and getattr(self, name) is not None:
                value = getattr(self, name)
                raise UserError(f"{name} is {value} without a window; give --window too")
        if self.stride is not None and self.sides is not None and self.stride > min(self.sides):
            raise UserError(
                f"stride is {self.stride}, above the window of {min(self.sides)}: pixels would be"
                " left out"
            )

    @classmethod
    def windows(
        cls, side_and_stride: tuple[int, int] | None, width: int | None = None
    ) -> "Inference | None":
        """Settings for windows, or None for whole images.

        Args:
            side_and_stride: side of the windows and step from one to the next in pixels, such as
                (480, 320); None for whole images.
            width: of the windows, whose height the side is then; None: squares.

        Raises:
            UserError: a value is out of range, or there is a width alone.
        """
        if side_and_stride is not None:
            return cls(window=side_and_stride[0], stride=side_and_stride[1], window_width=width)
        if width is not None:
            raise UserError(f"eval_window_width is {width} without eval_window: give that too")
        return None

    @property
    def sides(self) -> tuple[int, int] | None:
        """Height and width of the windows; None: whole images."""
        if self.window is None:
            return None
        return self.window, self.window if self.window_width is None else self.window_width

    @property
    def label(self) -> str:
        """The protocol in a few words."""
        place = "seen whole"
        if self.sides is not None:
            height, width = self.sides
            size = f"{height}" if height == width else f"{height} x {width}"
            place = f"windows of {size} every {self.step}"
        scales = ", ".join(f"{scale:g}" for scale in self.scales)
        return f"{place}, scale{'s' * (len(self.scales) > 1)} {scales}{', flipped too' * self.flip}"

    @property
    def step(self) -> int:
        """Stride: pixels from one window to the next."""
        if self.stride is not None:
            return self.stride
        assert self.sides is not None  # a whole image has no next window
        return max(1, math.ceil(min(self.sides) * 2 / 3))

    def starts(self, size: Sequence[int]) -> tuple[list[int], list[int]]:
        """Where windows begin, down and across; the last ones end with the image.

        Args:
            size: height and width of the image, at least a window's.

        Returns:
            Offsets in pixels, in rising order.
        """
        if self.sides is None:
            return [0], [0]
        down, across = (
            [
                min(number * self.step, length - side)
                for number in range(math.ceil(max(0, length - side) / self.step) + 1)
            ]
            for length, side in zip(size, self.sides)
        )
        return down, across
