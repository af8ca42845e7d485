"""Checkpoints: whole or absent, verified when read, without pickled code.

A checkpoint is a folder `step-<number>` with `model.safetensors`, `state.safetensors` and
`state.json` (everything else: tensors, and the structure they sit in), `model.json` (how the
network is rebuilt; earlier versions wrote none), of a network with adapters (LoRA) peft's two files
of these, and `manifest.json` with the size and SHA-256 of each, and the format (1 where it gives
none). In a sharded one each process's tensors are in files of their own, see `checkpoint_shards`,
and the manifest counts the processes ("shards"). It is written aside, flushed to the disk and
renamed; older ones go only after.
"""

import hashlib
import json
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trainkit.errors import UserError
from trainkit.files import flush, reason, save_tensors
from trainkit.storage.adapters import ADAPTER, ADAPTER_CONFIG, ADAPTER_FILES
from trainkit.storage.checked_json import Fault
from trainkit.storage.checkpoint_shards import ALONE, Like, Shards, read_tensors
from trainkit.storage.checkpoint_snapshot import Snapshot
from trainkit.storage.packing import unpack
from trainkit.storage.run_files import MANIFEST, MODEL_JSON, STRUCTURE, read_manifest
from trainkit.storage.tensor_files import KINDS, SHARD, file_name, file_names

# 2: a network has its own names, as `fine_tuned` and EMA weights keep them, and layers are counted
# as timm does. Weights of format 1 are read by evaluate, predict and export (see `weights.fit`); a
# run of it is resumed where no name and no group has changed.
FORMAT = 2
SHARDED_FORMAT = 3  # the same in files of several processes, which earlier versions cannot read
BEGUN = re.compile(r"\.tmp[A-Za-z0-9]{6}")  # how safetensors calls a file until it is whole


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` is, or would be."""
    return folder / f"step-{step:09d}"


def step_of(path: Path) -> int:
    """The step of the checkpoint at `path`."""
    return int(path.name.removeprefix("step-"))


def is_checkpoint_name(name: str) -> bool:
    """Whether a folder is named as a checkpoint: step-000000002, not step-2."""
    digits = re.fullmatch("step-([0-9]{9,18})", name)
    return digits is not None and name == f"step-{int(digits[1]):09d}"


def write(folder: Path, step: int, snapshot: Snapshot, shards: Shards = ALONE) -> Path:
    """Write the checkpoint of `step` into `folder`, which exists, and return its path.

    Where several processes write, all call it; it is there once the first of them has returned.

    Raises:
        OSError: that failed, in whichever process; what was there before still is.
    """
    final, aside = checkpoint_path(folder, step), folder / f".writing-step-{step:09d}"
    try:
        shards.together(lambda: _begin(folder, aside) if shards.is_main else None)
        files = shards.together(lambda: _put(snapshot, aside, shards))
        if shards.is_main:
            _finish(aside, final, files, shards.count)
    except (OSError, SafetensorError) as error:
        # a full disk has room again for what is whole
        if shards.is_main and _holds_only_ours(aside):
            shutil.rmtree(aside, ignore_errors=True)
        raise OSError(f"checkpoint {final} could not be written: {reason(error)}") from error
    return final


def _begin(folder: Path, aside: Path) -> None:
    _clear(folder)
    aside.mkdir()


def _finish(
    aside: Path, final: Path, files: Iterable[Mapping[str, Any]], count: int | None
) -> None:
    """Name the files of all processes in the manifest, and rename the folder into place."""
    described = {name: each for written in files for name, each in written.items()}
    manifest = {"format": FORMAT, "step": step_of(final), "files": described}
    if count is not None:
        manifest |= {"format": SHARDED_FORMAT, "shards": count}
    (aside / MANIFEST).write_text(json.dumps(manifest, indent=1))
    flush(aside / MANIFEST)
    flush(aside)
    if final.exists():  # of the same step, passed over because it is damaged
        if not _holds_only_ours(final):
            raise OSError(
                "in its place is a folder with files that trainkit did not write; move it elsewhere"
            )
        final.rename(final.with_name(f".removing-{final.name}"))
    aside.rename(final)
    flush(final.parent)


def _put(snapshot: Snapshot, folder: Path, shards: Shards) -> dict[str, dict[str, Any]]:
    """Write this process's files and flush them; return their sizes and SHA-256.

    Hashing takes longer than writing. Each file is hashed in a thread beside the writing of the
    next one and beside the disk.
    """
    with ThreadPoolExecutor() as pool:
        described = {}
        for kind, tensors in (("model", snapshot.model), ("state", snapshot.tensors)):
            name = file_name(kind, shards.rank, shards.count)
            save_tensors(tensors, folder / name)
            described[name] = pool.submit(_described, folder / name)
        for name in _put_once(snapshot, folder) if shards.is_main else ():
            described[name] = pool.submit(_described, folder / name)
        for name in described:
            flush(folder / name)
        return {name: each.result() for name, each in described.items()}


def _put_once(snapshot: Snapshot, folder: Path) -> Iterator[str]:
    """Write the files that one process writes for all, and yield their names."""
    (folder / STRUCTURE).write_text(json.dumps(snapshot.structure))
    yield STRUCTURE
    if snapshot.model_json is not None:
        (folder / MODEL_JSON).write_text(json.dumps(snapshot.model_json, indent=1))
        yield MODEL_JSON
    if snapshot.adapter is not None:
        save_tensors(snapshot.adapter.tensors, folder / ADAPTER, {"format": "pt"})
        (folder / ADAPTER_CONFIG).write_text(json.dumps(snapshot.adapter.config, indent=1))
        yield from ADAPTER_FILES


def rotate(folder: Path, keep: int, protected: Iterable[Path] = ()) -> None:
    """Remove all but the newest `keep` checkpoints and the protected ones.

    Each is renamed first. What is not a checkpoint with its manifest, or holds a file more, was not
    written here, and stays.
    """
    stay = {path.name for path in protected}
    ours = [path for path in list_checkpoints(folder) if _manifest_fault(path) is None]
    for path in ours[:-keep]:
        if path.name not in stay and _holds_only_ours(path):
            path.rename(folder / f".removing-{path.name}")
    _clear(folder)


def _clear(folder: Path) -> None:
    """Remove what was being written or removed, by a process that died over it too."""
    for leftover in (*folder.glob(".writing-*"), *folder.glob(".removing-*")):
        if is_checkpoint_name(leftover.name.partition("-")[2]) and _holds_only_ours(leftover):
            shutil.rmtree(leftover)


def _holds_only_ours(folder: Path) -> bool:
    """Whether a folder holds nothing but files of a checkpoint, or some of them.

    While one is written there may be one more, by which safetensors begins each of its files.
    """
    if folder.is_symlink() or not folder.is_dir():
        return False
    begun = folder.name.startswith(".writing-")
    return all(
        _is_ours(path.name, begun) and stat.S_ISREG(path.lstat().st_mode)
        for path in folder.iterdir()
    )


def _is_ours(name: str, begun: bool) -> bool:
    once = (*file_names(None), STRUCTURE, MANIFEST, MODEL_JSON, *ADAPTER_FILES)
    return (
        name in once
        or SHARD.fullmatch(name) is not None
        or (begun and BEGUN.fullmatch(name) is not None)
    )


def list_checkpoints(folder: Path) -> list[Path]:
    """All checkpoints in `folder`, oldest first, damaged ones too."""
    found = [
        path for path in folder.glob("step-*") if is_checkpoint_name(path.name) and path.is_dir()
    ]
    return sorted(found, key=step_of)


def format_of(path: Path) -> int:
    """The format of the checkpoint at `path`, of which the manifest can be read."""
    return read_manifest(path).get("format", 1)


def is_older(folder: Path) -> bool:
    """Whether the newest checkpoint in `folder` is of an earlier format, by its manifest alone."""
    found = [path for path in list_checkpoints(folder) if _manifest_fault(path) is None]
    return bool(found) and format_of(found[-1]) < FORMAT


def steps_done(folder: Path) -> int:
    """The step of the newest checkpoint in `folder` with a readable manifest; 0 for none."""
    return max(
        (step_of(path) for path in list_checkpoints(folder) if _manifest_fault(path) is None),
        default=0,
    )


def _manifest_fault(path: Path) -> str | None:
    """Why a folder's manifest is not that of the checkpoint it is named after, or None.

    Its files are not read.
    """
    try:
        manifest = read_manifest(path)
    except Fault as error:
        return f"{MANIFEST} is damaged: {error}"
    if manifest.get("format", 1) > SHARDED_FORMAT:
        return (
            f"{MANIFEST} is of format {manifest['format']}, of a newer trainkit; this one reads up"
            f" to {SHARDED_FORMAT}"
        )
    # a copy is called as one likes
    if is_checkpoint_name(path.name) and manifest["step"] != step_of(path):
        return f"{MANIFEST} is that of step {manifest['step']}"
    return None


def verify(path: Path, turn: int = 0, turns: int = 1) -> str | None:
    """Why the checkpoint at `path` cannot be used, or None.

    Args:
        path: of the checkpoint.
        turn: which of the shares of its files is read, from 0.
        turns: shares, of about as many bytes each.
    """
    fault = _manifest_fault(path)
    if fault is not None:
        return fault
    files = read_manifest(path)["files"]
    for name in _shares(files, turns)[turn]:
        try:
            if not stat.S_ISREG((path / name).stat().st_mode):  # to read a FIFO would wait for ever
                return f"{name} is not a regular file"
            if _described(path / name) != files[name]:
                return f"{name} is not what was written (size or SHA-256 differs)"
        except OSError as error:
            return f"{name} cannot be read: {reason(error)}"
    return None


def _shares(files: Mapping[str, Mapping[str, Any]], count: int) -> list[list[str]]:
    """The files of a manifest in so many shares: each, the largest first, goes to the smallest."""
    shares: list[list[str]] = [[] for _ in range(count)]
    sizes = [(0, index) for index in range(count)]
    for name in sorted(files, key=lambda name: files[name]["bytes"], reverse=True):
        size, index = heappop(sizes)
        shares[index].append(name)
        heappush(sizes, (size + files[name]["bytes"], index))
    return shares


def load(
    path: Path, likes: Mapping[str, Like] | None = None, verified: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load model weights and state of a checkpoint, on the CPU.

    Args:
        path: of the checkpoint.
        likes: for "model" and "state", tensors here that those there are sharded like, see
            `read_tensors`; none is sharded by default.
        verified: whether the processes have verified it between them.

    Raises:
        UserError: it does not verify.
    """
    reason = None if verified else verify(path)
    if reason:
        raise UserError(f"checkpoint {path} is damaged: {reason}")
    of_model, of_state = ((likes or {}).get(kind) for kind in KINDS)
    try:
        count = read_manifest(path).get("shards")
        tensors = read_tensors(path, "state", count, of_state)
        state = unpack(json.loads((path / STRUCTURE).read_bytes()), tensors)
        return read_tensors(path, "model", count, of_model), state
    except (
        SafetensorError,
        ValueError,
        TypeError,
        KeyError,
        RuntimeError,
    ) as error:  # as hashed, but not by us
        raise UserError(f"checkpoint {path} is damaged: {type(error).__name__}: {error}") from error


def digest(path: Path) -> str:
    """SHA-256 of the weights at `path`, a checkpoint or a file, which identifies them.

    Of a sharded checkpoint it is that of its files of weights one after the other.
    """
    return _sha256(weight_files(path) if path.is_dir() else [path])


def weight_files(path: Path) -> list[Path]:
    """The files of weights of the checkpoint at `path`: one, or of a sharded one each rank's."""
    return sorted(path.glob("model*.safetensors"))


def in_memory(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that may be removed or replaced meanwhile, as safetensors maps it."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def _described(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": _sha256([path])}


def _sha256(files: Iterable[Path]) -> str:
    digest, room = hashlib.sha256(), memoryview(bytearray(1 << 20))
    for each in files:
        with each.open("rb", buffering=0) as file:
            while count := file.readinto(room):
                digest.update(room[:count])
    return digest.hexdigest()
