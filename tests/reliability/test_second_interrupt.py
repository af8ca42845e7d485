"""Ctrl-C twice: the second ends a run that does not come to its next step, but not a launcher's."""

import os
import signal
import sys
import time

import pytest

from helpers.interruptions import checkpoint_of, kill_all, wait_for
from helpers.processes import PATIENCE, TOYS, Script, in_own_session
from trainkit.storage.checkpoint import list_checkpoints

STUCK_S = 600  # far more than the test waits
STUCK = f'''
import sys
import time
from pathlib import Path

from helpers import toy_recipes
from trainkit.cli import main


class Stuck(toy_recipes.Images):
    """Images that are not read any more, as on a disk that hangs, in step 3 of 8 images each."""

    def __getitem__(self, index):
        if Path("run/checkpoints/step-000000002").exists():
            Path("stuck").touch()
            end = time.monotonic() + {STUCK_S}
            while time.monotonic() < end:
                time.sleep(1)
        return self.change(self.images[index]), self.targets[index]


def recipe():
    """A toy."""
    return toy_recipes.recognition(train_data=Stuck(27))


if __name__ == "__main__":
    sys.exit(main())
'''


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_ends_a_run_that_hangs(tmp_path, monkeypatch, first):
    """The first is kept for the end of the step; what was saved before is whole."""
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "stuck.py"
    script.write_text(STUCK)
    words = [script, "--out", "run", "--workers", "0", "--checkpoint-every", "1"]
    process = Script(script, *words)
    wait_for(tmp_path, lambda folder: (folder / "stuck").exists(), process)
    os.kill(process.pid, first)
    time.sleep(0.5)
    assert process.poll() is None, "it ends its step first"
    os.kill(process.pid, signal.SIGINT)
    if first != signal.SIGINT:
        time.sleep(0.5)
        assert process.poll() is None, "the first Ctrl-C"
        os.kill(process.pid, signal.SIGINT)
    printed = process.communicate(timeout=30)[0]
    assert process.returncode == 130, printed
    assert printed.splitlines()[-1] == "stopped by Ctrl-C (SIGINT)" and "after step" not in printed
    assert list_checkpoints(tmp_path / "run/checkpoints")[-1].name == "step-000000002"
    assert not (tmp_path / "run/summary.json").exists()


@pytest.mark.nightly
def test_a_terminals_ctrl_c_below_torchrun_is_one(tmp_path):
    """Every process of the group gets it, and torchrun sends it again to those that it started."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [sys.executable, *launcher, str(TOYS), str(tmp_path), "all"]
    process = in_own_session(*words, TOY_SLEEP="0.1", TOY_WORKERS="0")
    try:
        wait_for(tmp_path / "all", checkpoint_of(2), process)
        os.killpg(process.pid, signal.SIGINT)
        printed = process.communicate(timeout=PATIENCE)[0]
    finally:
        if process.poll() is None:
            kill_all(process)
    assert "stopped by SIGINT after step" in printed, printed
    stopped = int(printed.split("after step ")[1].split(",")[0])
    saved = list_checkpoints(tmp_path / "all/checkpoints")[-1]
    assert saved.name == f"step-{stopped:09d}"
