"""Runs killed by SIGKILL at random moments and started again until they are done: do they end bit-equal?

    python benchmarks/survive.py --kills 200

Each run is a small recognition training with mixup, dropout, batch norm, AdamW, accumulation and two worker
processes, which evaluates every epoch and saves every second step. It is killed, with all its children, after a
time drawn evenly from its whole length, start-up and saving and evaluating included; and again, until it is done.
Printed at the end: how many runs ended with the weights and the log of the run that was never killed, how many
kills lost more steps than `--checkpoint-every`.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from trainkit.checkpoint import list_checkpoints, load, verify  # noqa: E402

TOYS, NAME, EVERY = ROOT / "tests" / "toys.py", "all", 2


def start(folder: Path, sleep: float) -> subprocess.Popen:
    """The run in a process of its own; it prints into `folder`/printed.txt."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TOY_SLEEP": str(sleep), "TOY_WORKERS": "2"}
    folder.mkdir(exist_ok=True)
    with (folder / "printed.txt").open("a") as printed:
        return subprocess.Popen([sys.executable, str(TOYS), str(folder), NAME], env=env, stdout=printed, stderr=printed)


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to the run and the processes that read its images."""
    parent = psutil.Process(process.pid)
    for each in [*parent.children(recursive=True), parent]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


def newest(folder: Path) -> int:
    """Step of the newest whole checkpoint, 0 where there is none."""
    for path in reversed(list_checkpoints(folder / NAME / "checkpoints")):
        if verify(path) is None:
            return int(path.name[5:])
    return 0


def steps_logged(folder: Path) -> int:
    """Steps that the run is known to have done: the last row of its log (every third step)."""
    log = folder / NAME / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    steps = [json.loads(line)["step"] for line in lines if line.endswith("}")]
    return max(steps, default=0)


def story(folder: Path) -> tuple[dict, list]:
    """Weights and log at the end, without times."""
    weights = load(list_checkpoints(folder / NAME / "checkpoints")[-1])[0]
    rows = [json.loads(line) for line in (folder / NAME / "log.jsonl").read_text().splitlines()]
    return weights, [{key: value for key, value in row.items() if key != "images_per_s"} for row in rows]


def equal(one: tuple[dict, list], other: tuple[dict, list]) -> bool:
    return (
        one[0].keys() == other[0].keys()
        and all(torch.equal(value, other[0][name]) for name, value in one[0].items())
        and one[1] == other[1]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sleep", type=float, default=0.02, help="seconds an image takes to read")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    work = Path(tempfile.mkdtemp(prefix="survive-"))

    begun = time.perf_counter()
    assert start(work / "whole", arguments.sleep).wait() == 0, (work / "whole" / "printed.txt").read_text()
    length = time.perf_counter() - begun
    expected = story(work / "whole")
    print(f"never killed: {length:.1f} s, {len(expected[1])} rows")

    kills = runs = bit_equal = lost_more = during = 0
    while kills < arguments.kills:
        folder, runs = work / f"run-{runs}", runs + 1
        while True:
            process = start(folder, arguments.sleep)
            moment = draw.uniform(0.25 * length, length)  # before a quarter it is importing torch
            try:
                if process.wait(moment) != 0:
                    raise SystemExit((folder / "printed.txt").read_text())
                break
            except subprocess.TimeoutExpired:
                kill(process)
            kills += 1
            during += bool(list((folder / NAME / "checkpoints").glob(".writing-*")))
            lost_more += steps_logged(folder) - newest(folder) > EVERY
            if kills % 20 == 0:
                print(f"{kills} kills, {runs} runs", flush=True)
        bit_equal += equal(story(folder), expected)
        shutil.rmtree(folder)
    print(f"{runs} runs, {kills} kills ({during} while a checkpoint was being written)")
    print(f"ended bit-equal: {bit_equal} of {runs}; kills that lost more than {EVERY} steps: {lost_more}")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
