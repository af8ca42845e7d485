"""What an evaluation looks like, on screens of different widths."""

import io

import numpy as np
import pytest
from rich.console import Console

from trainkit.display import terminal as display_terminal
from trainkit.display.result_tables import ALL_CLASSES, FEW_CLASSES
from trainkit.display.terminal import Display
from trainkit.metrics.base import declared
from trainkit.tasks.recognition import Recognition
from trainkit.tasks.segmentation import Segmentation

CONFUSION = [[8, 2, 0], [1, 1, 2], [0, 0, 0]]
FIGURES = {
    "mean_iou": 0.5,
    "iou": {"sky": 8 / 11, "[red]car": 0.2, "void": None},
    "accuracy": [0.8, 0.25, None],
    "confusion": CONFUSION,
}


PERCENT, PER_CLASS = ("mean_iou", "iou", "accuracy", "top1"), ("iou", "accuracy")


def printed(results: dict, width: int, active: bool = True, terminal: bool | None = None) -> str:
    out = io.StringIO()
    display = Display(
        active, Console(file=out, width=width, force_terminal=terminal, no_color=True)
    )
    display.results("evaluation", results, False, PERCENT, PER_CLASS)
    return out.getvalue()


def test_a_row_for_each_class_and_the_whole_matrix():
    lines = printed(FIGURES, 80).splitlines()
    assert lines[0] == "evaluation  mean_iou 50.00 %"
    rows = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in lines
        if line.startswith("│")
    ]
    assert rows == [
        ["sky", "72.73 %", "80.00 %"],
        ["[red]car", "20.00 %", "25.00 %"],
        ["void", "", ""],
    ]
    at = next(number for number, line in enumerate(lines) if "percent of a class (row)" in line)
    matrix = [line.split() for line in lines[at + 1 :]][:4]
    assert matrix == [
        ["class", "0", "1", "2"],
        ["0", "sky", "80", "20"],
        ["1", "[red]car", "25", "25", "50"],
        ["2", "void"],
    ]
    assert lines[-4:] == [
        "most frequent confusions (share of the true class):",
        "  [red]car taken for void 50.00 %",
        "  [red]car taken for sky 25.00 %",
        "  sky taken for [red]car 20.00 %",
    ]


def test_columns_stand_below_each_other():
    lines = printed(FIGURES, 80).splitlines()
    head = next(line for line in lines if line.split()[:2] == ["class", "0"])
    row = next(line for line in lines if line.split()[:2] == ["1", "[red]car"])
    assert [head.index(f" {number}") + 2 for number in range(3)] == [
        row.index("25") + 2, row.rindex("25") + 2, row.index("50") + 2
    ]  # fmt: skip


@pytest.mark.parametrize("width, whole", [(5 + 4 * 11, True), (5 + 4 * 11 - 1, False)])
def test_a_matrix_that_is_too_wide_is_left_to_the_file(width, whole):
    confusion = [[int(row == column or column == 0) for column in range(11)] for row in range(11)]
    text = printed({"iou": [0.5] * 11, "confusion": confusion}, width)
    assert ("percent of a class (row)" in text) == whole and "9 taken for 0 50.00 %" in text
    lines = text.splitlines()
    in_words = [line for line in lines if line.startswith(("0: ", "10: "))]
    assert in_words == ([] if whole else ["0: 0 100", "10: 10 50, 0 50"])
    assert (
        not whole
        or "…" not in text
        and lines[-7].split() == ["10", "50", "50"]
        and len(lines[-7]) == width
    )


def test_names_that_are_wide_or_of_two_lines():
    """What counts is what a name takes on the screen, in which some letters are two wide."""
    confusion = [[1, 1], [0, 2]]
    results = {"iou": {"空空空空空": 0.5, "two\nlines": 0.5}, "confusion": confusion}
    head = len("0 ") + 2 * 5
    assert "1 two lines: two lines 100" in printed(results, head + 4 * 2 - 1).splitlines()
    lines = printed(results, head + 4 * 2).splitlines()
    assert "0 空空空空空  50  50" in lines and "1 two lines      100" in lines


def test_of_very_many_classes_the_worst():
    number = ALL_CLASSES + 1
    ious: list = [1 - index / 1000 for index in range(number)]
    ious[-1] = None
    text = printed({"iou": ious, "confusion": [[0] * number] * number}, 80)
    assert (
        f"{FEW_CLASSES} of {number} classes, lowest first" in " ".join(text.split())
        and "mistaken" not in text
    )
    rows = [line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")]
    assert rows == [str(number - 2 - place) for place in range(FEW_CLASSES)]


@pytest.mark.parametrize("number", [ALL_CLASSES + 1, 3])
def test_pairs_that_occur_are_shown_as_a_matrix_is(number):
    generator = np.random.default_rng(0)
    matrix = generator.integers(0, 9, (number, number)) * (generator.random((number, number)) < 0.1)
    truth, predicted = matrix.nonzero()
    pairs = {
        "truth": truth.tolist(),
        "predicted": predicted.tolist(),
        "count": matrix[truth, predicted].tolist(),
    }
    ious = generator.random(number).tolist()
    text = printed({"iou": ious, "confusion": matrix.tolist()}, 80)
    assert printed({"iou": ious, "confusion": pairs}, 80) == text and "confusion" in text


def test_results_without_a_matrix_and_a_display_that_is_not_active():
    assert printed({"top1": 0.25, "by_class": [0.5, 0.0]}, 80) == "evaluation  top1 25.00 %\n"
    assert printed(FIGURES, 80, active=False) == ""


def test_an_interval_is_no_column_of_the_classes_where_there_are_two():
    results = {
        "top1": 0.75,
        "top1_95": [0.6667, 0.8667],
        "ema_top1_95": [0.5, 1.0],
        # of the recipe's own metric, which does not say that it is of the classes
        "range": [0.1, 7.0],
        "accuracy": {"cat": 0.8, "dog": 0.7},
        "confusion": [[8, 2], [3, 7]],
    }
    text = printed(results, 80)
    assert (
        text.splitlines()[0]
        == "evaluation  top1 75.00 %  top1_95 66.67 % to 86.67 %  ema_top1_95 50.00 % to 100.00 %"
    )
    rows = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in text.splitlines()
        if "│" in line
    ]
    assert rows == [["cat", "80.00 %"], ["dog", "70.00 %"]]
    assert "class │ accuracy" in text.replace("┃", "│") and "most frequent confusions" in text
    assert text.endswith("  dog taken for cat 30.00 %\n  cat taken for dog 20.00 %\n")


@pytest.mark.parametrize("value, shown", [
    (45.0279, "45.03"), (0.0123456, "0.01235"), (1.0, "1"), (-3.14159, "-3.142"),
    (123456.7, "123457"), (1e20, "1e+20"), (7, "7"), (None, None),
])  # fmt: skip
@pytest.mark.parametrize("terminal", [False, True])
def test_what_no_metric_calls_a_fraction_is_a_plain_number(value, shown, terminal):
    text = printed({"error": value, "top1": 0.5, "ema_top1": 0.25}, 80, terminal=terminal)
    assert "50.00 %" in text and "25.00 %" in text and text.count("%") == 2
    words = text.replace("│", " ").split()
    assert (words[words.index("error") + 1] == shown) if shown else ("error" not in words)


def test_the_tasks_say_which_of_their_results_are_fractions_and_which_are_of_the_classes():
    class Error:
        percent = ("share",)

    names = ("cat", "dog")
    macro = {"macro_precision", "macro_recall", "macro_f1"}
    for task, percent, per_class in (
        (Recognition(names), {"top1", "accuracy", "calibration_error", *macro}, {"accuracy"}),
        (Recognition(7), {"top1", "top5", "accuracy", "calibration_error", *macro}, {"accuracy"}),
        (
            Segmentation(names),
            {"mIoU", "pixAcc", "mAcc", "fwIoU", "IoU", "accuracy"},
            {"IoU", "accuracy"},
        ),
        (
            Recognition(names, extra_metrics=[Error()]),
            {"top1", "accuracy", "calibration_error", "share", *macro},
            {"accuracy"},
        ),
    ):
        assert declared(task, "percent") == percent and declared(task, "per_class") == per_class


@pytest.mark.parametrize("is_error", [False, True])
def test_lines_are_broken_between_words_on_a_terminal_alone(is_error, monkeypatch):
    """A path that is wider stays whole, and so does a command; what is piped is one line."""
    words = "the linear rule proposes 0.0025, which is not applied; see"
    text = f"{words} runs/a-path-that-is-wider-than-the-screen/log.jsonl  and more"
    command = "next: trainkit predict runs/a-long-name IMAGES --out FOLDER"
    for has_screen in (True, False):
        out = io.StringIO()
        console = Console(file=out, width=30, force_terminal=has_screen, no_color=True)
        if is_error:
            monkeypatch.setattr(display_terminal, "_console", lambda _, shown_on=console: shown_on)
            display_terminal.error(f"{text}\n{command}")
        else:
            Display(console=console).note(f"{text}\n{command}")
        *shown, last = out.getvalue().splitlines()
        assert last == command
        assert " ".join(shown).split() == text.split()
        if has_screen:
            assert len(shown) == 5 and all(len(line) <= 30 for line in shown if "/" not in line)
        else:
            assert shown == [text]
