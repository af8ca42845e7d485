"""Commands and scripts in real processes, and where the files of the tests are."""

import atexit
import contextlib
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import ClassVar

import psutil

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
TOYS = TESTS / "helpers" / "toy_recipes.py"
SEG, RECOG = str(ROOT / "recipes" / "seg_folder.py"), str(ROOT / "recipes" / "recog_folder.py")
# what accelerate_configs/fsdp2.yaml says, for networks as small as those of the tests
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP",
        "FSDP_MIN_NUM_PARAMS": "100"}  # fmt: skip
# seconds, after which what a test waits for is held to hang: machines differ tenfold, and are
# shared
PATIENCE = 240
# before torch is imported: threads of two suites would wait for each other
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["helpers.preloaded"])


def run(
    *words: str, cwd: Path | None = None, code: int | None = 0, **env: str
) -> subprocess.CompletedProcess:
    """Run a command to its end; fail with what it printed where its exit code is another."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **env}
    done = subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    if code is not None:
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def in_own_session(*words: str, **env: str) -> subprocess.Popen:
    """Start a command in a process group of its own, as a terminal does, with Ctrl-C as usual."""
    return subprocess.Popen(
        words,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # what runs in the background of a shell ignores it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def trainkit(*words: str, **kwargs) -> subprocess.CompletedProcess:
    """`python -m trainkit ...` in a process of its own."""
    return run(sys.executable, "-m", "trainkit", *map(str, words), **kwargs)


def forked(
    *words: object, cwd: Path | None = None, code: int = 0, **env: str
) -> subprocess.CompletedProcess:
    """As `trainkit`, in a process forked from one that has torch imported."""
    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder) / "errors"
        script = Script(TESTS / "helpers" / "command.py", cwd or Path.cwd(), errors, *words, **env)
        printed = script.communicate()[0]
        message = errors.read_text()
    assert script.returncode == code, f"exit code {script.returncode}\n{printed}\n{message}"
    return subprocess.CompletedProcess(words, code, printed, message)


def forked_script(*words: object, code: int = 0, **env: str) -> str:
    """What `python words...` prints to its end, forked from a process that has torch imported."""
    script = Script(*words, **env)
    printed = script.communicate()[0]
    assert script.returncode == code, f"exit code {script.returncode}\n{printed}"
    return printed


class Script:
    """`python words...`, forked from a process that has torch imported.

    Those seconds are most of a short training.

    As of subprocess.Popen: pid, returncode, poll, communicate, kill, terminate. own_session: not in
    this one's group.
    """

    begun: ClassVar[list["Script"]] = []

    def __init__(self, *words: object, own_session: bool = False, **env: str):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **env}
        # not a file, of which a test may limit the size
        self._reader, writer = FORKS.Pipe(duplex=False)
        arguments = [str(word) for word in words], environment, writer, own_session
        self._process = FORKS.Process(target=_be_the_script, args=arguments)
        _start_forkserver()
        self._process.start()
        writer.close()
        self.pid, self.kill, self.terminate = (
            self._process.pid,
            self._process.kill,
            self._process.terminate,
        )
        self._lines: list[str] = []
        self._reading = Thread(target=self._read, daemon=True)
        self._reading.start()
        Script.begun.append(self)

    def _read(self) -> None:
        with os.fdopen(os.dup(self._reader.fileno())) as stream:
            self._lines += stream

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def communicate(self, timeout: float = PATIENCE) -> tuple[str, None]:
        """All that it printed, to its end.

        Raises TimeoutError, and ends it, where it comes to none.
        """
        self._reading.join(timeout)
        self._process.join(1 if self._reading.is_alive() else timeout)
        if self.poll() is None or self._reading.is_alive():
            self.end()
            raise TimeoutError(f"still going after {timeout} s: {''.join(self._lines)}")
        return "".join(self._lines), None

    def end(self) -> None:
        """SIGKILL to it and to what it started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in psutil.Process(self.pid).children(recursive=True):
                each.kill()
        self.kill()
        self._process.join()


def _start_forkserver() -> None:
    """Before the first fork.

    Python 3.11's does not search sys.path of this process for what it is to import first, and
    goes on without.
    """
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), *([before] if before else [])])
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _be_the_script(
    words: list[str], env: dict[str, str], printed: Connection, own_session: bool
) -> None:
    """In a process that has printed nothing and done nothing yet."""
    assert "helpers.preloaded" in sys.modules, "each fork would import torch anew"
    # what runs in the background of a shell ignores it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if own_session:
        os.setsid()
    os.dup2(printed.fileno(), 1)
    os.dup2(printed.fileno(), 2)
    printed.close()
    os.environ.clear()
    os.environ.update(env)
    import torch  # not in the process of pytest before it is needed

    # and not that of the process it was forked from
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
    sys.argv[:] = words
    sys.path.insert(0, str(Path(words[0]).parent))
    torch.seed()  # as each interpreter of its own would have another
    try:
        runpy.run_path(words[0], run_name="__main__")
    except Exception:
        # said before the functions of the exit, as an interpreter does: of several processes
        # another may have ended by then, upon which this one is terminated
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()  # which a forked process leaves out


def torchrun(
    num_processes: int, *words: object, code: int | None = 0, **env: str
) -> subprocess.CompletedProcess:
    """A script in `num_processes` gloo processes with the environment of torchrun, without its own
    seconds.

    When one fails the others are ended. returncode: the first failure's; stdout: all that they
    printed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_processes)}
    group["LOCAL_WORLD_SIZE"] = group["WORLD_SIZE"]
    processes = [
        Script(*words, **group, **env, RANK=rank, LOCAL_RANK=rank)
        for rank in map(str, range(num_processes))
    ]
    failed = _first_failure(processes, PATIENCE)
    for process in processes if failed else ():
        process.terminate()
    _first_failure(processes, 10 * bool(failed), all_of_them=True)
    for process in processes:
        process.kill()
    printed = "".join(process.communicate()[0] for process in processes)
    failed = failed or max(abs(process.returncode) for process in processes)
    if code is not None:
        assert failed == code, f"exit code {failed}\n{printed}"
    return subprocess.CompletedProcess(words, failed, printed, "")


def _first_failure(processes: list[Script], seconds: float, all_of_them: bool = False) -> int:
    """Wait until one has failed, or all have ended; the first exit code that is not 0."""
    end = time.monotonic() + seconds
    while True:
        failed = next((process.returncode for process in processes if process.returncode), 0)
        ended = all(process.returncode is not None for process in processes)
        if ended or (failed and not all_of_them) or time.monotonic() > end:
            return failed
        time.sleep(0.02)
