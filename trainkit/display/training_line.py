"""The line of a training: where it is, how fast, and how long it still takes."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.text import Text

LEAST_BAR = 8  # columns; a shorter bar is left out
GAP = "  "


class Piece(NamedTuple):
    """A part of the line."""

    text: str
    rank: int
    """what is left out first on a narrow screen has the highest one"""


class TrainingLine:
    """Says of a training, in one line of any width, what each number is.

    Args:
        total_steps: steps of the whole run.
        step: steps done before this process began.
        clock: seconds, as `time.monotonic` has them.
    """

    def __init__(self, total_steps: int, step: int, clock: Callable[[], float] = time.monotonic):
        self.total_steps = total_steps
        self.step = step
        self._clock = clock
        self._begun = clock()
        # step and time after the first one of this process, which also waits for its workers
        self._first: tuple[int, float] | None = None

    def advance(self, step: int) -> None:
        """Take up that so many steps are done."""
        self.step = step
        if self._first is None:
            self._first = step, self._clock()

    @property
    def elapsed(self) -> str:
        """Time since this process began with the run, such as "1:02:03"."""
        return clock_time(self._clock() - self._begun)

    @property
    def left(self) -> str | None:
        """Time to the last step, evaluations and saves among it; None where it is not known yet."""
        if self._first is None or self.step <= self._first[0]:
            return None
        per_step = (self._clock() - self._first[1]) / (self.step - self._first[0])
        return clock_time(per_step * (self.total_steps - self.step))

    def plain(self, row: Mapping[str, Any], notes: Sequence[str]) -> str:
        """A whole line, for a file."""
        left = self.left
        words = [f"step {row['step']}/{self.total_steps}", f"epoch {row['epoch']:.2f}"]
        words += [_loss(row), f"lr {row['lr']:.3g}", _speed(row), _waiting(row), *notes]
        return GAP.join(words if left is None else [*words, f"left {left}"])

    def fitted(
        self, row: Mapping[str, Any] | None, epoch: float, notes: Sequence[str], width: int
    ) -> Text:
        """The line on a screen of `width` columns, with a bar where there is room for one.

        Args:
            row: the last one of the log; None before the first.
            epoch: passes over the data so far.
            notes: further parts, such as the best result so far.
            width: of the screen.
        """
        pieces = [Piece(f"step {self.step}/{self.total_steps}", 0), Piece(f"epoch {epoch:.2f}", 7)]
        if row is not None:
            pieces += [
                Piece(_loss(row), 3), Piece(f"lr {row['lr']:.3g}", 9), Piece(_speed(row), 1),
                Piece(_waiting(row), 4),
            ]  # fmt: skip
        pieces += [Piece(note, 6) for note in notes]
        pieces.append(Piece(f"elapsed {self.elapsed}", 5))
        if self.left is not None:
            pieces.append(Piece(f"left {self.left}", 2))
        while len(pieces) > 1 and len(GAP.join(piece.text for piece in pieces)) > width:
            pieces.remove(max(pieces, key=lambda piece: piece.rank))
        text = GAP.join(piece.text for piece in pieces)
        room = width - len(text) - len(GAP)
        if room < LEAST_BAR:
            return Text(text)
        done = room * self.step // self.total_steps
        bar = ("━" * done, "green"), ("━" * (room - done), "bright_black")
        return Text.assemble(*bar, GAP + text)


def clock_time(seconds: float) -> str:
    """Seconds as "0:07", "12:34", "1:02:03" or "3 days 1:02:03"."""
    whole = int(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if whole < 3600:
        return f"{minutes}:{whole % 60:02d}"
    day = f"{days} day{'s' * (days > 1)} " if days else ""
    return f"{day}{hours}:{minutes:02d}:{whole % 60:02d}"


def _loss(row: Mapping[str, Any]) -> str:
    return "loss none" if row["loss"] is None else f"loss {row['loss']:.4f}"


def _speed(row: Mapping[str, Any]) -> str:
    speed = row["images_per_s"]
    return f"{speed:.0f} images/s" if speed >= 100 else f"{speed:.3g} images/s"


def _waiting(row: Mapping[str, Any]) -> str:
    return f"data wait {100 * row['data_wait']:.0f} %"
