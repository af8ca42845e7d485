"""What Windows' Python has not is hidden.

What needs none of it runs, and a training says what it needs.
"""

import os
import subprocess
import sys

from helpers.processes import ROOT

RECIPE = ROOT / "recipes" / "recog_cifar10.py"
HIDING = """
import multiprocessing.context, os, signal, sys
import accelerate, datasets, psutil, torch, torchvision  # which do without, on Windows
sys.modules["fcntl"] = sys.modules["resource"] = None
del multiprocessing.context.ForkContext, multiprocessing.context.ForkProcess
del os.fork, os.sched_getaffinity
for name in ("SIGUSR1", "SIGHUP", "SIGKILL", "SIGBUS", "sigwaitinfo", "pthread_sigmask"):
    delattr(signal, name)
from trainkit.cli import main
try:
    print("help:", main([sys.argv[1], "--help"]))
except SystemExit as ended:
    print("help:", ended.code)
print("training:", main([sys.argv[1], "--sample", "--workers", "0", "--out", "run"]))
"""


def test_without_what_windows_lacks(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(RECIPE.parents[1]), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", HIDING, str(RECIPE)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert "help: 0" in done.stdout, done.stderr
    assert "training: 2" in done.stdout, done.stderr
    assert "training takes Linux or macOS" in done.stderr
    assert not (tmp_path / "run").exists()
