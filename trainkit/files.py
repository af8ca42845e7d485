"""Writes files that are whole or absent: flushed, then renamed into place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from trainkit.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def save_tensors(
    tensors: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file with the permissions of any other new file.

    The library itself gives its owner alone the right to read it.

    Args:
        tensors: tensors by name.
        file: the file to write.
        metadata: strings by name, for the head of the file.
    """
    from safetensors.torch import save_file  # torch comes with it, and reports go without

    file.touch()  # the umask is not asked for: to read it is to change it, for other threads too
    rights = file.stat().st_mode & 0o777
    save_file(tensors, file, metadata)
    file.chmod(rights)


def reason(error: Exception) -> str:
    """Say in a few words what an error of the file system is."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def open_to_flush(path: Path, system: str = os.name) -> int | None:
    """Open what is there so that fsync takes it.

    Args:
        path: a file or a folder; its content stays.
        system: as `os.name` has it.

    Returns:
        A descriptor; None for a folder on Windows, which flushes none.
    """
    if system != "nt":
        return os.open(path, os.O_RDONLY)
    if path.is_dir():
        return None
    return os.open(path, os.O_RDWR)  # Windows flushes only what is open for writing


def flush(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk (fsync)."""
    descriptor = open_to_flush(path)
    if descriptor is None:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file aside, flush it and rename it; what was there stays until then.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    aside = path.with_name(f".{path.name}.writing-{os.getpid()}")
    try:
        aside.write_bytes(content)
        flush(aside)
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def require_room(folder: Path) -> None:
    """Make the folder that results go to, before there are any.

    Raises:
        UserError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fault = None if os.access(folder, os.W_OK | os.X_OK) else "it may not be written to"
    except OSError as error:
        fault = reason(error)
    if fault:
        raise UserError(
            f"out is {folder}, which cannot hold results: {fault}; choose another folder with --out"
        )
