"""Processes that read images begin, also where a fork goes wrong."""

import mmap
import os
import re
import signal
import threading
import time

import psutil
import pytest
import torch
from torch.utils.data import TensorDataset

from helpers.processes import TESTS, Script
from trainkit.data import workers
from trainkit.data.workers import Loader

# shared with forked processes: how many more begin, and how many then do not
HANGING = mmap.mmap(-1, 2)
LET, HUNG = 0, 1
FOREVER = 1000


def _hang() -> None:
    if HANGING[LET]:
        HANGING[LET] -= 1
    elif HANGING[HUNG]:
        HANGING[HUNG] -= 1
        time.sleep(FOREVER) if FOREVER else os.kill(os.getpid(), signal.SIGKILL)


os.register_at_fork(after_in_child=_hang)
DATA = TensorDataset(torch.arange(8))


@pytest.fixture(autouse=True)
def none_hangs_after_the_test():
    yield
    HANGING[:] = bytes(2)


@pytest.mark.parametrize("before", [0, 1])
def test_another_takes_the_place_of_one_that_never_begins(before):
    """Real forks, stopped where a lock held by another thread stops them: before any Python."""
    HANGING[:] = bytes([before, 1])
    loader = Loader(DATA, batch_size=3, num_workers=2, patience_s=1.0)
    with pytest.warns(RuntimeWarning) as warned:
        read = [batch.tolist() for (batch,) in loader]
    (message,) = [str(each.message) for each in warned if each.category is RuntimeWarning]
    assert read == [[0, 1, 2], [3, 4, 5], [6, 7]]
    found = re.match(r"data-loading worker \(pid (\d+)\) did not start within 1 s", message)
    with pytest.raises(ProcessLookupError):
        os.kill(int(found[1]), 0)


def test_where_none_begins():
    HANGING[:] = bytes([0, 255])
    with pytest.warns(RuntimeWarning), pytest.raises(ChildProcessError, match="--workers 0"):
        next(iter(Loader(DATA, num_workers=1, patience_s=0.2)))
    assert 255 - HANGING[HUNG] == workers.TRIES


def test_one_that_dies_at_once_is_not_waited_for(monkeypatch):
    """torch tells of it, as of any other that dies."""
    monkeypatch.setitem(globals(), "FOREVER", 0)
    HANGING[:] = bytes([0, 1])
    begun = time.monotonic()
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(Loader(DATA, num_workers=1))
    assert time.monotonic() - begun < workers.PATIENCE_S and HANGING[HUNG] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_waiting_and_leaves_nothing_behind(monkeypatch, number):
    def stop(*_):
        raise KeyboardInterrupt

    before = signal.signal(number, stop)
    children = set(psutil.Process().children())
    HANGING[:] = bytes([0, 1])
    timer = threading.Timer(0.5, os.kill, (os.getpid(), number))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            next(iter(Loader(DATA, num_workers=1)))
    finally:
        signal.signal(number, before)
        timer.join()
    assert set(psutil.Process().children()) == children and HANGING[HUNG] == 0


def test_what_is_kept_of_torch():
    """Its arguments, and no process where none is asked for."""
    assert [len(batch) for (batch,) in Loader(DATA, 5)] == [5, 3]
    loader = Loader(DATA, 4, num_workers=1, collate_fn=len, drop_last=True)
    assert list(loader) == [4, 4] and loader.multiprocessing_context.get_start_method() == "fork"


LOST_CONNECTION = """
import os, signal, sys, threading, time
from trainkit.data.workers import Loader

class Images:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        error = ConnectionResetError("connection lost")
        telling = threading.Thread(target=sys.excepthook, args=(type(error), error, None))
        telling.start()  # as multiprocessing's thread does
        time.sleep(0.1)
        if {dies}:
            os.kill(os.getppid(), signal.SIGKILL)
        telling.join()
        return index

if __name__ == "__main__":
    list(Loader(Images(), 1, num_workers=1))
"""


@pytest.mark.parametrize("dies", [True, False])
def test_a_connection_lost_to_a_dead_parent_is_not_reported(tmp_path, dies):
    script = tmp_path / "script.py"
    script.write_text(LOST_CONNECTION.format(dies=dies))
    running = Script(script)
    printed = running.communicate()[0]
    assert ("ConnectionResetError: connection lost" in printed) is not dies, printed
    assert running.returncode == (-signal.SIGKILL if dies else 0)


DEATH_IN_A_FORK = """
import os, signal, sys, time
sys.path.insert(0, {tests!r})
from helpers.toy_recipes import Images
from trainkit.data.workers import Loader

def kill_the_first():
    if first:
        os.kill(first[0], signal.SIGKILL)
        time.sleep(0.2)  # its end is reported while this process forks

first = []
os.register_at_fork(before=kill_the_first)
one = iter(Loader(Images(64), 1, num_workers=1))
next(one)
first.append(one._workers[0].pid)
try: iter(Loader(Images(8), 1, num_workers=1))
except RuntimeError as error: print("SAID", error, flush=True)
os._exit(0)
"""


def test_a_death_while_another_worker_is_forked(tmp_path):
    """torch's error for it comes out after the fork.

    Within it Python would drop it, and print a traceback.
    """
    script = tmp_path / "script.py"
    script.write_text(DEATH_IN_A_FORK.format(tests=str(TESTS)))
    printed = Script(script).communicate()[0]
    assert "SAID DataLoader worker" in printed and "Exception ignored" not in printed, printed
