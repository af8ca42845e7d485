"""What the tests share: the folder of real images, and real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
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
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)
    if code is not None:
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def trainkit(*words: str, **kwargs) -> subprocess.CompletedProcess:
    """`python -m trainkit ...` in a process of its own."""
    return run(sys.executable, "-m", "trainkit", *map(str, words), **kwargs)


def torchrun(num_processes: int, *words: str, **kwargs) -> subprocess.CompletedProcess:
    """A script in `num_processes` gloo processes."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}")
    return run(*launcher, *map(str, words), **kwargs)
