"""Sharded checkpoints: under FSDP2 each process writes the part of every tensor that it holds.

In place of `model.safetensors` and `state.safetensors` there is a pair of files of each process,
`model-rank-00001-of-00004.safetensors`. A weight that is sharded is cut along dimension 0: its
parts, by the same name in the files of the ranks, are joined in their order. What all processes
have alike, such as buffers, is in the files of rank 1.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor

from trainkit.distributed.sharded_tensors import from_rows, is_part, local, own_rows
from trainkit.storage.tensor_files import file_name

Value = TypeVar("Value")
Like = Callable[[str], Tensor | None]  # of the name of a tensor in a checkpoint


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


def read_tensors(
    folder: Path, kind: str, count: int | None, like: Like | None = None
) -> dict[str, Tensor]:
    """The tensors of a checkpoint, in memory of their own: its files may be removed.

    Args:
        folder: of the checkpoint.
        kind: one of KINDS.
        count: of the processes that wrote it; None for one file.
        like: a tensor here for a name there, or None. Where it is sharded, and of the same shape,
            the result is sharded as it is, and no more is read than the rows that this process
            holds. All others are read whole.
    """
    files = [folder / file_name(kind, rank, count) for rank in range(count or 1)]
    lengths: dict[str, list[tuple[Path, list[int]]]] = {}  # file and shape of each part
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                lengths.setdefault(name, []).append((path, file.get_slice(name).get_shape()))
    likes = {name: _sharded_like(name, each, like) for name, each in lengths.items()}
    wanted: dict[Path, list[tuple[str, slice | None]]] = {path: [] for path in files}
    for name, each in lengths.items():
        own = likes[name]
        for path, rows in _needed(each, None if own is None else own_rows(own)):
            wanted[path].append((name, rows))
    pieces: dict[str, list[Tensor]] = {name: [] for name in lengths}
    for path, names in wanted.items():
        if not names:
            continue
        with safe_open(path, "pt") as file:
            for name, rows in names:
                pieces[name].append(
                    file.get_tensor(name) if rows is None else file.get_slice(name)[rows]
                )
    found = {}
    for name, own in likes.items():
        read = pieces.pop(name)
        tensor = torch.cat(read) if len(read) > 1 else read[0].clone()
        found[name] = tensor if own is None else from_rows(tensor, own)
    return found


def _sharded_like(
    name: str, parts: Sequence[tuple[Path, list[int]]], like: Like | None
) -> Tensor | None:
    """The tensor here as which one of these parts is to be sharded; None: it is read whole."""
    own = None if like is None else like(name)
    if own is None or not is_part(own):
        return None
    shape = list(parts[0][1])
    shape[:1] = [sum(length for _, (length, *_) in parts)] if shape else []
    return own if shape == list(own.shape) else None


def _needed(
    parts: Sequence[tuple[Path, list[int]]], rows: slice | None
) -> Iterator[tuple[Path, slice | None]]:
    """Yield the files that hold `rows`, and which of each; None for all."""
    if rows is None:
        yield from ((path, None) for path, _ in parts)
        return
    begin, found = 0, False
    for path, (length, *_) in parts:
        first, end = max(rows.start, begin), min(rows.stop, begin + length)
        if first < end:
            yield path, slice(first - begin, end - begin)
            found = True
        begin += length
    if not found:  # this process holds none, of its type
        yield parts[0][0], slice(0, 0)
