"""Every accelerate config is read by accelerate's own parser, holds no hyper-parameter, and starts
what it says."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig

from helpers.processes import PATIENCE, ROOT, TESTS, TOYS, run

FOLDER = ROOT / "accelerate_configs"
FILES = sorted(FOLDER.glob("*.yaml"))
MACHINE = {
    "compute_environment", "debug", "distributed_type", "gpu_ids", "machine_rank",
    "main_process_ip", "main_process_port", "mixed_precision", "num_machines", "num_processes",
    "rdzv_backend", "same_network", "use_cpu", "fsdp_config", "deepspeed_config",
}  # fmt: skip
# name: type, machines, processes, precision
EXPECTED = {
    "cpu": ("NO", 1, 1, "no"),
    "fsdp2": ("FSDP", 1, 8, "bf16"),
    "deepspeed_zero2": ("DEEPSPEED", 1, 8, "bf16"),
    "cpu_2": ("MULTI_GPU", 1, 2, "no"),
    "gpu": ("NO", 1, 1, "bf16"),
    "gpu_fp16": ("NO", 1, 1, "fp16"),
    "multi_gpu": ("MULTI_GPU", 1, 8, "bf16"),
    "multi_node": ("MULTI_GPU", 2, 16, "bf16"),
}
RECIPE = """
from helpers.toy_recipes import recognition

from trainkit.recipe import Recipe


def recipe(epochs: float = 2) -> Recipe:
    return recognition(epochs=epochs)
"""


def test_all_are_found():
    assert {path.stem for path in FILES} == EXPECTED.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config(path):
    config = ClusterConfig.from_yaml_file(str(path))
    keys = yaml.safe_load(path.read_text()).keys()
    assert keys == MACHINE & keys
    found = (
        str(config.distributed_type),
        config.num_machines,
        config.num_processes,
        str(config.mixed_precision),
    )
    assert (
        tuple(each.split(".")[-1] if isinstance(each, str) else each for each in found)
        == EXPECTED[path.stem]
    )
    assert (
        f"accelerate launch --config_file accelerate_configs/{path.name} -m trainkit recipes/"
        in path.read_text()
    )


@pytest.mark.nightly
def test_two_cpu_processes_really_start_as_two(tmp_path):
    """And train together: one run, of which each has a half of every batch."""
    words = ["-m", "accelerate.commands.launch", "--config_file", str(FOLDER / "cpu_2.yaml")]
    run(sys.executable, *words, str(TOYS), str(tmp_path), "recognition")
    folder = tmp_path / "recognition"
    assert json.loads((folder / "summary.json").read_text())["num_processes"] == 2
    assert {path.name for path in folder.glob("seen-*.json")} == {"seen-0.json", "seen-1.json"}


@pytest.mark.nightly
def test_the_slurm_script_saves_and_queues_again(tmp_path):
    """The real script, launcher, processes and signal.

    Only srun and scontrol are stand-ins, as no Slurm is here.
    """
    (tmp_path / "bin").mkdir()
    stand_ins = {
        "srun": 'shift; exec "$@"',
        "scontrol": f'[ "$1" = requeue ] && echo "$2" >> {tmp_path}/queued; echo localhost',
        "accelerate": (
            f"shift; exec {sys.executable} -m accelerate.commands.launch --main_process_port 0"
            ' --quiet "$@"'
        ),
    }
    for name, line in stand_ins.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "recipe.py").write_text(f"import sys; sys.path.insert(0, {str(TESTS)!r})\n{RECIPE}")
    slurm = {
        "NNODES": "1",
        "GPUS_ON_NODE": "2",
        "NODEID": "0",
        "JOB_NODELIST": "localhost",
        "JOB_ID": "42",
    }
    env = {
        **os.environ,
        **{f"SLURM_{name}": value for name, value in slurm.items()},
        "OMP_NUM_THREADS": "1",
    }
    env |= {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "TOY_SLEEP": "0.1"}
    words = [
        "bash",
        str(FOLDER / "slurm.sh"),
        str(tmp_path / "recipe.py"),
        "--workers",
        "0",
        "--log-every",
        "1",
    ]
    words += ["--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        words, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    end = time.monotonic() + PATIENCE
    while (
        not (tmp_path / "run" / "log.jsonl").exists()
        and time.monotonic() < end
        and process.poll() is None
    ):
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[0]
    for child in psutil.Process(process.pid).children():  # the step: what Slurm signals
        child.send_signal(signal.SIGUSR1)
    printed = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode != 0 and "stopped by SIGUSR1 after step" in printed, printed
    assert (tmp_path / "queued").read_text() == "42\n"
    stopped = json.loads((tmp_path / "run" / "stopped.json").read_text())
    assert stopped["signal"] == "SIGUSR1" and stopped["step"] < 8
    env["TOY_SLEEP"] = "0"
    again = subprocess.run(
        words, env=env, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert again.returncode == 0 and f"resuming from step-{stopped['step']:09d}" in again.stdout, (
        again.stdout
    )
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["num_processes"] == 2
    assert (tmp_path / "queued").read_text() == "42\n" and not (
        tmp_path / "run" / "stopped.json"
    ).exists()
