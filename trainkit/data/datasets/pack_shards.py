"""Writes images of a dataset into parquet files whose images can be read one by one."""

import hashlib
import io
import json
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor
from torch.utils.data import Dataset

from trainkit.data.dataset_info import SizedDataset
from trainkit.data.datasets.pack_images import REMEDY, ImagePacker, Packed
from trainkit.data.datasets.packed_format import (
    PARTS,
    PLACE,
    RAW,
    SEGMENTATION,
    Encoding,
    digest_of,
)
from trainkit.errors import DataError
from trainkit.files import flush, replace_file

GROUP_BYTES, GROUP_ROWS = 4 << 20, 256  # what a row group has at least, and at most
PREFIX = 64  # bytes by which a value is looked for in its file


@dataclass(frozen=True)
class Shard:
    """Which images of a split a file has.

    Attributes:
        split: "train" or "val".
        number: of the file, from 0, among `total`.
        start: its first image.
        stop: the image after its last one.
    """

    split: str
    number: int
    total: int
    start: int
    stop: int

    @property
    def file(self) -> str:
        """Its name."""
        return f"{self.split}-{self.number:05}-of-{self.total:05}.parquet"


def shards_of(split: str, num_images: int, most: int) -> list[Shard]:
    """The files of a split, of up to `most` images each."""
    total = -(-num_images // most)
    return [
        Shard(split, number, total, number * most, min(num_images, (number + 1) * most))
        for number in range(total)
    ]


class ShardWriter(Dataset):
    """Index -> what was written of a shard, a dict as `recorded` reads it.

    Each file is written aside, read again, flushed and renamed into place: it is whole or absent.

    Args:
        folder: to write into, which has a folder `PARTS`.
        shards: to be written, of one split.
        data: of that split, without transforms.
        task: RECOGNITION or SEGMENTATION.
        classes: names in the order of their ids, or how many.
        encoding: how images are stored.
        check: what the task says of a target.
        leave_out: leave unusable images out, instead of raising.
        root: see `ImagePacker`.

    Raises:
        DataError: by an index, for an image that cannot be read or stored, or a target that is
            wrong; the message names it.
    """

    def __init__(
        self,
        folder: Path,
        shards: Sequence[Shard],
        data: SizedDataset,
        task: str,
        classes: Sequence[str] | int,
        encoding: Encoding,
        check: Callable[[Tensor], str | None] | None,
        leave_out: bool,
        root: str | Path | None = None,
    ):
        self.folder, self.shards = folder, shards
        self.task, self.encoding, self.leave_out = task, encoding, leave_out
        remedy = "" if leave_out else REMEDY
        self.images = ImagePacker(data, task, encoding, check, remedy, root)
        self.schema = _schema(task, classes, encoding)

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, number: int) -> dict[str, Any]:
        shard = self.shards[number]
        aside = self.folder / f".{shard.file}.writing"
        left_out: list[str] = []
        try:
            groups = self._write(shard, aside, left_out)
            index = _found(aside, groups, shard.number, self.encoding.kind == RAW)
            flush(aside)
            record = {
                "file": shard.file, "num_images": len(index), "bytes": aside.stat().st_size,
                "sha256": digest_of(aside), "left_out": left_out,
            }  # fmt: skip
            os.replace(aside, self.folder / shard.file)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        part = self.folder / PARTS / shard.file
        buffer = io.BytesIO()
        np.save(buffer, index)
        replace_file(part.with_suffix(".npy"), buffer.getvalue())
        replace_file(part.with_suffix(".json"), json.dumps(record).encode())
        return record

    def _write(
        self, shard: Shard, aside: Path, left_out: list[str]
    ) -> list[list[tuple[Packed, bytes]]]:
        """Write the file; of each row group what `_found` needs to know of its images."""
        groups: list[list[tuple[Packed, bytes]]] = []
        with pq.ParquetWriter(
            aside, self.schema, compression="none", use_dictionary=False, write_statistics=False
        ) as writer:
            waiting: list[Packed] = []
            for packed in self._images(shard, left_out):
                waiting.append(packed)
                if sum(each.size for each in waiting) >= GROUP_BYTES or len(waiting) == GROUP_ROWS:
                    groups.append(self._write_group(writer, waiting))
                    waiting = []
            if waiting:
                groups.append(self._write_group(writer, waiting))
        return groups

    def _write_group(
        self, writer: pq.ParquetWriter, waiting: list[Packed]
    ) -> list[tuple[Packed, bytes]]:
        rows = [_row(each, self.task, self.encoding) for each in waiting]
        table = pa.Table.from_pylist(rows, schema=self.schema)
        writer.write_table(table, row_group_size=len(rows))
        return [(_shortened(each), _digest(each.image) + _digest(each.mask)) for each in waiting]

    def _images(self, shard: Shard, left_out: list[str]) -> Iterator[Packed]:
        for index in range(shard.start, shard.stop):
            try:
                yield self.images.read(index)
            except DataError as error:
                if not self.leave_out:
                    raise
                left_out.append(f"{index}, {error}")


def recorded(folder: Path, shard: Shard) -> dict[str, Any] | None:
    """What `ShardWriter` wrote of a shard earlier; None where it is not there as it was written."""
    part = folder / PARTS / shard.file
    try:
        record = json.loads(part.with_suffix(".json").read_bytes())
        np.load(part.with_suffix(".npy"), mmap_mode="r")
        file = folder / shard.file
        if file.stat().st_size != record["bytes"] or digest_of(file) != record["sha256"]:
            return None
    except (OSError, ValueError, KeyError, TypeError):  # half of it, or nothing
        return None
    return record


def _schema(task: str, classes: Sequence[str] | int, encoding: Encoding) -> pa.Schema:
    """Columns that `datasets` knows as images and class names too, but for raw pixels."""
    encoded = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    kind = pa.binary() if encoding.kind == RAW else encoded
    fields = [("image", kind), ("name", pa.string()), ("height", pa.int32()), ("width", pa.int32())]
    features: dict[str, Any] = {
        "name": {"dtype": "string", "_type": "Value"},
        "height": {"dtype": "int32", "_type": "Value"},
        "width": {"dtype": "int32", "_type": "Value"},
    }
    features |= {"image": _feature(encoding)}
    if task == SEGMENTATION:
        fields.append(("mask", kind))
        features["mask"] = _feature(encoding)
    else:
        fields.append(("label", pa.int64()))
        names = [str(each) for each in (range(classes) if isinstance(classes, int) else classes)]
        features["label"] = {"names": names, "_type": "ClassLabel"}
    about = json.dumps({"info": {"features": features}})
    return pa.schema(
        fields, metadata={"huggingface": about, "trainkit": json.dumps(asdict(encoding))}
    )


def _feature(encoding: Encoding) -> dict[str, Any]:
    if encoding.kind == RAW:
        return {"dtype": "binary", "_type": "Value"}
    return {"_type": "Image"}


def _row(packed: Packed, task: str, encoding: Encoding) -> dict[str, Any]:
    def stored(content: bytes) -> Any:
        return content if encoding.kind == RAW else {"bytes": content, "path": None}

    row = {
        "image": stored(packed.image), "name": packed.name,
        "height": packed.height, "width": packed.width,
    }  # fmt: skip
    more = {"mask": stored(packed.mask)} if task == SEGMENTATION else {"label": packed.label}
    return row | more


def _shortened(packed: Packed) -> Packed:
    """With no more of its bytes than they are looked for by, and how many there were."""
    return packed._replace(
        name="", image=_sought(packed.image), mask=_sought(packed.mask) if packed.mask else b""
    )


def _sought(content: bytes) -> bytes:
    """A value as parquet begins it: its length, and its first bytes."""
    return len(content).to_bytes(4, "little") + content[:PREFIX]


def _digest(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _found(
    file: Path, groups: list[list[tuple[Packed, bytes]]], shard: int, is_raw: bool
) -> np.ndarray:
    """Where each image lies, found by its bytes, which are compared with what was to be written."""
    rows = []
    footer = pq.read_metadata(file)
    if footer.num_rows == 0:
        return np.zeros(0, PLACE)
    leaf = "" if is_raw else ".bytes"
    with open(file, "rb") as opened:
        whole = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    with whole:
        for number, group in enumerate(groups):
            columns = {
                chunk.path_in_schema: chunk.data_page_offset
                for chunk in map(footer.row_group(number).column, range(footer.num_columns))
            }
            image_at, mask_at = columns[f"image{leaf}"], columns.get(f"mask{leaf}", 0)
            for packed, digest in group:
                image_at, image_bytes = _place(whole, packed.image, image_at, digest[:16])
                mask_bytes = 0
                if packed.mask:
                    mask_at, mask_bytes = _place(whole, packed.mask, mask_at, digest[16:])
                rows.append(
                    (shard, packed.height, packed.width, mask_bytes, image_at, image_bytes,
                     mask_at if mask_bytes else 0, packed.label)
                )  # fmt: skip
                image_at, mask_at = image_at + image_bytes, mask_at + mask_bytes
    return np.array(rows, PLACE)


def _place(whole: mmap.mmap, sought: bytes, start: int, digest: bytes) -> tuple[int, int]:
    """First byte and number of bytes of a value that begins as `sought`, from `start` on."""
    length = int.from_bytes(sought[:4], "little")
    at = start - 1
    while (at := whole.find(sought, at + 1)) >= 0:
        first = at + 4
        if _digest(memoryview(whole)[first : first + length]) == digest:
            return first, length
    raise OSError("a file that was just written does not hold what was written: look at the disk")
