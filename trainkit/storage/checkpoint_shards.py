"""Sharded checkpoints: under FSDP2 each process writes the part of every tensor that it holds.

In place of `model.safetensors` and `state.safetensors` there is a pair of files of each process,
`model-rank-00001-of-00004.safetensors`. A weight that is sharded is cut along dimension 0: its
parts, by the same name in the files of the ranks, are joined in their order. What all processes
have alike, such as buffers, is in the files of rank 1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from trainkit.distributed.fsdp import is_part, local
from trainkit.storage.tensor_files import file_name

Value = TypeVar("Value")


@dataclass(frozen=True)
class Shards:
    """Which part of a checkpoint this process writes, and how it agrees with the others.

    By itself, it is a process that writes whole tensors alone.
    """

    rank: int = 0
    count: int | None = None
    """processes that write; None: one writes whole tensors"""
    group: Any = None
    """of these processes, and of nothing else: a thread may use it beside the training"""

    @classmethod
    def of_all(cls, timeout_s: int) -> "Shards":
        """Of all processes, which must call it together.

        Args:
            timeout_s: that they wait for each other, in seconds.
        """
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        return cls(dist.get_rank(), dist.get_world_size(), group)

    @property
    def is_main(self) -> bool:
        """Whether this process writes what there is once."""
        return self.rank == 0

    def of_this_process(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Those of the tensors, or their parts, that this process writes; in the same memory."""
        if self.count is None:
            return tensors
        return {
            name: local(tensor)
            for name, tensor in tensors.items()
            if self.is_main or is_part(tensor)
        }

    def together(self, work: Callable[[], Value]) -> list[Value]:
        """What `work` returns in each process, by rank; all must call it, and wait for all.

        Raises:
            OSError: it failed in another process. Its own error is raised where it failed here.
        """
        if self.count is None:
            return [work()]
        value: Value | None = None
        failed: Exception | None = None
        try:
            value = work()
        except Exception as error:  # the others wait for an answer
            failed = error
        said = None if failed is None else f"process {self.rank}: {failed}"
        answers: list[Any] = [None] * self.count
        try:
            dist.all_gather_object(answers, (value, said), group=self.group)
        except RuntimeError as error:  # a rank failed, or took longer than the group waits
            raise OSError(
                "the processes did not hear of each other's parts of the checkpoint in time:"
                f" {error}. Where the disk is slow, raise --timeout-s"
            ) from error
        if failed is not None:
            raise failed
        faults = [fault for _, fault in answers if fault is not None]
        if faults:
            raise OSError(faults[0])
        return [value for value, _ in answers]


ALONE = Shards()


def read_tensors(folder: Path, kind: str, count: int | None) -> dict[str, Tensor]:
    """The whole tensors of a checkpoint, in memory of their own: its files may be removed.

    Args:
        folder: of the checkpoint.
        kind: one of KINDS.
        count: of the processes that wrote it; None for one file.
    """
    parts: dict[str, list[Tensor]] = {}
    for rank in range(count or 1):
        for name, part in load_file(folder / file_name(kind, rank, count)).items():
            parts.setdefault(name, []).append(part)
    return {
        name: torch.cat(each) if len(each) > 1 else each[0].clone() for name, each in parts.items()
    }
