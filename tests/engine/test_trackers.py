"""Trackers beside the training: what they get, once each, and that they stop or slow nothing."""

import json
import os
import signal
import site
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from accelerate.tracking import GeneralTracker
from PIL import Image

from helpers.interruptions import kill_all, resume, start, wait_for
from helpers.processes import TOYS
from helpers.toy_recipes import everything, recognition, run
from trainkit import Options, train
from trainkit.data.seeding import seed_host
from trainkit.engine import log_follower
from trainkit.engine.log_follower import QUEUE, values_of
from trainkit.engine.stop_signal import Stopped
from trainkit.engine.trackers import PICTURE, TRACKERS, flat
from trainkit.engine.tracking_process import NICE
from trainkit.storage.checkpoint import list_checkpoints

TRACKING = "trainkit.engine.tracking_process"


class Kept(GeneralTracker):
    """An own tracker that keeps what it gets; `log` and `finish` may be made to misbehave."""

    name = "kept"
    requires_logging_directory = False

    def __init__(self, on_log=lambda: None):
        super().__init__()
        self.settings, self.sent, self.finished, self.on_log = [], [], 0, on_log

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.settings.append(values)

    def log(self, values, step=None, **_):
        self.on_log()
        self.sent.append((step, values))

    def finish(self):
        self.finished += 1


def test_names_of_values_and_flat_settings():
    row = {"event": "step", "step": 3, "epoch": 0.5, "loss": 1.5, "lr": 0.1, "grad_norm": None}
    assert values_of(row) == {"epoch": 0.5, "train/loss": 1.5, "train/lr": 0.1}
    row = {
        "event": "evaluate", "step": 4, "epoch": 1.0, "best": 0.5, "best_step": 4, "split": "val",
        "num_images": 13, "mIoU": 0.5, "ema_mIoU": 0.25, "val_loss": 2.0, "ema_val_loss": 3.0,
        "IoU": {"cat": 0.5}, "val_loss_dice": 1.0,
    }  # fmt: skip
    assert values_of(row) == {
        "epoch": 1.0, "val/best": 0.5, "val/mIoU": 0.5, "val/ema_mIoU": 0.25, "val/loss": 2.0,
        "val/ema_loss": 3.0, "val/loss_dice": 1.0,
    }  # fmt: skip
    nested = {"lr": 0.1, "loss": ["ce", "dice"], "out": None, "options": {"seed": 3, "tf32": True}}
    assert flat(nested) == {
        "lr": 0.1, "loss": "['ce', 'dice']", "out": "None", "options.seed": 3, "options.tf32": True,
    }  # fmt: skip


SENT = ("step", "evaluate")  # kinds of rows


def logged(folder):
    """What a tracker is to get of a log, in its order."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(row["step"], values_of(row)) for row in lines if row["event"] in SENT]


def test_an_own_tracker_gets_each_row_once_over_a_resume(tmp_path):
    """Of a run that early stopping ends, and a larger patience resumes."""
    first, second, third = Kept(), Kept(), Kept()
    options = {"workers": 0, "log_every": 3, "out": tmp_path / "run", "seed": 5}
    for patience, tracker in ((2, first), (4, second)):
        seed_host(5)
        train(
            everything(epochs=14),
            Options(**options, patience=patience),
            {"lr": 0.5},
            trackers=[tracker],
        )
    assert first.sent + second.sent == logged(tmp_path / "run")
    assert len(first.sent) > 5 and len(second.sent) > 3
    (settings,) = first.settings
    assert settings["lr"] == 0.5 and settings["options.patience"] == 2 and not second.settings
    assert first.finished == second.finished == 1
    seed_host(5)
    fresh = Options(**options, patience=2, resume="never")
    train(everything(epochs=14), fresh, {"lr": 0.5}, trackers=[third])
    assert [step for step, _ in third.sent] == [step for step, _ in first.sent]
    assert len(third.settings) == 1


class WithPictures(Kept):
    """One that takes pictures too."""

    def __init__(self):
        super().__init__()
        self.pictures = []

    def log_images(self, values, step=None, **_):
        self.pictures.append((step, {name: pixels.shape for name, pixels in values.items()}))


def test_new_pictures_of_predictions_are_sent(tmp_path):
    """Once each over a resume, at a step that is not over, also to a tracker that begins late."""
    row = {"event": "evaluate", "epoch": 1.0, "top1": 0.5}

    def evaluate(step):
        with (tmp_path / "log.jsonl").open("a") as log:
            log.write(json.dumps({**row, "step": step}) + "\n")

    def draw(width):
        Image.new("RGB", (width, 6)).save(tmp_path / "new.jpg")
        os.replace(tmp_path / "new.jpg", tmp_path / "val_predictions.jpg")

    def follower_to(tracker):
        return log_follower.LogFollower(
            "kept", lambda cursor: tracker, tmp_path, log_follower.Cursors(tmp_path / "own.json"),
            {}, pytest.fail,
        )  # fmt: skip

    evaluate(7)
    draw(20)
    expected = [(7, {"val/predictions": (1, 6, 20, 3)})]
    for _ in "12":  # the first one begins after the evaluation, the second one with a resume
        tracker = WithPictures()
        follower = follower_to(tracker)
        follower.ending.set()
        follower.start()
        follower.join(60)
        assert tracker.pictures == expected and tracker.finished == 1
        expected = []
    tracker = WithPictures()
    follower = follower_to(tracker)
    follower.start()
    deadline = time.monotonic() + 60
    for number, (width, step) in enumerate(((30, 9), (40, 11)), start=1):
        evaluate(step)
        while len(tracker.sent) < number and time.monotonic() < deadline:
            time.sleep(0.01)
        draw(width)
        while len(tracker.pictures) < number and time.monotonic() < deadline:
            time.sleep(0.01)
    follower.ending.set()
    follower.join(60)
    shapes = [(9, {"val/predictions": (1, 6, 30, 3)}), (11, {"val/predictions": (1, 6, 40, 3)})]
    assert tracker.pictures == shapes and tracker.finished == 1


def test_one_that_fails_is_reported_once(tmp_path, capsys):
    def fail():
        raise ConnectionError("no route to host")

    train(recognition(), Options(out=tmp_path, workers=0, log_every=1), trackers=[Kept(fail)])
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("no route to host") == 1
    assert "tracker kept: failed: no route to host; the training continues without it" in printed
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 10


def test_one_that_hangs_is_left_after_a_signal(tmp_path, capsys):
    """It hangs from the first row on, at which SIGTERM comes; the checkpoint is saved before."""

    def hang():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10_000)

    hanging, options = Kept(hang), Options(out=tmp_path, workers=0, log_every=1)
    begun = time.monotonic()
    with pytest.raises(Stopped):
        train(recognition(epochs=10_000), options, trackers=[hanging])
    assert 5 <= time.monotonic() - begun < 60 and not hanging.sent
    printed = capsys.readouterr().out
    assert printed.index(", saved; run the same") < printed.index("did not end within 5 s")
    assert list_checkpoints(tmp_path / "checkpoints")


@pytest.mark.nightly
def test_one_that_hangs_at_the_end_is_left(tmp_path, capsys):
    hanging = Kept(lambda: time.sleep(10_000))
    begun = time.monotonic()
    train(recognition(), Options(out=tmp_path, workers=0, log_every=1), trackers=[hanging])
    assert 30 <= time.monotonic() - begun < 90
    assert "tracker kept did not end within 30 s" in capsys.readouterr().out
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 10 and not hanging.sent


def test_of_too_many_rows_the_oldest_are_dropped(tmp_path):
    """One that takes its time with the first row, meanwhile many others come."""
    busy, come = threading.Event(), threading.Event()

    def wait():
        busy.set()
        come.wait(60)
        if len(slow.sent) == 20:  # enough have been seen
            follower.aborted.set()

    rows = [
        {"event": "step", "step": step, "epoch": 0.5, "loss": 1.5} for step in range(1, QUEUE + 50)
    ]
    slow, notes, cursors = Kept(wait), [], log_follower.Cursors(tmp_path / "own.json")
    (tmp_path / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows[:7]))
    follower = log_follower.LogFollower(
        "kept", lambda cursor: slow, tmp_path, cursors, {}, notes.append
    )
    follower.start()
    assert busy.wait(60)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write("".join(f"{json.dumps(row)}\n" for row in rows[7:]))
    come.set()
    follower.ending.set()
    follower.join(60)
    assert [step for step, _ in slow.sent] == [*range(1, 8), *range(50, 64)]
    assert json.loads((tmp_path / "own.json").read_text())["kept"]["dropped"] == 42
    assert notes == ["42 rows were dropped, as it was slower than the training"]


class CountedCursors(log_follower.Cursors):
    """Those that count how often they are written."""

    num_notes = 0

    def note(self, name, **changes):
        self.num_notes += 1
        super().note(name, **changes)


def test_rows_that_come_while_others_are_sent_wait_for_the_next_look(tmp_path):
    """A row comes with each that is sent: they are sent together too, and not one by one."""
    rows = iter(range(1, 10_000))

    def write_row():
        row = {"event": "step", "step": next(rows), "epoch": 0.5, "loss": 1.5}
        with (tmp_path / "log.jsonl").open("a") as log:
            log.write(f"{json.dumps(row)}\n")

    for _ in range(20):
        write_row()
    tracker, cursors = Kept(write_row), CountedCursors(tmp_path / "own.json")
    follower = log_follower.LogFollower(
        "kept", lambda cursor: tracker, tmp_path, cursors, {}, pytest.fail
    )
    begun = time.monotonic()
    follower.start()
    while len(tracker.sent) < 60 and time.monotonic() < begun + 60:
        time.sleep(0.01)
    taken, num_notes = time.monotonic() - begun, cursors.num_notes
    follower.aborted.set()
    follower.ending.set()
    follower.join(60)
    assert [step for step, _ in tracker.sent[:60]] == list(range(1, 61))
    assert num_notes == 4, "the beginning, and 20 rows thrice"
    assert taken > 2 * log_follower.POLL_S


@pytest.mark.nightly
def test_a_missing_package_is_refused_before_anything_else(tmp_path):
    """In a process to which all installed packages but this one are there."""
    name, packages = "mlflow", tmp_path / "packages"
    packages.mkdir()
    for folder in map(Path, site.getsitepackages()):
        for package in folder.glob("*"):
            if package.name != name and not (packages / package.name).exists():
                (packages / package.name).symlink_to(package)
    env = {
        **os.environ, "TOY_TRACK": name,
        "PYTHONPATH": os.pathsep.join([str(TOYS.parents[2]), str(packages)]),
    }  # fmt: skip
    process = subprocess.run(
        [sys.executable, "-S", TOYS, tmp_path, "tracked"], env=env, capture_output=True, text=True
    )
    last = process.stderr.splitlines()[-1]
    assert process.returncode and "MissingPackageError" in last
    assert f'--track {name} needs {name}: pip install "trainkit[{name}]"' in last
    assert not (tmp_path / "tracked").exists()


def events(folder: Path) -> Counter:
    """(name, step) of the numbers in all event files of a folder, and how often each is there."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: Counter = Counter()
    for file in folder.glob("events.*"):
        for event in EventFileLoader(str(file)).Load():
            found.update((value.tag, event.step) for value in event.summary.value)
    assert max(step for name, step in found if name == PICTURE) == 12, "the last one at least"
    return Counter({key: times for key, times in found.items() if key[0] != PICTURE})


def expected_events(folder: Path) -> Counter:
    """What is sent of a log: an evaluation's epoch has the name of a step's."""
    return Counter((name, step) for step, values in logged(folder) for name in values)


def test_tensorboard_is_read_back(tmp_path):
    pytest.importorskip("tensorboard")
    run("tracked", tmp_path, track=("tensorboard",))
    found = {key: n for key, n in events(tmp_path / "tensorboard").items() if "/" in key[0]}
    assert found == {key: n for key, n in expected_events(tmp_path).items() if "/" in key[0]}
    assert list((tmp_path / "tensorboard").glob("*/hparams.yml"))
    run("tracked", tmp_path, resume="never", track=())  # its files are no strays


@pytest.mark.skipif(not hasattr(os, "nice"), reason="this system has no priorities of that kind")
def test_a_training_comes_first_where_cores_are_few(tmp_path):
    pytest.importorskip("tensorboard")
    process = start(tmp_path, "tracked", sleep=0.1)
    wait_for(tmp_path / "tracked", lambda folder: (folder / "trackers.json").is_file(), process)
    training = psutil.Process(process.pid)
    (beside,) = [each for each in training.children() if TRACKING in each.cmdline()]
    difference = beside.nice() - training.nice()
    sessions = Path(f"/proc/{beside.pid}/autogroup")  # Linux: which shares a core before nice does
    session = sessions.read_text().split() if sessions.is_file() else []
    kill_all(process)
    assert difference == NICE
    assert session[1:] in ([], ["nice", str(NICE)])


def killed_and_resumed(folder: Path, name: str, monkeypatch, tmp_path: Path) -> dict:
    """A run killed once the tracker has got some rows, and resumed; its cursor at the end."""
    pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)  # where MLflow puts pictures
    for variable, value in {
        "TOY_TRACK": name, "WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
    }.items():  # fmt: skip
        monkeypatch.setenv(variable, value)

    def sent(folder):
        file = folder / "trackers.json"
        return file.is_file() and json.loads(file.read_text())[name]["step"] >= 2

    process = start(folder, "tracked", sleep=0.25)
    wait_for(folder / "tracked", sent, process)
    process.kill()
    process.communicate()
    before = json.loads((folder / "tracked/trackers.json").read_text())[name]
    resume(folder, "tracked")
    after = json.loads((folder / "tracked/trackers.json").read_text())[name]
    assert after["id"] == before["id"] and after["step"] == 12 > before["step"]
    return after


@pytest.mark.nightly
def test_tensorboard_killed_and_resumed(tmp_path, monkeypatch):
    killed_and_resumed(tmp_path, "tensorboard", monkeypatch, tmp_path)
    found = events(tmp_path / "tracked/tensorboard")
    expected = expected_events(tmp_path / "tracked")
    assert {key for key in found if "/" in key[0]} == {key for key in expected if "/" in key[0]}
    assert max(found[key] for key in found if "/" in key[0]) == 1
    assert len(list((tmp_path / "tracked/tensorboard").glob("events.*"))) == 2


def wandb_records(file: Path) -> Iterator[bytes]:
    """The records of a .wandb file: a log of LevelDB, blocks of 32 KiB after 7 bytes of a head."""
    data, place, record = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # no room for a head: zeros
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


@pytest.mark.nightly
def test_wandb_killed_and_resumed(tmp_path, monkeypatch):
    """The same id in both folders, and their steps are disjoint."""
    cursor = killed_and_resumed(tmp_path, "wandb", monkeypatch, tmp_path)
    from wandb.proto.wandb_internal_pb2 import Record

    parts = []
    for folder in sorted((tmp_path / "tracked/wandb").glob("offline-run-*")):
        (file,) = folder.glob("*.wandb")
        assert file.name == f"run-{cursor['id']}.wandb"
        records = [Record.FromString(data) for data in wandb_records(file)]
        parts.append({each.history.step.num for each in records if each.HasField("history")})
    assert len(parts) == 2 and all(parts) and not parts[0] & parts[1]
    assert parts[0] | parts[1] == {step for step, _ in logged(tmp_path / "tracked")}


@pytest.mark.nightly
def test_mlflow_killed_and_resumed(tmp_path, monkeypatch):
    cursor = killed_and_resumed(tmp_path, "mlflow", monkeypatch, tmp_path)
    database = sqlite3.connect(tmp_path / "mlflow.db")
    found = Counter(
        database.execute("select key, step from metrics where run_uuid = ?", [cursor["id"]])
    )
    assert {key for key in found if "/" in key[0]} == {
        key for key in expected_events(tmp_path / "tracked") if "/" in key[0]
    }
    assert max(n for key, n in found.items() if "/" in key[0]) == 1
    (names,) = database.execute("select count(distinct run_uuid) from metrics").fetchall()
    assert names == (1,)


@pytest.mark.nightly
def test_trackio_killed_and_resumed(tmp_path, monkeypatch):
    cursor = killed_and_resumed(tmp_path, "trackio", monkeypatch, tmp_path)
    (file,) = (tmp_path / "trackio").glob("*.db")
    lines = sqlite3.connect(file).execute("select run_name, step, metrics from metrics").fetchall()
    assert {name for name, *_ in lines} == {cursor["id"]}
    found = Counter(
        (name, step)
        for _, step, text in lines
        for name in json.loads(text)
        if "/" in name and name != PICTURE
    )
    expected = {key for key in expected_events(tmp_path / "tracked") if "/" in key[0]}
    assert set(found) == expected and max(found.values()) == 1


def test_all_four_have_their_extra():
    text = (Path(__file__).parents[2] / "setup.cfg").read_text()
    assert all(f"\n{name} =\n    {name}\n" in text for name in TRACKERS)
