"""Runs killed and stopped by real signals, and gone on with.

Bit for bit the run that was never stopped.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from helpers.interruptions import checkpoint_of, kill_all, resume, start, wait_for
from helpers.logs import assert_bit_equal, rows
from helpers.processes import PATIENCE, TOYS
from helpers.toy_recipes import recognition, run
from trainkit import Options, train
from trainkit.data.seeding import seed_host
from trainkit.engine.setup import Setup
from trainkit.engine.training import Training
from trainkit.schedules import cos
from trainkit.storage.checkpoint import list_checkpoints
from trainkit.storage.run_folder import RunFolder

STEPS = 12  # of the run "all": 3 epochs of 4


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory):
    """The runs, never stopped, in one process and in two."""
    folder = tmp_path_factory.mktemp("unstopped")
    resume(folder / "1", "all", others=["all-dense"])
    resume(folder / "2", "all", processes=2)
    return folder


@pytest.mark.parametrize(
    "name, processes, workers",
    [
        ("all", 1, 0),
        ("all-dense", 1, 2),
        pytest.param("all", 2, 2, marks=pytest.mark.nightly),
    ],
)
def test_killed_inside_an_epoch(tmp_path, unstopped, name, processes, workers):
    process = start(tmp_path, name, processes, workers, interpreter=True)
    wait_for(tmp_path / name, checkpoint_of(6), process)  # epoch 2 has steps 5 to 8
    kill_all(process)
    assert not (tmp_path / name / "summary.json").exists()
    assert "resuming from step-" in resume(tmp_path, name, processes, workers)
    assert_bit_equal(unstopped / str(processes) / name, tmp_path / name)


@pytest.mark.parametrize(
    "number, code, processes",
    [
        (signal.SIGTERM, 143, 1),
        (signal.SIGINT, 130, 1),
        (signal.SIGUSR1, 138, 1),
        (signal.SIGHUP, 129, 1),
    ],
)
def test_stopped_by_a_signal(tmp_path, unstopped, number, code, processes):
    # on a busy machine all 12 steps had passed before the signal came to a faster one
    process = start(tmp_path, "all", processes, workers=1, sleep=0.1)
    wait_for(tmp_path / "all", checkpoint_of(2), process)
    os.kill(process.pid, number)
    printed = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == code and f"stopped by {number.name} after step" in printed, printed
    assert "Traceback" not in printed
    stopped = int(printed.split("after step ")[1].split(",")[0])
    assert (
        list_checkpoints(tmp_path / "all" / "checkpoints")[-1].name == f"step-{stopped:09d}"
        and stopped < STEPS
    )
    resume(tmp_path, "all", processes)
    assert_bit_equal(unstopped / "1" / "all", tmp_path / "all")


@pytest.mark.parametrize(
    "number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)]
)
def test_stopped_by_a_signal_to_the_whole_group(tmp_path, number, code):
    """As `timeout` and schedulers send it.

    What reads images goes on, also where torch has threads in it.
    """
    process = start(tmp_path, "all", workers=2, sleep=0.1, own_session=True, TOY_THREADS="2")
    wait_for(tmp_path / "all", checkpoint_of(2), process)
    workers = psutil.Process(process.pid).children()
    os.killpg(process.pid, number)
    printed = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == code and f"stopped by {number.name} after step" in printed, printed
    assert len(workers) == 2 and not any(worker.is_running() for worker in workers)


def test_a_worker_is_born_with_the_signal_blocked(tmp_path):
    """Every thread but the one that waits for the signal; and the training itself receives it."""
    process = start(tmp_path, "all", workers=1, TOY_THREADS="2")
    wait_for(tmp_path / "all", checkpoint_of(2), process)
    (worker,) = psutil.Process(process.pid).children()
    blocked = [
        _blocks_sigterm(status) for status in Path(f"/proc/{worker.pid}/task").glob("*/status")
    ]
    deaf = _blocks_sigterm(Path(f"/proc/{process.pid}/status"))
    kill_all(process)
    assert len(blocked) > 2 and blocked.count(False) == 1 and not deaf


def _blocks_sigterm(status: Path) -> bool:
    mask = next(
        line.split()[1] for line in status.read_text().splitlines() if line.startswith("SigBlk")
    )
    return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)


def test_all_processes_stop_at_the_same_step(tmp_path, unstopped):
    """A signal to one of two processes stops both after the same step."""
    process = start(tmp_path, "all", 2)
    wait_for(tmp_path / "all", checkpoint_of(2), process)
    workers = [
        child for child in psutil.Process(process.pid).children() if str(TOYS) in child.cmdline()
    ]
    workers[-1].send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode != 0 and "stopped by SIGTERM after step" in printed, printed
    resume(tmp_path, "all", 2)
    assert_bit_equal(unstopped / "2" / "all", tmp_path / "all")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ended_during_an_evaluation(tmp_path, unstopped, number):
    """The evaluation is done anew when the run goes on, and the epoch before it is not."""
    process = start(tmp_path, "all", sleep=0.03)
    # saved first; then 13 images of evaluation
    wait_for(tmp_path / "all", checkpoint_of(4), process)
    time.sleep(0.1)
    os.kill(process.pid, number)
    printed = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == (143 if number == signal.SIGTERM else -9), printed
    assert rows(tmp_path / "all", "evaluate") == []
    assert "resuming from step-000000004" in resume(tmp_path, "all")
    assert_bit_equal(unstopped / "1" / "all", tmp_path / "all")


def test_killed_right_after_an_evaluation(tmp_path, unstopped):
    process = start(tmp_path, "all", sleep=0.03)
    wait_for(
        tmp_path / "all",
        lambda folder: any(row["step"] == 4 for row in evaluations(folder)),
        process,
    )
    kill_all(process)
    assert "\nepoch 1  " not in resume(tmp_path, "all"), "it is not done again"
    assert_bit_equal(unstopped / "1" / "all", tmp_path / "all")


def evaluations(folder: Path) -> list:
    return rows(folder, "evaluate") if (folder / "log.jsonl").exists() else []


@pytest.mark.nightly
def test_an_orphan_stops(tmp_path, unstopped):
    """The single-process launcher dies of SIGTERM and does not pass it on."""
    launch = (sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1",
              "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no")  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TOY_SLEEP": "0.02"}
    process = subprocess.Popen(
        [*launch, str(TOYS), str(tmp_path), "all"], env=env, stdout=subprocess.PIPE, text=True
    )
    wait_for(tmp_path / "all", checkpoint_of(2), process)
    (training,) = [
        child for child in psutil.Process(process.pid).children() if str(TOYS) in child.cmdline()
    ]
    process.terminate()
    # to the end of the training, which holds the same pipe
    printed = process.communicate(timeout=PATIENCE)[0]
    assert "stopped by SIGTERM after step" in printed
    end = time.monotonic() + PATIENCE  # its pipe is closed a moment before it is gone
    # nobody collects it here
    while training.is_running() and training.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "it lives on"
        time.sleep(0.02)
    resume(tmp_path, "all")
    assert_bit_equal(unstopped / "1" / "all", tmp_path / "all")


@pytest.mark.nightly
@pytest.mark.parametrize("rank", [0, 1])
def test_the_launcher_restarts_the_group(tmp_path, unstopped, rank):
    """One of two processes dies.

    With --max-restarts both begin again and go on from the last checkpoint.
    """
    launcher = (
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "--max-restarts=2",
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TOY_SLEEP": "0.02"}
    words = [sys.executable, *launcher, str(TOYS), str(tmp_path), "all"]
    process = subprocess.Popen(
        words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for(tmp_path / "all", checkpoint_of(2), process)
    children = [
        child for child in psutil.Process(process.pid).children() if str(TOYS) in child.cmdline()
    ]
    children[rank].kill()
    try:
        printed = process.communicate(timeout=PATIENCE)[0]
    finally:
        if process.poll() is None:
            kill_all(process)
    assert process.returncode == 0 and "resuming from step-" in printed, printed
    assert_bit_equal(unstopped / "2" / "all", tmp_path / "all")


def test_a_second_run_in_the_folder_is_refused(tmp_path):
    process = start(tmp_path, "all", sleep=0.05)
    wait_for(tmp_path / "all", lambda folder: (folder / "settings.json").exists(), process)
    with pytest.raises(
        ValueError, match=f"another run is training in .* .process {process.pid} on"
    ):
        run("all", tmp_path / "all")
    kill_all(process)
    run("all", tmp_path / "all")  # a dead process keeps no lock
    assert (tmp_path / "all" / "summary.json").exists()


def test_no_image_of_a_passed_batch_is_read_again(tmp_path):
    """Going on is a seek: the reads after it are those of the steps that are left."""
    run("all", tmp_path / "whole")
    folder = tmp_path / "parts"
    net = run("all", folder)
    for path in list_checkpoints(folder / "checkpoints")[1:]:
        path.rename(path.with_name("removed-" + path.name))
    (folder / "summary.json").unlink()
    kept = int(list_checkpoints(folder / "checkpoints")[0].name[5:])
    again = run("all", folder)
    batches = [8, 8, 8, 3] * 3
    assert len(again.seen) == sum(batches[kept:]) and again.seen == net.seen[-len(again.seen) :]
    assert_bit_equal(tmp_path / "whole", folder)


@pytest.mark.parametrize("name", ["all", pytest.param("all-dense", marks=pytest.mark.nightly)])
def test_going_on_from_every_step(tmp_path, name):
    """Inside an epoch, on its boundary, before, during and right after an evaluation."""
    run(name, tmp_path / "whole", checkpoint_every=1, keep_checkpoints=20)
    for step in range(1, STEPS):
        for evaluated in (True, False) if step % 4 == 0 else (True,):
            folder = tmp_path / f"{step}-{evaluated}"
            shutil.copytree(tmp_path / "whole", folder)
            (folder / "summary.json").unlink()
            for path in list_checkpoints(folder / "checkpoints")[step:]:
                shutil.rmtree(path)
            if not evaluated:  # killed while the evaluation was on its way
                lines = (folder / "log.jsonl").read_text().splitlines(keepends=True)
                row = f'{{"event": "evaluate", "step": {step},'
                (folder / "log.jsonl").write_text(
                    "".join(line for line in lines if not line.startswith(row))
                )
            run(name, folder, checkpoint_every=1, keep_checkpoints=20)
            assert_bit_equal(tmp_path / "whole", folder)
            summaries = [
                json.loads((each / "summary.json").read_text())
                for each in (tmp_path / "whole", folder)
            ]
            assert (
                summaries[0]["best"] == summaries[1]["best"]
                and summaries[0]["final"] == summaries[1]["final"]
            )


@pytest.mark.parametrize("before, after", [(2, 1), pytest.param(1, 4, marks=pytest.mark.nightly)])
def test_going_on_with_another_number_of_processes(tmp_path, before, after):
    """The same images in the same batches; losses within float tolerance."""
    name = "recognition-mixup"
    run(name, tmp_path / "whole")
    process = start(tmp_path, name, before)
    wait_for(tmp_path / name, checkpoint_of(4), process)
    kill_all(process)
    done = int(list_checkpoints(tmp_path / name / "checkpoints")[-1].name[5:])
    resume(tmp_path, name, after)
    seen = [
        json.loads((tmp_path / name / f"seen-{rank}.json").read_text()) for rank in range(after)
    ]
    assert 4 <= done < 10 and len(set(sum(seen, []))) <= 70 - 27 + 2, (
        "no passed batch; a filler may be new"
    )
    mine, theirs = rows(tmp_path / "whole"), rows(tmp_path / name)
    assert [row["loss"] for row in theirs] == pytest.approx([row["loss"] for row in mine], rel=1e-5)


def test_changes_that_do_not_affect_the_result_are_reported(tmp_path, capsys):
    options = Options(out=tmp_path, workers=0)
    train(recognition(), options, {"data": "here", "lr": 0.1})
    (tmp_path / "summary.json").unlink()
    train(recognition(), options, {"data": "there", "lr": 0.1})
    assert "changed since this run began: data was 'here' and is 'there'" in capsys.readouterr().out
    assert json.loads((tmp_path / "settings.json").read_text())["settings"]["data"] == "there"


def test_a_schedule_change_resumes_with_another_length(tmp_path):
    options = Options(out=tmp_path, workers=0, log_every=1)
    train(recognition(epochs=2), options)
    with pytest.raises(ValueError, match="total_steps was 8 and is 12.*--allow-schedule-change"):
        train(recognition(epochs=3), options)
    summary = train(
        recognition(epochs=3),
        Options(out=tmp_path, workers=0, log_every=1, allow_schedule_change=True),
    )
    assert summary["steps"] == 12
    curve = [0.1 * cos(warmup_epochs=0.5)(step, 12, 4) for step in range(8, 12)]
    assert [row["lr"] for row in rows(tmp_path)][8:] == pytest.approx(curve)
    with pytest.raises(ValueError, match="batch_size was 8 and is 9"):
        train(
            recognition(epochs=3, batch_size=9),
            Options(out=tmp_path, workers=0, allow_schedule_change=True),
        )
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(
        ValueError,
        match="has done 12 steps, and is to have 4: --allow-schedule-change is for a longer run",
    ):
        train(recognition(epochs=1), Options(out=tmp_path, workers=0, allow_schedule_change=True))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_killed_before_the_settings_were_written(tmp_path):
    """A folder with nothing but hidden files in it is not somebody else's."""
    (tmp_path / ".lock").touch()
    (tmp_path / ".settings.json.writing").write_text("{")
    assert train(recognition(epochs=0.5), Options(out=tmp_path, workers=0))["steps"] == 2


def row_of(event: str, step: int) -> dict:
    evaluation = {"epoch": step / 4, "best": 0.5, "best_step": step} if event == "evaluate" else {}
    return {"event": event, "step": step, **evaluation}


@pytest.mark.parametrize("cut", ["", '{"event": "st'])
def test_rows_of_lost_steps_are_forgotten(tmp_path, cut):
    """The log is the record of evaluations.

    Those up to the checkpoint stay, later ones and cut lines go.
    """
    folder = RunFolder(tmp_path)
    for event, step in (
        ("step", 4),
        ("evaluate", 4),
        ("step", 7),
        ("evaluate", 8),
        ("step", 9),
        ("evaluate", 12),
    ):
        folder.log.append(row_of(event, step))
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write(cut)
    assert folder.log.forget_after(8)["step"] == 8
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(row["event"], row["step"]) for row in log] == [
        ("step", 4),
        ("evaluate", 4),
        ("step", 7),
        ("evaluate", 8),
    ]
    assert folder.log.forget_after(7)["step"] == 4 and folder.log.forget_after(3) is None
    assert (tmp_path / "log.jsonl").read_bytes() == b""
    folder.log.append({"event": "step", "step": 1})
    # whole but for its end of line
    (tmp_path / "log.jsonl").write_text('{"event": "step", "step": 1}')
    folder.log.forget_after(1)
    folder.log.append({"event": "step", "step": 2})
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


def test_a_row_about_a_late_save_keeps_no_lost_step(tmp_path):
    """A checkpoint written in the background is reported after rows of later steps."""
    folder = RunFolder(tmp_path)
    for event, step in (
        ("step", 10),
        ("evaluate", 12),
        ("step", 20),
        ("evaluate", 18),
        ("save", 15),
    ):
        folder.log.append(row_of(event, step))
    assert folder.log.forget_after(15)["step"] == 12
    assert [
        json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()
    ] == [10, 12]


@pytest.mark.parametrize("fused", [False, True])
def test_going_on_with_channels_last(tmp_path, fused):
    """The optimizer's state lies in memory as its weights do, which fused kernels rely on."""

    def training():
        seed_host(5)
        recipe = recognition()
        optimizer = torch.optim.AdamW(recipe.model.parameters(), lr=0.01, fused=fused)
        return replace(recipe, optimizer=optimizer)

    options = Options(
        out=tmp_path / "whole",
        workers=0,
        checkpoint_every=1,
        keep_checkpoints=20,
        channels_last=True,
    )
    train(training(), options)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    (tmp_path / "parts" / "summary.json").unlink()
    for path in list_checkpoints(tmp_path / "parts" / "checkpoints")[3:]:
        shutil.rmtree(path)
    train(training(), replace(options, out=tmp_path / "parts"))
    assert_bit_equal(tmp_path / "whole", tmp_path / "parts")


def test_the_scale_of_fp16_comes_back(tmp_path):
    """torch's own scaler, as accelerate holds it, through a checkpoint on the disk."""
    trainings = []
    (tmp_path / "checkpoints").mkdir()
    for scale in (512.0, 65536.0):
        setup = Setup(recognition(), Options(out=tmp_path, workers=0))
        trainings.append(Training(setup, RunFolder(tmp_path)))
        setup.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=7)
    first, second = trainings
    first.state.step = 3
    first.checkpointer.save()
    second.checkpointer.restore(tmp_path / "checkpoints" / "step-000000003")
    assert second.setup.accelerator.scaler.get_scale() == 512.0 and second.state.step == 3
    assert (
        second.setup.accelerator.scaler.state_dict() == first.setup.accelerator.scaler.state_dict()
    )


def test_the_lock_is_given_back(tmp_path):
    train(recognition(epochs=0.5), Options(out=tmp_path, workers=0))
    other, _ = RunFolder.open(Options(out=tmp_path, resume="never"), {}, None, {})
    other.close()
