"""Telling that memory ran out, whichever allocator says so."""

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is CUDA's, the CPU allocator's or oneDNN's way to say that memory ran out."""
    said = ("DefaultCPUAllocator: can't allocate memory", "could not create a primitive", "out of memory")
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in said)
    )
