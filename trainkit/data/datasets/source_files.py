"""Files that a dataset is made of: whether they are there, their lists of names, MATLAB's files."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainkit.data.file_names import composed
from trainkit.data.text_files import read_lines
from trainkit.errors import MissingFileError, MissingPackageError, UserError


def require(name: str, root: Path, needed: Sequence[str], source: str) -> None:
    """Check that files and folders of a dataset are there.

    Args:
        name: of the dataset.
        root: its folder.
        needed: paths below it.
        source: where to get them, for the message.

    Raises:
        MissingFileError: one is missing.
    """
    missing = [each for each in needed if not (Path(root) / each).exists()]
    if missing:
        raise MissingFileError(
            f"no {name} at {Path(root).resolve()}: looked for {', '.join(needed)};"
            f" {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not there. {source}"
        )


def read_names(file: Path) -> list[str]:
    """The names in a split's list: the first word of each line."""
    return [line.split()[0] for line in read_lines(file)]


def require_files(names: Sequence[str], folder: Path, asked_by: str) -> list[str]:
    """The `names` as the files in `folder` spell them.

    Raises:
        MissingFileError: some are missing; the message counts and names them.
    """
    there = {composed(name): name for name in os.listdir(folder)} if folder.is_dir() else {}
    missing = [name for name in names if composed(name) not in there]
    if missing:
        raise MissingFileError(
            f"{len(missing)} of {len(names)} files of {asked_by} are not in {folder}: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        )
    return [there[composed(name)] for name in names]


def read_mat(file: Path, variable: str, field: str | None = None) -> Tensor:
    """Read labels (H, W) from a MATLAB file: a variable, or a field of it where it is a struct.

    Raises:
        UserError: the file cannot be read or lacks them.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise MissingPackageError(f"{file} needs scipy: pip install scipy") from error
    try:
        stored = loadmat(file, variable_names=[variable])[variable]
        labels = stored[0][field][0] if field else stored
        if labels.ndim != 2:
            raise UserError(f"it is of shape {labels.shape}, and not an image")
    except FileNotFoundError:
        raise
    except (
        Exception
    ) as error:  # scipy raises half a dozen kinds, zlib's among them, for a damaged file
        where = f"{variable}.{field}" if field else variable
        raise UserError(
            f"cannot read {where} from {file}: {type(error).__name__}: {error}; replace the file or"
            " take it out of the dataset"
        ) from error
    return torch.from_numpy(labels.astype(np.uint8 if labels.dtype == np.uint8 else np.int32))
