"""The host's cores, threads and freed memory."""

import ctypes
import os

import psutil
import torch


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_all_cores() -> None:
    """Undo the launcher's OMP_NUM_THREADS=1, which it sets where the user gave no number."""
    # by accelerate, by torchrun
    launched = {"ACCELERATE_MIXED_PRECISION", "LOCAL_RANK"} & os.environ.keys()
    if not launched or os.environ.get("OMP_NUM_THREADS") != "1" or _threads_were_asked_for():
        return
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    torch.set_num_threads(max(1, usable_cores() // processes))


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next tensors, where it is the C library.

    By default it gives large blocks back to the system, and every activation of every step is paged
    in anew: the README's first command spent a third of its time there (docs/results.md).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return  # another C library
    m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3  # names and numbers of malloc.h
    mallopt(m_mmap_threshold, 1 << 30)
    mallopt(m_trim_threshold, 2**31 - 1)
    mallopt(m_top_pad, 64 << 20)


def _threads_were_asked_for() -> bool:
    try:
        launcher = psutil.Process(os.getppid())
        return "OMP_NUM_THREADS" in launcher.environ() or any(
            word.startswith("--num_cpu_threads_per_process") for word in launcher.cmdline()
        )
    except psutil.Error:
        return True  # the parent is gone or not ours to look at: leave what it set
