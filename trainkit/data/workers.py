"""DataLoader workers: count, start-up, and the errors reported when one dies."""

import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from weakref import WeakSet

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from trainkit.data.spawning import Sendable, forks
from trainkit.data.worker_process import CAN_TELL_SENDERS, GROUPS_SIGNALS, prepare_worker
from trainkit.distributed.host import usable_cores
from trainkit.distributed.launcher import end_with_parent
from trainkit.errors import causes, limit_met

if sys.platform == "win32":  # workers are spawned there
    ForkContext = ForkProcess = object
else:
    from multiprocessing.context import ForkContext, ForkProcess

PATIENCE_S = 10.0
TRIES = 3
_STARTED: WeakSet = WeakSet()  # workers of this process
_kills_before = 0  # by the system for lack of memory, before the newest workers began


class Loader(DataLoader):
    """torch's DataLoader, whose workers are sure to start, and are ended by this process alone.

    Args:
        data: the dataset.
        batch_size: as torch's.
        num_workers: as torch's.
        patience_s: seconds in which a worker has to start; each replacement has twice as long as
            the one before.
        **settings: as torch's.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int | None = 1,
        *,
        num_workers: int = 0,
        patience_s: float = PATIENCE_S,
        **settings: Any,
    ):
        forked = _SureForks(patience_s) if num_workers and forks() else None
        super().__init__(
            Sendable(data) if num_workers and forked is None else data,
            batch_size,
            num_workers=num_workers,
            multiprocessing_context=forked,
            worker_init_fn=prepare_worker,
            **settings,
        )

    def __iter__(self) -> Any:
        global _kills_before
        _kills_before = _kills_for_memory()
        try:
            iterator = super().__iter__()
        except OSError as error:
            _end_what_was_begun(error)
            raise
        _STARTED.update(getattr(iterator, "_workers", ()))
        return iterator


def _end_what_was_begun(error: OSError) -> None:
    """Kill the workers of an iterator whose construction failed, as torch does for others."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        iterator = frame.f_locals.get("self")
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            for worker in getattr(iterator, "_workers", ()):
                worker.kill()
            iterator._shutdown = True


def choose_workers(asked: int | None, num_processes: int, cores: int | None = None) -> int:
    """Data-loading workers per process: as asked, or the share of the cores less one, up to 8.

    Only processes of this host share its cores: the launcher says how many there are.

    Args:
        asked: the number; None for the default.
        num_processes: of the run.
        cores: None for those that this process may use.
    """
    if asked is not None:
        return asked
    cores = usable_cores() if cores is None else cores
    here = min(num_processes, int(os.environ.get("LOCAL_WORLD_SIZE", num_processes)))
    return min(8, max(1, cores // here - 1))


class _SureFork(ForkProcess):
    """A forked worker that reports its start; one that never starts is replaced.

    A fork copies one thread, and the locks of all. Up to CPython 3.11.9 a child waits for ever for
    the interpreter's list of threads where another thread was entering it at that moment (CPython
    issue 112275), as threads of gloo or NCCL may; then the training waits too (docs/architecture.md
    says what was seen of it).
    """

    begun: Connection
    patience_s: float
    _parent_pid: int  # set by multiprocessing

    @staticmethod
    # the name is multiprocessing's: how each of its contexts starts one
    def _Popen(process: Any) -> Any:
        for tried in range(TRIES):
            seconds = process.patience_s * 2**tried
            reader, process.begun = multiprocessing.Pipe(duplex=False)
            with _born_with_the_signal_blocked(), _deaths_reported_afterwards():
                started = ForkProcess._Popen(process)
            begun = False
            try:
                process.begun.close()
                with reader:
                    begun = reader.poll(seconds)  # also where it has died: torch tells of that
            finally:
                if not begun:  # also where Ctrl-C ends the waiting
                    started.kill()
                    started.wait()
            if begun:
                return started
            warnings.warn(
                f"data-loading worker (pid {started.pid}) did not start within {seconds:g} s (most"
                " likely a lock held when it was forked, CPython issue 112275); another takes its"
                " place",
                RuntimeWarning,
                stacklevel=4,
            )
        raise ChildProcessError(
            f"none of {TRIES} data-loading workers started; the machine is overloaded. --workers 0"
            " loads data in the training process"
        )

    def run(self) -> None:
        """Runs in the worker, which ends with its parent."""
        end_with_parent(signal.SIGKILL, self._parent_pid)
        self.begun.send_bytes(b"begun")
        self.begun.close()
        super().run()


class _SureForks(ForkContext):
    def __init__(self, patience_s: float):
        super().__init__()
        self.patience_s = patience_s

    # of multiprocessing it is an attribute, a class
    def Process(  # type: ignore[override]
        self, *arguments: Any, **settings: Any
    ) -> _SureFork:
        """Make a worker that has this long to start; the name is multiprocessing's."""
        process = _SureFork(*arguments, **settings)
        process.patience_s = self.patience_s
        return process


@contextmanager
def _born_with_the_signal_blocked() -> Iterator[None]:
    """Context manager around the start of a worker: all of its threads begin with SIGTERM blocked.

    GROUPS_SIGNALS are blocked too, until the worker ignores them. If the worker blocked SIGTERM
    itself, in `prepare_worker`, threads that exist by then would not inherit the mask: torch
    starts some when it sets their number, and one thread with the signal unblocked is enough to end
    the process. The parent's mask is restored after.
    """
    before = signal.pthread_sigmask(
        signal.SIG_BLOCK, GROUPS_SIGNALS | ({signal.SIGTERM} if CAN_TELL_SENDERS else set())
    )
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _deaths_reported_afterwards() -> Iterator[None]:
    """Context manager around a fork, in which Python prints and drops an error.

    Torch's handler of SIGCHLD raises one for a death.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[tuple] = []
    before = signal.signal(signal.SIGCHLD, lambda *received: held.append(received))
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
        if held and callable(before):
            before(*held[-1])


@contextmanager
def worker_deaths_reported() -> Iterator[None]:
    """Context manager: report why a worker died, or which limit of the machine was reached.

    torch raises its own short error anywhere in the main thread, or the reading of the worker's
    last message fails in one of many ways.

    Raises:
        ChildProcessError: in its place, for a death.
        OSError: in its place, for a limit.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError, UnpicklingError) as error:
        if (limit := limit_met(error)) is not None:
            raise OSError(limit) from error
        try:
            message = _death_behind(error)
        except RuntimeError:  # torch raises it once for each death, anywhere in the main thread
            message = _death_behind(error)
        if message is None:
            raise
        raise ChildProcessError(message) from error


def _death_behind(error: BaseException) -> str | None:
    """The message if `error` was raised because a worker died, else None."""
    text = next((str(each) for each in causes(error) if "DataLoader worker" in str(each)), "")
    if "Caught" in text:  # an error of its own, which it lived to tell
        return None
    dead = _dead_workers() if text or _while_receiving(error) else {}
    return _cause_of_death(dead, text) if text or dead else None


def _while_receiving(error: BaseException) -> bool:
    """Whether a message of a worker was being read, which its death breaks or cuts short."""
    files = [
        frame.filename
        for each in causes(error)
        for frame in traceback.extract_tb(each.__traceback__)
    ]
    return (
        any(f"{os.sep}multiprocessing{os.sep}" in file for file in files)
        or "pin memory thread" in str(error).lower()
    )


def _dead_workers(seconds: float = 2.0) -> dict[int, int]:
    """Process id and exit code of each worker that failed.

    Waits for one, as the exit code takes a moment.
    """
    end = time.monotonic() + seconds
    while True:
        codes = {process.pid: process.exitcode for process in list(_STARTED)}
        dead = {pid: code for pid, code in codes.items() if code}
        if dead or time.monotonic() > end:
            return dead
        time.sleep(0.02)


def _cause_of_death(dead: dict[int, int], text: str) -> str:
    """The message, by the exit codes; text: torch's own message, for where torch noticed first."""
    number: int | None = None
    code: int | None = None
    if dead:
        pids, code = list(dead), next(iter(dead.values()))
        number = -code if code < 0 else None
    else:
        listed = re.search(r"\(pid(?:\(s\))? ([\d, ]+)\)", text)
        pids = [int(pid) for pid in listed.group(1).split(", ")] if listed else []
        named = re.search(r"killed by signal: ([\w ]+)", text)
        known = {signal.strsignal(each): int(each) for each in signal.Signals}
        number = known.get(named.group(1).strip()) if named else None
    message = f"data-loading worker (pid {' and '.join(map(str, pids))}) died"
    killer = None if number is None else signal.Signals(number).name  # Windows has few of them
    if killer is not None:
        message += f" of {killer}"
    elif code is not None:
        message += f" with exit code {code}"
    if killer == "SIGBUS":
        message += (
            ": shared memory is full. Enlarge /dev/shm, or start fewer workers with --workers"
        )
    elif killer == "SIGSEGV":
        message += ": a library crashed on an image. --workers 0 shows on which"
    elif killer == "SIGTERM":
        message += ": another process ended it"
    elif killer == "SIGKILL" and _kills_for_memory() > _kills_before:
        message += (
            ": the system killed a process meanwhile because it was out of memory (OOM). Start"
            " fewer workers with --workers, or read smaller images"
        )
    elif killer == "SIGKILL":
        message += ": somebody, or the system, killed it (`dmesg` tells why where the system did)"
    return f"{message}. The same command resumes from the last checkpoint"


def _kills_for_memory() -> int:
    """Processes that the kernel has killed for lack of memory.

    In this process's control group where it counts them, else on the machine; 0 where nothing is
    known.
    """
    with suppress(OSError, ValueError):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        groups = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]
        for folder in (
            *(Path("/sys/fs/cgroup") / group for group in groups),
            Path("/sys/fs/cgroup"),
        ):
            if (folder / "memory.events").is_file():
                return _counter(folder / "memory.events")
    with suppress(OSError, ValueError):
        return _counter(Path("/proc/vmstat"))
    return 0


def _counter(file: Path) -> int:
    """The value of `oom_kill` in a file of names and numbers."""
    values = dict(line.split() for line in file.read_text().splitlines())
    return int(values.get("oom_kill", 0))
