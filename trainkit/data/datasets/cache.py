"""On-disk cache of memory-mapped arrays, computed once and shared through the page cache."""

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock

NAMES = "names.json"  # of the arrays, so that a missing one is seen


def default_folder() -> Path:
    """The folder trainkit in $XDG_CACHE_HOME, which is ~/.cache where it is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trainkit"


class MappedArrays(Mapping):
    """The .npy files of a folder by their names, memory-mapped; a worker opens them again.

    Raises:
        OSError, ValueError: a file is missing or damaged, see `opened`.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        names = json.loads((folder / NAMES).read_bytes())
        self._arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __iter__(self):
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __reduce__(self):
        return MappedArrays, (self.folder,)


def opened(folder: Path) -> MappedArrays | None:
    """The arrays that are kept in a folder; None where it, or one of its files, is unusable."""
    try:
        return MappedArrays(folder)
    except Exception:  # numpy raises half a dozen kinds for a damaged file
        return None


def cached(
    name: str,
    sources: Sequence[Path],
    build: Callable[[], Mapping[str, np.ndarray]],
    folder: Path | None = None,
) -> Mapping[str, np.ndarray]:
    """The arrays that `build` makes of `sources`, from `folder` where it has them already.

    It has them where the files are the same by path, size and time of the last change. Where the
    folder cannot be written the arrays are in memory, and a warning says so; where it is damaged
    they are built again. Of several processes that ask at once one builds, and the others wait for
    its files.

    Args:
        name: of the kind of arrays, with a number that changes with their meaning.
        sources: files that the arrays depend on.
        build: makes the arrays.
        folder: `default_folder` where None.
    """
    folder = default_folder() if folder is None else folder
    facts = [
        (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in sources
    ]
    target = folder / f"{name}-{short_hash(repr(facts).encode())}"
    arrays = opened(target)
    if arrays is not None:
        return arrays
    with _one_at_a_time(target):
        arrays = opened(target)  # another process may have been first
        return kept(build(), target) if arrays is None else arrays


@contextmanager
def _one_at_a_time(target: Path) -> Iterator[None]:
    """Context manager: wait until no other process is in it for the same `target`.

    Where the folder takes no lock, as where it cannot be written, nothing is waited for.
    """
    lock = FileLock(target.parent / f".{target.name}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        lock.release()


def kept(arrays: Mapping[str, np.ndarray], target: Path) -> Mapping[str, np.ndarray]:
    """The same arrays from the folder `target`, where they are written if not whole there.

    Where it cannot be written they are in memory, and a warning says so.
    """
    try:
        _write(arrays, target)
        return MappedArrays(target)
    except OSError as error:
        warnings.warn(
            f"cannot keep {target.name} in {target.parent}: it is made anew next time: {error}",
            stacklevel=3,
        )
        return arrays


def short_hash(data: bytes) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()[:16]


def _write(arrays: Mapping[str, np.ndarray], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".writing-", dir=target.parent))
    try:
        for name, array in arrays.items():
            np.save(aside / f"{name}.npy", array)
        (aside / NAMES).write_text(json.dumps(list(arrays)))
        # else the folder's name may be on the disk when the power fails, and they not
        for path in aside.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        os.chmod(aside, 0o755)
        if target.is_dir() and opened(target) is None:
            shutil.rmtree(target)
        os.rename(aside, target)
    except OSError:
        if opened(target) is None:  # another process may have been first
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
