"""Programs that take the processor in turns of a fraction of a second.

All are compared over the same period: a machine that is slow for a minute is slow for all of them.
"""

import mmap
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

MOST = 2_000_000  # steps that a file of stamps has room for
WARM_UP = 300  # steps before a program first waits for its turn
ROUNDS = 7  # portions of the period, each with a mean of its own


class Stamps:
    """When each step began, in a file that another process reads while this one runs.

    On the clock of `time.perf_counter`, which all processes of a machine share, with the
    processor's time that this process had taken by then.
    """

    def __init__(self, file: Path):
        with file.open("w+b") as opened:
            opened.truncate(16 * MOST)
            self._times = memoryview(mmap.mmap(opened.fileno(), 16 * MOST)).cast("d")
        self._count = 0

    def add(self) -> None:
        self._times[self._count + 1] = time.process_time()
        self._times[self._count] = time.perf_counter()
        self._count += 2


def read_stamps(file: Path) -> np.ndarray:
    """All so far: (steps, 2)."""
    times = np.memmap(file, np.float64, mode="r").reshape(-1, 2)
    low, high = 0, len(times)
    while low < high:  # 0 where nothing is written yet
        middle = (low + high) // 2
        low, high = (middle + 1, high) if times[middle, 0] else (low, middle)
    return np.array(times[:low])


class Program:
    """A program with a terminal for its screen, stopped but for its turns.

    So are the processes that it has started by its first turn, such as those of trackers.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], stamps: Path):
        self.stamps = stamps
        ours, its = pty.openpty()
        self._shown: list[bytes] = []
        self._screen = threading.Thread(target=self._read, args=(ours,), daemon=True)
        self._process = subprocess.Popen(
            [*command, "--stamps", str(stamps)],
            stdin=its,
            stdout=its,
            stderr=its,
            env=os.environ | {"TERM": "xterm-256color"} | environment,
            start_new_session=True,
        )
        self._processes = [self._process.pid]
        os.close(its)
        self._screen.start()

    def _read(self, ours: int) -> None:
        while True:
            try:
                self._shown.append(os.read(ours, 65536))
            except OSError:  # all ends closed
                return

    def warm_up(self) -> None:
        while not self._has_room() or len(read_stamps(self.stamps)) < WARM_UP:
            if not self.runs():
                self._screen.join(1)
                sys.exit(b"".join(self._shown).decode(errors="replace"))
            time.sleep(0.05)
        started = psutil.Process(self._process.pid).children(recursive=True)
        self._processes = [self._process.pid, *(each.pid for each in started)]
        self._signal(signal.SIGSTOP)

    def _signal(self, number: int) -> None:
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def _has_room(self) -> bool:
        return self.stamps.exists() and self.stamps.stat().st_size > 0

    def runs(self) -> bool:
        return self._process.poll() is None

    def take_turn(self, seconds: float) -> tuple[float, float]:
        """Run for a while; when that was."""
        begun = time.perf_counter()
        self._signal(signal.SIGCONT)
        time.sleep(seconds)
        self._signal(signal.SIGSTOP)
        return begun, time.perf_counter()

    def end(self) -> None:
        if self.runs():
            self._signal(signal.SIGKILL)
            self._process.wait()


@dataclass
class Taken:
    """Milliseconds a step."""

    means: list[float]
    """of each of ROUNDS portions of the period"""
    median: float
    cpu: list[float]
    """of the processor's time, as `means`: what others do on the machine changes it less"""


def together(taken: Sequence[Taken]) -> Taken:
    """Several processes of one program as one: means over the processes.

    Processes of the same code differ by some percent, for as long as they run (where their memory
    lies, what order their sets have); one alone says nothing of less than that.
    """
    return Taken(
        means=np.mean([each.means for each in taken], axis=0).tolist(),
        median=float(np.mean([each.median for each in taken])),
        cpu=np.mean([each.cpu for each in taken], axis=0).tolist(),
    )


def take_turns(programs: Mapping[str, Program], seconds: float, turn: float) -> dict[str, Taken]:
    """What a step of each program takes. One that was stopped between two turns is left out."""
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    try:
        for program in programs.values():
            program.warm_up()
        names = list(programs)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end and all(each.runs() for each in programs.values()):
            names.append(names.pop(0))  # none is always after the same one
            for name in names:
                turns[name].append(programs[name].take_turn(turn))
        return {
            name: _in_portions(read_stamps(program.stamps), turns[name])
            for name, program in programs.items()
        }
    finally:
        for program in programs.values():
            program.end()


def _in_portions(stamps: np.ndarray, turns: list[tuple[float, float]]) -> Taken:
    per_turn = []
    for begun, ended in turns:
        first, last = np.searchsorted(stamps[:, 0], (begun, ended))
        per_turn.append(1e3 * np.diff(stamps[first:last], axis=0))
    ends = [len(turns) * part // ROUNDS for part in range(ROUNDS + 1)]
    portions = [np.concatenate(per_turn[a:b]) for a, b in zip(ends, ends[1:]) if b > a]
    means = [each.mean(axis=0).tolist() for each in portions if len(each)]
    return Taken(
        means=[mean for mean, _ in means],
        median=float(np.median(np.concatenate(per_turn)[:, 0])),
        cpu=[cpu for _, cpu in means],
    )
