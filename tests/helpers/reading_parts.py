"""Reads a checkpoint of four processes in those it is started in, under torchrun: each its rows.

python tests/helpers/reading_parts.py FOLDER

The files are those of `write`. Prints the MiB that each takes at most to read its part of 64.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from trainkit.distributed.sharded_tensors import local, own_rows
from trainkit.storage.checkpoint_shards import read_tensors
from trainkit.storage.tensor_files import file_name

ROWS = (1, 2, 3, 4, 5, 7, 12, 13)  # of the weights
LARGE = 64  # rows of a MiB


def weights() -> dict[str, Tensor]:
    return {f"weight{length}": torch.arange(length * 3.0).view(length, 3) for length in ROWS}


def write(folder: Path) -> None:
    """Four processes' parts of the weights, cut by torch.chunk, and what there is once."""
    for rank in range(4):
        parts = {name: value.chunk(4) for name, value in weights().items()}
        own = {name: each[rank].clone() for name, each in parts.items() if rank < len(each)}
        own["other"] = torch.ones(1, 3)  # (4, 3) together
        if rank == 0:
            own["once"] = torch.tensor(7)
        save_file(own, folder / file_name("model", rank, 4))
        rows = torch.arange(LARGE).chunk(4)[rank].float()
        large = rows[:, None].expand(-1, 2**18).contiguous()
        save_file({"large": large}, folder / file_name("state", rank, 4))


def resident(name: str) -> float:
    """MiB of this process, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 2**10


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    count = dist.get_world_size()
    mesh = init_device_mesh("cpu", (count,))

    def sharded(value: Tensor) -> Tensor:
        return distribute_tensor(value, mesh, [Shard(0)], src_data_rank=None)

    like = {name: sharded(value) for name, value in weights().items()}
    like |= {"other": sharded(torch.zeros(5, 3)), "once": torch.tensor(0)}
    found = read_tensors(folder, "model", 4, like.get)
    for name, value in weights().items():
        assert isinstance(found[name], DTensor) and torch.equal(found[name].full_tensor(), value)
        assert torch.equal(local(found[name]), local(like[name])), name
        assert torch.equal(value[own_rows(like[name])], local(like[name])), name
    assert torch.equal(found["other"], torch.ones(4, 3)), "of another shape here: whole"
    assert found["once"].shape == () and found["once"] == 7
    rows = len(torch.arange(LARGE).chunk(count)[dist.get_rank()])
    large = DTensor.from_local(
        torch.empty(rows, 2**18), mesh, [Shard(0)], run_check=False,
        shape=torch.Size((LARGE, 2**18)), stride=(2**18, 1),
    )  # fmt: skip
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    found = read_tensors(folder, "state", 4, {"large": large}.get)
    assert local(found["large"])[:, 0].tolist() == list(range(LARGE))[own_rows(large)]
    print(f"{resident('VmHWM') - before:.0f} MiB")
    dist.destroy_process_group()
