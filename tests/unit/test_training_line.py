"""The line of a training: what stays on a narrow screen, and how long it still takes."""

import io
import time

import pytest
from rich.console import Console

from trainkit.display.terminal import REFRESH_S, Display
from trainkit.display.training_line import TrainingLine, clock_time

ROW = {
    "event": "step", "step": 30, "epoch": 1.5, "loss": 0.51234, "lr": 0.0123, "grad_norm": 1.0,
    "images_per_s": 454.3, "images_per_s_per_device": 454.3, "data_wait": 0.126,
}  # fmt: skip
NOTES = ["best mIoU 41.00 % (step 20)"]


def at(seconds: list[float], total: int = 90) -> TrainingLine:
    """A line that has done step 10 after 5 s, and step 30 after 25 s."""
    line = TrainingLine(total, 0, lambda: seconds[0])
    for step, now in ((10, 5.0), (30, 25.0)):
        seconds[0] = now
        line.advance(step)
    return line


@pytest.mark.parametrize("seconds, text", [
    (0, "0:00"), (59.9, "0:59"), (754, "12:34"), (3723, "1:02:03"), (90000, "1 day 1:00:00"),
    (2 * 86400 + 61, "2 days 0:01:01"),
])  # fmt: skip
def test_clock_time(seconds, text):
    assert clock_time(seconds) == text


def test_what_is_left_is_counted_from_the_first_step_on():
    """A step a second, of which 60 are left; the start before the first step is no part of it."""
    line = at([0.0])
    assert (line.elapsed, line.left) == ("0:25", "1:00")
    assert TrainingLine(90, 0).left is None
    assert line.plain(ROW, NOTES) == (
        "step 30/90  epoch 1.50  loss 0.5123  lr 0.0123  454 images/s  data wait 13 %"
        "  best mIoU 41.00 % (step 20)  left 1:00"
    )


@pytest.mark.parametrize("total", [90, 450_000])
@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 120, 200])
def test_what_a_narrow_screen_keeps(width, total):
    text = at([0.0], total).fitted(ROW, 1.5, NOTES, width).plain
    assert len(text) <= width
    ranked = ["step 30/", "454 images/s", "left ", "loss 0.5123", "data wait 13 %", "elapsed 0:25",
              "best mIoU", "epoch 1.50", "lr 0.0123"]  # fmt: skip
    kept = [piece in text for piece in ranked]
    assert kept == sorted(kept, reverse=True), "what counts least is left out first"
    assert all(kept) == (width >= (120 if total == 90 else 200)) or width == 120
    if width >= 80:
        assert kept[:6] == [True] * 6 or total == 450_000 and kept[:5] == [True] * 5
    bar = text.count("━")
    assert (bar > 0) == (width - len(text.replace("━", "").strip()) - 2 >= 8)


def test_the_bar_of_a_terminal_says_it_all():
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, no_color=True)
    display = Display(console=console)
    display.start(90, 0, 20)
    display.row(ROW, NOTES)
    display.stop()
    assert "step 30/90" in out.getvalue() and "454 images/s" in out.getvalue()
    assert "data wait 13 %" in out.getvalue() and "elapsed 0:0" in out.getvalue()


def test_many_rows_a_second_are_drawn_a_few_times_a_second():
    out = io.StringIO()
    display = Display(console=Console(file=out, width=80, force_terminal=True, no_color=True))
    display.start(90, 0, 20)
    begun = time.monotonic()
    for step in range(200):
        display.row({**ROW, "step": step}, NOTES)
    seconds = time.monotonic() - begun
    assert 1 <= out.getvalue().count("images/s") <= 2 + seconds / REFRESH_S
    display.stop()
    assert "step 199/90" in out.getvalue()  # the last one is left on the screen


def test_a_row_in_a_file_is_one_line():
    out = io.StringIO()
    display = Display(console=Console(file=out, width=40))
    display.start(90, 0, 20)
    display.row({**ROW, "loss": None}, NOTES)
    assert out.getvalue() == (
        "step 30/90  epoch 1.50  loss none  lr 0.0123  454 images/s  data wait 13 %"
        "  best mIoU 41.00 % (step 20)\n"
    )
