"""Two hosts on one machine: network namespaces joined by a cable that can be pulled.

    python tests/multi_host/two_hosts.py

Needs root and `ip`; where namespaces cannot be made it says so and ends with 0. One training
process on each host, by `accelerate launch` and accelerate_configs/multi_node.yaml. It trains over
both; with the cable pulled both ends stop within the timeout and say what happened; with it back,
the same commands go on and end bit-equal to a run never cut.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
HOSTS = {"tk-one": "10.213.7.1", "tk-two": "10.213.7.2"}
TIMEOUT_S = 15
RECIPE = f"""
import sys; sys.path.insert(0, {str(ROOT / "tests")!r})
from helpers.toy_recipes import everything

from trainkit.recipe import Recipe


def recipe() -> Recipe:
    return everything()
"""


def ip(*words: str) -> None:
    """Run `ip`; RuntimeError with what it says where that fails."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip())


def build() -> None:
    """Two namespaces, each with one end of a cable."""
    (one, first), (two, second) = HOSTS.items()
    ip("netns", "add", one)
    ip("netns", "add", two)
    ip("link", "add", "cable", "netns", one, "type", "veth", "peer", "name", "cable", "netns", two)
    for host, address in ((one, first), (two, second)):
        ip("-n", host, "address", "add", f"{address}/24", "dev", "cable")
        ip("-n", host, "link", "set", "cable", "up")
        ip("-n", host, "link", "set", "lo", "up")


def clear() -> None:
    """Away with them."""
    for host in HOSTS if shutil.which("ip") else ():
        subprocess.run(["ip", "netns", "delete", host], capture_output=True)


def launch(folder: Path, port: int, sleep: float) -> list[subprocess.Popen]:
    """The run in `folder`, on both hosts."""
    processes = []
    for rank, host in enumerate(HOSTS):
        words = [
            "ip",
            "netns",
            "exec",
            host,
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--quiet",
        ]
        words += ["--config_file", str(ROOT / "accelerate_configs" / "multi_node.yaml")]
        words += [
            "--num_processes",
            "2",
            "--machine_rank",
            str(rank),
            "--main_process_ip",
            HOSTS["tk-one"],
        ]
        words += [
            "--main_process_port",
            str(port),
            "--mixed_precision",
            "no",
            "-m",
            "trainkit",
            str(folder / "recipe.py"),
        ]
        words += [
            "--out",
            str(folder / "run"),
            "--workers",
            "0",
            "--log-every",
            "3",
            "--checkpoint-every",
            "2",
        ]
        words += ["--timeout-s", str(TIMEOUT_S)]
        env = {
            **os.environ,
            "GLOO_SOCKET_IFNAME": "cable",
            "OMP_NUM_THREADS": "1",
            "TOY_SLEEP": str(sleep),
            "COLUMNS": "200",
        }
        env["PYTHONPATH"] = str(ROOT)
        processes.append(
            subprocess.Popen(
                words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    return processes


def end(processes: list[subprocess.Popen], seconds: float) -> list[tuple[int, str]]:
    """Exit codes and what was printed."""
    until = time.monotonic() + seconds
    return [
        (process.returncode, printed)
        for process in processes
        for printed in [process.communicate(timeout=max(1, until - time.monotonic()))[0]]
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The model in the newest checkpoint."""
    return load_file(
        sorted((folder / "run" / "checkpoints").glob("step-*"))[-1] / "model.safetensors"
    )


def check(held: bool, what: str, detail: object = "") -> None:
    """Say it, and end where it does not hold."""
    print(("ok    " if held else "FAILED  ") + what, flush=True)
    if not held:
        sys.exit(f"{detail}")


def main() -> None:
    """Train, cut, go on, compare."""
    clear()
    try:
        build()
    except (RuntimeError, FileNotFoundError) as error:
        clear()
        print(f"skipped: two hosts take network namespaces, and this machine makes none ({error})")
        return
    folder = Path(tempfile.mkdtemp(prefix="trainkit-hosts-"))
    try:
        for name in ("whole", "cut"):
            (folder / name).mkdir()
            (folder / name / "recipe.py").write_text(RECIPE)
        done = end(launch(folder / "whole", 29511, 0), 240)
        check(all(code == 0 for code, _ in done), "two hosts train together", done)
        summary = json.loads((folder / "whole" / "run" / "summary.json").read_text())
        check(
            summary["num_processes"] == 2 and summary["steps"] == 12,
            "one run of two processes",
            summary,
        )

        processes = launch(folder / "cut", 29512, 0.15)
        until = time.monotonic() + 240
        while (
            not list((folder / "cut" / "run" / "checkpoints").glob("step-*"))
            and time.monotonic() < until
        ):
            time.sleep(0.05)
        ip("-n", "tk-two", "link", "set", "cable", "down")
        begun = time.monotonic()
        done = end(processes, 240)
        seconds = time.monotonic() - begun
        check(all(code != 0 for code, _ in done), "with the cable pulled both end", done)
        check(seconds < 5 * TIMEOUT_S, f"in {seconds:.0f} s, of a timeout of {TIMEOUT_S} s", done)
        message = [
            printed
            for _, printed in done
            if "lost the others" in printed and "The same command resumes" in printed
        ]
        check(len(message) >= 1, "and say what happened", done)
        print(
            "        "
            + next(line for line in message[0].splitlines() if "lost the others" in line)[:200]
        )
        check(not (folder / "cut" / "run" / "summary.json").exists(), "before the run was done")

        ip("-n", "tk-two", "link", "set", "cable", "up")
        done = end(launch(folder / "cut", 29513, 0), 120)
        check(
            all(code == 0 for code, _ in done) and "resuming from step-" in done[0][1],
            "with it back they go on",
            done,
        )
        whole, cut = weights(folder / "whole"), weights(folder / "cut")
        same = whole.keys() == cut.keys() and all(
            torch.equal(whole[name], cut[name]) for name in whole
        )
        check(same, "bit-equal to the run that was never cut")
    finally:
        clear()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
