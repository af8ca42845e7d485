"""What a packed folder holds, which `trainkit pack` writes: its manifest, and where an image lies.

    manifest.json                    how it was made, classes, hashes of all files; written last
    train-00000-of-00002.parquet     images, with their classes or masks, in the data's order
    train.index.npy                  where each of them lies in these files, an array of `PLACE`

The files are parquet as others are. Values are neither compressed by parquet nor put into
dictionaries, so that each image is a run of bytes of its file, which is read without the rest.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainkit.data.datasets.divided import SPLITS
from trainkit.errors import MissingFileError, UserError

MANIFEST, PLAN, PARTS, INDEX = "manifest.json", "plan.json", "parts", "{}.index.npy"
FORMAT, VERSION = "trainkit pack", 1
RECOGNITION, SEGMENTATION = "recognition", "segmentation"
PLAIN = ("task", "classes", "raw_ids", "palette", "upright", "recipe", "plan")
RAW, ORIGINAL = "raw", "original"
# Where an image lies: file among those of its split, first byte and number of bytes, size in
# pixels, the same of its mask, and its class id.
PLACE = np.dtype(
    [("shard", "<u4"), ("height", "<u4"), ("width", "<u4"), ("mask_bytes", "<u8"),
     ("at", "<u8"), ("bytes", "<u8"), ("mask_at", "<u8"), ("label", "<i8")]
)  # fmt: skip


@dataclass(frozen=True)
class Encoding:
    """How images are stored.

    Attributes:
        kind: original (the file's own bytes, where these are the data's pixels, else as png), jpeg,
            png, webp (lossless) or raw (uint8, height x width x 3).
        quality: of JPEG, 1 to 100; None of the others.
        largest_side: pixels; larger images are made smaller; None: none is.
        short_side: pixels that the short side of larger images gets; None: none does.
    """

    kind: str = ORIGINAL
    quality: int | None = None
    largest_side: int | None = None
    short_side: int | None = None

    @property
    def changed(self) -> str | None:
        """How images differ from their originals, in words; None where no pixel does."""
        found = []
        if self.largest_side is not None:
            found.append(f"made smaller to a largest side of {self.largest_side}")
        if self.short_side is not None:
            found.append(f"made smaller to a short side of {self.short_side}")
        if self.kind == "jpeg":
            found.append(f"stored as JPEG of quality {self.quality}")
        return ", ".join(found) or None

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image of this size is stored with."""
        if self.largest_side is not None:
            factor = self.largest_side / max(height, width)
        elif self.short_side is not None:
            factor = self.short_side / min(height, width)
        else:
            return height, width
        if factor >= 1:
            return height, width
        return max(1, round(height * factor)), max(1, round(width * factor))


@dataclass(frozen=True)
class PackedSplit:
    """One split of a packed folder.

    Attributes:
        name: of the split that was packed, such as "validation"; None: it had none.
        num_images: how many there are.
        shards: name, number of bytes and SHA-256 of each parquet file.
        index: the same of the file that says where images lie.
        left_out: what was wrong with images that are not there, a line each.
    """

    name: str | None
    num_images: int
    shards: Sequence[Mapping[str, Any]]
    index: Mapping[str, Any]
    left_out: Sequence[str] = ()


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says, see `read_manifest`.

    Attributes:
        task: recognition or segmentation.
        classes: names in the order of their ids, or how many.
        raw_ids: the label in the original masks of each class; None of recognition.
        palette: a colour of each class, R, G and B; None: none was given.
        upright: whether images were read with their EXIF orientation applied.
        encoding: how images are stored.
        splits: by "train" and "val".
        recipe: the name of the recipe whose data it is.
        plan: what it was made of and how; the same plan makes the same files.
    """

    task: str
    classes: Sequence[str] | int
    raw_ids: Sequence[int] | None
    palette: Sequence[Sequence[int]] | None
    upright: bool
    encoding: Encoding
    splits: Mapping[str, PackedSplit]
    recipe: str
    plan: Mapping[str, Any]

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    @property
    def fingerprint(self) -> str:
        """How the images are stored, and a hash of all of them and of what their labels mean."""
        hashes = [[each["sha256"] for each in split.shards] for split in self.splits.values()]
        what = [self.task, self.classes, self.raw_ids, asdict(self.encoding), hashes]
        digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
        return f"packed, {self.encoding.changed or 'pixels of the originals'}, {digest}"

    def content(self) -> bytes:
        """The text of manifest.json."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1).encode()


def is_packed(folder: str | Path) -> bool:
    """Whether `trainkit pack` wrote this folder, or began to."""
    return any((Path(folder) / name).is_file() for name in (PLAN, INDEX.format("train")))


def read_manifest(folder: str | Path) -> Manifest:
    """What a packed folder holds, whose files are there and have the sizes they were written with.

    Raises:
        MissingFileError: a file is missing.
        UserError: it is not finished, a file was cut short or changed, or a newer trainkit wrote
            it.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{folder} is not packed to its end: give the command that packs it again, which"
            f" finishes it ({PLAN} there says how it began)"
        )
    try:
        found = json.loads(path.read_bytes())
        if found["format"] != FORMAT:
            raise UserError(f"{path} is none of trainkit pack, whose other files lie beside it")
        if found["version"] > VERSION:
            raise UserError(f"{path} was written by a newer trainkit, of format {found['version']}")
        splits = {name: PackedSplit(**found["splits"][name]) for name in ("train", "val")}
        manifest = Manifest(
            **{name: found[name] for name in PLAIN},
            encoding=Encoding(**found["encoding"]),
            splits=splits,
        )
        files = [each for split in splits.values() for each in (*split.shards, split.index)]
        sizes = [(Path(folder) / each["file"], int(each["bytes"])) for each in files]
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged: {error!r}; pack the data anew") from error
    for file, size in sizes:
        if not file.is_file():
            raise MissingFileError(f"{file} is missing, which {path} names: pack the data anew")
        if file.stat().st_size != size:
            raise UserError(
                f"{file} has {file.stat().st_size:,} bytes, and {path} says {size:,}: it was cut"
                " short or changed; copy it again, or pack the data anew"
            )
    return manifest


def require_unchanged(folder: str | Path) -> None:
    """Check that the files of a packed folder have the hashes that it was written with.

    Raises:
        UserError: one has not, or see `read_manifest`.
    """
    for split in read_manifest(folder).splits.values():
        for each in (*split.shards, split.index):
            if digest_of(Path(folder) / each["file"]) != each["sha256"]:
                raise UserError(
                    f"{Path(folder) / each['file']} has another hash than {MANIFEST} says: it was"
                    " changed since; copy it again, or pack the data anew"
                )


def split_named(name: str) -> str:
    """The split, "train" or "val", that a dataset calls `name`, such as "validation"."""
    return "train" if name in SPLITS["train"] else "val"


def digest_of(file: Path) -> str:
    """The SHA-256 of a file."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
