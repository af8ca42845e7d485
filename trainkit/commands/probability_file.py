"""probabilities.npz of a classifier, written row by row."""

import os
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import numpy as np

COPIED_AT_ONCE = 1 << 20  # bytes
CHARACTER = 4  # bytes of one in an array of numpy's strings


class ProbabilityFile:
    """Writes an .npz as `np.savez_compressed` does, of any number of images.

    It holds "files" (N,), "probabilities", float32 (N, C), and the names of "classes" (C,). An
    array's header says its length, which is known at the end, when all images were read: rows are
    kept in files without a name in the same folder until then, and never in memory.

    Args:
        path: of the .npz.
        classes: their names.
    """

    def __init__(self, path: Path, classes: Sequence[str]):
        self.path, self.classes = path, classes
        self._rows = TemporaryFile(dir=path.parent)  # noqa: SIM115
        self._names = TemporaryFile(dir=path.parent)  # noqa: SIM115
        self._lengths: list[int] = []  # of the names

    def add(self, files: Sequence[str], probabilities: np.ndarray) -> None:
        """Keep rows (N, C), one for each file."""
        self._rows.write(np.ascontiguousarray(probabilities, dtype="<f4").tobytes())
        for name in files:
            self._names.write(name.encode("utf-32-le"))
            self._lengths.append(len(name))

    def close(self) -> None:
        """Write the .npz, in place of an older one."""
        aside = self.path.with_name(f".{self.path.name}.writing")
        try:
            with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED) as archive:
                self._write_names(archive)
                shape = len(self._lengths), len(self.classes)
                with _array(archive, "probabilities", "<f4", shape) as array:
                    self._rows.seek(0)
                    shutil.copyfileobj(self._rows, array, COPIED_AT_ONCE)
                with archive.open("classes.npy", "w") as array:
                    np.lib.format.write_array(array, np.array(self.classes, dtype=str))
            os.replace(aside, self.path)
        finally:
            aside.unlink(missing_ok=True)
            self._rows.close()
            self._names.close()

    def _write_names(self, archive: zipfile.ZipFile) -> None:
        width = max(self._lengths, default=1) or 1
        with _array(archive, "files", f"<U{width}", (len(self._lengths),)) as array:
            self._names.seek(0)
            for length in self._lengths:
                name = self._names.read(CHARACTER * length)
                array.write(name.ljust(CHARACTER * width, b"\0"))


def _array(archive: zipfile.ZipFile, name: str, kind: str, shape: tuple[int, ...]) -> IO[bytes]:
    """An array in an archive, of which the header is written."""
    array = archive.open(f"{name}.npy", "w", force_zip64=True)
    header = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(array, header)
    return array
