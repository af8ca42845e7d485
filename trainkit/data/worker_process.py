"""What a data-loading worker does with signals, and where the training process has died."""

import gc
import os
import signal
import sys
import threading
import time
from types import TracebackType

CAN_TELL_SENDERS = hasattr(signal, "sigwaitinfo")
HAS_MASKS = hasattr(signal, "pthread_sigmask")
GROUPS_SIGNALS = {
    getattr(signal, name) for name in ("SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, name)
}
"""sent to a whole process group by a terminal, launcher or scheduler; the training handles them"""


def prepare_worker(_: int) -> None:
    """Set signals and errors of this process, a worker, before it reads; torch gives its number."""
    # What the parent has is never collected here: file systems of fsspec close their connections
    # then, and take them out of the parent's epoll, which a fork shares. The parent's next read of
    # a remote file would wait for its timeout of 300 s.
    gc.freeze()
    _outlive_the_signal()
    _leave_a_dead_parent_untold()


def _leave_a_dead_parent_untold() -> None:
    """Print no traceback of a connection that was lost as the training process died.

    The system closes the connections of a process a moment before it ends those that are to end
    with it, and multiprocessing's thread that hands out shared memory prints what it meets.
    """
    parent, report = os.getppid(), sys.excepthook

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, (EOFError, ConnectionError)):
            time.sleep(0.5)
            if os.getppid() != parent:
                return
        report(kind, error, trace)

    sys.excepthook = tell


def _outlive_the_signal() -> None:
    """Ignore signals sent to the whole group, which the training process handles.

    The worker keeps reading until the step is done. It obeys SIGTERM from its own parent, which
    ends it so.
    """
    for number in GROUPS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if HAS_MASKS:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUPS_SIGNALS)
    if CAN_TELL_SENDERS:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_the_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_the_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
