"""Real processes over gloo: the same training and the same evaluation on 1, 2 and 3 of them."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from helpers.logs import (
    assert_bit_equal,
    assert_same_results,
    assert_same_training,
    rows,
    without_intervals,
)
from helpers.processes import PATIENCE, TESTS, TOYS, Script, forked_script, torchrun
from helpers.processes import run as run_command
from helpers.toy_recipes import RUNS, run, write_parquet
from trainkit import evaluate
from trainkit.data.sampler import TrainOrder
from trainkit.data.workers import choose_workers
from trainkit.distributed.accelerator import start_accelerator
from trainkit.distributed.launcher import place_on_host
from trainkit.storage.checkpoint import list_checkpoints

LAUNCH = (sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1",
          "--mixed_precision", "no",
          "--dynamo_backend", "no")  # fmt: skip
NAMES = (
    "recognition",
    "recognition-3",
    "recognition-mixup",
    "growing",
    "segmentation",
    "segmentation-3",
    "streamed",
)
NORMS = ("batch-norm", "batch-norm-averaged", "batch-norm-windows")
NUMBERS = (pytest.param(2, marks=pytest.mark.nightly), 3)  # of processes
LONELY = ("recognition-lonely", "segmentation-lonely")  # a last batch of one image


@pytest.fixture(scope="module", autouse=True)
def parquet(tmp_path_factory):
    os.environ["TOY_PARQUET"] = str(write_parquet(tmp_path_factory.mktemp("parquet")))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Each training in this process."""
    folder = tmp_path_factory.mktemp("alone")
    for name in (*NAMES, *LONELY):
        (folder / name / "seen-0.json").parent.mkdir()
        net = run(name, folder / name / "run")
        (folder / name / "seen-0.json").write_text(json.dumps(net.seen))
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Folders of the same trainings in 2 and in 3 processes."""

    class Folders(dict):
        def __missing__(self, number: int):
            folder = tmp_path_factory.mktemp(f"together-{number}")
            cache = str(tmp_path_factory.mktemp("cache"))
            names = (*NAMES, *LONELY, *NORMS, "errors")
            torchrun(number, TOYS, folder, *names, ERRORS_CACHE=cache)
            self[number] = folder
            return folder

    return Folders()


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", [*NAMES, *LONELY])
def test_processes_do_not_change_the_training(alone, together, name, number):
    assert_same_training(alone / name / "run", together[number] / name)
    settings = json.loads((together[number] / name / "summary.json").read_text())
    assert settings["num_processes"] == number


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", NAMES)
def test_processes_do_not_change_the_pixels(alone, together, name, number):
    """Together they were trained on the same images, and in every batch on a part each."""
    one = json.loads((alone / name / "seen-0.json").read_text())
    many = [
        json.loads((together[number] / name / f"seen-{rank}.json").read_text())
        for rank in range(number)
    ]
    unit = 2 if "mixup" in name else 1
    order = TrainOrder(27, 8, 5, number, RUNS[name][1].get("micro_batch"), unit)
    for rank, seen in enumerate(many):  # the first two steps are tried, without the others
        for step, before in ((0, 0), (1, sum(order.passes(0, rank)))):
            tried = sum(order.passes(step, rank))
            assert seen[before : before + tried] == seen[before + tried : before + 2 * tried]
            del seen[before : before + tried]
    fillers = sum(order.passes(step, rank).count(0) for step in range(10) for rank in range(number))
    seen = Counter(sum(many, []))
    assert seen >= Counter(one) and seen.total() == len(one) + fillers
    assert one[:2] == many[0][:2], "the first process has the beginning of the batch"


@pytest.mark.parametrize("number", NUMBERS)
def test_every_image_is_evaluated_once(alone, together, number):
    for name in NAMES:
        mine, theirs = (
            rows(alone / name / "run", "evaluate"),
            rows(together[number] / name, "evaluate"),
        )
        for one, other in zip(mine, theirs, strict=True):
            assert_same_results(one, other)
            assert other["num_images"] == 13


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", NORMS)
def test_an_evaluation_sees_one_model(together, number, name):
    """All processes evaluate with the first one's batch norm, averaged or not, which is what the
    checkpoint holds."""
    folder = together[number] / name
    weights = list_checkpoints(folder / "checkpoints")[-1]
    final = json.loads((folder / "summary.json").read_text())["final"]
    measured = without_intervals(evaluate(RUNS[name][0](), weights, workers=0))
    assert_same_results({key: value for key, value in measured.items() if key in final}, final)


@pytest.fixture(scope="module")
def freezes_norm(tmp_path_factory):
    """A run of four steps in two processes, with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("freezes-norm")
    torchrun(2, TOYS, folder, "freezes-norm")
    return folder / "freezes-norm"


def unfinished(run: Path, to: Path) -> Path:
    """A copy of a run as if its end had not come."""
    shutil.copytree(run, to, symlinks=True)
    (to / "summary.json").unlink()
    return to


def test_a_norm_that_freezes_trains_on_as_if_not_stopped(tmp_path, freezes_norm):
    """Statistics that a step reads are the first process's in all, as those of a checkpoint are."""
    cut = unfinished(freezes_norm, tmp_path / "freezes-norm")
    shutil.rmtree(cut / "checkpoints" / "step-000000004")
    assert "resuming from step-000000002" in torchrun(2, TOYS, tmp_path, "freezes-norm").stdout
    assert_bit_equal(freezes_norm, cut)


UNREADABLE = """
import errno, os, sys, traceback; sys.path.insert(0, {tests!r})
from pathlib import Path
from helpers.toy_recipes import run
from trainkit.errors import is_of_one_process

def look(event, arguments):
    if event != "open" or os.environ["RANK"] not in os.environ["BLIND"]:
        return
    path = Path(str(arguments[0]))
    if path.parent.name == "step-000000004":
        within = {{frame.name for frame in traceback.extract_stack()}}
        if "hashed" in sys.argv and "_sha256" in within:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if "loaded" in sys.argv and "load" in within and path.name == "state.json":
            raise ValueError("torn")

sys.addaudithook(look)
try: run("freezes-norm", Path(sys.argv[1]))
except ValueError as error:
    # at once, as two write
    os.write(1, f"SAID {{error}} ALONE {{is_of_one_process(error)}}\\n".encode())
    sys.exit(2)
"""


def resumed(folder: Path, run: Path, when: str, blind: str, code: int = 2) -> str:
    """What is printed where these processes cannot read the newest checkpoint when it is ..."""
    script = folder / "script.py"
    script.write_text(UNREADABLE.format(tests=str(TESTS)))
    return torchrun(2, script, run, when, BLIND=blind, code=code).stdout


def test_a_checkpoint_that_one_process_cannot_read_is_not_skipped(tmp_path, freezes_norm):
    """It is whole, and going back to the one before would remove it."""
    out = unfinished(freezes_norm, tmp_path / "run")
    log = (out / "log.jsonl").read_text()
    printed = resumed(tmp_path, out, "hashed", blind="1")
    assert f"SAID process 1 cannot read checkpoint {out}/checkpoints/step-000000004, " in printed
    assert " cannot be read: Input/output error. Run the same" in printed
    assert "ALONE False" in printed, "all have it, and the main process reports it"
    assert (out / "log.jsonl").read_text() == log
    assert [path.name[-1] for path in list_checkpoints(out / "checkpoints")] == ["2", "4"]


@pytest.mark.nightly
def test_a_checkpoint_that_the_main_process_cannot_read_is_skipped(tmp_path, freezes_norm):
    out = unfinished(freezes_norm, tmp_path / "run")
    printed = resumed(tmp_path, out, "hashed", blind="0 1", code=0)
    assert "checkpoint step-000000004 is damaged and skipped: " in printed
    assert "resuming from step-000000002" in printed
    assert_bit_equal(freezes_norm, out)


@pytest.mark.nightly
def test_a_process_says_itself_what_it_alone_cannot_load(tmp_path, freezes_norm):
    """After all have hashed the files."""
    out = unfinished(freezes_norm, tmp_path / "run")
    printed = resumed(tmp_path, out, "loaded", blind="1")
    assert "step-000000004 is damaged: ValueError: torn ALONE True" in printed


def test_processes_of_a_host_share_out_its_files(monkeypatch):
    """Where the launcher does not say which they are, each reads them all."""
    monkeypatch.setenv("RANK", "11")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert place_on_host() == (3, 8)
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert place_on_host() == (0, 1)


@pytest.mark.parametrize("number", NUMBERS)
def test_metrics_of_evaluate_see_every_image_once(together, number):
    for row in rows(together[number] / "errors", "evaluate"):
        assert row["labels"] == 13 and row["errors"] == round(13 * (1 - row["top1"]))


def test_processes_that_do_not_know_each_other_are_refused(tmp_path):
    """What a launcher that starts two processes, each a group of its own, leaves behind."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, trainkit.distributed.accelerator as l; from accelerate import Accelerator;"
        " Accelerator(cpu=True)\nos.environ['WORLD_SIZE'] = '2'\ntry: l.start_accelerator()\nexcept"
        " ValueError as e: print(e)"
    )
    assert "WORLD_SIZE is 2, but 1 processes are in the group" in forked_script(script)


@pytest.mark.parametrize("engine", ["DEEPSPEED", "MEGATRON_LM"])
def test_engines_that_would_not_be_exact_are_refused(monkeypatch, engine):
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with pytest.raises(
        ValueError, match=f"ACCELERATE_USE_{engine} is set: .*multi_gpu.yaml, or with .*fsdp2.yaml"
    ):
        start_accelerator()


def test_accelerate_launch_starts_two_that_train_together(tmp_path):
    """`--multi_gpu` without a GPU: accelerate alone would let each think it is the only one."""
    two = ("--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
    run_command(*LAUNCH, *two, str(TOYS), str(tmp_path), "recognition")
    assert json.loads((tmp_path / "recognition" / "summary.json").read_text())["num_processes"] == 2


@pytest.mark.nightly
def test_threads_are_the_launchers_only_where_somebody_asked(tmp_path):
    """`accelerate launch` without a config sets OMP_NUM_THREADS=1; a user who sets it means it."""
    script = tmp_path / "threads.py"
    script.write_text(
        "import os, torch, trainkit.distributed.accelerator as l\nl.use_whole_host()\n"
        "print('threads', torch.get_num_threads(), 'of', len(os.sched_getaffinity(0)))"
    )
    asked = run_command(*LAUNCH, "--num_processes", "1", str(script), OMP_NUM_THREADS="1")
    silent = run_command(
        "env", "-u", "OMP_NUM_THREADS", *LAUNCH, "--num_processes", "1", str(script)
    )
    words = silent.stdout.split()
    assert words[1] == words[3] and "threads 1 of" in asked.stdout
    # A shell has in its own environment what it was started with, and not what it gives to a
    # command.
    shell = ("sh", "-c", f"OMP_NUM_THREADS=1 {sys.executable} {script}; true")
    by_hand = run_command("env", "-u", "OMP_NUM_THREADS", *shell)
    assert "threads 1 of" in by_hand.stdout


def test_the_readers_share_the_cores_of_their_host(monkeypatch):
    """8 hosts of 8 processes and 96 cores: 12 cores each, of which one trains; at most 8 read."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert choose_workers(None, 64, cores=96) == 8 and choose_workers(None, 64, cores=48) == 5
    assert choose_workers(None, 1, cores=6) == 5, "one process that does it all has them all"
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert choose_workers(None, 4, cores=24) == 5 and choose_workers(None, 64, cores=96) == 1
    assert choose_workers(3, 64) == 3 and choose_workers(None, 1, cores=1) == 1


SLOW_REPORT = """
import sys
sys.path.insert(0, {tests!r})
from helpers.nonfinite import Planted
from helpers.slow import slow_disk
from helpers.toy_recipes import recognition
from trainkit.cli import main

def recipe():
    return recognition(train_data=Planted(27, 11))

if __name__ == "__main__":
    with slow_disk("os.rename", "report.html", 2.0):
        sys.exit(main())
"""


def test_an_error_of_all_processes_is_reported_before_one_has_ended(tmp_path):
    """The main process does it, after its report, and is terminated when another has ended."""
    script, out = tmp_path / "script.py", tmp_path / "run"
    script.write_text(SLOW_REPORT.format(tests=str(TESTS)))
    done = torchrun(2, script, script, "--out", out, "--workers", 0, code=2)
    assert done.stdout.count("the loss is nan") == 1, done.stdout
    assert (out / "report.html").is_file()


@pytest.mark.nightly
def test_an_error_of_ours_ends_all_processes(tmp_path):
    """The main process alone opens the folder.

    Where that fails for a reason nobody thought of, the others stop too.
    """
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys; sys.path.insert(0, {str(TESTS)!r})
from pathlib import Path
from helpers.toy_recipes import recognition
from trainkit import Options, train

class Odd:
    def __str__(self):
        raise KeyError("event")

options = Options(out=Path({str(tmp_path / "run")!r}), workers=0)
train(recognition(), options, settings={{"odd": Odd()}})
""")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    words = [sys.executable, str(script)]
    processes = []
    for rank in "01":
        env = {**os.environ, **group, "OMP_NUM_THREADS": "1", "RANK": rank, "LOCAL_RANK": rank}
        processes.append(
            subprocess.Popen(
                words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    printed = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert "KeyError: 'event'" in printed[0] and "Traceback" not in printed[1], printed


def test_the_main_process_decides_for_all(tmp_path):
    """Its value, its user error, and that it failed otherwise; no other process is asked."""
    script = tmp_path / "script.py"
    script.write_text("""
import os
from trainkit.distributed.accelerator import start_accelerator
from trainkit.distributed.launcher import place_on_host
from trainkit.engine.run_opening import on_main_process
from trainkit.engine.stop_signal import Stopped
from trainkit.errors import UserError

def found(): return {"rank": os.environ["RANK"]}
def taken(): raise UserError("the folder is taken")
def broken(): raise KeyError(lambda: "cannot be sent")

accelerator = start_accelerator()
for function in (found, taken, broken, found):
    try: said = on_main_process(accelerator, function)["rank"]
    except UserError as error: said = str(error)
    except (KeyError, Stopped) as error: said = type(error).__name__
    # at once, as two write
    os.write(1, f"{os.environ['RANK']} {function.__name__}: {said}\\n".encode())
""")
    printed = torchrun(2, script).stdout.splitlines()
    for rank, failed in ((0, "KeyError"), (1, "Stopped")):
        own = [line[2:] for line in printed if line.startswith(f"{rank} ")]
        assert own == ["found: 0", "taken: the folder is taken", f"broken: {failed}", "found: 0"]


@pytest.mark.nightly
def test_a_folder_that_is_not_shared_is_named(tmp_path):
    """As on two hosts without a common disk: here by two working folders and a relative path."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import os, sys; sys.path.insert(0, {str(TESTS)!r})
from pathlib import Path
from helpers.toy_recipes import run
os.chdir(os.environ["HERE"]); os.makedirs(os.environ["RANK"], exist_ok=True)
os.chdir(os.environ["RANK"])
try: run("recognition", Path("run"))
except ValueError as error: os.write(1, f"SAID {{error}}\\n".encode())  # at once, as two write
""")
    printed = torchrun(2, script, HERE=str(tmp_path)).stdout
    assert printed.count("SAID the run's folder is not one folder for all processes") == 2
    assert f"is not in {tmp_path}/1/run on {socket.gethostname()}. Give --out" in printed
    assert not list(tmp_path.glob("*/run/.seen-*")) and not (tmp_path / "1" / "run").exists()


BUCKETS = """
import os, sys, torch, torch.distributed as dist
from torch import nn
from trainkit.distributed.fsdp import settle_buckets

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(33, 33) for _ in range(4))

    def forward(self, x):
        for place in (2, 0, 3, 1):  # another order than that in which DDP begins
            x = self.layers[place](x).tanh()
        return x

dist.init_process_group("gloo")
torch.manual_seed(0)
wrapped = nn.parallel.DistributedDataParallel(Net(), gradient_as_bucket_view=True)
x = torch.randn(5, 33, generator=torch.Generator().manual_seed(dist.get_rank()))
if "settled" in sys.argv:
    settle_buckets(wrapped, lambda loss: loss.backward())
found = []
for _ in range(2):
    wrapped.zero_grad()
    wrapped(x).square().sum().backward()
    found.append(torch.cat([weight.grad.flatten() for weight in wrapped.parameters()]).clone())
os.write(1, f"EQUAL {torch.equal(*found)}\\n".encode())
dist.destroy_process_group()
"""


def test_the_first_step_after_a_resume_adds_as_any_other(tmp_path):
    """The same gradient twice.

    DDP's own layout changes after the first, and with it the order of a sum over four.
    """
    script = tmp_path / "script.py"
    script.write_text(BUCKETS)
    assert torchrun(4, script, "settled").stdout.count("EQUAL True") == 4
    assert torchrun(4, script, "as DDP does").stdout.count("EQUAL False") == 4


STATIC = """
import os, shutil, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
from accelerate.utils import wait_for_everyone
from helpers.logs import assert_bit_equal
from torch import nn
from helpers.toy_recipes import CLASSES, recognition
from trainkit import Options, train
from trainkit.storage.checkpoint import list_checkpoints
from trainkit.optim import param_groups


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(33, 33) for _ in range(4))
        self.stem, self.head = nn.Linear(432, 33), nn.Linear(33, CLASSES)
        self.spare = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(33, affine=False)

    def forward(self, x):
        x = self.stem(x.flatten(1))
        for place in (2, 0, 3, 1):  # another order than that in which DDP begins
            x = nn.functional.dropout(self.layers[place](x).tanh(), 0.2, self.training)
        return self.head(self.norm(x))


def trained(out, micro_batch):
    torch.manual_seed(5)
    net = Net()
    optimizer = torch.optim.SGD(param_groups(net, 0.1, 0.0), lr=0.1)
    recipe = recognition(model=net, optimizer=optimizer, batch_size=16, drop_last=True, epochs=4)
    ways = {{"micro_batch": micro_batch, "static_graph": True, "checkpoint_every": 2}}
    train(recipe, Options(out=out, seed=5, workers=0, log_every=1, keep_checkpoints=9, **ways))


for micro_batch in (None, 2):
    whole, parts = (Path({out!r}) / f"{{name}}-{{micro_batch}}" for name in ("whole", "parts"))
    trained(whole, micro_batch)
    if os.environ["RANK"] == "0":
        shutil.copytree(whole, parts)
        shutil.rmtree(list_checkpoints(parts / "checkpoints")[-1])
        (parts / "summary.json").unlink()
    wait_for_everyone()
    trained(parts, micro_batch)
    if os.environ["RANK"] == "0":
        assert_bit_equal(whole, parts)
        os.write(1, f"COMPARED {{micro_batch}}\\n".encode())
    wait_for_everyone()
"""


def test_a_resume_with_a_static_graph_on_four_processes(tmp_path):
    """Of which DDP learns how often and in which order weights are met.

    In steps that are left out of the training.
    """
    script = tmp_path / "script.py"
    script.write_text(STATIC.format(tests=str(TESTS), out=str(tmp_path)))
    printed = torchrun(4, script).stdout
    assert (
        "COMPARED None" in printed
        and "COMPARED 2" in printed
        and printed.count("resuming from step-000000002") == 2
    )


ORPHAN = """
import os, runpy, sys
if os.fork():
    os.wait()
else:
    os.environ["TORCHELASTIC_RUN_ID"] = "a launcher's"  # as torchrun leaves it
    sys.argv[:] = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_launcher_that_is_killed_leaves_a_saved_run(tmp_path):
    """By SIGKILL, which it cannot pass on: the training saves and stops as for SIGTERM."""
    script = tmp_path / "script.py"
    script.write_text(ORPHAN)
    folder = tmp_path / "all"
    launcher = Script(script, TOYS, tmp_path, "all", TOY_SLEEP="0.05")
    end = time.monotonic() + PATIENCE
    while not (folder / "log.jsonl").exists() and time.monotonic() < end:
        time.sleep(0.01)
    launcher.kill()
    printed = launcher.communicate()[0]  # to the end of the training, which holds the same pipe
    stopped = json.loads((folder / "stopped.json").read_text())
    assert "stopped by SIGTERM after step" in printed and stopped["signal"] == "SIGTERM"
    assert list_checkpoints(folder / "checkpoints")[-1].name == f"step-{stopped['step']:09d}"


@pytest.mark.parametrize("moment", ["forms", "trains"])
def test_the_others_say_that_one_is_gone(tmp_path, moment):
    """While the group forms, where it waits for one that never comes, and in the training.

    One line, exit code 1.
    """
    recipe, script = tmp_path / "toy.py", tmp_path / "script.py"
    recipe.write_text(
        f"import sys; sys.path.insert(0, {str(TESTS)!r})\nfrom helpers.toy_recipes import"
        " recognition\ndef recipe():\n    return recognition(epochs=50)\n"
    )
    script.write_text("import sys; from trainkit.cli import main; sys.exit(main())")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    words = (
        script,
        recipe,
        "--out",
        tmp_path / "run",
        "--workers",
        "0",
        "--log-every",
        "1",
        "--timeout-s",
        "3",
    )
    ranks = "01" if moment == "trains" else "1"
    processes = [Script(*words, **group, RANK=rank, LOCAL_RANK=rank) for rank in ranks]
    if moment == "trains":
        end = time.monotonic() + PATIENCE
        while not (tmp_path / "run" / "log.jsonl").exists() and time.monotonic() < end:
            time.sleep(0.01)
        processes[0].kill()
    printed = processes[-1].communicate()[0]
    lines = [line for line in printed.splitlines() if "lost the others" in line]
    assert processes[-1].returncode == 1 and "Traceback" not in printed, printed
    assert len(lines) == 1 and lines[0].startswith("process 1: process 1 of 2, on "), printed


def test_weights_without_a_part_in_the_loss(tmp_path):
    """DDP would wait for them; a static graph need not, and trains as one process does."""
    printed = torchrun(2, TOYS, tmp_path / "two", "spare", code=1).stdout
    assert (
        "2 parameters received no gradient (unused) in step 1 (spare.weight, spare.bias)" in printed
    )
    assert "--static-graph allows it" in printed
    torchrun(2, TOYS, tmp_path / "two", "spare-static")
    run("spare", tmp_path / "one")
    assert_same_training(tmp_path / "one", tmp_path / "two" / "spare-static")
