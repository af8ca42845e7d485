"""User errors, reported in one message, and internal errors, which keep their traceback."""

import difflib
import errno
import os
import re
import traceback
from collections.abc import Iterable, Iterator
from contextlib import ContextDecorator, contextmanager
from pathlib import Path


class ReportedError(Exception):
    """An error that is no bug.

    A command reports its message alone, without a traceback, and ends with `exit_code`.
    """

    exit_code = 1
    of_one_process = False
    """whether one process alone may have it, which then reports it itself; else all have it"""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows of it: the message, as a command does."""
        if report_of(self) is None:  # TRAINKIT_TRACEBACK
            return traceback.format_exception(self)
        return [f"{type(self).__name__}: {self}"]


class UserError(ReportedError, ValueError):
    """Something that the user gave is wrong.

    The message has its name, the value received and the remedy.
    """

    exit_code = 2


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the user named, or that a dataset needs, is not there."""


class DataError(UserError):
    """Something is wrong in the data, such as a damaged image or a label outside the classes."""

    of_one_process = True


class MissingPackageError(ReportedError, ModuleNotFoundError):
    """A package that is not installed, and how to install it."""

    exit_code = 2


class NonFiniteError(ReportedError, FloatingPointError):
    """A loss or a gradient is NaN or infinite.

    All processes find it, in the sum over them.
    """

    exit_code = 2


class CommandFailed(ReportedError):
    """A command cannot produce its output, and no input is at fault."""


SAID = (
    "out of memory",  # CUDA, HIP, XPU, MPS
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "could not create a primitive",  # oneDNN
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUSPARSE_STATUS_ALLOC_FAILED",
    "CUFFT_ALLOC_FAILED",
    "HIPBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "miopenStatusAllocFailed",
)
# What these libraries say on out of memory (OOM), and where something else is wrong too.
DOUBTFUL = (
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "Unable to find a valid cuDNN algorithm",
    "unable to find an engine to execute this computation",
)
# bytes left, where a doubtful error is taken for lack of memory: a handle takes some MiB
NEARLY_FULL = 512 << 20

FILES = re.compile(r"Too many open files|received \d+ items of ancdata")
SHARED = re.compile(r"(shared memory|shm_open|/torch_)[^\n]*No space left", re.IGNORECASE)

# What torch puts before an error that a data-loading worker sends as text, and where its message
# begins.
FROM_A_WORKER = re.compile(r"Caught \w+ in (DataLoader worker process|pin memory thread)")
LAST_MESSAGE = re.compile(r"^[\w.]+(?:Error|Exception): ", re.MULTILINE)


def report_of(error: Exception) -> str | None:
    """The message that a command reports in place of a traceback.

    Reported are errors raised for that, and what the machine lacks: OSError, MemoryError and limits
    of the system. The environment variable TRAINKIT_TRACEBACK keeps every traceback.

    Returns:
        None for a bug, which keeps its traceback.
    """
    if os.environ.get("TRAINKIT_TRACEBACK"):
        return None
    message = limit_met(error) or _nul_reported(error)
    if message is None and isinstance(error, (ReportedError, OSError, MemoryError)):
        message = message_of(error)
    return message


def message_of(error: Exception) -> str:
    """The message of an error.

    That of an error from a data-loading worker comes without the traceback that torch wrote before
    it.
    """
    text = str(error)
    if FROM_A_WORKER.match(text):
        text = LAST_MESSAGE.split(text)[-1].strip()
    return text


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its kind where it has none, as a MemoryError."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def exit_code_of(error: Exception) -> int:
    """2 where the user is to set something right, 1 where the machine failed."""
    if limit_met(error) is not None:
        return 1
    if isinstance(error, ReportedError):
        return error.exit_code
    failed = isinstance(error, (OSError, MemoryError)) and not isinstance(error, FileNotFoundError)
    return 1 if failed else 2


def is_of_one_process(error: BaseException) -> bool:
    """Whether this process may be the only one with this error, so that it reports it itself.

    Such are errors of what it reads and of what its machine lacks, the loss of the other processes,
    and whatever `may_fail_alone` marked.
    """
    if limit_met(error) is not None:
        return True
    if isinstance(error, (OSError, MemoryError)) and not isinstance(error, ReportedError):
        return True
    return any(getattr(each, "of_one_process", False) for each in causes(error))


class may_fail_alone(ContextDecorator):
    """Mark errors raised within, or in a decorated function, as those of one process alone."""

    def __enter__(self) -> None:
        """Nothing is done before an error."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Mark an error."""
        if isinstance(error, Exception):
            error.of_one_process = True  # type: ignore[attr-defined]  # any exception takes a mark


def _nul_reported(error: Exception) -> str | None:
    """The name with a NUL character that the system refused, from the innermost call; else None."""
    if not (isinstance(error, ValueError) and "embedded null" in str(error)):
        return None
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        for value in frame.f_locals.values():
            if isinstance(value, (str, Path)) and "\0" in str(value):
                return (
                    f"{str(value)!r} holds a NUL character, and no name of a file can: take it out"
                )
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield `error`, what it was raised from or while handling, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def limit_met(error: BaseException) -> str | None:
    """What to report where a limit of the system is reached: open files, processes, or /dev/shm.

    Also where the error comes from a data-loading worker, as text.

    Returns:
        None where `error` is of another kind.
    """
    for each in causes(error):
        text = str(each)
        if (
            isinstance(each, OSError)
            and each.errno in (errno.EMFILE, errno.ENFILE)
            or FILES.search(text)
        ):
            return (
                f"too many open files{_limit()}: start fewer data-loading workers with --workers,"
                " or raise the limit (ulimit -n 65536)"
            )
        if (
            isinstance(each, BlockingIOError)
            and "fork" in _innermost_line(each)
            or "can't start new thread" in text
        ):
            return (
                "no more processes or threads may be started: start fewer data-loading workers with"
                " --workers, or raise the limit (ulimit -u)"
            )
        if SHARED.search(text):
            return (
                "shared memory is full, through which data-loading workers hand on images: enlarge"
                " /dev/shm (docker run --shm-size 8g, or --ipc host), start fewer workers with"
                " --workers (0 needs none), or take smaller batches"
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` means out of memory (OOM), of a device or of the host."""
    import torch  # not for `trainkit --help`

    if isinstance(error, torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    text = str(error)
    return any(words in text for words in SAID) or (
        any(words in text for words in DOUBTFUL) and _nearly_full()
    )


def is_shortage(error: BaseException) -> bool:
    """Whether the machine lacks something, memory or open files, so that no image is at fault."""
    return is_out_of_memory(error) or limit_met(error) is not None


def _nearly_full() -> bool:
    """Whether the device has little memory left that nobody holds."""
    import torch

    return torch.cuda.is_available() and torch.cuda.mem_get_info()[0] < NEARLY_FULL


@contextmanager
def shortage_reported(work: str) -> Iterator[None]:
    """Raise MemoryError with a remedy on out of memory (OOM) in work other than training.

    Args:
        work: what is done, such as an evaluation.

    Raises:
        MemoryError: the work ran into an OOM error.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(
            f"out of memory in {work}: {first_line(error)}. Set a smaller eval_batch_size"
            " in the recipe, or look at less at once, with smaller scales, a smaller window or"
            " window_batch"
        ) from error


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the nearest known one, else all of them."""
    listed = list(known)
    near = difflib.get_close_matches(word, listed, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; there are {', '.join(listed) or 'none'}"
