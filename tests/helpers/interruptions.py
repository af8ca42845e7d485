"""Toy runs in processes of their own: started, waited for, killed, resumed."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from helpers.processes import PATIENCE, TOYS, Script, torchrun
from trainkit.storage.checkpoint import list_checkpoints


def start(
    folder: Path,
    name: str,
    processes: int = 1,
    workers: int = 0,
    sleep: float = 0.01,
    own_session: bool = False,
    interpreter: bool = False,
    **env: str,
) -> Script | subprocess.Popen:
    """The run `name` in a process, or below torchrun in several, of its own, slow enough to be hit.

    interpreter: one of its own, in which sets have another order; torchrun's have that anyway.
    """
    words, env = (
        (str(TOYS), str(folder), name),
        {"TOY_SLEEP": str(sleep), "TOY_WORKERS": str(workers), **env},
    )
    if processes == 1 and not interpreter:
        return Script(*words, own_session=own_session, **env)
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    return subprocess.Popen(
        [*launcher, *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def resume(
    folder: Path, name: str, processes: int = 1, workers: int = 0, others: Sequence[str] = ()
) -> str:
    """Run it (and then others) to its end, at full speed; what it printed."""
    if processes > 1:
        return torchrun(processes, TOYS, folder, name, *others, TOY_WORKERS=str(workers)).stdout
    process = Script(TOYS, folder, name, *others, TOY_WORKERS=str(workers))
    printed = process.communicate()[0]
    assert process.returncode == 0, printed
    return printed


def wait_for(folder: Path, found, process: Script | subprocess.Popen) -> None:
    """Until `found(folder)`, while the process lives."""
    end = time.monotonic() + PATIENCE
    while not found(folder):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, f"it never came to it: {kill_all(process)}"
        time.sleep(0.005)


def checkpoint_of(step: int):
    return lambda folder: any(
        int(path.name[5:]) >= step for path in list_checkpoints(folder / "checkpoints")
    )


def kill_all(process: Script | subprocess.Popen) -> str:
    """SIGKILL to the process and all below it; what they had printed."""
    for each in [
        *psutil.Process(process.pid).children(recursive=True),
        psutil.Process(process.pid),
    ]:
        each.kill()
    return process.communicate()[0]
