"""Runs killed by SIGKILL at random moments and started again until they are done: do they end bit-equal?

    python benchmarks/survive.py --kills 200
    python benchmarks/survive.py --kills 0 --resumes 7      # only how long going on takes

Each run is a small recognition training with mixup, dropout, batch norm, AdamW, accumulation and two worker
processes, which evaluates every epoch and saves every second step. It is killed, with all its children, after a
time drawn evenly from its whole length, saving and evaluating included; every fourth kill waits for a checkpoint
to be under way and comes within the 8 ms after. And again, until the run is done. Printed at the end: how many
runs ended with the weights and the log of the run that was never killed, how many kills lost more steps than
`--checkpoint-every`; and the time to go on from step 100 and from step 10,000, interleaved.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from subprocess import PIPE

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


def evaluated(folder: Path) -> int:
    """Step of the last evaluation in the log."""
    log = folder / NAME / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return max((row["step"] for row in rows if row["event"] == "evaluate"), default=0)


def story(folder: Path) -> tuple[dict, list]:
    """Weights and log at the end, without times."""
    weights = load(list_checkpoints(folder / NAME / "checkpoints")[-1])[0]
    rows = [json.loads(line) for line in (folder / NAME / "log.jsonl").read_text().splitlines()]
    timeless = [{key: value for key, value in row.items() if key != "images_per_s"} for row in rows]
    return weights, [row for row in timeless if row["event"] != "save"]


def equal(one: tuple[dict, list], other: tuple[dict, list]) -> bool:
    return (
        one[0].keys() == other[0].keys()
        and all(torch.equal(value, other[0][name]) for name, value in one[0].items())
        and one[1] == other[1]
    )


def end_at_a_moment(process: subprocess.Popen, folder: Path, draw: random.Random, length: float, aimed: bool) -> bool:
    """Kill the run at a random moment, or `aimed` while it saves; whether it was still going."""
    end = time.monotonic() + draw.uniform(
        0.25 * length, (0.7 if aimed else 1) * length
    )  # before a quarter it is importing torch
    checkpoints = folder / NAME / "checkpoints"
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    if aimed:
        while process.poll() is None and not list(checkpoints.glob(".writing-*")):
            time.sleep(0.0002)
        time.sleep(draw.uniform(0, 0.008))
    if process.poll() is None:
        kill(process)
        return True
    if process.returncode != 0:
        raise SystemExit((folder / "printed.txt").read_text())
    return False


def survive(work: Path, wanted: int, seed: int, sleep: float) -> None:
    """Kill runs until there are `wanted` kills, and see how they end."""
    draw = random.Random(seed)
    begun = time.perf_counter()
    assert start(work / "whole", sleep).wait() == 0, (work / "whole" / "printed.txt").read_text()
    length = time.perf_counter() - begun
    expected = story(work / "whole")
    print(f"never killed: {length:.1f} s, {len(expected[1])} rows")

    kills = runs = bit_equal = lost_more = during = evaluating = most = 0
    while kills < wanted:
        folder, runs, here = work / f"run-{runs}", runs + 1, 0
        while end_at_a_moment(start(folder, sleep), folder, draw, length, aimed=kills % 4 == 3):
            kills, here = kills + 1, here + 1
            during += bool(list((folder / NAME / "checkpoints").glob(".[wr]*")))
            lost_more += steps_logged(folder) - newest(folder) > EVERY
            evaluating += newest(folder) % 4 == 0 and newest(folder) > evaluated(folder)
            if kills % 20 == 0:
                print(f"{kills} kills, {runs} runs", flush=True)
        most = max(most, here)
        bit_equal += equal(story(folder), expected)
        shutil.rmtree(folder)
    print(f"{runs} runs, {kills} kills, up to {most} in one run; {during} while a checkpoint was written or removed,")
    print(f"{evaluating} between the checkpoint of an epoch's end and the end of its evaluation")
    print(f"ended bit-equal: {bit_equal} of {runs}; kills that lost more than {EVERY} steps: {lost_more}")


def resumes(work: Path, rounds: int) -> None:
    """Seconds from the start of `train` to the first image read, going on from step 100 and from step 10,000."""
    taken: dict[int, list[float]] = {100: [], 10_000: []}
    whole: dict[int, list[float]] = {100: [], 10_000: []}
    for step in taken:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "TOY_STEPS": str(step + 20)}
        subprocess.run([sys.executable, str(TOYS), str(work / str(step)), "long"], env=env, check=True, stdout=PIPE)
    for _ in range(rounds):
        for step in taken:
            folder = work / "again"
            shutil.copytree(work / str(step), folder)
            (folder / "long" / "summary.json").unlink()
            for path in list_checkpoints(folder / "long" / "checkpoints"):
                if path.name > f"step-{step:09d}":
                    shutil.rmtree(path)
            env = {**os.environ, "OMP_NUM_THREADS": "1", "TOY_STEPS": str(step + 20), "TOY_BEGUN": "0"}
            words = [sys.executable, str(TOYS), str(folder), "long"]
            begun = time.perf_counter()
            printed = subprocess.run(words, env=env, check=True, capture_output=True, text=True).stdout
            whole[step].append(time.perf_counter() - begun)
            assert f"going on from step-{step:09d}" in printed, printed
            taken[step].append(float(printed.split("first image after ")[1].split()[0]))
            shutil.rmtree(folder)
    for step in taken:
        print(
            f"from step {step}: first image after {statistics.median(taken[step]):.3f} s "
            f"({min(taken[step]):.3f} to {max(taken[step]):.3f}); whole command {statistics.median(whole[step]):.2f} s"
        )
    print(f"ratio: {statistics.median(taken[10_000]) / statistics.median(taken[100]):.2f} of the first, "
          f"{statistics.median(whole[10_000]) / statistics.median(whole[100]):.2f} of the second")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--resumes", type=int, default=7, help="rounds of measuring how long going on takes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sleep", type=float, default=0.02, help="seconds an image takes to read")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="survive-"))
    if arguments.resumes:
        resumes(work, arguments.resumes)
    if arguments.kills:
        survive(work, arguments.kills, arguments.seed, arguments.sleep)
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
