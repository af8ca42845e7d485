"""What Windows' Python has not is hidden, and workers are spawned.

What needs none of it runs, and a training says what it needs.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from helpers.processes import RECOG, ROOT, Script
from helpers.processes import run as run_command
from trainkit.cli import main
from trainkit.files import open_to_flush

# read by the interpreter when it starts, and so by that of each worker
HIDING = """
import multiprocessing, multiprocessing.context as context, os, signal, sys
import filelock, psutil  # which have modules for Windows
sys.modules["fcntl"] = sys.modules["resource"] = None
context._concrete_contexts = {"spawn": context.SpawnContext()}
multiprocessing.set_start_method("spawn")
del os.fork, os.sched_getaffinity
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGKILL", "SIGBUS", "sigwait", "sigwaitinfo",
             "pthread_sigmask"):
    delattr(signal, name)
"""
COMMANDS = """
import json, sys
from trainkit.cli import main

if __name__ == "__main__":
    codes = {}
    for name, words in json.loads(sys.argv[1]).items():
        for stream in (sys.stdout, sys.stderr):
            print("##", name, file=stream, flush=True)
        try:
            codes[name] = main(words)
        except SystemExit as ended:
            codes[name] = ended.code
    print("CODES", json.dumps(codes))
"""
SHORT = ("--sample", "--epochs", "0.5", "--warmup-epochs", "0")
REFUSED = {
    "a training": [RECOG, *SHORT, "--workers", "0", "--out", "other"],
    "one with workers": [RECOG, *SHORT, "--workers", "2", "--out", "other"],
    "check": ["check", RECOG, *SHORT, "--workers", "0"],
}
RUNNING = {
    "help": ["--help"],
    "help of a recipe": [RECOG, "--help"],
    "evaluate": ["evaluate", "run", "--workers", "1"],
    "predict": ["predict", "run", "images", "--out", "predicted", "--workers", "0"],
    "export": ["export", "run", "--out", "exported.safetensors"],
}
FAILING = """
from pathlib import Path

import torch
from torch import nn

from trainkit import Recipe
from trainkit.schedules import constant
from trainkit.tasks.recognition import Recognition

class Images(torch.utils.data.Dataset):
    classes = ("one", "two")

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.full((3, 4, 4), torch.nan if index == 5 else index / 8), index % 2

def recipe():
    Path({built!r}).touch()
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    return Recipe(
        task=Recognition(2), model=model, train_data=Images(), val_data=Images(), epochs=1,
        optimizer=torch.optim.SGD(model.parameters(), 0.1), schedule=constant(), batch_size=2,
    )
"""
SLOW = {  # a worker or two are interpreters of their own, which import torch
    "doctor": ["doctor", RECOG, *SHORT, "--workers", "1"],
    "predict with workers": ["predict", "run", "images", "--out", "again", "--workers", "1"],
}


def codes_of(commands: dict[str, list[str]], folder: Path) -> tuple[dict[str, int], str]:
    """Exit code of each command, all run in one process; what it wrote to standard error."""
    (folder / "sitecustomize.py").write_text(HIDING)
    (folder / "commands.py").write_text(COMMANDS)
    done = run_command(
        *(sys.executable, str(folder / "commands.py"), json.dumps(commands)),
        cwd=folder,
        PYTHONPATH=os.pathsep.join((str(folder), str(ROOT))),
        CUDA_VISIBLE_DEVICES="",
    )
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("CODES"))
    return json.loads(line.removeprefix("CODES")), done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a run, trained as ever, a run with a step that failed, and an image."""
    folder = tmp_path_factory.mktemp("trained")
    words = (RECOG, *SHORT, "--workers", 0, "--out", folder / "run")
    script = Script(ROOT / "trainkit" / "__main__.py", *words)
    printed, _ = script.communicate()
    assert script.returncode == 0, printed
    (folder / "failing.py").write_text(FAILING.format(built=str(folder / "built")))
    words = (folder / "failing.py", "--workers", 0, "--out", folder / "failed")
    printed, _ = Script(ROOT / "trainkit" / "__main__.py", *words).communicate()
    assert "the loss is nan" in printed, printed
    (folder / "images").mkdir()
    Image.new("RGB", (40, 30), (200, 30, 90)).save(folder / "images" / "one.png")
    return folder


@pytest.mark.nightly
def test_what_windows_has_is_enough_for_all_but_training(trained):
    codes, errors = codes_of({**REFUSED, **RUNNING}, trained)
    assert codes == {**dict.fromkeys(REFUSED, 2), **dict.fromkeys(RUNNING, 0)}, errors
    message = errors.split("## help\n")[0]
    assert message.count("training takes Linux or macOS (on Windows: WSL)") == len(REFUSED), message
    assert "Traceback" not in errors, errors
    assert not (trained / "other").exists()
    assert (trained / "exported.safetensors").stat().st_size > 0
    assert "one.png" in (trained / "predicted" / "predictions.jsonl").read_text()
    assert json.loads((trained / "run" / "results.json").read_text())["num_images"] > 0


def test_replay_is_refused_before_its_recipe_is_built(trained):
    built = trained / "built"
    built.unlink()
    codes, errors = codes_of({"replay": ["replay", "failed", "--workers", "0"]}, trained)
    assert codes == {"replay": 2}, errors
    message = errors.removeprefix("## replay\n")
    assert "training takes Linux or macOS (on Windows: WSL)" in message, message
    assert len(message.splitlines()) == 1, message
    assert not built.exists()

    words = ("replay", trained / "failed", "--workers", 0)
    script = Script(ROOT / "trainkit" / "__main__.py", *words)
    printed, _ = script.communicate()
    assert "fails again: loss nan" in printed and script.returncode == 0, printed
    assert built.exists()


@pytest.mark.parametrize("system", ["nt", "posix"])
def test_files_are_flushed_as_their_system_asks(tmp_path, system):
    """Windows flushes only what is open for writing, and no folder; elsewhere reading is enough."""
    file = tmp_path / "written"
    file.write_text("whole")
    descriptor = open_to_flush(file, system)
    os.fsync(descriptor)
    if system == "nt":
        os.write(descriptor, b"")
        assert open_to_flush(tmp_path, system) is None
    else:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(descriptor, b"")
        folder = open_to_flush(tmp_path, system)
        os.fsync(folder)
        os.close(folder)
    os.close(descriptor)
    assert file.read_text() == "whole"


@pytest.mark.nightly
def test_what_starts_more_workers(trained):
    codes, errors = codes_of(SLOW, trained)
    assert codes == dict.fromkeys(SLOW, 0), errors
    assert "Traceback" not in errors, errors
    one, again = ((trained / each / "predictions.jsonl") for each in ("predicted", "again"))
    if one.exists():  # written by the test before
        assert one.read_text() == again.read_text()
    shutil.rmtree(again.parent)


@pytest.mark.skipif(sys.platform == "win32", reason="has it")
def test_a_module_of_the_standard_library_is_no_package_to_install(tmp_path, capsys):
    """As of a recipe that is made for another system."""
    (tmp_path / "own.py").write_text("import winreg\n")
    assert main([str(tmp_path / "own.py"), "--help"]) == 2
    message = capsys.readouterr().err
    assert (
        "needs the module winreg of Python's standard library" in message and "pip" not in message
    )
