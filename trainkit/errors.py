"""Telling the user's mistakes, which end in one message, from ours, which keep their traceback."""

import errno
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """Something that the user gave is wrong. The message has its name, the value received and the remedy.

    A command reports it in one message and ends with exit code 2.
    """


class CommandFailed(Exception):
    """A command cannot give what it was asked for, by no mistake of the user: one message, exit code 1."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the user named, or that a dataset needs, is not there."""


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
# What these libraries say where memory ran out, and where something else is wrong too.
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

# others are bugs
TOLD = (ValueError, OSError, FloatingPointError, MemoryError, ModuleNotFoundError)


def what_to_tell(error: Exception, recipe: Path) -> str | None:
    """The one message that `error` ends in, also where a limit of the machine was met; None for a bug."""
    message = None if os.environ.get("TRAINKIT_TRACEBACK") else limit_met(error) or _nul_told(error)
    return users_mistake(error, recipe) if message is None and isinstance(error, TOLD) else message


def _nul_told(error: Exception) -> str | None:
    """The name with a NUL character that the system refused, from the innermost call that has it; else None."""
    if not (isinstance(error, ValueError) and "embedded null" in str(error)):
        return None
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        for value in frame.f_locals.values():
            if isinstance(value, (str, Path)) and "\0" in str(value):
                return (
                    f"{str(value)!r} holds a NUL character, and no name of a file can: take it out"
                )
    return None


def is_one_process_affair(error: Exception) -> bool:
    """Whether the other processes do not end by the same error, as all do before the first step.

    Reading an image is one process's affair, and so is what it lacks, or that it lost the others.
    """
    frames = {
        frame.name for each in causes(error) for frame in traceback.extract_tb(each.__traceback__)
    }
    return (
        limit_met(error) is not None
        or isinstance(error, ConnectionError)
        or bool({"steps", "measure"} & frames)
    )


def is_the_machines(error: Exception) -> bool:
    """Whether the machine failed, and not what the user gave it."""
    failed = isinstance(error, (OSError, MemoryError)) and not isinstance(error, FileNotFoundError)
    return failed or limit_met(error) is not None


def users_mistake(error: Exception, recipe: Path) -> str | None:
    """What to tell the user; None where the error is not one that trainkit or the recipe raised on purpose.

    On purpose: the innermost frame is theirs. The same goes for an error from a worker process, whose
    traceback arrives as text.
    """
    if os.environ.get("TRAINKIT_TRACEBACK"):
        return None
    text = str(error)
    if re.match(r"Caught \w+ in DataLoader worker process", text):
        innermost = re.findall(r'File "([^"]+)", line \d+', text)[-1]
        text = re.split(r"^[\w.]+Error: ", text, flags=re.MULTILINE)[-1].strip()
    else:
        innermost = traceback.extract_tb(error.__traceback__)[-1].filename
    return text if _is_ours(innermost, recipe) else None


def refusing_call(error: Exception, recipe: Path) -> str | None:
    """Which library function, called from where, raised `error`; None where trainkit or the recipe itself did."""
    frames = list(traceback.walk_tb(error.__traceback__))
    ours = [_is_ours(frame.f_code.co_filename, recipe) for frame, _ in frames]
    if ours[-1]:
        return None
    number = len(ours) - ours[::-1].index(True)  # of the first frame that is the library's
    (caller, line), (called, _) = frames[number - 1 : number + 1]
    name = getattr(called.f_code, "co_qualname", called.f_code.co_name).removesuffix(".__init__")
    where = f"{Path(caller.f_code.co_filename).name}, line {line}"
    return f"{name} of {called.f_globals.get('__name__')}, called in {where}"


def _is_ours(file: str, recipe: Path) -> bool:
    """Whether a file is of trainkit, or lies beside the recipe."""
    path = Path(file).resolve()
    return (
        path.is_relative_to(Path(__file__).resolve().parent)
        or path.parent == recipe.resolve().parent
    )


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
        if (
            isinstance(each, OSError)
            and each.errno in (errno.EMFILE, errno.ENFILE)
            or FILES.search(text)
        ):
            return (
                f"too many open files{_limit()}: start fewer data-loading workers with --workers, or raise the limit "
                "(ulimit -n 65536)"
            )
        if (
            isinstance(each, BlockingIOError)
            and "fork" in _innermost_line(each)
            or "can't start new thread" in text
        ):
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is an allocator's or a library's way to say that memory ran out, of a device or of the host."""
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
def shortage_told(work: str) -> Iterator[None]:
    """Raises MemoryError with a remedy where memory runs out in what looks at images and does not train on them."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(
            f"out of memory in {work}: {str(error).splitlines()[0]}. Set a smaller eval_batch_size in the recipe, or "
            "look at less at once, with smaller scales, a smaller window or window_batch"
        ) from error
