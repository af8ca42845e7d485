"""What a training changes in its process, which a program of its own gets back as it was."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from trainkit.data.seeding import generators_kept


@contextmanager
def process_state_kept() -> Iterator[None]:
    """Context manager: leave random generators, precision, sys.path and Accelerate as they were.

    The generators of the current device are left alone where nothing was computed on it before.
    Accelerate's state is of the whole process, and decides precision and processes of whatever
    follows: it is forgotten where there was none, but in a group of processes.
    """
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    threads, path = torch.get_num_threads(), list(sys.path)
    had_state = bool(PartialState._shared_state)
    try:
        with generators_kept():
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn
        torch.set_num_threads(threads)
        sys.path[:] = path
        if not had_state and not torch.distributed.is_initialized():
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
