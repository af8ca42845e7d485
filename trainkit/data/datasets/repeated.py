"""Repeated augmentation: the same image several times in a batch, augmented differently."""

from typing import Any

from trainkit.data.dataset_info import DatasetInfo, SizedDataset
from trainkit.data.datasets.wrapper import Wrapper
from trainkit.data.seeding import reads_in_epoch
from trainkit.errors import UserError


class Repeated(Wrapper):
    """Copies of every image of a dataset, all in the same batch: repeated augmentation.

    Index i + k n is copy k of image i of n; as the seed of an image is drawn from its index, copies
    are augmented differently. `TrainOrder` lays them out: a batch of B images has B / times
    different ones, so batch_size must be a multiple of `times`, and an epoch is `times` as long:
    divide `epochs` by it for a training of the same length, as DeiT counts. For the larger batches
    of Hoffer et al. multiply batch_size by it.

    Args:
        data: the dataset.
        times: number of copies.

    Raises:
        UserError: `times` is out of range.

    Source:
        Hoffer et al., 2020, Augment Your Batch; Berman et al., 2019, MultiGrain.
    """

    def __init__(self, data: SizedDataset, times: int = 3):
        if times < 1:
            raise UserError(f"times is {times}; it must be at least 1, which repeats nothing")
        super().__init__(data)
        self.repeats = times

    def __len__(self) -> int:
        return self.repeats * len(self.data)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.data[index % len(self.data)]

    @property
    def final_epoch(self) -> int:
        """The epoch from which on the dataset does not change."""
        return DatasetInfo.of(self.data).final_epoch

    def in_epoch(self, epoch: int, index: int) -> Any:
        """Item `index` as it is in an epoch, of data that changes with it."""
        return reads_in_epoch(self.data)(epoch, index % len(self.data))

    def name_of(self, index: int) -> str:
        """The image's name, the same for all its copies."""
        return super().name_of(index % len(self.data))
