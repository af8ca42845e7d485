"""Reads and checks what a launcher put into the environment."""

import ctypes
import os
import signal
import sys

NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
REMEDY = "Unset it for a single process, or start with `accelerate launch` or torchrun"
# what torchrun and `accelerate launch` leave
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")
_PARENT = os.getppid()


def _note_parent() -> None:
    global _PARENT
    _PARENT = os.getppid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_parent)


def faulty_variable() -> str | None:
    """What is wrong with a variable of the launcher, by name; None where nothing is."""
    numbers = {}
    for name in NUMBERS:
        if name in os.environ:
            text = os.environ[name]
            if not (text.isascii() and text.isdigit()):
                return (
                    f"{name} is {text!r} in the environment; a launcher sets it to a number from 0"
                    f" on. {REMEDY}"
                )
            numbers[name] = int(text)
    for name, total in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if (
            name in numbers
            and (total in numbers or name == "RANK")
            and numbers[name] >= numbers.get(total, 1)
        ):
            of = f"{total} is {numbers[total]}" if total in numbers else f"{total} is not set"
            return (
                f"{name} is {numbers[name]} in the environment and {of}: it must be less. {REMEDY}"
            )
    return None


def rank() -> int:
    """Rank of this process; 0 without a launcher, or where RANK is not an integer."""
    text = os.environ.get("RANK", "0")
    return int(text) if text.isdigit() else 0


def place_on_host() -> tuple[int, int]:
    """This process's number among those of its host, from 0, and how many they are.

    (0, 1), as if it were alone there, where the launcher does not say both.
    """
    try:
        number, processes = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    except (KeyError, ValueError):
        return 0, 1
    return (number, processes) if 0 <= number < processes else (0, 1)


def launcher() -> int | None:
    """Process id of the launcher that started this process; None where none did.

    As the parent was when trainkit was imported: a launcher that was killed while torch was being
    imported is missed.
    """
    return _PARENT if any(name in os.environ for name in LAUNCHERS) else None


def end_with_launcher() -> None:
    """Have SIGTERM sent to this process when its launcher dies, on Linux.

    Before the training begins it ends the process, which may be waiting for others that never come,
    and in the training it stops it as usual (see stop_signal.py, which checks for itself where the
    system sends nothing).
    """
    if (parent := launcher()) is not None:
        end_with_parent(signal.SIGTERM, parent)


def end_with_parent(number: int, parent: int) -> None:
    """Have the system send `number` to this process when `parent`, or its starting thread, ends."""
    if sys.platform != "linux":
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, number, 0, 0, 0)
    if os.getppid() != parent:  # it ended before
        os.kill(os.getpid(), number)
