"""Saves a checkpoint beside an older one again and again, dying by SIGKILL at one file operation
later each time.

    python tests/helpers/crash_points.py FOLDER        # prints the operation before each death

Operations of Python are seen by an audit hook (open, mkdir, rename, remove, rmdir, scandir); fsync
and the writing of safetensors, which it does not see, by a wrapper around each. A file dies half
written as well.
"""

import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import torch
from safetensors import torch as safetensors

from trainkit.storage import checkpoint

real_fsync, real_save_file = os.fsync, safetensors.save_file
OPERATIONS = {
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.scandir",
    "shutil.rmtree",
    "os.link",
}


def content(step: int) -> tuple[dict, dict]:
    """Model and state of `step`."""
    return {"w": torch.full((300,), float(step))}, {
        "step": step,
        "momentum": torch.full((200,), -float(step)),
    }


def save(folder: Path, step: int) -> None:
    """As a training that waits for it."""
    checkpoint.write(folder, step, checkpoint.Snapshot.of(*content(step), copy=False))


class Countdown:
    """Kills this process before the operation of number `last`; tells which one it was."""

    def __init__(self, last: int, pipe: int, folder: Path):
        self.left, self.pipe, self.folder = last, pipe, str(folder)
        self.lock = threading.Lock()  # files are hashed beside the writing

    def before(self, name: str) -> None:
        with self.lock:
            if self.left == 0:
                os.write(self.pipe, name.encode())
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1

    def audit(self, event: str, arguments: tuple) -> None:
        if event in OPERATIONS and (event != "open" or self.folder in str(arguments[0])):
            self.before(f"{event} {Path(str(arguments[0])).name}")

    def fsync(self, descriptor: int) -> None:
        self.before("fsync")
        real_fsync(descriptor)

    def save_file(self, tensors: dict, path: Path, metadata: dict | None) -> None:
        self.before(f"save_file {path.name}")
        real_save_file(tensors, path, metadata)
        if self.left == 0:
            os.truncate(path, path.stat().st_size // 2)
        self.before(f"half of save_file {path.name}")


def one_death(folder: Path, number: int) -> str:
    """Fork a process that saves step 3 beside 1 and 2 and keeps two.

    What it died before, or nothing.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        countdown = Countdown(number, writer, folder)
        os.fsync, safetensors.save_file = countdown.fsync, countdown.save_file
        sys.addaudithook(countdown.audit)
        save(folder, 3)
        checkpoint.rotate(folder, 2)
        os._exit(0)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    message = os.read(reader, 200).decode()
    os.close(reader)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return message


if __name__ == "__main__":
    work = Path(sys.argv[1]) / "checkpoints"
    torch.set_num_threads(1)
    number, died = 0, True
    while died:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        for step in (1, 2):
            save(work, step)
        died = one_death(work, number)
        whole = checkpoint.list_checkpoints(work)
        for path in whole:  # whole or absent, each of them
            weights, state = checkpoint.load(path)
            step = checkpoint.step_of(path)
            assert (
                state["step"] == step and weights["w"][0] == step and state["momentum"][-1] == -step
            ), path
        steps = [checkpoint.step_of(path) for path in whole]
        assert steps in ([1, 2], [1, 2, 3], [2, 3]), (died, steps)
        save(work, 3 if 3 not in steps else 4)
        checkpoint.rotate(work, 2)
        names = sorted(path.name for path in work.iterdir())
        assert len(names) == 2 and all(name.startswith("step-") for name in names), (died, names)
        if died:
            sys.stdout.write(f"{died}: {steps}\n")
        number += 1
