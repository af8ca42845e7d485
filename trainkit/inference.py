"""Inference settings: whole images or sliding window, scales, and flip (TTA)."""

import math
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
    """height and width of the windows; None: whole images. Smaller images are padded with black"""
    stride: int | None = None
    """pixels from one window to the next; default: two thirds of the window"""
    window_batch: int = 8
    """windows per forward pass"""

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0:
            raise UserError(
                f"scales are {self.scales}; give one or more above 0, such as 0.75 1 1.25"
            )
        for name in ("window", "stride", "window_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        if self.stride is not None and self.window is None:
            raise UserError(f"stride is {self.stride} without a window; give --window too")
        if self.stride is not None and self.window is not None and self.stride > self.window:
            raise UserError(
                f"stride is {self.stride}, above the window of {self.window}: pixels would be"
                " left out"
            )

    @classmethod
    def windows(cls, side_and_stride: tuple[int, int] | None) -> "Inference | None":
        """Settings for square windows, or None for whole images.

        Args:
            side_and_stride: side of the windows and step from one to the next in pixels, such as
                (480, 320); None for whole images.
        """
        return (
            None
            if side_and_stride is None
            else cls(window=side_and_stride[0], stride=side_and_stride[1])
        )

    @property
    def label(self) -> str:
        """The protocol in a few words."""
        place = "seen whole"
        if self.window is not None:
            place = f"windows of {self.window} every {self.step}"
        scales = ", ".join(f"{scale:g}" for scale in self.scales)
        return f"{place}, scale{'s' * (len(self.scales) > 1)} {scales}{', flipped too' * self.flip}"

    @property
    def step(self) -> int:
        """Stride: pixels from one window to the next."""
        if self.stride is not None:
            return self.stride
        assert self.window is not None  # a whole image has no next window
        return max(1, math.ceil(self.window * 2 / 3))

    def starts(self, length: int) -> list[int]:
        """Where windows begin along a side; the last one ends with the side.

        Args:
            length: of the side in pixels, at least a window's.

        Returns:
            Offsets in pixels, in rising order.
        """
        if self.window is None:
            return [0]
        count = math.ceil(max(0, length - self.window) / self.step) + 1
        return [min(number * self.step, length - self.window) for number in range(count)]
