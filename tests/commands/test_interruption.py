"""SIGINT and SIGTERM before the loop has its stop signal: one line, the signal's exit code."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from helpers.interruptions import wait_for
from helpers.processes import PATIENCE, RECOG, ROOT, TESTS, Script, in_own_session
from trainkit.models.recognition import classifier

REPORTS = {signal.SIGINT: "stopped by Ctrl-C (SIGINT)", signal.SIGTERM: "stopped by SIGTERM"}
PHOTOS = 2000  # more than are predicted before the signal comes
STALLED_S = 600  # far more than a test waits
RECIPE = f'''
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from helpers import toy_recipes
from trainkit.cli import main


def _asleep():
    """In Python, which sees a signal at once."""
    time.sleep({STALLED_S})


def _waiting():
    """In a library, for another process that never comes: Python is not asked meanwhile."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True)
    store.wait(["never"], timedelta(seconds={STALLED_S}))


def _swallowing():
    """In a library that drops what is raised in it, and says something else."""
    try:
        _asleep()
    except BaseException:
        raise ImportError("cannot load module more than once per process") from None


def _deaf():
    """In a library that drops what is raised in it, and goes on."""
    try:
        _asleep()
    except BaseException:
        _asleep()


def recipe(stalled: str = "asleep"):
    """A toy that is never built."""
    Path("stalled-" + os.environ.get("RANK", "0")).touch()
    {{"asleep": _asleep, "waiting": _waiting, "swallowing": _swallowing, "deaf": _deaf}}[stalled]()
    return toy_recipes.recognition()


if __name__ == "__main__":
    sys.exit(main())
'''
COMMANDS = {
    "train": ["--out", "written"],
    "check": ["--out", "written"],
    "doctor": ["--out", "written"],
    "evaluate": ["--weights", "weights.safetensors", "--out", "written"],
    "predict": ["photos", "--weights", "weights.safetensors", "--out", "written"],
    "export": ["--weights", "weights.safetensors", "--out", "written/model.pt2"],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stalled.py").write_text(RECIPE)
    (tmp_path / "weights.safetensors").touch()
    (tmp_path / "photos").mkdir()
    return tmp_path


def has_stalled(rank: int = 0):
    return lambda folder: (folder / f"stalled-{rank}").exists()


def command(name: str) -> list[str]:
    words = [] if name == "train" else [name]
    return [*words, "stalled.py", *COMMANDS[name]]


@pytest.mark.parametrize("number", REPORTS)
@pytest.mark.parametrize("name", COMMANDS)
def test_while_a_recipe_is_built(folder, name, number):
    """Nothing is written."""
    process = Script(folder / "stalled.py", *command(name))
    wait_for(folder, has_stalled(), process)
    os.kill(process.pid, number)
    printed = process.communicate()[0]
    assert process.returncode == 128 + number, printed
    assert printed.splitlines() == [REPORTS[number]]
    assert not (folder / "written").exists()


@pytest.mark.parametrize(
    "how, number",
    [
        ("waiting", signal.SIGINT),
        ("waiting", signal.SIGTERM),
        ("swallowing", signal.SIGINT),
        ("swallowing", signal.SIGTERM),
        ("deaf", signal.SIGTERM),
    ],
)
def test_deep_in_a_library(folder, how, number):
    """Where an exception does not come out, a thread ends the process, at once if it is a rank."""
    process = Script(folder / "stalled.py", "stalled.py", "--stalled", how, RANK="0")
    wait_for(folder, has_stalled(), process)
    time.sleep(0.2)  # into the library
    os.kill(process.pid, number)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number, printed
    assert printed.splitlines() == [REPORTS[number]]


@pytest.mark.parametrize("number", REPORTS)
def test_a_signal_that_comes_twice(folder, number):
    """To the process and then to its group, as `timeout` sends it: still one line."""
    process = Script(folder / "stalled.py", "stalled.py", own_session=True)
    wait_for(folder, has_stalled(), process)
    os.kill(process.pid, number)
    os.killpg(process.pid, number)
    printed = process.communicate()[0]
    codes = [128 + number]
    if number == signal.SIGINT:  # a second Ctrl-C while the interpreter ends; 130 to a shell, too
        codes.append(-number)
    assert process.returncode in codes, printed
    assert printed.splitlines() == [REPORTS[number]]


@pytest.mark.parametrize("number", REPORTS)
def test_a_signal_that_comes_late_again(folder, number):
    """While the interpreter ends: a second Ctrl-C ends it, and a second SIGTERM changes nothing."""
    (folder / "slow_end.py").write_text(
        "import atexit, pathlib, time\n"
        "def end():\n"
        "    pathlib.Path('ends').touch()\n"
        "    time.sleep(2)\n"
        "atexit.register(end)\n" + (folder / "stalled.py").read_text()
    )
    process = Script(folder / "slow_end.py", "slow_end.py", own_session=True)
    wait_for(folder, has_stalled(), process)
    os.kill(process.pid, number)
    wait_for(folder, lambda _: (folder / "ends").exists(), process)
    os.kill(process.pid, number)
    printed = process.communicate()[0]
    assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGINT), printed
    assert printed.splitlines() == [REPORTS[number]]


@pytest.mark.parametrize("number", REPORTS)
def test_predictions_of_an_earlier_call_stay(folder, number):
    """Until all images are in the new ones."""
    torch.save(classifier("small", 8).state_dict(), folder / "weights.pth")
    Image.new("RGB", (500, 400)).save(folder / "photos/0.png")
    for count in range(1, PHOTOS):
        os.link(folder / "photos/0.png", folder / f"photos/{count}.png")
    (folder / "written").mkdir()
    for name in ("predictions.jsonl", "predictions.csv"):
        (folder / "written" / name).write_text("of an earlier call\n")
    words = ["predict", RECOG, "photos", "--sample", "--weights", "weights.pth", "--workers", "0"]
    command = [TESTS / "helpers/command.py", folder, folder / "errors"]
    process = Script(*command, *words, "--probabilities", "--out", "written")
    partial = folder / "written/predictions.jsonl.partial"
    wait_for(folder, lambda _: partial.exists(), process)
    os.kill(process.pid, number)
    printed = process.communicate()[0]
    said = (folder / "errors").read_text()
    assert process.returncode == 128 + number, printed + said
    assert said.splitlines() == [REPORTS[number]]
    for name in ("predictions.jsonl", "predictions.csv"):
        assert (folder / "written" / name).read_text() == "of an earlier call\n"
    assert not (folder / "written/probabilities.npz").exists()
    assert len(partial.read_text().splitlines()) < PHOTOS


@pytest.mark.nightly
def test_an_ignored_signal_stays_ignored(folder):
    """SIGINT of what runs in the background of a shell."""
    words = ["-c", "import signal, runpy, sys; signal.signal(signal.SIGINT, signal.SIG_IGN);"
             "sys.argv = ['stalled.py', 'stalled.py'];"
             "runpy.run_path('stalled.py', run_name='__main__')"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
    )  # fmt: skip
    wait_for(folder, has_stalled(), process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.terminate()
    assert process.communicate(timeout=PATIENCE)[0].splitlines() == ["stopped by SIGTERM"]
    assert process.returncode == 143


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    "accelerate": ["accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1",
                   "--mixed_precision", "no", "--dynamo_backend", "no"],
}  # fmt: skip


@pytest.mark.nightly
@pytest.mark.parametrize(
    "name, number, to_group",
    [
        ("torchrun", signal.SIGTERM, False),
        ("torchrun", signal.SIGINT, True),
        ("accelerate", signal.SIGINT, True),
        ("accelerate", signal.SIGTERM, False),
    ],
)
def test_below_a_launcher(folder, name, number, to_group):
    """The line comes once; a traceback is the launcher's own, without a file of trainkit."""
    launch = [sys.executable, "-m", *LAUNCHERS[name], "-m", "trainkit"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    process = in_own_session(*launch, "stalled.py", PYTHONPATH=path)
    try:
        for rank in range(2 if name == "torchrun" else 1):
            wait_for(folder, has_stalled(rank), process)
        if to_group:  # as a terminal does
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        printed = process.communicate(timeout=PATIENCE)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert printed.splitlines().count(REPORTS[number]) == 1, printed
    assert f"{os.sep}trainkit{os.sep}" not in printed and "stalled.py" not in printed, printed
    assert not (folder / "runs").exists()
