"""Processes that read images begin, also where a fork goes wrong."""

import mmap
import os
import time

import pytest
import torch
from torch.utils.data import TensorDataset

from trainkit.data import workers
from trainkit.data.workers import Loader

HANGING = mmap.mmap(-1, 1)  # shared with forked processes: how many of the next ones never come out of their fork


def _hang() -> None:
    if HANGING[0]:
        HANGING[0] -= 1
        time.sleep(1000)


os.register_at_fork(after_in_child=_hang)
DATA = TensorDataset(torch.arange(8))


@pytest.fixture(autouse=True)
def none_hangs_after_the_test():
    yield
    HANGING[0] = 0


def test_another_takes_the_place_of_one_that_never_begins(monkeypatch):
    """Real forks, stopped where a lock held by another thread stops them: before a line of Python."""
    monkeypatch.setattr(workers, "PATIENCE", 1.0)
    HANGING[0] = 1
    with pytest.warns(RuntimeWarning, match=r"process \d+, which was to read images, did not begin within 1 s") as told:
        read = [batch.tolist() for (batch,) in Loader(DATA, batch_size=3, num_workers=2)]
    assert read == [[0, 1, 2], [3, 4, 5], [6, 7]] and len(told) == 1
    hung = int(str(told[0].message).split()[1].strip(","))
    with pytest.raises(ProcessLookupError):
        os.kill(hung, 0)


def test_where_none_begins(monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", 0.05)
    HANGING[0] = 255
    with pytest.warns(RuntimeWarning), pytest.raises(ChildProcessError, match="--workers 0"):
        next(iter(Loader(DATA, num_workers=1)))
    assert 255 - HANGING[0] == workers.TRIES


def test_what_is_kept_of_torch():
    """Its arguments, and no process where none is asked for."""
    assert [len(batch) for (batch,) in Loader(DATA, 5)] == [5, 3]
    loader = Loader(DATA, 4, num_workers=1, collate_fn=len, drop_last=True)
    assert list(loader) == [4, 4] and loader.multiprocessing_context.get_start_method() == "fork"
