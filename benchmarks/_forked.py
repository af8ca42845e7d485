"""Launchers and their processes by fork, from a process that has imported torch.

Those seconds are most of a short run.

torchrun and `accelerate launch` are their own functions, which read their own arguments and set
their own variables; only the program they start is forked where they would execute an interpreter.
"""

import atexit
import ctypes
import faulthandler
import gc
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn

import accelerate.commands.launch
import torch
import torch.distributed.run
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

import trainkit.cli
import trainkit.engine.evaluation
import trainkit.engine.loop
import trainkit.options

TORCHRUN = ("-m", "torch.distributed.run", "--standalone")
ACCELERATE = ("-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no",
              "--dynamo_backend", "no", "--main_process_port", "0")  # fmt: skip

NAMES = list(signature(subprocess.Popen._execute_child).parameters)


def command(launcher: str, processes: int, words: Sequence[str]) -> list[str]:
    """The words after `python` that train with `words` in so many processes.

    launcher: none, torchrun, accelerate.
    """
    if launcher == "none":
        return ["-m", "trainkit", *words]
    if launcher == "torchrun":
        return [*TORCHRUN, f"--nproc-per-node={processes}", "-m", "trainkit", *words]
    several = ["--multi_gpu"] if processes > 1 else []
    return [*ACCELERATE, *several, "--num_processes", str(processes), "-m", "trainkit", *words]


def start(words: Sequence[str], env: dict[str, str], printed: Path, fresh: bool) -> int:
    """Start `python words...` in a session of its own; its process id.

    fresh: by an interpreter of its own.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        _write_to(printed)
        if fresh:
            os.execve(sys.executable, [sys.executable, *words], env)
        _become(words, env, printed)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(99)


def preload(words: Sequence[str]) -> None:
    """Import here what `python -m trainkit words...` imports on its way, found out by a fork that
    does it."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            before = set(sys.modules)
            with Path(os.devnull).open("w") as sys.stdout:
                trainkit.cli.main(words)
            os.write(writer, "\n".join(sys.modules.keys() - before).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        names = stream.read().split()
    os.waitpid(pid, 0)
    for name in sorted(names):
        with suppress(Exception):  # such as the recipe, which is not imported by its name
            import_module(name)
    assert threading.active_count() == 1, "what forks has one thread"


def adopt_orphans() -> None:
    """Adopt the processes that a killed launcher leaves, to be able to wait for them (Linux)."""
    pr_set_child_subreaper = 36
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)


def _write_to(printed: Path) -> None:
    descriptor = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _become(words: Sequence[str], env: dict[str, str], printed: Path) -> NoReturn:
    """Be `python words...`, in a process just forked.

    Of a launcher's, what it starts prints beside `printed`.
    """
    gc.freeze()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.environ.clear()
    os.environ.update(env)
    module, arguments = words[1], list(words[2:])
    sys.argv = [module, *arguments]
    code: Any = 0
    try:
        if module == "trainkit":
            torch.set_num_threads(1)
            torch.seed()  # as each interpreter of its own would have another
            code = trainkit.cli.main()
        else:
            _Forking.printed = printed.with_name("ranks.txt")
            subprocess.Popen = subprocess_handler.Popen = _Forking
            launch = (
                torch.distributed.run
                if module == "torch.distributed.run"
                else accelerate.commands.launch
            )
            launch.main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


class _Forking(subprocess.Popen):
    """Starts a training by a fork of this process, anything else as ever."""

    printed: Path

    def _execute_child(self, args: Any, *others: Any) -> None:
        words = list(args)
        if "trainkit" not in words:
            super()._execute_child(args, *others)
            return
        env = next(each for each in others if isinstance(each, dict))
        session = others[NAMES.index("start_new_session") - 2]
        words = words[words.index("trainkit") - 1 :]
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                if session:
                    os.setsid()
                # as an interpreter of its own: the launcher's sockets are not its
                os.closerange(3, 512)
                _write_to(self.printed)
                faulthandler.enable()
                _become(words, dict(env), self.printed)
            finally:
                os._exit(99)
        self._child_created = True
