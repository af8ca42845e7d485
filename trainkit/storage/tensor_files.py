"""What the files of tensors in a checkpoint are called, whole ones and those of each process."""

import re

KINDS = ("model", "state")
SHARD = re.compile(r"(?:model|state)-rank-([0-9]{5,})-of-([0-9]{5,})\.safetensors")


def file_name(kind: str, rank: int = 0, count: int | None = None) -> str:
    """What a file of tensors is called.

    Args:
        kind: one of KINDS.
        rank: of the process that writes it, from 0.
        count: of all processes; None for one file of whole tensors.
    """
    if count is None:
        return f"{kind}.safetensors"
    return f"{kind}-rank-{rank + 1:05d}-of-{count:05d}.safetensors"


def file_names(count: int | None) -> list[str]:
    """All files of tensors in a checkpoint that `count` processes wrote, or one (None)."""
    return [file_name(kind, rank, count) for rank in range(count or 1) for kind in KINDS]
