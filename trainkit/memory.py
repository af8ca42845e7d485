"""Telling that memory ran out, whichever allocator says so."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is CUDA's, the CPU allocator's or oneDNN's way to say that memory ran out."""
    said = ("DefaultCPUAllocator: can't allocate memory", "could not create a primitive", "out of memory")
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in said)
    )


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
