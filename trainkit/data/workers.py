"""Processes that read images: how many, how they begin, what signals do to them, and what is told of their deaths."""

import multiprocessing
import os
import re
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext, ForkProcess
from typing import Any

from torch.utils.data import DataLoader

from trainkit.data.spawning import Sendable, forks

CAN_TELL_SENDERS = hasattr(signal, "sigwaitinfo")
PATIENCE = 10.0
"""seconds that a process has to begin, and each that takes its place twice as long"""
TRIES = 3


class Loader(DataLoader):
    """torch's, with processes that surely begin, and that this process alone ends."""

    def __init__(self, data: Any, *args: Any, num_workers: int = 0, **kwargs: Any):
        forked = _SureForks() if num_workers and forks() else None
        super().__init__(
            Sendable(data) if num_workers and forked is None else data,
            *args,
            num_workers=num_workers,
            multiprocessing_context=forked,
            worker_init_fn=_outlive_the_signal,
            **kwargs,
        )


def choose_workers(asked: int | None, num_processes: int, cores: int | None = None) -> int:
    """Reading processes for each of `num_processes`: as asked, or its share of the cores less one, up to 8.

    Only processes of this host share its cores: the launcher says how many there are. cores: None for those that this
    process may use.
    """
    if asked is not None:
        return asked
    cores = usable_cores() if cores is None else cores
    here = min(num_processes, int(os.environ.get("LOCAL_WORLD_SIZE", num_processes)))
    return min(8, max(1, cores // here - 1))


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _SureFork(ForkProcess):
    """A forked process that says when it begins; another takes the place of one that never does.

    A fork copies one thread, and the locks of all. Up to CPython 3.11.9 a child waits for ever for the interpreter's
    list of threads where another thread was entering it at that moment (CPython issue 112275), as threads of gloo or
    NCCL may; then the training waits too (docs/architecture.md says what was seen of it).
    """

    begun: Connection

    @staticmethod
    def _Popen(process: "_SureFork") -> Any:  # the name is multiprocessing's: how each of its contexts starts one
        for tried in range(TRIES):
            seconds = PATIENCE * 2**tried
            reader, process.begun = multiprocessing.Pipe(duplex=False)
            with _born_with_the_signal_blocked():
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
                f"process {started.pid}, which was to read images, did not begin within {seconds:g} s (most likely a "
                "lock held when it was forked, CPython issue 112275); another takes its place",
                RuntimeWarning,
                stacklevel=4,
            )
        raise ChildProcessError(
            f"none of {TRIES} processes that were to read images began; the machine is overloaded, or --workers 0 "
            "reads without them"
        )

    def run(self) -> None:
        """In the process itself."""
        self.begun.send_bytes(b"begun")
        self.begun.close()
        super().run()


class _SureForks(ForkContext):
    Process = _SureFork


@contextmanager
def _born_with_the_signal_blocked() -> Iterator[None]:
    """Around the start of a process that reads images: it, and every thread of it, begins with SIGTERM blocked.

    Where it blocks it for itself, in `_outlive_the_signal`, it is too late for threads that are there by then:
    torch starts some when it sets their number, and the signal ends a process that one thread lets it into. The
    process that starts it gets its own right after.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM} if CAN_TELL_SENDERS else ())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _outlive_the_signal(_: int) -> None:
    """In a process that reads images: a signal to the whole group is the training's affair.

    It goes on reading until the step is done. SIGTERM from its own parent is how that ends it, and obeyed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if CAN_TELL_SENDERS:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_the_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_the_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


@contextmanager
def worker_deaths_told() -> Iterator[None]:
    """Say what became of a worker process that died. torch raises its own short error anywhere in the main thread.

    Raises ChildProcessError in its place.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "DataLoader worker" not in text or "Caught" in text:
            raise
        raise ChildProcessError(_cause_of_death(text)) from error


def _cause_of_death(text: str) -> str:
    """torch says the signal, or, where it noticed by itself, only that the process is gone."""
    process = " and ".join(re.search(r"\(pid(?:\(s\))? ([\d, ]+)\)", text).group(1).split(", "))
    named = re.search(r"killed by signal: ([\w ]+)", text)
    numbers = signal.SIGKILL, signal.SIGBUS, signal.SIGSEGV, signal.SIGTERM
    known = {signal.strsignal(number): number for number in numbers}
    number = known.get(named.group(1).strip()) if named else None
    told = f"process {process}, which read images, died" + (f" of {number.name}" if number else "")
    if number == signal.SIGBUS:
        told += ": shared memory is full. Enlarge /dev/shm, or start fewer such processes with --workers"
    elif number == signal.SIGSEGV:
        told += ": a library crashed on an image. --workers 0 shows on which"
    elif number == signal.SIGTERM:
        told += ": another process ended it"
    else:
        told += (
            ", most often killed by the system because memory ran out (`dmesg` tells). Start fewer such processes with "
            "--workers, or read smaller images"
        )
    return f"{told}. The same command goes on from the last checkpoint"
