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
FAILED = 1000  # no signal's number: one process cannot continue, and all stop with exit code 1


class Stopped(SystemExit):
    """A run stopped by a signal, its state saved; exit code 128 + the signal's number."""

    def __init__(self, number: int):
        super().__init__(1 if number == FAILED else 128 + number)
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
        """the last that all agreed on"""
        self._launcher = launcher()
        self._before: dict[int, Any] = {}
        self._heard: torch.Tensor | None = None
        self._heard_late, self._answers = _Late(), _Late()  # on a GPU

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

    @property
    def is_asked(self) -> bool:
        """Whether this process is to stop, which the others may not know."""
        return self._mine() != 0

    def hear(self, asked: torch.Tensor) -> None:
        """Take how many processes were to stop when they began a step: (1,), on the device."""
        if self.device.type != "cuda":
            self._heard = asked
            return
        self._heard_late.add(asked)

    def agreed_in_step(self) -> int:
        """The signal that all processes stop for after this step, or 0.

        Of several processes, one that came before the step began, as `hear` has it; on a GPU before
        the step two before, so that asking does not wait for the device.
        """
        if self.num_processes == 1:
            self.last_answer = self._mine()
            return self.last_answer
        if self.device.type == "cuda":
            someone = self._heard_late.oldest()
        else:
            someone = 0 if self._heard is None else int(self._heard)
        return self.agreed() if someone else 0

    def agreed(self) -> int:
        """The signal that all processes stop for now, or 0.

        Each must call this as often as the others; they wait for each other.
        """
        self.last_answer = self._mine()
        if self.num_processes > 1:
            self.last_answer = int(self._largest())
        return self.last_answer

    def agreed_lately(self) -> int:
        """As `agreed`, but on a GPU the answer of two calls ago, which it need not wait for."""
        if self.num_processes == 1 or self.device.type != "cuda":
            return self.agreed()
        self._answers.add(self._largest())
        self.last_answer = self._answers.oldest()
        return self.last_answer

    def _largest(self) -> torch.Tensor:
        """The processes' largest number, (1,), on the device."""
        number = torch.full((1,), self._mine(), device=self.device)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return number


class _Late:
    """Numbers on a GPU, read when two more have been added, by when they are there."""

    def __init__(self) -> None:
        self._asked: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()

    def add(self, number: torch.Tensor) -> None:
        """Begin to copy a number, (1,), to the host."""
        event = torch.cuda.Event()
        copy = torch.empty(1, dtype=number.dtype, pin_memory=True).copy_(number, non_blocking=True)
        event.record()
        self._asked.append((copy, event))

    def oldest(self) -> int:
        """The one before the last two, which is taken away; 0 where there is none."""
        if len(self._asked) < 3:
            return 0
        copy, event = self._asked.popleft()
        event.synchronize()
        return int(copy)
