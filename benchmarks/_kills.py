"""One run of the kill benchmark: started, killed, looked at, started again, until it is done."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from _forked import command, start

from trainkit.storage.checkpoint import list_checkpoints, load, verify

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "benchmarks" / "_kill_recipe.py"
EVERY, EPOCHS, STEPS_PER_EPOCH = 2, 3, 4
# of a row, which no two runs share
MEASURED = ("images_per_s", "images_per_s_per_device", "data_wait", "memory_gib", "seconds")
PATIENCE = 90.0  # seconds in which what is left of a run must have ended
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2",
           "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP",
           "FSDP_MIN_NUM_PARAMS": "50"}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """How a run is started, the same each time."""

    task: str
    processes: int
    sharded: bool
    launcher: str
    workers: int
    fresh: bool  # interpreters of their own, and no forks of one that has torch

    @property
    def result(self) -> str:
        """What the weights at the end depend on."""
        return f"{self.task}-{self.processes}-{'fsdp2' if self.sharded else 'ddp'}"


@dataclass
class Kill:
    """One kill, and what was seen after it."""

    victim: str  # all, main, rank, worker, launcher; disk: nobody, the disk is full
    how: str  # SIGKILL, SIGSTOP+SIGKILL, SIGTERM, full
    when: str  # any, save, evaluation, rebase, never
    seconds: float = 0.0  # after the start
    step: int = 0  # newest checkpoint
    lost: int = 0  # steps that the log knows and no checkpoint has
    ended_s: float = 0.0  # until all the rest had ended
    faults: list[str] = field(default_factory=list)


class Attempt:
    """The processes of one start of a run."""

    def __init__(self, setting: Setting, folder: Path, extra: tuple[str, ...], epochs: float):
        self.setting, self.folder = setting, folder
        self.aside = folder.parent / "processes"  # each training process writes its id there
        shutil.rmtree(self.aside, ignore_errors=True)
        self.aside.mkdir()
        self.printed = folder.parent / "printed.txt"
        self.ranks = self.printed.with_name("ranks.txt")
        for file in (self.printed, self.ranks):
            file.write_text("")
        words = [str(RECIPE), "--task", setting.task, "--epochs", str(epochs), "--out", str(folder),
                 "--seed", "5", "--workers", str(setting.workers), "--micro-batch", "4",
                 "--log-every", "1", "--checkpoint-every", str(EVERY), *extra]  # fmt: skip
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "TOY_SLEEP": "0.01",
            "KILL_PIDS": str(self.aside),
        }
        env |= {"PYTHONPATH": str(ROOT), **(SHARDED if setting.sharded else {})}
        self.before = max((row["step"] for row in rows(folder)), default=0)
        self.begun = time.monotonic()
        self.pid = start(
            command(setting.launcher, setting.processes, words), env, self.printed, setting.fresh
        )
        self.code: int | None = None

    def poll(self) -> int | None:
        """The exit code of the first process, a negative one of a signal; None while it runs."""
        with contextlib.suppress(ChildProcessError):
            while self.code is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if not pid:
                    break
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def processes(self) -> list[psutil.Process]:
        """All that live, of this start.

        Also those that were handed over to this process, as their parents died.
        """
        found = []
        for each in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if each.status() != psutil.STATUS_ZOMBIE:
                    found.append(each)
        return found

    def of(self, victim: str) -> list[psutil.Process]:
        """Those that `victim` means, if they are there yet."""
        if victim == "all":
            return self.processes()
        if victim == "launcher":
            return [psutil.Process(self.pid)] if self.poll() is None else []
        ranks = sorted(self.aside.glob("[0-9]*"), key=lambda path: int(path.name))
        chosen = {
            "main": ranks[:1] if ranks and ranks[0].name == "0" else [],
            "rank": ranks[-1:],
            "worker": ranks[-1:],
        }
        with contextlib.suppress(psutil.Error):
            found = [psutil.Process(int(path.read_text())) for path in chosen[victim]]
            if victim == "rank" and ranks and ranks[-1].name == "0":
                return []
            return (
                found
                if victim != "worker"
                else [child for each in found for child in each.children()][:1]
            )
        return []

    def wait(self) -> float | None:
        """Seconds until all have ended; None where they do not, and are killed."""
        begun = time.monotonic()
        while self.poll() is None or self.processes():
            with contextlib.suppress(ChildProcessError):  # orphans that were handed over
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == self.pid:
                    self.code = os.waitstatus_to_exitcode(status)
            if time.monotonic() - begun > PATIENCE:
                for each in self.processes():
                    with contextlib.suppress(psutil.Error):
                        each.send_signal(
                            signal.SIGUSR2 if (self.aside / "0").exists() else signal.SIGKILL
                        )
                time.sleep(1)
                for each in self.processes():
                    with contextlib.suppress(psutil.Error):
                        each.kill()
                return None
            time.sleep(0.01)
        return time.monotonic() - begun

    def said(self) -> str:
        """What the training's processes printed, and where they share a stream with a launcher, it
        too."""
        return (
            self.ranks.read_text(errors="replace")
            if self.separate
            else self.printed.read_text(errors="replace")
        )

    @property
    def separate(self) -> bool:
        """Whether the training's processes print apart from their launcher."""
        return self.setting.launcher != "none" and not self.setting.fresh


def rows(folder: Path) -> list[dict[str, Any]]:
    """Of the log, whole ones."""
    log = folder / "log.jsonl"
    with contextlib.suppress(FileNotFoundError):
        return [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    return []


def newest(folder: Path) -> int:
    """Step of the newest checkpoint, 0 where there is none."""
    paths = list_checkpoints(folder / "checkpoints") if (folder / "checkpoints").is_dir() else []
    return int(paths[-1].name[5:]) if paths else 0


def story(folder: Path) -> tuple[dict, list]:
    """Weights and log at the end, without times and saves."""
    weights = load(list_checkpoints(folder / "checkpoints")[-1])[0]
    timeless = [
        {name: value for name, value in row.items() if name not in MEASURED} for row in rows(folder)
    ]
    return weights, [row for row in timeless if row["event"] != "save"]


def difference(one: tuple[dict, list], other: tuple[dict, list]) -> str:
    """What is unequal, bit for bit; nothing where nothing is."""
    if one[0].keys() != other[0].keys():
        return "other names of weights"
    unlike = [name for name, value in one[0].items() if not torch.equal(value, other[0][name])]
    if unlike:
        return f"{len(unlike)} weights differ, such as {unlike[0]}"
    if one[1] != other[1]:
        pairs = [pair for pair in zip(one[1], other[1]) if pair[0] != pair[1]]
        return f"the logs differ: {len(one[1])} and {len(other[1])} rows; {pairs[:1]}"
    return ""


def wait_for(kill: Kill, attempt: Attempt, draw: random.Random, start_s: float) -> bool:
    """Until the moment of `kill`, and its victim is there; False where the run ended before.

    start_s: how long such a run takes to its first step, about.
    """
    folder, begins = attempt.folder, newest(attempt.folder)
    moment, steps, after = 0.0, 0, 0.0
    if kill.when in ("rebase", "never"):  # while the folder is opened
        moment = draw.uniform(0.3, 1.3) * start_s
    elif kill.when == "any" and draw.random() < 0.35:  # while it starts
        moment = draw.uniform(0, start_s)
    else:
        steps = begins + draw.randint(1, 5)
        after = draw.uniform(0, 0.15) if kill.when == "any" else 0.0

    def due() -> bool:
        if time.monotonic() < attempt.begun + moment:
            return False
        if kill.when == "save":
            return newest(folder) + EVERY >= steps and bool(
                list(folder.glob("checkpoints/.writing-*"))
            )
        if kill.when == "evaluation":
            step = newest(folder)
            evaluated = max(
                (row["step"] for row in rows(folder) if row["event"] == "evaluate"), default=0
            )
            return step > 0 and step % STEPS_PER_EPOCH == 0 and evaluated < step
        return max((row["step"] for row in rows(folder)), default=0) >= steps

    pause = 0.0005 if kill.when == "save" else 0.005
    while attempt.poll() is None and not due():
        time.sleep(pause)
    while attempt.poll() is None and not (kill.victim == "disk" or attempt.of(kill.victim)):
        time.sleep(0.005)
    time.sleep(
        {"save": draw.uniform(0, 0.008), "evaluation": draw.uniform(0, 0.15)}.get(kill.when, after)
    )
    return attempt.poll() is None


def strike(kill: Kill, attempt: Attempt, draw: random.Random) -> bool:
    """Do what `kill` says; whether its victim was still there."""
    kill.seconds = round(time.monotonic() - attempt.begun, 3)
    if kill.victim == "disk":
        filling = attempt.folder.parent / "filling"
        with contextlib.suppress(OSError), filling.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 12))
        return True
    victims, struck = attempt.of(kill.victim), False
    for number in {"SIGSTOP+SIGKILL": (signal.SIGSTOP, signal.SIGKILL)}.get(
        kill.how, (getattr(signal, kill.how, 0),)
    ):
        for each in victims:
            with contextlib.suppress(psutil.Error):
                each.send_signal(number)
                struck = True
        if number == signal.SIGSTOP:
            time.sleep(draw.uniform(0.1, 0.6))
    return struck


def look(kill: Kill, attempt: Attempt) -> None:
    """After the kill.

    Has all the rest ended, is every checkpoint whole, what is lost, what was said.
    """
    seconds = attempt.wait()
    kill.ended_s = round(seconds or PATIENCE, 2)
    if seconds is None:
        kill.faults.append("what was left did not end")
    # also of a run moved aside
    for folder in attempt.folder.parent.glob(f"{attempt.folder.name}*/checkpoints"):
        for path in list_checkpoints(folder):
            if reason := verify(path):
                kill.faults.append(f"{folder.parent.name}/{path.name} is damaged: {reason}")
    done = max((row["step"] for row in rows(attempt.folder) if row["event"] == "step"), default=0)
    kill.step = newest(attempt.folder)
    kill.lost = max(0, done - kill.step)
    if kill.lost > EVERY:
        kill.faults.append(f"{kill.lost} steps are lost")
    if kill.victim == "launcher" and done > attempt.before and kill.lost:
        kill.faults.append(
            "the launcher was killed, and its processes did not save what they had done"
        )
    if "Traceback (most recent call last)" in attempt.said() and (
        attempt.separate or attempt.setting.launcher == "none"
    ):
        kill.faults.append(f"a traceback: {attempt.said()[-3000:]}")


def first(setting: Setting, work: Path) -> dict[str, Any]:
    """The run that nobody kills: its seconds until the first step, and all of them."""
    attempt = Attempt(setting, work / "run", (), EPOCHS)
    start_s = None
    while attempt.poll() is None:
        if start_s is None and rows(attempt.folder):
            start_s = time.monotonic() - attempt.begun
        time.sleep(0.01)
    if attempt.code != 0:
        raise SystemExit(
            f"{setting}: exit code {attempt.code}\n{attempt.printed.read_text()}\n{attempt.said()}"
        )
    return {"start_s": start_s, "run_s": time.monotonic() - attempt.begun - start_s}


def drawn_kill(setting: Setting, draw: random.Random, special: str, disk: bool) -> Kill:
    """Victim, signal and moment."""
    victims = ["all", "main"]
    victims += ["rank"] * (setting.processes > 1) + ["worker"] * (setting.workers > 0)
    victims += ["launcher"] * (setting.launcher != "none")
    victim = draw.choice(victims)
    when = special or draw.choices(("any", "save", "evaluation"), (5, 3, 3))[0]
    how = draw.choices(
        ("SIGKILL", "SIGSTOP+SIGKILL", "SIGTERM"), (5, 2, 3 if victim != "worker" else 0)
    )[0]
    if disk and draw.random() < 0.15:
        victim, how = "disk", "full"
    return Kill(victim, how, when)


def one_run(
    number: int, seed: int, setting: Setting, reference: dict[str, Any], work: Path
) -> dict[str, Any]:
    """Kill a run three to six times, and let it end; what was seen."""
    draw = random.Random(f"{seed}-{number}")
    disk = _mounted(work, megabytes=4) if draw.random() < 0.3 else False
    wanted, done, faults = draw.randint(3, 6), [], []
    special = draw.choices(("", "rebase", "never"), (4, 3, 3))[0]
    at, folder = draw.randrange(wanted), work / "run"
    epochs, code = (EPOCHS - 1 if special == "rebase" else EPOCHS), None
    begun = time.monotonic()
    try:
        while code != 0 or epochs != EPOCHS:
            here = special if len(done) == at else ""
            if special == "rebase" and (here or code == 0):
                epochs = EPOCHS
            extra = {"never": ("--resume", "never")}.get(here, ())
            extra = (
                ("--allow-schedule-change",) if special == "rebase" and epochs == EPOCHS else extra
            )
            attempt, kill, hit = Attempt(setting, folder, extra, epochs), None, False
            if len(done) < wanted:
                kill = drawn_kill(setting, draw, here, bool(disk))
                hit = wait_for(kill, attempt, draw, reference["start_s"])
                hit = hit and strike(kill, attempt, draw)
            if hit:
                look(kill, attempt)
                done.append(kill)
                (work / "filling").unlink(missing_ok=True)
                faults += kill.faults
            elif attempt.wait() is None:
                faults.append("nobody was killed, and it does not end")
            code = attempt.poll()
            if not hit and code != 0:
                said = attempt.printed.read_text(errors="replace")[-3000:]
                faults.append(
                    f"nobody was killed, and it ended with {code}: {said} {attempt.said()[-3000:]}"
                )
            if faults:
                shutil.copytree(work, work.with_name(f"fault-{number}"), dirs_exist_ok=True)
                break
        if not faults:
            differs = difference(story(folder), reference["story"])
            faults += [f"not as never killed: {differs}"] if differs else []
            if faults:
                shutil.copytree(work, work.with_name(f"fault-{number}"), dirs_exist_ok=True)
    finally:
        if disk:
            subprocess.run(["umount", "-l", str(work)], check=True)
        shutil.rmtree(work, ignore_errors=True)
    return {
        "run": number, "setting": asdict(setting), "special": special, "disk": bool(disk),
        "seconds": round(time.monotonic() - begun, 1), "kills": [asdict(each) for each in done],
        "equal": not faults, "faults": faults,
    }  # fmt: skip


def _mounted(work: Path, megabytes: int) -> bool:
    """A small file system at `work`, where this process may mount one."""
    words = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(work)]
    return subprocess.run(words, capture_output=True).returncode == 0
