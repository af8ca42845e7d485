"""Base class of datasets that wrap another one."""

from typing import Any

from torch.utils.data import Dataset

from trainkit.data.dataset_info import DatasetInfo, SizedDataset
from trainkit.data.on_device import OnDevice
from trainkit.data.reader import name_of
from trainkit.data.sampler import Locality
from trainkit.errors import UserError


class Wrapper(Dataset):
    """Base of datasets that wrap another one and read one image at a time.

    Args:
        data: the wrapped dataset.

    Raises:
        UserError: its images are held on a device.
    """

    def __init__(self, data: SizedDataset):
        if isinstance(data, OnDevice):
            kind = type(self).__name__
            raise UserError(
                f"{kind}: OnDevice reads and augments whole batches, in which {kind} has no part;"
                f" give OnDevice's `augment` what is to change, or give {kind} the dataset itself"
            )
        self.data: Any = data  # may have attributes of its own, such as `classes`

    @property
    def inner(self) -> SizedDataset:
        """The wrapped dataset."""
        return self.data

    @property
    def classes(self) -> Any:
        """The classes of the wrapped dataset, where it has any."""
        return self.data.classes

    @property
    def locality(self) -> Locality | None:
        """The locality of the wrapped dataset."""
        return DatasetInfo.of(self.data).locality

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint of the wrapped dataset."""
        return DatasetInfo.of(self.data).fingerprint

    def __len__(self) -> int:
        return len(self.data)

    def name_of(self, index: int) -> str:
        """The image's name."""
        return name_of(self.data, index)
