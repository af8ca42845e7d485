"""SIGINT and SIGTERM outside of the training loop: a command ends in one line, without a traceback.

The loop has a StopFlag, which saves first; here nothing is under way that a later call could use.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from trainkit.distributed.launcher import launcher

UNWIND_S = 5.0  # for what is written aside to be removed, and workers to be ended
NOTICE_S = 0.5  # of several processes: for a process that may be waiting for one that is gone
REPORTS: dict[int, str] = {
    signal.SIGINT: "stopped by Ctrl-C (SIGINT)",
    signal.SIGTERM: "stopped by SIGTERM",
}
USUAL = (signal.SIG_DFL, signal.default_int_handler)


class Terminated(SystemExit):
    """SIGTERM came; exit code 143."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class Interruptions:
    """Raises KeyboardInterrupt at SIGINT and `Terminated` at SIGTERM, each once, in this process.

    Further ones are ignored: `timeout` and launchers send one to a process and to its group. Python
    sees a signal between two of its instructions only. A process that is deep in a library for
    longer, such as in a collective operation that waits for a process that is gone, is ended by a
    thread, after NOTICE_S where there are several and UNWIND_S else. Signals that were ignored at
    the start stay so, and processes that are forked have the handlers of before.

    Libraries that are being imported may swallow what is raised, or raise an error of their own in
    its place: `number` says what it was, and the thread ends the process here too.

    Args:
        report: shows a message, before the thread ends the process.

    Attributes:
        number: the signal for which something was raised; None so far.
    """

    def __init__(self, report: Callable[[str], object]):
        self._report = report
        self.number: int | None = None
        self._before: dict[int, Any] = {}
        self._raised = threading.Event()
        self._over = threading.Event()

    def begin(self) -> None:
        """Handle the signals from now on; to be called once, in the main thread."""
        for number in REPORTS:
            handler = signal.getsignal(number)
            if handler in USUAL:
                self._before[number] = handler
                signal.signal(number, self._on_signal)
        if not hasattr(os, "register_at_fork"):  # on Windows, which has neither forks nor SIGTERM
            return
        os.register_at_fork(after_in_child=self._forget)
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(read_end,), daemon=True).start()

    def end(self) -> None:
        """Let the next signal end the process at once, without a word.

        But for a second SIGTERM, which may come while the interpreter ends: the exit code is to be
        that of the first.
        """
        self._over.set()
        for number in self._before:
            if not number == self.number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        for each in self._before:
            signal.signal(each, signal.SIG_IGN)
        self.number = number
        self._raised.set()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated

    def _forget(self) -> None:
        """In a process that was forked: what was before."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, handler)

    def _watch(self, read_end: int) -> None:
        """Wait for signals, and end the process where one comes and nothing follows."""
        while True:
            number = os.read(read_end, 1)[0]
            is_mine = number in self._before and signal.getsignal(number) == self._on_signal
            if not (self._raised.is_set() or is_mine):
                continue  # the loop's, or one that another library handles
            is_alone = launcher() is None and "RANK" not in os.environ
            notice = UNWIND_S if is_alone else NOTICE_S
            if self._raised.wait(notice):
                self._over.wait(UNWIND_S)
            elif signal.getsignal(number) != self._on_signal:
                continue  # the loop began meanwhile, and has the signal
            if not self._over.is_set():
                self._report(REPORTS[number])
                sys.stdout.flush()
                os._exit(128 + number)
