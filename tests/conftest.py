"""What the tests share: the folder of real images, and real processes."""

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PATIENCE = 240  # seconds, after which what a test waits for is held to hang: machines differ tenfold, and are shared
if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: threads of two suites would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; tests that want it are skipped where TRAINKIT_DATA does not name it."""
    if not os.environ.get("TRAINKIT_DATA"):
        pytest.skip("TRAINKIT_DATA is not set: it names a folder with camvid/, cifar10/, ADEChallengeData2016/")
    return Path(os.environ["TRAINKIT_DATA"]).resolve()


def run(*words: str, cwd: Path | None = None, code: int | None = 0, **env: str) -> subprocess.CompletedProcess:
    """Run a command to its end; fail with what it printed where its exit code is another."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **env}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    if code is not None:
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def trainkit(*words: str, **kwargs) -> subprocess.CompletedProcess:
    """`python -m trainkit ...` in a process of its own."""
    return run(sys.executable, "-m", "trainkit", *map(str, words), **kwargs)


def torchrun(num_processes: int, *words: str, code: int | None = 0, **env: str) -> subprocess.CompletedProcess:
    """A script in `num_processes` gloo processes, as torchrun starts them, without the seconds that it takes itself.

    When one fails the others are ended. returncode: the first failure's; stdout: all that they printed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "MASTER_ADDR": "127.0.0.1", **env}
    group = {"MASTER_PORT": str(port), "WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes)}
    command = [sys.executable, *map(str, words)]
    reader, writer = os.pipe()  # not a file, of which a test may limit the size
    processes = [
        subprocess.Popen(
            command, env={**environment, **group, "RANK": rank, "LOCAL_RANK": rank}, stdout=writer, stderr=writer
        )
        for rank in map(str, range(num_processes))
    ]
    os.close(writer)
    with ThreadPoolExecutor(1) as pool, os.fdopen(reader) as stream:
        printed = pool.submit(stream.read)
        failed = _first_failure(processes, PATIENCE)
        for process in processes if failed else ():
            process.terminate()
        _first_failure(processes, 10 * bool(failed), all_of_them=True)
        for process in processes:
            process.kill()
            process.wait()
        failed = failed or max(abs(process.returncode) for process in processes)
        done = subprocess.CompletedProcess(command, failed, printed.result(), "")
    if code is not None:
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}"
    return done


def _first_failure(processes: list[subprocess.Popen], seconds: float, all_of_them: bool = False) -> int:
    """Wait until one has failed, or all have ended; the first exit code that is not 0."""
    end = time.monotonic() + seconds
    while True:
        failed = next((process.returncode for process in processes if process.poll()), 0)
        ended = all(process.poll() is not None for process in processes)
        if ended or (failed and not all_of_them) or time.monotonic() > end:
            return failed
        time.sleep(0.02)
