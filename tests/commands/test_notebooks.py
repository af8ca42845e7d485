"""In real Jupyter kernels: the notebooks of examples/, and what a training shows and leaves."""

import nbformat
import pytest
from nbclient import NotebookClient

from helpers.kernels import Kernel, text_of
from helpers.logs import assert_bit_equal
from helpers.processes import PATIENCE, ROOT, TESTS, torchrun

EXAMPLES = sorted((ROOT / "examples").glob("*.ipynb"))
SLOW = """
import time
import trainkit
from helpers import toy_recipes


class Slow(toy_recipes.Images):
    def __getitem__(self, index):
        time.sleep(0.01)
        return super().__getitem__(index)


def recipe(epochs: float = 2):
    return toy_recipes.recognition(epochs=epochs, train_data=Slow(27))
"""
TWO = """
import sys

import trainkit
from helpers import toy_recipes


def recipe():
    return toy_recipes.recognition()


if __name__ == "__main__":
    trainkit.train(recipe, out=sys.argv[1], seed=5, workers=0, log_every=1)
"""


def test_there_are_four_without_outputs():
    assert [file.stem for file in EXAMPLES] == [
        "compare_runs",
        "new_task",
        "own_images",
        "own_masks",
    ]
    for file in EXAMPLES:
        for cell in nbformat.read(file, 4).cells:
            assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.nightly
@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_the_notebook_runs(file, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    book = nbformat.read(file, 4)
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(book, timeout=PATIENCE, resources=where).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    shown = [output.data for output in outputs if "data" in output]
    assert any("step " in data.get("text/html", "") for data in shown), "the bar"
    assert any("┌" in data.get("text/html", "") for data in shown), "a table"
    assert list(tmp_path.rglob("summary.json"))


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    started = Kernel(folder)
    started.folder = folder
    started.run(SLOW)
    yield started
    started.stop()


def test_an_interrupt_saves_and_returns(kernel):
    """The cells after it run, and the same cell resumes, to the same end."""
    call = "summary = trainkit.train(recipe, out='{}', epochs=8, workers=1, log_every=1)"
    kernel.run(call.format("whole"))
    stopped = kernel.run(call.format("cut"), interrupt_at=r"step ([7-9]|\d\d)/")
    text = text_of(stopped)
    assert "saved; run the same cell again to resume" in text and "Traceback" not in text
    assert not [each for each in stopped if each["kind"] == "error"]
    after = "import signal; print(summary['stopped'], signal.getsignal(signal.SIGINT).__name__)"
    assert text_of(kernel.run(after)).split() == ["SIGINT", "default_int_handler"]
    assert (kernel.folder / "cut/stopped.json").exists()
    assert not (kernel.folder / "cut/summary.json").exists()
    resumed = text_of(kernel.run(call.format("cut")))
    assert "resuming from step-" in resumed and "finished: 32 steps" in resumed
    assert_bit_equal(kernel.folder / "whole", kernel.folder / "cut")


def test_bars_and_tables_are_html(kernel):
    shown = kernel.run("s = trainkit.train(recipe, out='shown', epochs=1, workers=0, log_every=1)")
    pages = [each["data"]["text/html"] for each in shown if each["kind"] == "display_data"]
    bars = [page for page in pages if "step 4/4" in page]
    assert len(bars) == 1, "drawn again in its place"
    assert "<pre" in bars[0] and "step 1/4" not in bars[0]
    assert any("┌" in page and "top1" in page for page in pages)
    results = kernel.run("trainkit.evaluate(recipe, weights='shown', workers=0)['num_images']")
    assert results[-1]["data"]["text/plain"] == "13"


def test_errors_are_their_message(kernel):
    for call, words in (
        ("trainkit.train(recipe, epohcs=2)", "epohcs is no setting of recipe(...) and no option"),
        ("trainkit.train(recipe, 'runs/x')", "the second argument is 'runs/x'"),
        (
            "import multiprocessing\n"
            "multiprocessing.set_start_method('spawn', force=True)\n"
            "trainkit.train(recipe, out='spawned', workers=1)",
            "Slow is defined in a notebook's cell or at a prompt",
        ),
    ):
        *_, failed = kernel.run(call)
        assert failed["kind"] == "error" and failed["ename"] == "UserError"
        (line,) = failed["traceback"]
        assert words in line and "\n" not in line
    kernel.run("multiprocessing.set_start_method('fork', force=True)")


def test_notebook_launcher_is_torchrun(kernel):
    """Two processes from a cell, after trainings of one in the same kernel."""
    folder = kernel.folder
    (folder / "two.py").write_text(TWO)
    shown = kernel.run(
        "from accelerate import notebook_launcher\n"
        "def plain():\n"
        "    return toy_recipes.recognition()\n"
        "def two():\n"
        "    trainkit.train(plain, out='two', seed=5, workers=0, log_every=1)\n"
        "notebook_launcher(two, num_processes=2, use_port='29617')"
    )
    assert "on 2 x cpu" in text_of(shown) and "finished: 10 steps" in text_of(shown)
    assert "\x1b" not in str([each.get("text") for each in shown]), "lines, and no bar"
    torchrun(2, folder / "two.py", folder / "torchrun", PYTHONPATH=f"{ROOT}:{TESTS}")
    assert_bit_equal(folder / "torchrun", folder / "two")
