"""What the machine lacks, and what people set beyond all limits: one message with a remedy."""

import errno
import os
import signal
import subprocess
import sys
import time
from multiprocessing import Pipe, get_context
from pathlib import Path

import pytest

from helpers.processes import TESTS, Script
from helpers.toy_recipes import Images, recognition
from trainkit import Options, train
from trainkit.cli import main
from trainkit.commands.option_checks import check_finite
from trainkit.data import workers
from trainkit.data.reader import is_unusable
from trainkit.data.workers import Loader, worker_deaths_reported
from trainkit.distributed.launcher import faulty_variable
from trainkit.errors import SAID, is_out_of_memory, is_shortage, limit_met
from trainkit.options import LONGEST_S

RECIPE = """
import sys; sys.path.insert(0, {tests!r})
from helpers.toy_recipes import recognition
def recipe():
    return recognition(epochs=1)
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "toy.py"
    path.write_text(RECIPE.format(tests=str(TESTS)))
    return path


@pytest.mark.parametrize("number", [20, 32])
def test_too_few_open_files(tmp_path, recipe, number):
    """As by `ulimit -n`: in the making of the workers, or in what they hand over."""
    script = tmp_path / "script.py"
    script.write_text(
        "import resource, sys; from trainkit.cli import main\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({number}, {number}))\n"
        f"sys.exit(main([{str(recipe)!r}, '--workers', '6', '--out', {str(tmp_path / 'run')!r}]))"
    )
    process = Script(script)
    printed = process.communicate()[0]
    assert process.returncode == 1 and "Traceback" not in printed, printed
    assert (
        f"too many open files (this process may open {number}): start fewer data-loading workers"
        in printed
    )


def test_shared_memory_is_full():
    """torch's words for it, in this process and from a worker."""
    text = (
        "unable to allocate shared memory(shm) for file </torch_12_34_5>: No space left on device"
        " (28)"
    )
    caught = RuntimeError(
        "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback:\nRuntimeError:"
        f" {text}"
    )
    for error in (
        RuntimeError(text),
        caught,
        RuntimeError(f"unable to write to file </torch_1>: {text[-28:]}"),
    ):
        assert limit_met(error).startswith("shared memory is full") and not is_unusable(error)
        with (
            pytest.raises(OSError, match=r"enlarge /dev/shm .* fewer workers with --workers"),
            worker_deaths_reported(),
        ):
            raise error


def test_a_limit_is_no_fault_of_an_image():
    """Else `--on-bad-image skip` would leave out images of a machine that opens no more files."""
    lacking = OSError(errno.EMFILE, "Too many open files", "image.jpg")
    wrapped = ValueError("cannot read image.jpg: [Errno 24] Too many open files")
    for error in (lacking, wrapped, RuntimeError("received 0 items of ancdata")):
        assert is_shortage(error) and not is_unusable(error)
    assert (
        is_unusable(OSError(errno.EIO, "Input/output error"))
        and limit_met(ValueError("No space left")) is None
    )


@pytest.mark.parametrize("words", SAID)
def test_memory_that_ran_out_is_known_by_each_librarys_words(words):
    assert is_out_of_memory(RuntimeError(f"CUDA error: {words} when calling `something(handle)`"))
    assert not is_out_of_memory(ValueError(words))


def test_doubtful_words_are_no_lack_of_memory_where_there_is_some():
    for text in (
        "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
        "GET was unable to find an engine to execute this computation",
    ):
        assert not is_out_of_memory(RuntimeError(text))


def test_a_dead_worker_is_reported_whatever_torch_raises():
    """By its exit code.

    The error is a real one, of reading from a connection whose other end is gone.
    """
    worker = get_context("fork").Process(target=os._exit, args=(7,))
    worker.start()
    workers._STARTED.add(worker)
    reader, writer = Pipe(duplex=False)
    writer.close()
    message = (
        rf"data-loading worker .pid {worker.pid}. died with exit code 7\. The same command resumes"
    )
    try:
        with pytest.raises(ChildProcessError, match=message), worker_deaths_reported():
            reader.recv()
    finally:
        workers._STARTED.discard(worker)


def test_an_end_of_file_of_the_users_own_stays():
    iterator = iter(Loader(Images(4), 1, num_workers=1))
    assert len(list(iterator)) == 4
    with pytest.raises(EOFError, match="mine"), worker_deaths_reported():
        raise EOFError("mine")


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("RANK", "", "RANK is '' in the environment"),
        ("RANK", "1", "RANK is 1 in the environment and WORLD_SIZE is not set"),
        ("WORLD_SIZE", "two", "WORLD_SIZE is 'two' in the environment"),
        ("LOCAL_WORLD_SIZE", "-1", "LOCAL_WORLD_SIZE is '-1' in the environment"),
        ("MASTER_PORT", "\N{SUPERSCRIPT TWO}", "MASTER_PORT is '²' in the environment"),
    ],
)
def test_variables_of_a_launcher(monkeypatch, capsys, name, value, message):
    assert faulty_variable() is None
    monkeypatch.setenv(name, value)
    assert main(["nowhere.py"]) == 2
    error = capsys.readouterr().err
    assert (
        message in error and "Unset it for a single process" in error and "no recipe" not in error
    )


@pytest.mark.parametrize(
    "setting", ["--epochs=1e308", "--epochs=1e12", "--lr=1e308", "--timeout-s=10000000000"]
)
def test_settings_beyond_all_limits(tmp_path, capsys, setting):
    path = tmp_path / "toy.py"
    text = RECIPE.replace("recipe():", "recipe(epochs: float = 1.0, lr: float = 0.1):").replace(
        "epochs=1", "epochs=epochs"
    )
    path.write_text(text.format(tests=str(TESTS)))
    assert main([str(path), setting, "--workers", "0", "--out", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert (
        setting[2:].split("=")[0].replace("-", "_") in message
        and len(message.strip().splitlines()) == 1
    )
    assert not (tmp_path / "run").exists()


def test_the_largest_settings_that_may_be():
    check_finite({"lr": 3.3e38})
    Options(timeout_s=LONGEST_S)
    with pytest.raises(
        ValueError,
        match="epochs is 3e\\+08, of 4 steps each: a run can have up to 999,999,999 steps",
    ):
        train(recognition(epochs=3e8), Options(workers=0))


@pytest.mark.parametrize("words", [("{}", "--out", "a\0b"), ("doctor", "{}", "--out", "a\0b")])
def test_names_with_a_nul(recipe, capsys, words):
    """From a list of names, or a caller of `main`: no command line can hold one."""
    assert main([word.format(recipe) for word in words] + ["--workers", "0"]) == 2
    message = capsys.readouterr().err
    assert (
        "a\\x00b" in message
        and "holds a NUL character" in message
        and len(message.strip().splitlines()) == 1
    )


INTERRUPTED = """
import os, signal, sys, threading
from trainkit.cli import main
threading.Timer(float(sys.argv[1]), os.kill, (os.getpid(), signal.SIGINT)).start()
sys.argv[1:] = sys.argv[2:]
sys.exit(main())
"""


@pytest.mark.parametrize("seconds", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("command", ["doctor", "check", "train"])
def test_ctrl_c_is_one_line(tmp_path, recipe, seconds, command):
    """Into imports, the opening of data, worker processes, steps and evaluations."""
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    out = () if command == "check" else ("--out", str(tmp_path / "run"))
    more = () if command == "doctor" else ("--log-every", "10000")
    words = (command, str(recipe), *out, *more, "--workers", "1")
    process = Script(script, seconds, *words, TOY_SLEEP="0.1")
    printed = process.communicate()[0]
    assert process.returncode == 130 and "Traceback" not in printed, printed
    assert "SIGINT" in printed.splitlines()[-1]


def test_ctrl_c_into_the_imports(tmp_path, recipe):
    """By an interpreter of its own, as it is imported here already."""
    words = [sys.executable, "-m", "trainkit", str(recipe), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # what runs in the background of a shell ignores it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    maps = Path(f"/proc/{process.pid}/maps")
    while "libtorch" not in maps.read_text() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed = process.communicate()[0]
    assert process.returncode == 130 and printed == "stopped by Ctrl-C (SIGINT)\n", printed
