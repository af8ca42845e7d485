"""Signals that ask a run to stop: flagged, agreed on by all processes, obeyed between steps."""

import os
import signal
import threading
import time
from collections import deque
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from trainkit.distributed.launcher import launcher

STOPPING = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
    if hasattr(signal, name)
)
PASSED_ON_S = 2.0  # in which a launcher passes on a signal; it looks every 0.1 s
FAILED = 1  # no signal: one process cannot continue, and all stop with this exit code


class Stopped(SystemExit):
    """A run stopped by a signal, its state saved; exit code 128 + the signal's number."""

    def __init__(self, number: int):
        super().__init__(number if number == FAILED else 128 + number)
        self.number = number


class Interrupted(Stopped):
    """A run stopped by SIGINT, Ctrl-C or the interrupt of a notebook, after `step` steps."""

    def __init__(self, step: int):
        super().__init__(int(signal.SIGINT))
        self.step = step


class StopFlag:
    """Context manager: set by SIGTERM, SIGINT, SIGUSR1 or SIGHUP, and by the launcher's death.

    SIGHUP, of a terminal that is closed, is left alone where it is ignored, as nohup has it. A
    second SIGINT raises KeyboardInterrupt at once, but for the one by which torchrun passes on a
    Ctrl-C that its processes have got already. `accelerate launch` of one process does not pass
    SIGTERM on, it dies, and torchrun may be killed outright: a training it leaves behind stops as
    if it had got SIGTERM itself.
    """

    def __init__(self, device: torch.device, num_processes: int):
        self.device, self.num_processes = device, num_processes
        self._number = 0
        self._interrupted: float | None = None  # when the first SIGINT came
        self.last_answer = 0
        """what `agreed` said the last time"""
        self._launcher = launcher()
        self._before: dict[int, Any] = {}
        self._asked: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()

    def __enter__(self) -> "StopFlag":
        if threading.current_thread() is not threading.main_thread():
            # Python delivers signals to the main thread alone, and lets no other one ask for them
            return self
        heard = [
            each
            for each in STOPPING
            if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN
        ]
        self._before = {number: signal.signal(number, self._on_signal) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._interrupted is None:
                self._interrupted = now
            elif self._launcher is None or now - self._interrupted >= PASSED_ON_S:
                raise KeyboardInterrupt
        self.ask(number)

    def ask(self, number: int) -> None:
        """Stop as if the signal had come."""
        self._number = self._number or number

    def _mine(self) -> int:
        if not self._number and self._launcher is not None and os.getppid() != self._launcher:
            self._number = int(signal.SIGTERM)
        return self._number

    def agreed(self) -> int:
        """The signal that all processes stop for now, or 0.

        Each must call this as often as the others. On a GPU the answer is that of two calls ago, so
        that asking does not wait for the device.
        """
        self.last_answer = self._agreed()
        return self.last_answer

    def _agreed(self) -> int:
        if self.num_processes == 1:
            return self._mine()
        on_cuda = self.device.type == "cuda"
        number = torch.full((1,), self._mine(), device=self.device)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        if not on_cuda:
            return int(number)
        event = torch.cuda.Event()
        copy = torch.empty(1, dtype=number.dtype, pin_memory=True).copy_(number, non_blocking=True)
        event.record()
        self._asked.append((copy, event))
        if len(self._asked) < 3:
            return 0
        copy, event = self._asked.popleft()
        event.synchronize()
        return int(copy)
