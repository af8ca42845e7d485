"""Lists the images in a folder; listings of class folders are cached until one of them changes."""

import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainkit.data.datasets.cache import MappedArrays, default_folder, kept, opened, short_hash
from trainkit.data.datasets.inventory import Inventory
from trainkit.data.file_names import EXTENSIONS, extension, image_extensions, is_image, leftover
from trainkit.display.terminal import of_launcher

ENCODING, ENCODING_ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
VERSION = 3  # of what the arrays mean


@dataclass(frozen=True)
class ListingCache:
    """Where the listings of large folders are kept, and which of them."""

    folder: Path | None = None
    """None: `trainkit.data.datasets.cache.default_folder`"""
    min_images: int = 10_000
    """a folder of fewer is listed in a moment, and not kept"""
    settle_s: float = 2
    """how long a folder has to be unchanged: a change within a clock's tick of another one shows in
    no time of change"""


class Names(Sequence[str]):
    """Strings in two arrays, which workers share, at the cost of their bytes and four more each."""

    def __init__(self, characters: np.ndarray, ends: np.ndarray):
        self.characters, self.ends = characters, ends
        # which give their items in a third of the arrays' time
        self._characters, self._ends = characters.data, ends.data

    def __reduce__(self) -> tuple[type["Names"], tuple[np.ndarray, np.ndarray]]:
        return Names, (self.characters, self.ends)

    @classmethod
    def of(cls, names: Sequence[str]) -> "Names":
        """The same as `names`."""
        encoded = [os.fsencode(name) for name in names]
        characters = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        # uint32 up to 4 GiB of names
        return cls(characters, ends.astype(np.min_scalar_type(len(characters))))

    def __len__(self) -> int:
        return len(self.ends)

    # no slices: nothing takes a part of a million names
    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        if index < 0:  # too large ones are refused below
            raise IndexError(index)
        ends = self._ends
        name = self._characters[ends[index - 1] if index else 0 : ends[index]]
        return name.tobytes().decode(ENCODING, ENCODING_ERRORS)  # str(name, ...) takes longer


def image_files(folder: Path) -> list[str]:
    """Paths of all images below `folder`, relative to it, sorted.

    Raises:
        OSError: a folder cannot be read; the message names it.
    """
    return list_images(folder)[0]


def list_images(folder: Path) -> tuple[list[str], Inventory]:
    """`image_files`, and what they are and what was left out."""
    inventory = Inventory()
    files, _ = _below(folder, "", inventory)
    return sorted(files), inventory


def class_files(
    root: Path, cache: Path | ListingCache | None = None
) -> tuple[list[str], np.ndarray, Names, Inventory]:
    """List the images of class folders, cached until one of the folders changes.

    The list is made again where the time of change of `root` or of any folder below differs: a file
    that comes or goes changes it. The old list is then removed.

    Args:
        root: holds the class folders.
        cache: folder of earlier lists, see `ListingCache`.

    Returns:
        The class folders in sorted order, how many images each has, these by class, relative to
        `root`, and what they are and what was left out.
    """
    rules = cache if isinstance(cache, ListingCache) else ListingCache(cache)
    cache = default_folder() if rules.folder is None else rules.folder
    of_root = short_hash(os.fsencode(root.resolve()))
    found: Iterator[Mapping[str, np.ndarray] | None]
    found = (opened(path) for path in sorted(cache.glob(f"classes-v{VERSION}-{of_root}-*")))
    arrays = next((each for each in found if each is not None and _is_true(each, root)), None)
    if arrays is None:
        arrays = _list(root)
        settled = time.time_ns() - int(arrays["times"].max()) > rules.settle_s * 10**9
        if settled and len(arrays["ends"]) >= rules.min_images:
            state = short_hash(
                arrays["folders"].tobytes()
                + arrays["times"].tobytes()
                + arrays["decoders"].tobytes()
            )
            target = cache / f"classes-v{VERSION}-{of_root}-{state}"
            arrays = kept(arrays, target)
            if isinstance(arrays, MappedArrays):
                for old in cache.glob(f"classes-v*-{of_root}-*"):
                    if old != target:
                        shutil.rmtree(old, ignore_errors=True)
    folders = Names(arrays["folders"], arrays["folders_ends"])
    classes = [name for name in folders if name and os.sep not in name]
    inventory = Inventory.of_array(arrays["inventory"])
    return classes, arrays["counts"], Names(arrays["names"], arrays["ends"]), inventory


def _is_true(arrays: Mapping[str, np.ndarray], root: Path) -> bool:
    """Whether no folder has changed since, nor, where files were left out, the decoders."""
    folders = Names(arrays["folders"], arrays["folders_ends"])
    if len(arrays["decoders"]) and arrays["decoders"].tobytes() != _decoders():
        return False
    try:
        return all(
            _times(root / name) == tuple(then)
            for name, then in zip(folders, arrays["times"].tolist())
        )
    except OSError:
        return False


def _times(folder: str | Path) -> tuple[int, int]:
    """When a folder's list of files changed, which rsync -a restores, and when anything did."""
    status = os.stat(folder)
    return status.st_mtime_ns, status.st_ctime_ns


def _decoders() -> bytes:
    """A fingerprint of the installed decoders."""
    return " ".join(sorted(image_extensions())).encode()


def _list(root: Path) -> dict[str, np.ndarray]:
    before, inventory = _times(root), Inventory()
    classes = []
    with os.scandir(root) as entries:
        for entry in entries:
            if left := leftover(entry.name):
                _leave(inventory, left)
            elif os.path.isdir(entry.path):
                classes.append(entry.name)
            else:
                suffix = extension(entry.name)
                inventory.left_out["loose" if is_image(suffix) else "file", suffix] += 1
    names: list[str] = []
    counts: list[int] = []
    folders, times = [""], [before]
    with of_launcher().progress(f"listing {root}, classes") as tell:
        for number, name in enumerate(sorted(classes), start=1):
            files, inside = _below(root / name, name, inventory, root)
            names += sorted(files)
            counts.append(len(files))
            folders += inside.keys()
            times += inside.values()
            tell(number, len(classes))
    listed, below = Names.of(names), Names.of(folders)
    asked = (
        any(reason == "file" for reason, _ in inventory.left_out)
        or not set(inventory.taken) <= EXTENSIONS
    )
    return {
        "names": listed.characters,
        "ends": listed.ends,
        "counts": np.array(counts, dtype=np.int64),
        "folders": below.characters,
        "folders_ends": below.ends,
        "times": np.array(times, dtype=np.int64),
        "inventory": inventory.to_array(),
        "decoders": np.frombuffer(_decoders() if asked else b"", dtype=np.uint8),
    }


def _leave(inventory: Inventory, left: str) -> None:
    inventory.left_out[("hidden", "") if left == "hidden" else ("leftover", left)] += 1


def _below(
    folder: Path, name: str, inventory: Inventory, root: Path | None = None
) -> tuple[list[str], dict[str, tuple[int, int]]]:
    """Images in and below a folder, and the times of change of these folders.

    All names begin with `name`. What is hidden or a leftover, as .ipynb_checkpoints, is left out.
    Links are followed, but for those to a folder that they lie in, up to `root`, which is `folder`
    where None.
    """
    files: list[str] = []
    times: dict[str, tuple[int, int]] = {}
    above = frozenset() if root is None else frozenset({identity(root)})
    waiting = [(str(folder), name, above)]
    while waiting:
        where, inside, above = waiting.pop()
        here = identity(where)
        if here in above:
            inventory.left_out["link", ""] += 1
            if inside == name:  # it is a class, without images
                times[inside] = _times(where)
            continue
        above |= {here}
        times[inside] = _times(where)  # before it is listed: a change meanwhile is seen next time
        prefix = inside + os.sep if inside else ""
        try:
            with os.scandir(where) as entries:
                for entry in entries:
                    is_link = entry.is_symlink()
                    if left := leftover(entry.name):
                        _leave(inventory, left)
                    elif os.path.isdir(entry.path) if is_link else entry.is_dir():
                        waiting.append((entry.path, prefix + entry.name, above))
                    elif not is_image(suffix := extension(entry.name)):
                        inventory.left_out["file", suffix] += 1
                    # Opening a pipe would wait for ever.
                    elif _is_special(entry.path) if is_link else not entry.is_file():
                        inventory.left_out["special", ""] += 1
                    else:
                        files.append(prefix + entry.name)
                        inventory.taken[suffix] += 1
        except OSError as error:
            raise OSError(f"cannot list {where}: {error.strerror}") from error
    return files, times


def _is_special(link: str) -> bool:
    """Whether a link leads to a pipe or a device.

    One that leads nowhere does not, and reading it says so.
    """
    return os.path.exists(link) and not os.path.isfile(link)


def identity(folder: str | Path) -> tuple[int, int]:
    """What a folder and all links to it have in common."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino
