"""Arrays that are computed once, by one of several processes."""

import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest

from trainkit.data.datasets.cache import cached


def ask(folder: Path, source: Path, log: Path, fails: bool) -> None:
    def build():
        with log.open("a") as file:
            file.write("built\n")
        time.sleep(0.3)
        if fails:
            raise ValueError("no")
        return {"numbers": np.arange(5)}

    found = cached("kind-v1", [source], build, folder)
    assert found["numbers"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("fails, builds", [(False, 1), (True, 3)])
def test_of_several_processes_one_builds(tmp_path, fails, builds):
    """The others wait for its files; where it fails, each tries, and none waits for ever."""
    source, log = tmp_path / "source", tmp_path / "log"
    source.write_text("content")
    fork = multiprocessing.get_context("fork")
    words = (tmp_path / "cache", source, log, fails)
    processes = [fork.Process(target=ask, args=words) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [int(fails)] * 3
    assert log.read_text() == "built\n" * builds


def test_a_folder_that_takes_no_lock_is_none_that_is_waited_for(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot keep"):
        found = cached("kind-v1", [], lambda: {"a": np.arange(2)}, tmp_path / "file" / "cache")
    assert found["a"].tolist() == [0, 1]
