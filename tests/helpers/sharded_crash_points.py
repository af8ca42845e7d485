"""Saves a sharded checkpoint in two gloo processes again and again; one of the two dies by SIGKILL
at one file operation later each time, as in crash_points.py.

    python tests/helpers/sharded_crash_points.py FOLDER EVERY     # every so many operations

Prints who died before what, and which checkpoints were whole then. The other process ends by
itself, as its peer is gone.
"""

import os
import shutil
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch._dynamo  # once, and not after each fork: DTensor would import it, in seven seconds
import torch.distributed as dist
from safetensors import torch as safetensors
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from helpers.crash_points import Countdown
from trainkit.storage import checkpoint
from trainkit.storage.checkpoint_shards import Shards

PROCESSES = 2


def whole(step: int) -> tuple[dict, dict]:
    """Model and state of `step`, whole; of `one` the second process holds nothing."""
    weight = torch.arange(300.0).view(5, 60) + step
    model = {"w": weight, "one": weight[:1].clone(), "buffer": torch.tensor(step)}
    return model, {"step": step, "momentum": -weight, "count": torch.tensor(float(step))}


def save(folder: Path, step: int, shards: Shards, mesh) -> None:
    """As a training that waits for it."""
    model, state = (
        {
            name: distribute_tensor(value, mesh, [Shard(0)], src_data_rank=None)
            if name in ("w", "one", "momentum")
            else value
            for name, value in each.items()
        }
        for each in whole(step)
    )
    snapshot = checkpoint.Snapshot.of(model, state, copy=False, shards=shards)
    checkpoint.write(folder, step, snapshot, shards)


def group(folder: Path, work: Callable[[int, Shards, object], None]) -> list[int]:
    """Fork the processes, each of which does the work; their statuses.

    One that an error ends, such as that of a peer that died, has that of exit code 3.
    """
    store = folder / "store"
    store.unlink(missing_ok=True)
    children = []
    for rank in range(PROCESSES):
        child = os.fork()
        if child:
            children.append(child)
            continue
        try:
            dist.init_process_group(
                "gloo",
                store=dist.FileStore(str(store), PROCESSES),
                rank=rank,
                world_size=PROCESSES,
                timeout=timedelta(seconds=60),
            )
            mesh = init_device_mesh("cpu", (PROCESSES,))
            work(rank, Shards.of_all(timeout_s=60), mesh)
            dist.barrier()  # nobody leaves before all have heard
            os._exit(0)
        except (OSError, RuntimeError):
            os._exit(3)
        finally:
            os._exit(4)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def one_death(work: Path, victim: int, number: int) -> str:
    """Step 3 is saved beside 1 and 2, and two are kept; what the victim died before, or nothing."""
    folder = work / "checkpoints"
    reader, writer = os.pipe()

    def die(rank: int, shards: Shards, mesh: object) -> None:
        if rank == victim:
            countdown = Countdown(number, writer, folder)
            os.fsync, safetensors.save_file = countdown.fsync, countdown.save_file
            sys.addaudithook(countdown.audit)
        save(folder, 3, shards, mesh)
        if shards.is_main:
            checkpoint.rotate(folder, 2)

    codes = group(work, die)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        died = pipe.read()
    expected = {victim: -9, 1 - victim: 3} if died else {0: 0, 1: 0}
    assert dict(enumerate(codes)) == expected, (died, codes)
    return died


def require_whole(folder: Path) -> list[int]:
    """Steps of the checkpoints, each of which is read whole."""
    found = checkpoint.list_checkpoints(folder)
    for path in found:
        model, state = checkpoint.load(path)
        expected_model, expected_state = whole(checkpoint.step_of(path))
        assert model.keys() == expected_model.keys() and state.keys() == expected_state.keys(), path
        for read, expected in ((model, expected_model), (state, expected_state)):
            for name, value in expected.items():
                same = torch.equal(read[name], value) if name != "step" else read[name] == value
                assert same, (path, name)
    return [checkpoint.step_of(path) for path in found]


def walk(work: Path, victim: int, every: int) -> None:
    """One death after the other, until the victim outlives the save."""
    folder = work / "checkpoints"
    number, died = 0, "nothing yet"
    while died:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(work / "begun", folder)
        died = one_death(work, victim, number)
        steps = require_whole(folder)
        assert steps in ([1, 2], [1, 2, 3], [2, 3]), (died, steps)
        newest = 3 if 3 not in steps else 4

        def again(rank: int, shards: Shards, mesh: object, step: int = newest) -> None:
            save(folder, step, shards, mesh)
            if shards.is_main:
                checkpoint.rotate(folder, 2)

        assert group(work, again) == [0, 0], died
        assert len(require_whole(folder)) == len(list(folder.iterdir())) == 2, died
        if died:
            sys.stdout.write(f"{victim} {died}: {steps}\n")
        number += every


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, stride = Path(sys.argv[1]), int(sys.argv[2])
    (place / "begun").mkdir(parents=True)

    def begin(rank: int, shards: Shards, mesh: object) -> None:
        for step in (1, 2):
            save(place / "begun", step, shards, mesh)

    assert group(place, begin) == [0, 0]
    for each in range(PROCESSES):
        walk(place, each, stride)
