"""What a gigabyte of a checkpoint takes to save under FSDP2, and what a reader finds afterwards.

    python benchmarks/sharded_checkpoint.py --mib 300 --rounds 5

In turn, with 2 and 4 gloo processes that hold their rows of the same tensors: one process gathers
and writes everything, each process writes its part (`--checkpoint-format sharded`), the same
without hashes, and torch.distributed.checkpoint (DCP) with its defaults, which flush its files and
hash nothing. Each from a disk at rest to the last process's end. Then what happens to each format:
a bit of one process's file is flipped, and a process is killed while the same checkpoint is written
once more.
"""

import argparse
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # before the processes are forked, which would each import it
import torch.distributed as dist
from _results import Results, add_option
from _timing import in_words, versions
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from trainkit.distributed.sharded_tensors import whole
from trainkit.storage import checkpoint
from trainkit.storage.checkpoint_shards import ALONE, Shards

GATHERED, SHARDED, DCP = "one process gathers and writes", "each process writes its part", "DCP"
UNHASHED = "each process writes its part, not hashed"
NUM_TENSORS = 24  # of a third each: weights, and two averages of an optimizer


class Saver:
    """One process of a group, and the ways it saves the same tensors."""

    def __init__(self, folder: Path, rank: int, processes: int, mib: int):
        self.folder, self.rank = folder, rank
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(str(folder / "store"), processes),
            rank=rank,
            world_size=processes,
            timeout=timedelta(seconds=300),
        )
        self.mesh = init_device_mesh("cpu", (processes,))
        self.shards = Shards.of_all(timeout_s=300)
        rows = mib * 2**20 // NUM_TENSORS // 4 // 1024 // processes  # of 1,024 float32 each
        local = [torch.randn(rows, 1024) for _ in range(NUM_TENSORS)]
        tensors = [DTensor.from_local(each, self.mesh, (Shard(0),)) for each in local]
        third = NUM_TENSORS // 3
        self.model = {f"weight.{number}": each for number, each in enumerate(tensors[:third])}
        self.state = {f"average.{number}": each for number, each in enumerate(tensors[third:])}
        self.num_bytes = sum(each.numel() * 4 for each in tensors)

    def gathered(self, place: Path, step: int) -> None:
        """As of `--checkpoint-format full`."""
        model, state = whole((self.model, self.state), keep=self.rank == 0)
        if self.rank == 0:
            snapshot = checkpoint.Snapshot.of(model, state, copy=False)
            checkpoint.write(place, step, snapshot, ALONE)

    def sharded(self, place: Path, step: int) -> None:
        """As of `--checkpoint-format sharded`."""
        snapshot = checkpoint.Snapshot.of(self.model, self.state, copy=False, shards=self.shards)
        checkpoint.write(place, step, snapshot, self.shards)

    def unhashed(self, place: Path, step: int) -> None:
        """The same without the promise that damage is found."""
        described = checkpoint._described
        checkpoint._described = lambda path: {"bytes": path.stat().st_size, "sha256": "0" * 64}
        self.sharded(place, step)
        checkpoint._described = described

    def dcp(
        self, place: Path, step: int, writer: type[FileSystemWriter] = FileSystemWriter
    ) -> None:
        """As its documentation has it."""
        tensors = {"model": self.model, "state": self.state}
        dcp.save(tensors, storage_writer=writer(checkpoint.checkpoint_path(place, step)))

    def timed(self, save: Callable[[Path, int], None], place: Path, step: int) -> float:
        """Seconds until the last process has saved."""
        if self.rank == 0:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            os.sync()
        dist.barrier()
        begun = time.perf_counter()
        save(place, step)
        dist.barrier()
        return time.perf_counter() - begun

    def read_by_dcp(self, place: Path, step: int) -> list[float]:
        """The mean of this process's rows of each tensor, as DCP reads them."""
        blank = {
            kind: {name: torch.zeros_like(each) for name, each in tensors.items()}
            for kind, tensors in (("model", self.model), ("state", self.state))
        }
        dcp.load(blank, checkpoint_id=checkpoint.checkpoint_path(place, step))
        return [float(each.to_local().mean()) for kind in blank.values() for each in kind.values()]


class Killed(FileSystemWriter):
    """One of the processes dies before it writes its part."""

    def write_data(self, plan: Any, planner: Any) -> Any:
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write_data(plan, planner)


def in_processes(work: Callable[..., Any], folder: Path, processes: int, *arguments: Any) -> Any:
    """What `work(saver, ...)` returns in the first of so many forked processes.

    The name of an error where it raised one.
    """
    (folder / "store").unlink(missing_ok=True)
    reader, writer = multiprocessing.Pipe(duplex=False)
    children = []
    for rank in range(processes):
        child = os.fork()
        if child:
            children.append(child)
            continue
        try:
            mib, *others = arguments
            found = work(Saver(folder, rank, processes, mib), *others)
            if rank == 0:
                writer.send(found)
            dist.barrier()
        except Exception as error:
            if rank == 0:
                writer.send(f"{type(error).__name__}")
        finally:
            os._exit(0)
    for child in children:
        os.waitpid(child, 0)
    return reader.recv() if reader.poll() else None


def measure(saver: Saver, rounds: int) -> tuple[int, dict[str, list[float]]]:
    """Bytes, and the seconds of each way in each round but the first, where there are several."""
    ways = {
        GATHERED: saver.gathered,
        SHARDED: saver.sharded,
        UNHASHED: saver.unhashed,
        DCP: saver.dcp,
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(0 if rounds > 1 else 1, rounds + 1):
        for name, save in ways.items():
            seconds = saver.timed(save, saver.folder / "saved", number)
            if number:
                taken[name].append(seconds)
    return saver.num_bytes, taken


def save_both(saver: Saver) -> None:
    """A checkpoint of each format, of ones."""
    for each in (*saver.model.values(), *saver.state.values()):
        each.to_local().fill_(1)
    saver.timed(saver.sharded, saver.folder / "parts", 1)
    saver.timed(saver.dcp, saver.folder / "dcp", 1)


def save_twos_and_die(saver: Saver, name: str) -> None:
    """The same checkpoint once more, of other numbers: a process is killed before its part."""
    for each in (*saver.model.values(), *saver.state.values()):
        each.to_local().fill_(2)
    if name == DCP:
        saver.dcp(saver.folder / "dcp", 1, Killed)
    if saver.rank == 1:
        checkpoint.save_tensors = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    saver.sharded(saver.folder / "parts", 1)


def read_by_dcp(saver: Saver) -> list[float]:
    """What every process finds in it, by the first."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, saver.read_by_dcp(saver.folder / "dcp", 1))
    return [each for mine in found for each in mine]


def flip_a_bit(file: Path) -> None:
    """In the middle, where the tensors are."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def after_faults(folder: Path) -> dict[str, str]:
    """What a reader finds, by format and fault."""
    in_processes(save_both, folder, 2, 2)
    found = {}
    path = checkpoint.checkpoint_path(folder / "parts", 1)
    in_processes(save_twos_and_die, folder, 2, 2, SHARDED)
    values = [float(each.mean()) for each in checkpoint.load(path)[0].values()]
    found[SHARDED, "killed while it is written once more"] = (
        "read, as it was before" if set(values) == {1.0} else "read, of two states"
    )
    flip_a_bit(path / "model-rank-00002-of-00002.safetensors")
    outcome = "passed over" if checkpoint.verify(path) else "read, unnoticed"
    found[SHARDED, "a flipped bit"] = outcome
    in_processes(save_twos_and_die, folder, 2, 2, DCP)
    values = in_processes(read_by_dcp, folder, 2, 2)
    outcome = "passed over" if isinstance(values, str) else "read, of one state"
    if isinstance(values, list) and len(set(values)) > 1:
        outcome = "read, of two states"
    found[DCP, "killed while it is written once more"] = outcome
    shutil.rmtree(folder / "dcp")
    in_processes(save_both, folder, 2, 2)
    flip_a_bit(folder / "dcp" / "step-000000001" / "__1_0.distcp")
    values = in_processes(read_by_dcp, folder, 2, 2)
    found[DCP, "a flipped bit"] = "passed over" if isinstance(values, str) else "read, unnoticed"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=300, help="of the whole checkpoint")
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    add_option(parser)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(
        "sharded_checkpoint",
        "torch",
        "safetensors",
        rounds=asked.rounds,
        baseline=GATHERED,
        note=f"{asked.mib} MiB, two thirds of it an optimizer's",
    )
    print(versions("torch", "safetensors"))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for processes in asked.processes:
            measured = in_processes(measure, folder, processes, asked.mib, asked.rounds)
            assert isinstance(measured, tuple), measured
            num_bytes, taken = measured
            base = sorted(taken[GATHERED])[len(taken[GATHERED]) // 2]
            for name, seconds in taken.items():
                per_gb = [each / num_bytes * 1e9 for each in seconds]
                middle = sorted(seconds)[len(seconds) // 2]
                results.add(name, f"{processes} processes", "s/GB", per_gb, middle / base)
                print(in_words(f"{processes} processes, {name}, s/GB", per_gb, unit=1))
        for (name, fault), outcome in after_faults(folder).items():
            results.put(name, fault, "", outcome)
            print(f"{name}, {fault}: {outcome}")
    results.write(asked.results)


if __name__ == "__main__":
    main()
