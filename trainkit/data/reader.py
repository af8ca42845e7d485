"""Reads one example, names it in errors, checks it, and may replace a bad one."""

import re
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from trainkit.data.dataset_info import DatasetInfo, SizedDataset
from trainkit.data.on_device import OnDevice
from trainkit.data.seeding import Seeded
from trainkit.data.targets import as_target
from trainkit.errors import DataError, ReportedError, UserError, is_shortage

# What datasets raise, also where they have nothing left to give; bugs raise others.
UNUSABLE = (ValueError, OSError, RuntimeError, SyntaxError, EOFError, StopIteration)
MOST_IN_A_ROW = 10
MOST_IDS = 100_000  # class ids that are remembered


class Reader(Dataset):
    """(epoch, index) -> (image, target, faults), with generators seeded as `Seeded` does.

    A target is as `as_target` makes it, or a class id that `collate` makes a tensor of.

    Args:
        data: the dataset.
        seed: of the run.
        check: target -> what is wrong with it, or None.
        replacement: (epoch, index) -> the index that replaces an unusable example, whose index,
            file and fault are then among faults; without it an unusable example raises.
        remedy: what to do about an unusable example, a sentence that ends its message.
        unless_declared: see `Seeded`.
    """

    def __init__(
        self,
        data: SizedDataset,
        seed: int,
        check: Callable[[Tensor], str | None] | None = None,
        replacement: Callable[[int, int], int] | None = None,
        remedy: str = "",
        unless_declared: bool = False,
    ):
        self.seeded = Seeded(data, seed, unless_declared)
        self.check, self.replacement, self.remedy = check, replacement, remedy
        # Class ids that were found right: whether an id is does not change, and there are few.
        self._valid_ids: set[int] = set()
        self.held = data if isinstance(data, OnDevice) else None
        if self.held is not None and check is not None:
            for target in self.held.targets.unique():
                if fault := check(target):
                    raise UserError(
                        f"{fault}: {int((self.held.targets == target).sum())} images have it"
                    )

    def __len__(self) -> int:
        return len(self.seeded)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, Any, list[str]]:
        if self.held is not None:
            epoch, index = key
            images, targets = self.held.read(self.seeded.seed, epoch, [index])
            return images[0], targets[0], []
        return self._read(*key)

    def __getitems__(
        self, keys: Sequence[tuple[int, int]]
    ) -> list[tuple[Any, Any, list[str]]] | tuple[Tensor, Tensor, list[str]]:
        """Read a batch of one epoch, as torch's loader asks for it.

        Returns:
            Rows, or the whole where images are held on a device.
        """
        if self.held is not None:
            (epoch, *_), indices = zip(*keys)
            return *self.held.read(self.seeded.seed, epoch, indices), []
        read = self._read
        return [read(epoch, index) for epoch, index in keys]

    def _read(self, epoch: int, index: int) -> tuple[Any, Any, list[str]]:
        faults: list[str] = []
        while True:
            try:
                image, target = self.seeded.read(epoch, index)
                if type(target) is int and target in self._valid_ids:
                    return image, target, faults
                checked = as_target(target)
                fault = self.check(checked) if self.check is not None else None
                if fault:
                    raise DataError(f"image {index} ({name_of(self.seeded.data, index)}): {fault}")
                if type(target) is not int:
                    return image, checked, faults
                if len(self._valid_ids) < MOST_IDS:
                    self._valid_ids.add(target)
                return image, target, faults
            except Exception as raised:
                error = self._reported(raised, index)
                if not is_unusable(error):
                    raise
                name = name_of(self.seeded.data, index)
                if self.replacement is None:
                    if _ends_as_it_is(error) and not (self.remedy and isinstance(error, DataError)):
                        if error is not raised:
                            raise error from raised
                        raise
                    message = (
                        str(error) if isinstance(error, ReportedError) else _naming(error, name)
                    )
                    if self.remedy:
                        message = f"{message.rstrip('.')}. {self.remedy}"
                    raise DataError(message) from error
                faults.append(
                    f"{index}, {error}" if name in str(error) else f"{index}, {name}: {error}"
                )
                if len(faults) == MOST_IN_A_ROW:
                    raise DataError(
                        f"{MOST_IN_A_ROW} images in a row cannot be used, the last {faults[-1]};"
                        " this is not one bad file: look at the folder or the disk"
                    ) from error
            index = self.replacement(epoch, index)

    def _reported(self, error: Exception, index: int) -> Exception:
        """The error itself, or a DataError for a StopIteration: it would silently end the epoch."""
        if not isinstance(error, StopIteration):
            return error
        return DataError(
            f"image {index} ({name_of(self.seeded.data, index)}): reading it raised StopIteration,"
            " as `next` does where nothing is left"
        )


def _ends_as_it_is(error: Exception) -> bool:
    """Whether `error` is raised unchanged: it names its image, is a bug, or is of the disk."""
    if isinstance(error, DataError) or _of_a_decoder(error):
        return isinstance(error, DataError)
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError)
    return isinstance(error, RuntimeError)


def _naming(error: Exception, name: str) -> str:
    """The message of what a dataset or a decoder raised, with the name of the image in it."""
    if name in str(error):
        return str(error)
    return f"cannot read {name}: {type(error).__name__}: {error}"


def is_unusable(error: Exception) -> bool:
    """Whether `error` means an unusable image or target, and not a bug or out of memory (OOM)."""
    return (isinstance(error, UNUSABLE) or _of_a_decoder(error)) and not is_shortage(error)


def _of_a_decoder(error: Exception) -> bool:
    """Whether an error came out of a decoder that a dataset called.

    Pillow raises KeyError, struct.error and others. It reads when an image is opened, and in its
    plugins; its other functions raise for wrong arguments too.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module, function = frame.f_globals.get("__name__", ""), frame.f_code.co_name
        if module in ("PIL.ImageFile", "torchvision.io.image") or re.fullmatch(
            r"PIL\.\w+Plugin", module
        ):
            return True
        if module == "PIL.Image" and function in ("open", "getexif"):
            return True
    return False


def name_of(data: Any, index: int) -> str:
    """The name of an image for messages, see `DatasetInfo.name_of`."""
    return DatasetInfo.of(data).name_of(index)
