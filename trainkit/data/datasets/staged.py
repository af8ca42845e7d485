"""A dataset whose transform changes at given epochs: progressive resizing."""

from collections.abc import Callable, Mapping
from typing import Any

from trainkit.data.dataset_info import DatasetInfo, SizedDataset
from trainkit.data.datasets.wrapper import Wrapper
from trainkit.errors import UserError


class Stages(Wrapper):
    """A dataset whose transform depends on the epoch, such as one of growing images.

    What an image looks like still follows from (seed, epoch, image), and all images of a batch are
    of one epoch, so resuming, workers and processes change nothing.

    Args:
        data: a dataset with an attribute `transform`.
        transforms: the first epoch of each -> what its images go through; one is of epoch 0.

    Raises:
        UserError: there is no transform of epoch 0, or the data has none.

    Source:
        Tan and Le, 2021, EfficientNetV2.
    """

    def __init__(self, data: SizedDataset, transforms: Mapping[int, Callable[..., Any]]):
        super().__init__(data)
        if DatasetInfo.of(data).transformed is not data:
            raise UserError(
                f"Stages: {type(data).__name__} has no attribute `transform`, which would change"
            )
        if min(transforms, default=-1) != 0:
            raise UserError(
                f"Stages: transforms begin in epochs {sorted(transforms)}; one must be of epoch 0"
            )
        self.transforms = dict(sorted(transforms.items()))

    @property
    def final_epoch(self) -> int:
        """The epoch from which on the dataset does not change."""
        return max(self.transforms)

    def in_epoch(self, epoch: int, index: int) -> Any:
        """Item `index` as it is in an epoch, from 0."""
        self.data.transform = [
            transform for first, transform in self.transforms.items() if first <= epoch
        ][-1]
        return self.data[index]

    def __getitem__(self, index: int) -> Any:
        raise TypeError(
            "an image of Stages depends on the epoch: in_epoch(epoch, index) gives it; no Subset of"
            " it can"
        )


def sizes_by_epoch(text: str) -> dict[int, int]:
    """Read first epoch -> side of the images, from a text such as "128:0,192:30,224:60".

    Raises:
        UserError: the text is another.
    """
    try:
        sizes, epochs = zip(*(map(int, part.split(":")) for part in text.split(",")))
    except ValueError:
        sizes, epochs = (0,), (0,)
    if epochs[0] != 0 or list(epochs) != sorted(set(epochs)) or min(sizes) < 1:
        raise UserError(
            f"image sizes are {text!r}; give sides and the epochs that they begin in, the first 0,"
            " such as 128:0,192:30,224:60"
        )
    return dict(zip(epochs, sizes))
