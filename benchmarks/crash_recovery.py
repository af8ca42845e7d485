"""Runs killed at random and chosen moments, and started again until they are done.

Do they end bit-equal?

    python benchmarks/crash_recovery.py --kills 1000 --out kills
    python benchmarks/crash_recovery.py --kills 0 --resumes 7      # only the time to resume

Each run is a small training of recognition (mixup, dropout, batch norm, EMA weights, AdamW) or
segmentation, on 1, 2 or 4 processes, alone, below torchrun or `accelerate launch`, with DDP or
FSDP2, with and without data-loading workers. It evaluates every epoch of 4 steps, saves every
second step, and is killed three to six times before it may end: all processes, the main one,
another rank, a worker or the launcher; by SIGKILL, by SIGSTOP and then SIGKILL, by SIGTERM, or by a
full disk (a small tmpfs, where this process may mount one); at any moment, inside a save, inside an
evaluation, while `--allow-schedule-change` opens the run or `--resume never` moves it aside. After
every kill all that is left must end by itself, every checkpoint must verify, no more steps may be
lost than `--checkpoint-every`, and nothing may print a traceback; at the end weights and log must
be those of the run that was never killed, bit for bit.

Most launchers and all they start are forks of one process that has torch imported (_forked.py); in
every tenth run they are interpreters of their own. `--out` holds a line for each run in
kills.jsonl, and counts of them in kills.json; the same command does what is missing.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from subprocess import PIPE
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from _forked import adopt_orphans, preload  # noqa: E402
from _kills import RECIPE, Setting, first, one_run, story  # noqa: E402
from _results import Results, add_option  # noqa: E402

from trainkit.storage.checkpoint import list_checkpoints  # noqa: E402

TOYS = ROOT / "tests" / "helpers" / "toy_recipes.py"


def drawn_setting(number: int, seed: int) -> Setting:
    """Of the run of that number."""
    draw = random.Random(f"setting-{seed}-{number}")
    processes = draw.choices((1, 2, 4), (4, 4, 2))[0]
    return Setting(
        task=("recognition", "segmentation")[number % 2],
        processes=processes,
        sharded=processes > 1 and draw.random() < 0.4,
        launcher=draw.choice(
            ("none", "torchrun", "accelerate") if processes == 1 else ("torchrun", "accelerate")
        ),
        workers=int(draw.random() < 0.5),
        fresh=number % 10 == 9,
    )


def references(work: Path, only: str) -> dict[str, dict[str, Any]]:
    """What the runs come to where nobody kills them, by `Setting.result`, and their times."""
    found = {}
    for task in ("recognition", "segmentation"):
        for processes, sharded in ((1, False), (2, False), (4, False), (2, True), (4, True)):
            setting = Setting(
                task, processes, sharded, "none" if processes == 1 else "torchrun", 0, False
            )
            if only not in setting.result:
                continue
            folder = work / f"reference-{setting.result}"
            if not (folder / "times.json").exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                (folder / "times.json").write_text(json.dumps(first(setting, folder)))
            times = json.loads((folder / "times.json").read_text())
            print(setting.result, times, flush=True)
            found[setting.result] = {**times, "story": story(folder / "run")}
    return found


def run_series(
    place: int,
    num_parallel: int,
    arguments: argparse.Namespace,
    end: float,
    reference: dict[str, Any],
) -> None:
    """Every `num_parallel`-th run, until there are enough kills or no time is left."""
    adopt_orphans()
    file, number = arguments.out / "kills.jsonl", place
    while time.time() < end:
        done = read(file)
        if sum(len(each["kills"]) for each in done) >= arguments.kills:
            return
        setting = drawn_setting(number, arguments.seed)
        if number not in {each["run"] for each in done} and setting.result in reference:
            times = reference[setting.result]
            slower = 6.0 if setting.fresh else 0.0  # imports of the launcher and of what it starts
            times = {
                **times,
                "start_s": times["start_s"] + slower * (2 if setting.launcher != "none" else 1),
            }
            work = arguments.out / f"run-{number}"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            found = one_run(number, arguments.seed, setting, times, work)
            with file.open("a") as lines:
                lines.write(json.dumps(found) + "\n")
        number += num_parallel


def read(file: Path) -> list[dict[str, Any]]:
    """Runs that are done."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def counts(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What stands in kills.json."""
    kills = [(run, kill) for run in runs for kill in run["kills"]]
    by: dict[str, Counter] = {
        name: Counter() for name in ("victim", "how", "when", "processes", "launcher", "task")
    }
    for run, kill in kills:
        for name, counter in by.items():
            counter[str(kill[name] if name in kill else run["setting"][name])] += 1
    return {
        "runs": len(runs),
        "kills": len(kills),
        "runs_equal": sum(run["equal"] for run in runs),
        "runs_at_fault": [run["run"] for run in runs if run["faults"]],
        "unverified_checkpoints": sum(
            "is damaged" in fault for run in runs for fault in run["faults"]
        ),
        "kills_by": {name: dict(counter) for name, counter in by.items()},
        "kills_sharded": sum(run["setting"]["sharded"] for run, _ in kills),
        "kills_with_workers": sum(run["setting"]["workers"] > 0 for run, _ in kills),
        "kills_of_interpreters_of_their_own": sum(run["setting"]["fresh"] for run, _ in kills),
        "most_steps_lost": max((kill["lost"] for _, kill in kills), default=0),
        "longest_end_s": max((kill["ended_s"] for _, kill in kills), default=0),
        "hours_of_runs": round(sum(run["seconds"] for run in runs) / 3600, 2),
        "torch": torch.__version__,
    }


def record(found: dict[str, Any], folder: Path) -> None:
    """The table of the docs."""
    hours = f"{found['hours_of_runs']} hours of runs"
    results = Results("crash_recovery", "torch", note=hours)
    by = {
        name: ", ".join(f"{what} {count}" for what, count in counted.items())
        for name, counted in found["kills_by"].items()
    }
    rows = {
        "kills": f"{found['kills']:,} in {found['runs']} runs",
        "runs that ended bit-equal to the run that was never killed": (
            f"{found['runs_equal']} of {found['runs']}"
        ),
        "checkpoints that did not verify after a kill": found["unverified_checkpoints"],
        "most steps lost by a kill, of 2 between checkpoints": found["most_steps_lost"],
        "kills by victim": by["victim"],
        "kills by signal": by["how"],
        "kills by moment": by["when"],
        "kills by number of processes": by["processes"],
        "kills by launcher": by["launcher"],
        "kills by task": by["task"],
        "kills with sharded parameters (FSDP2)": found["kills_sharded"],
        "kills with data-loading workers": found["kills_with_workers"],
        "kills where launcher and ranks were interpreters of their own, not forks": found[
            "kills_of_interpreters_of_their_own"
        ],
    }
    for row, value in rows.items():
        results.put(row, "count", "", value)
    results.write(folder)


def survive(arguments: argparse.Namespace) -> bool:
    """Kill runs, `--parallel` of them at a time; whether all ended as they should."""
    arguments.out = arguments.out.resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    adopt_orphans()
    trial = Path(tempfile.mkdtemp(prefix="survive-"))
    preload([str(RECIPE), "--out", str(trial / "run"), "--epochs", "0.5", "--workers", "0"])
    shutil.rmtree(trial)
    reference, end = (
        references(arguments.out, arguments.settings),
        time.time() + arguments.minutes * 60,
    )
    processes = []
    for place in range(arguments.parallel):
        pid = os.fork()
        if pid == 0:
            try:
                run_series(place, arguments.parallel, arguments, end, reference)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        processes.append(pid)
    failed = sum(os.waitpid(pid, 0)[1] != 0 for pid in processes)
    found = counts(read(arguments.out / "kills.jsonl"))
    (arguments.out / "kills.json").write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))
    record(found, arguments.results)
    return not failed and not found["runs_at_fault"]


def resumes(work: Path, rounds: int, folder_of_results: Path) -> None:
    """Seconds from the start of `train` to the first image read, resuming from step 100 and from
    step 10,000."""
    taken: dict[int, list[float]] = {100: [], 10_000: []}
    whole: dict[int, list[float]] = {100: [], 10_000: []}
    for step in taken:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "TOY_STEPS": str(step + 20)}
        subprocess.run(
            [sys.executable, str(TOYS), str(work / str(step)), "long"],
            env=env,
            check=True,
            stdout=PIPE,
        )
    for _ in range(rounds):
        for step in taken:
            folder = work / "again"
            shutil.copytree(work / str(step), folder)
            (folder / "long" / "summary.json").unlink()
            for path in list_checkpoints(folder / "long" / "checkpoints"):
                if path.name > f"step-{step:09d}":
                    shutil.rmtree(path)
            env = {
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "TOY_STEPS": str(step + 20),
                "TOY_BEGUN": "0",
            }
            words = [sys.executable, str(TOYS), str(folder), "long"]
            begun = time.perf_counter()
            printed = subprocess.run(
                words, env=env, check=True, capture_output=True, text=True
            ).stdout
            whole[step].append(time.perf_counter() - begun)
            assert f"resuming from step-{step:09d}" in printed, printed
            taken[step].append(float(printed.split("first image after ")[1].split()[0]))
            shutil.rmtree(folder)
    results = Results("crash_recovery-resume", "torch", rounds=rounds, baseline="from step 100")
    for step in taken:
        row, ratio = f"from step {step:,}", statistics.median(taken[step])
        ratio /= statistics.median(taken[100])
        column = "start of train to the first image read"
        results.add(row, column, "s", taken[step], ratio if step > 100 else None)
        results.add(row, "whole command", "s", whole[step])
    results.write(folder_of_results)
    for step in taken:
        print(
            f"from step {step}: first image after {statistics.median(taken[step]):.3f} s"
            f" ({min(taken[step]):.3f} to {max(taken[step]):.3f}); whole command"
            f" {statistics.median(whole[step]):.2f} s"
        )
    first_images = statistics.median(taken[10_000]) / statistics.median(taken[100])
    commands = statistics.median(whole[10_000]) / statistics.median(whole[100])
    print(f"ratio: {first_images:.2f} of the first, {commands:.2f} of the second")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument(
        "--minutes", type=float, default=600, help="of killing, after which no new run is begun"
    )
    parser.add_argument("--parallel", type=int, default=2, help="runs at once")
    parser.add_argument("--out", type=Path, help="where the counts go; default: nowhere")
    parser.add_argument(
        "--resumes", type=int, default=0, help="rounds of measuring the time to resume"
    )
    parser.add_argument(
        "--settings", default="", help="those alone whose name holds this, such as 4-fsdp2"
    )
    parser.add_argument("--seed", type=int, default=0)
    add_option(parser)
    arguments = parser.parse_args()
    # trainkit looks at what its parent was started with
    if os.environ.get("OMP_NUM_THREADS") != "1":
        os.execve(
            sys.executable, [sys.executable, *sys.argv], {**os.environ, "OMP_NUM_THREADS": "1"}
        )
    torch.set_num_threads(1)
    work = Path(tempfile.mkdtemp(prefix="survive-"))
    arguments.out = arguments.out or work / "kills"
    try:
        if arguments.resumes:
            resumes(work, arguments.resumes, arguments.results)
        if arguments.kills and not survive(arguments):
            raise SystemExit(1)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
