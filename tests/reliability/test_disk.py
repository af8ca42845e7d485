"""The file system fails, and processes die at every operation of a save: what is whole stays."""

import os
import platform
import resource
import shutil
import subprocess
from contextlib import contextmanager

import pytest
import torch

from helpers.logs import rows, weights
from helpers.processes import TESTS, Script, torchrun
from helpers.toy_recipes import Images, recognition, run
from trainkit import Options, train
from trainkit.data.seeding import seed_host
from trainkit.engine.run_opening import open_run
from trainkit.engine.setup import Setup
from trainkit.engine.training import Training
from trainkit.storage.checkpoint import list_checkpoints, verify
from trainkit.storage.checkpoint_writer import CheckpointWriter


def test_death_before_every_operation_of_a_save(tmp_path):
    """Every checkpoint is whole, wherever the process died, and the next save cleans up."""
    operations = (
        "os.mkdir",
        "save_file model",
        "half of save_file state",
        "open manifest.json",
        "fsync",
        "os.remove",
        "os.rmdir",
    )
    met: list[str] = []
    for _ in range(4):  # hashes are taken beside: an operation may be another's number in each try
        script = Script(TESTS / "helpers" / "crash_points.py", tmp_path)
        printed = script.communicate()[0].splitlines()
        assert len(printed) > 25 and printed[-1].endswith("[2, 3]")
        assert any("rename" in line for line in printed)
        met += printed
        if all(any(line.startswith(name) for line in met) for name in operations):
            return
    raise AssertionError(f"not all of {operations} were met: {met}")


FEW = 2100  # bytes: more than the log of a short run has, fewer than a checkpoint's state


@contextmanager
def disk_full(num_bytes: int = FEW):
    """Files may not grow beyond so many bytes.

    Writing fails as on a full disk, after a part was written.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# reads before the first step: whether images read again under the same seed are the same
TRIED = 16 + 17


class Then(Images):
    """Something happens at the read of a number, in the training."""

    def __init__(self, number: int, event):
        super().__init__(27)
        self.left, self.event = number + TRIED, event

    def __getitem__(self, index):
        self.left -= 1
        if self.left == 0:
            self.event()
        return super().__getitem__(index)


def full() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (FEW, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def training(data: Images):
    seed_host(5)
    return recognition(train_data=data)


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path, background):
    """It fills up in step 6: the checkpoint of step 4 stays, and the same call goes on from it."""
    options = Options(
        out=tmp_path / "run", workers=0, log_every=10, seed=5, async_checkpoint=background
    )
    message = "checkpoint .*step-000000008 could not be written: .*File too large"
    with disk_full(10**6), pytest.raises(OSError, match=message):
        train(training(Then(40, full)), options)
    kept = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert kept == ["step-000000004"] and verify(tmp_path / "run" / "checkpoints" / kept[0]) is None
    train(training(Images(27)), options)
    run("recognition", tmp_path / "whole", log_every=10)
    one, other = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_training_may_continue_without_saving(tmp_path, capsys):
    options = Options(
        out=tmp_path / "run", workers=0, log_every=5, seed=5, on_save_error="continue"
    )
    with disk_full(10**6):
        recipe = training(Then(40, full))
        summary = train(recipe, options)
    shown = capsys.readouterr().out
    assert "step-000000008 could not be written" in shown and "continuing without it" in shown
    assert summary["steps"] == 10 and len(list_checkpoints(tmp_path / "run" / "checkpoints")) == 1
    net = run("recognition", tmp_path / "whole")
    assert all(
        torch.equal(value, recipe.model.state_dict()[name])
        for name, value in net.state_dict().items()
    )


@pytest.mark.parametrize("background", [False, True])
def test_without_its_last_checkpoint_a_run_is_not_finished(tmp_path, background):
    """The disk is full in the last save alone; nothing says that the run has ended well."""
    options = Options(
        out=tmp_path / "run", workers=0, log_every=10, seed=5, async_checkpoint=background
    )
    with disk_full(10**6), pytest.raises(OSError, match="step-000000010 could not be written"):
        train(training(Then(27 + 27 + 12, full)), options)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert train(training(Images(27)), options)["steps"] == 10


def test_a_run_that_can_save_again_forgets_its_trouble(tmp_path):
    """With `continue`: one save fails, the next does not, and a later bad image loses nothing."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Rocky(Images):
        reads = -TRIED

        def __getitem__(self, index):
            self.reads += 1
            if self.reads == 5:
                full()
            if self.reads == 30:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            if self.reads == 27 + 27 + 10:
                raise ValueError("torn")
            return super().__getitem__(index)

    options = Options(out=tmp_path, workers=0, log_every=1, on_save_error="continue")
    with pytest.raises(ValueError, match="torn"):
        train(training(Rocky(27)), options)
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == [
        "step-000000008",
        "step-000000009",
    ]
    rows(tmp_path)  # every line of the log is whole


def test_no_room_for_the_log(tmp_path):
    """/dev/full says what a full disk says."""

    def event() -> None:
        (tmp_path / "log.jsonl").unlink()
        (tmp_path / "log.jsonl").symlink_to("/dev/full")

    with pytest.raises(OSError, match="log.jsonl cannot be written: No space left on device"):
        train(training(Then(20, event)), Options(out=tmp_path, workers=0, log_every=1))


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_save_does_not_hide_that_the_log_lacks_a_row(tmp_path, policy):
    """On a GPU two more steps are made before all processes stop, and one may be saved."""
    options = Options(out=tmp_path, workers=0, on_save_error=policy)
    setup = Setup(training(Images(27)), options)
    run, found = open_run(setup, {}, None)
    parts = Training(setup, run)
    parts.resume(found)
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    parts.reporter.log({"event": "step", "step": 1})
    (tmp_path / "log.jsonl").unlink()
    parts.checkpointer.save()
    run.close()
    assert len(list_checkpoints(tmp_path / "checkpoints")) == 1
    if policy == "stop":
        with pytest.raises(OSError, match="log.jsonl cannot be written: No space left on device"):
            parts.reporter.raise_write_error()
    else:
        assert parts.reporter.write_error is None


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_the_folder_vanishes(tmp_path, capsys, policy):
    folder = tmp_path / "run"
    options = Options(out=folder, workers=0, log_every=1, on_save_error=policy)
    recipe = training(Then(20, lambda: shutil.rmtree(folder)))
    if policy == "stop":
        with pytest.raises(OSError, match="log.jsonl cannot be written: No such file or directory"):
            train(recipe, options)
    else:
        assert train(recipe, options)["steps"] == 10
        assert (
            "cannot be written: No such file or directory; continuing without it"
            in capsys.readouterr().out
        )
    assert not folder.exists(), "nothing is made in the place of what somebody removed"


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match="file/run cannot be written: Not a directory; choose another folder"
    ):
        train(recognition(), Options(out=tmp_path / "file" / "run"))


NO_LOCKS = """
import ctypes, errno, fcntl, platform, struct, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from helpers.toy_recipes import run

number = {{"x86_64": 72, "aarch64": 25}}[platform.machine()]  # of the system call fcntl
rules = [(0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 24), (0x15, 0, 1, fcntl.F_SETLK),
         (0x06, 0, 0, 0x00050000 | errno.ENOLCK), (0x06, 0, 0, 0x7FFF0000)]
code = b"".join(struct.pack("HBBI", *rule) for rule in rules)
libc, kept = ctypes.CDLL(None), ctypes.create_string_buffer(code)
program = ctypes.create_string_buffer(struct.pack("HP", len(rules), ctypes.addressof(kept)))
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program):
    print("SKIP")
else:
    try: run("all", Path({out!r}))
    except ValueError as error: print("SAID", error)
"""


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="the number of the system call"
)
def test_a_disk_that_locks_no_files(tmp_path):
    """The kernel itself says ENOLCK, as NFS does without its lock service.

    A filter of system calls has it do so.
    """
    script = tmp_path / "script.py"
    script.write_text(NO_LOCKS.format(tests=str(TESTS), out=str(tmp_path / "run")))
    printed = Script(script).communicate()[0]
    if "SKIP" in printed:
        pytest.skip("this machine takes no filter of system calls")
    assert (
        f"SAID {tmp_path}/run cannot be locked: No locks available. Choose a folder with --out"
        in printed
    )


SLOW_TO_SAY = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from helpers.toy_recipes import run

def say(*error):
    time.sleep(1)  # as one that has trackers to close
    sys.__excepthook__(*error)

sys.excepthook = say
run("recognition", Path({out!r}))
"""


def test_both_processes_stop_when_one_cannot_write(tmp_path):
    """The one that failed says why, though its launcher ends it when the other has ended."""
    out = tmp_path / "recognition"
    script = tmp_path / "script.py"
    script.write_text(SLOW_TO_SAY.format(tests=str(TESTS), out=str(out)))
    done = torchrun(2, script, TOY_FULL="10", code=1)
    assert "step-000000004 could not be written" in done.stdout
    assert list_checkpoints(out / "checkpoints") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode != 0:
        pytest.skip(f"this machine mounts no tmpfs: {mounted.stderr.strip()}")
    try:
        (disk / "filling").write_bytes(bytes(4096))
        with pytest.raises(OSError, match="No space left on device"):
            train(
                training(Images(27)),
                Options(
                    out=disk / "run", workers=0, log_every=1, checkpoint_every=1, keep_checkpoints=9
                ),
            )
        paths = list_checkpoints(disk / "run" / "checkpoints")
        assert paths and all(verify(path) is None for path in paths), "those that fitted are whole"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_background_saves_are_those_of_the_moment(tmp_path):
    """Bit for bit the checkpoints of a training that waits, though training goes on meanwhile.

    One at a time.
    """
    for background in (False, True):
        run(
            "all",
            tmp_path / str(background),
            async_checkpoint=background,
            checkpoint_every=1,
            keep_checkpoints=20,
        )
    one, other = (list_checkpoints(tmp_path / str(each) / "checkpoints") for each in (False, True))
    assert [path.name for path in one] == [path.name for path in other] and len(one) == 12
    for mine, theirs in zip(one, other):
        assert (mine / "model.safetensors").read_bytes() == (
            theirs / "model.safetensors"
        ).read_bytes()
    saves = rows(tmp_path / "True", "save")
    assert [row["step"] for row in saves] == list(range(1, 13)), (
        "the last one was finished before the end"
    )
    assert all(0 < row["pause_s"] <= row["save_s"] and row["bytes"] > 1000 for row in saves)


def test_one_save_at_a_time(tmp_path):
    """The second waits for the first: their times do not overlap."""
    writer = CheckpointWriter(tmp_path, keep=5, background=True)
    large = {"w": torch.ones(4_000_000)}
    for step in (1, 2):
        writer.save(step, large, {})
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000000001"]
    writer.wait()
    assert [row["step"] for row in writer.written()] == [1, 2] and writer.error() is None


@pytest.mark.parametrize("background", [False, True])
def test_no_error_of_a_save_is_overwritten(tmp_path, background):
    """Two saves fail before anybody asks, and the next one is written.

    All three are reported, in their order.
    """
    folder = tmp_path / "checkpoints"
    writer = CheckpointWriter(folder, keep=5, background=background)
    for step in (1, 2):
        writer.save(step, {"w": torch.ones(3)}, {})
    writer.wait()
    folder.mkdir()
    writer.save(3, {"w": torch.ones(3)}, {})
    writer.wait()
    messages = [str(writer.error()) for _ in range(3)]
    assert (
        "step-000000001 could not be written: No such file" in messages[0]
        and "step-000000002" in messages[1]
    )
    assert (
        messages[2] == "None"
        and [row["step"] for row in writer.written()] == [3]
        and writer.written() == []
    )


@pytest.mark.parametrize("background", [False, True])
def test_a_save_that_cannot_be_is_not_passed_over(tmp_path, background):
    """Weights of a type that no safetensors file holds: raised in the training's own thread."""
    writer = CheckpointWriter(tmp_path, keep=5, background=background)
    with pytest.raises(KeyError, match="complex128"):
        writer.save(1, {"w": torch.zeros(2, dtype=torch.complex128)}, {})
        writer.wait()
    writer.wait()
    assert writer.written() == [] and list_checkpoints(tmp_path) == []
