"""Mosaic and copy-paste: training images with masks, put together from several of a dataset."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trainkit.data.dataset_info import DatasetInfo, LazyDataset, SizedDataset, opened
from trainkit.data.datasets.wrapper import Wrapper
from trainkit.data.seeding import reads_in_epoch
from trainkit.data.targets import as_target
from trainkit.errors import UserError

IGNORED = 255


class Composed(Wrapper):
    """Images and masks of a dataset, some of them a mosaic of four, some with parts of another.

    There are as many as before, of the same shape. Partners are drawn uniformly from the dataset by
    the generator that is seeded by (seed, epoch, index), and each goes through the dataset's
    transform: so an image follows from these three, whatever worker or process reads it. A partner
    that cannot be read makes the image one that cannot.

    Mosaic: four images meet at a point of the middle half of each side, each cut there. Copy-paste:
    half of another image's classes, rounded down and drawn anew each time, are pasted with their
    pixels at the same place; what the other image ignores is never pasted. Of masks (K, H, W) of
    classes that overlap, half of those that the other image has are pasted, and a pixel with what
    the other image says of all classes there.

    Args:
        data: with images (C, H, W) and masks (H, W) or (K, H, W) of one shape, as a random crop has
            them.
        mosaic: probability of a mosaic.
        copy_paste: probability of pasted parts, also into a mosaic.
        ignore: the label that is never pasted.

    Raises:
        UserError: a probability is out of range, or the data is streamed, in which one image cannot
            be read without those around it.

    Source:
        Mosaic: Bochkovskiy et al., 2020, YOLOv4. Copy-paste by classes: Olsson et al., 2021,
        ClassMix, after Ghiasi et al., 2021, Simple Copy-Paste.
    """

    def __init__(
        self,
        data: SizedDataset,
        mosaic: float = 0.0,
        copy_paste: float = 0.0,
        ignore: int = IGNORED,
    ):
        super().__init__(data)
        _check(mosaic=mosaic, copy_paste=copy_paste)
        if self.locality is not None:
            raise UserError(
                f"mosaic is {mosaic:g} and copy_paste {copy_paste:g}, and the images are streamed,"
                " which cannot be read one by one: download them (no --stream), or leave both out"
            )
        self.mosaic, self.copy_paste, self.ignore = mosaic, copy_paste, ignore

    @property
    def final_epoch(self) -> int:
        """The epoch from which on the dataset does not change."""
        return DatasetInfo.of(self.data).final_epoch

    def in_epoch(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Item `index` as it is in an epoch, of data that changes with it."""
        return self._composed(partial(reads_in_epoch(self.data), epoch), index)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._composed(self.data.__getitem__, index)

    def _composed(self, read: Callable[[int], Any], index: int) -> tuple[Tensor, Tensor]:
        # all draws of this level come first and are as many each time
        is_mosaic, is_pasted, down, across = torch.rand(4).tolist()
        *corners, other = torch.randint(len(self.data), (4,)).tolist()
        image, mask = _pair(read, index)
        if is_mosaic < self.mosaic:
            pairs = [(image, mask), *(_pair(read, partner) for partner in corners)]
            _require_one_shape(pairs)
            image, mask = (_joined(each, down, across) for each in zip(*pairs))
        if is_pasted < self.copy_paste:
            from_image, from_mask = _pair(read, other)
            _require_one_shape([(image, mask), (from_image, from_mask)])
            pasted = self._pasted(from_mask)
            image = torch.where(pasted, from_image, image)
            mask = torch.where(pasted, from_mask, mask)
        return image, mask

    def _pasted(self, mask: Tensor) -> Tensor:
        """Where the labels of half of the classes in a mask are, a boolean (H, W)."""
        if mask.ndim == 3:
            classes = (mask > 0).flatten(1).any(1).nonzero()[:, 0]
            chosen = torch.randperm(len(classes))[: len(classes) // 2]
            return (mask[classes[chosen]] > 0).any(0)
        classes = mask.unique()
        classes = classes[classes != self.ignore]
        chosen = torch.randperm(len(classes))[: len(classes) // 2]
        return torch.isin(mask, classes[chosen])


def composed(data: SizedDataset, mosaic: float = 0.0, copy_paste: float = 0.0) -> SizedDataset:
    """The dataset itself where neither is asked for; else `Composed`, opened when it is used.

    Args:
        data: with images and masks, maybe a `LazyDataset`.
        mosaic: see `Composed`.
        copy_paste: see `Composed`.

    Raises:
        UserError: a probability is out of range.
    """
    _check(mosaic=mosaic, copy_paste=copy_paste)
    if not mosaic and not copy_paste:
        return data
    return LazyDataset(lambda: Composed(opened(data), mosaic, copy_paste))


def _pair(read: Callable[[int], Any], index: int) -> tuple[Tensor, Tensor]:
    image, mask = read(index)
    return torch.as_tensor(image), as_target(mask)


def _joined(parts: tuple[Tensor, ...], down: float, across: float) -> Tensor:
    """Four images, or masks, that meet at a point: upper left and right, lower left and right.

    Each shows the part of it that would be in sight, were the four laid edge to edge, and a window
    of the size of one laid over the place where they meet.

    Args:
        parts: four of one shape (..., H, W).
        down: in [0, 1), where the point is from a quarter to three quarters of the height.
        across: likewise of the width.
    """
    height, width = parts[0].shape[-2:]
    row, column = height // 4 + int(down * (height // 2)), width // 4 + int(across * (width // 2))
    upper_left, upper_right, lower_left, lower_right = parts
    whole = torch.empty_like(upper_left)
    whole[..., :row, :column] = upper_left[..., height - row :, width - column :]
    whole[..., :row, column:] = upper_right[..., height - row :, : width - column]
    whole[..., row:, :column] = lower_left[..., : height - row, width - column :]
    whole[..., row:, column:] = lower_right[..., : height - row, : width - column]
    return whole


def _require_one_shape(pairs: list[tuple[Tensor, Tensor]]) -> None:
    shapes = {(tuple(image.shape), tuple(mask.shape)) for image, mask in pairs}
    if len(shapes) > 1 or any(image.shape[-2:] != mask.shape[-2:] for image, mask in pairs):
        listed = ", ".join(f"{image} with masks {mask}" for image, mask in sorted(shapes))
        raise UserError(
            f"mosaic and copy_paste take images and masks of one size, and these are {listed}: let"
            " the transform cut crops of one size"
        )


def _check(**probabilities: float) -> None:
    for name, probability in probabilities.items():
        if not 0 <= probability <= 1:
            raise UserError(f"{name} is {probability}; it is a probability, from 0 to 1")
