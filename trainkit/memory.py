"""Telling that memory ran out, whichever allocator says so."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trainkit.limits import limit_met

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
NEARLY_FULL = 512 << 20  # bytes left, where a doubtful error is taken for lack of memory: a handle takes some MiB


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is an allocator's or a library's way to say that memory ran out, of a device or of the host."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    text = str(error)
    return any(words in text for words in SAID) or (any(words in text for words in DOUBTFUL) and _nearly_full())


def is_shortage(error: BaseException) -> bool:
    """Whether the machine lacks something, memory or open files, so that no image is at fault."""
    return is_out_of_memory(error) or limit_met(error) is not None


def _nearly_full() -> bool:
    """Whether the device has little memory left that nobody holds."""
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
