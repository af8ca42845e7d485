"""Telling which limit of the machine was met: open files, shared memory, processes."""

import errno
import re
import traceback
from collections.abc import Iterator

FILES = re.compile(r"Too many open files|received \d+ items of ancdata")
SHARED = re.compile(r"(shared memory|shm_open|/torch_)[^\n]*No space left", re.IGNORECASE)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error`, what it was raised from or while, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def limit_met(error: BaseException) -> str | None:
    """What to tell where `error` says that no more files may be opened or processes started, or that /dev/shm is full.

    None where it says nothing of the kind. Also where it comes from a data-loading worker, as text.
    """
    for each in causes(error):
        text = str(each)
        if isinstance(each, OSError) and each.errno in (errno.EMFILE, errno.ENFILE) or FILES.search(text):
            return (
                f"too many open files{_limit()}: start fewer data-loading workers with --workers, or raise the limit "
                "(ulimit -n 65536)"
            )
        if isinstance(each, BlockingIOError) and "fork" in _innermost_line(each) or "can't start new thread" in text:
            return (
                "no more processes or threads may be started: start fewer data-loading workers with --workers, or "
                "raise the limit (ulimit -u)"
            )
        if SHARED.search(text):
            return (
                "shared memory is full, through which data-loading workers hand on images: enlarge /dev/shm (docker "
                "run --shm-size 8g, or --ipc host), start fewer workers with --workers (0 needs none), or take smaller "
                "batches"
            )
    return None


def _innermost_line(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return frames[-1].line or "" if frames else ""


def _limit() -> str:
    try:
        import resource
    except ImportError:  # where no such limit can be asked for
        return ""
    return f" (this process may open {resource.getrlimit(resource.RLIMIT_NOFILE)[0]})"
